"""Planted secrets: many fetches in one process that talks too much, and a search for the secrets in all that it left.

A secret is looked for as it is, percent-encoded, as JSON and Python write it, and in base64 wherever it stands in it.
"""

from __future__ import annotations

import base64
import json
import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

from tests.support import Modelstore, Result

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable

#: What a real fetch waits for a minute, it waits for a moment here.
LIMITS = {
    "CONNECT_SECONDS": 1.0,
    "HEADER_SECONDS": 1.0,
    "STALL_SECONDS": 0.2,
    "MAX_RETRY_AFTER": 0.1,
    "TRIES": 3,
    "FIRST_DELAY": 0.01,
    "LONGEST_DELAY": 0.05,
}
#: In which the command speaks. "api": the library with every logger of the process, and no command.
VOICES = {"text": ("-v",), "json": ("-v", "--log-format", "json"), "api": None}
#: Fetches each URL of a plan. "api": by the library, with every logger of the process at its loudest, and each error
#: told to the end. Else: by the command with the options of the plan. What it starts is told as well.
DRIVER = r"""
import json, logging, pathlib, pickle, sys, time, traceback

def audit(event, args):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        print("started", args[:2], file=sys.stderr)

def tell(error):
    print("".join(traceback.format_exception(error)), pickle.dumps(error), file=sys.stderr)
    told = []
    while error is not None and error not in told:
        print(repr(error), str(error), error.args, file=sys.stderr)
        if type(error).__module__.startswith("modelstore."):
            print(vars(error), file=sys.stderr)
        told.append(error)
        reason = getattr(error, "reason", None)
        error = error.__cause__ or error.__context__ or (reason if isinstance(reason, BaseException) else None)

def by_library(url):
    from modelstore import Store
    from modelstore.errors import ModelStoreError
    try:
        Store([plan["root"]]).fetch(url)
    except ModelStoreError as error:
        tell(error)
        return error.exit_code
    return 0

def by_command(url):
    from modelstore.cli import main
    codes = []
    for command in (["fetch", "--json"], ["show"], ["key", "--explain"]):
        sys.argv[1:] = [*plan["options"], "--tier", plan["root"], *command, url]
        try:
            main()
        except SystemExit as end:
            codes.append(end.code)
    return codes[0]

plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
sys.addaudithook(audit)
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.01))
from modelstore import fetching
from modelstore.transfer import limits
fetching.RESOLVE_DELAYS = (0.01, 0.01)
for name, value in plan["limits"].items():
    setattr(limits, name, value)
if plan["api"]:
    logging.basicConfig(level=1, stream=sys.stderr, format="%(name)s %(message)s")
    for name in ("urllib3", "botocore", "httpx", "httpcore", "fsspec", "asyncio", "filelock"):
        logging.getLogger(name).setLevel(1)
exec(plan["also"])
fetch = by_library if plan["api"] else by_command
for name, url in plan["urls"].items():
    print("\nENDED", name, fetch(url), flush=True)
"""


def canary(kind: str, tail: str = "") -> str:
    """A secret that no other test has."""
    return f"c4nary-{kind}-{secrets.token_hex(6)}{tail}"


def forms(secret: str) -> set[bytes]:
    """How a secret may look."""
    raw = secret.encode()
    texts = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), json.dumps(secret)[1:-1]}
    texts |= {text.lower() for text in texts} | {repr(secret)[1:-1], repr(raw)[2:-1]}
    found = {text.encode() for text in texts}
    for before in range(3):  # three places in a group of base64; what depends on the neighbours is cut off
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * before + raw).rstrip(b"=")
            whole = (before + len(raw)) * 8 // 6
            found.add(text[(0, 2, 3)[before] : whole])
    return found


def find(needles: Iterable[str], texts: dict[str, bytes]) -> list[str]:
    """Where a secret was found, and which; nothing is as it should be."""
    every = {needle: forms(needle) for needle in needles}
    assert every, "nothing to look for"
    return [
        f"{needle} in {place}: …{text[max(0, text.find(form) - 150) : text.find(form) + 50]!r}"
        for place, text in texts.items()
        for needle, looks in every.items()
        for form in looks
        if form in text
    ]


def files(*roots: Path, planted: Iterable[Path] = ()) -> dict[str, bytes]:
    """The content of every file below, and all names; less what the test itself planted."""
    known = set(planted)
    paths = [path for root in roots for path in root.rglob("*") if path not in known]
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):  # a process that runs renames what is whole
            if path.is_file():
                found[str(path)] = path.read_bytes()
    return {**found, "names": "\n".join(map(str, paths)).encode()}


def process_list() -> dict[str, bytes]:
    """The arguments of every process of this machine."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found[f"arguments of {entry.name}"] = (entry / "cmdline").read_bytes()
        except OSError:
            continue
    return found


@dataclass
class Watched:
    """Runs plans in a home of their own, and looks for the secrets after each."""

    cli: Modelstore
    root: Path
    work: Path  # plans and settings: not looked at
    needles: list[str] = field(default_factory=list)
    planted: list[Path] = field(default_factory=list)  # files below the home that hold secrets because the user says so

    def with_env(self, **env: str) -> Watched:
        return replace(self, cli=self.cli.with_env(**env))

    def plant(self, name: str, text: str) -> Path:
        """A file in the home, for the user's eyes only."""
        path = self.cli.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
        self.planted.append(path)
        return path

    def command(
        self, urls: dict[str, str], *options: str, api: bool = False, also: str = "", **limits: float
    ) -> Modelstore:
        """The driver, with a plan in a file: not even its own arguments have a secret. `also` is run before it."""
        self.work.mkdir(exist_ok=True)
        plan: dict[str, Any] = {"urls": urls, "options": options, "root": str(self.root), "api": api, "also": also}
        path = self.work / f"{secrets.token_hex(4)}.json"
        path.write_text(json.dumps({**plan, "limits": {**LIMITS, **limits}}))
        program = replace(self.cli, command=(sys.executable, "-c", DRIVER, str(path)), options=())
        temporary = self.cli.home / "tmp"
        temporary.mkdir(exist_ok=True)
        return program.with_env(TMPDIR=str(temporary), HF_HUB_VERBOSITY="debug", HF_DEBUG="1")

    def run(self, urls: dict[str, str], *options: str, api: bool = False) -> dict[str, int]:
        """How each fetch ended; at most one secret seen is one too many."""
        return self.judge(self.command(urls, *options, api=api)())

    def endure(self, urls: dict[str, str], voice: str, fine: Iterable[str]) -> None:
        """`run`, and only `fine` ones end well. Code 1 would be an error that nobody thought of.

        What is "changed" at the second request may end either way: some need no second one.
        """
        options = VOICES[voice]
        codes = self.run(urls, *(options or ()), api=options is None)
        assert codes.keys() == urls.keys()
        for name, code in codes.items():
            good, bad = code == 0, 3 <= code <= 7
            assert (good or bad) if name.startswith("changed") else (good if name in fine else bad), (name, code)

    def judge(self, result: Result) -> dict[str, int]:
        assert result.returncode == 0, result
        self.look({"stdout": result.stdout.encode(), "stderr": result.stderr.encode()})
        ended = [line.split() for line in result.stdout.splitlines() if line.startswith("ENDED ")]
        return {name: int(code) for _, name, code in ended}

    def look(self, texts: dict[str, bytes] | None = None) -> None:
        everything = {**(texts or {}), **files(self.root, self.cli.home, planted=self.planted), **process_list()}
        found = find(self.needles, everything)
        assert not found, "\n".join(found[:12])

    def start(self, urls: dict[str, str], *options: str) -> subprocess.Popen[str]:
        """One that is to be killed while it waits for bytes."""
        return self.command(urls, *options, STALL_SECONDS=60).start()
