"""The contestants of a download as commands: ours, the floor, and the peers that are found."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.payload import Payload, Served

__all__ = ["Contestant", "Race", "Toolbox", "environ"]


@dataclass(frozen=True)
class Contestant:
    """A command that downloads the payload into an empty directory, and where a file is found there afterwards.

    ``place`` is None for one that only reads what is served. ``durable``: what it wrote survives a power cut when it
    ends, without help.
    """

    name: str
    command: Sequence[str]
    place: Callable[[Served], str] | None = lambda file: file.name
    durable: bool = False


@dataclass(frozen=True)
class Race:
    """What is downloaded, from where (``endpoint``, without a path) and to where."""

    payload: Payload
    endpoint: str
    target: Path
    listing: Path
    scratch: Path
    certificate: Path

    @property
    def url(self) -> str:
        return f"{self.endpoint}/{self.payload.name}"


@dataclass(frozen=True)
class Toolbox:
    """Finds the peers: in the directories given (virtual environments, or with the tools in them), then on PATH."""

    directories: Sequence[Path] = ()
    missing: list[str] = field(default_factory=list)

    def contestants(self, race: Race) -> Iterator[Contestant]:
        """Those that can run this race, ours first."""
        yield from _ours(race)
        yield _module("floor: bare urllib3", sys.executable, "floor", race)
        for name, build in (("s5cmd", _s5cmd), ("hf", _hf), ("aws", _aws), ("aria2c", _aria2), ("curl", _curl)):
            if tool := self.find(name):
                yield build(tool, race)
        for name in ("boto3", "obstore", "s3fs"):
            if python := self.python(name):
                yield _module(name, python, name, race)

    def yardsticks(self, race: Race) -> Iterator[Contestant]:
        """SHA-256 of the same bytes by a tool, one file to a core. One file cannot be cut up for that, by nobody."""
        cores = str(len(os.sched_getaffinity(0)))
        batch = "1" if len(race.payload.files) < 100 else "50"
        names = race.scratch / f"{race.payload.name}.names"
        names.write_text("\0".join(str(race.payload.directory / file.name) for file in race.payload.files))
        for name, command in (("sha256sum", ["sha256sum"]), ("openssl", ["openssl", "dgst", "-sha256"])):
            if self.find(command[0]):
                call = ["xargs", "-0", "-n", batch, "-P", cores, "-a", str(names), *command]
                yield Contestant(f"{name} of it, {cores} cores", call, place=None)

    @cached_property
    def _path(self) -> str:
        given = [str(place) for directory in self.directories for place in (directory / "bin", directory)]
        return os.pathsep.join([*given, os.environ.get("PATH", os.defpath)])

    def find(self, name: str) -> str | None:
        """The executable of a peer. Of s5cmd, the program itself and not the Python script that starts it."""
        found = shutil.which(name, path=self._path)
        if found is None:
            self._miss(name)
        elif name == "s5cmd":
            inner = sorted(Path(found).resolve().parents[1].glob("lib/python*/site-packages/s5cmd/bin/s5cmd"))
            return str(inner[0]) if inner else found
        return found

    def python(self, module: str) -> str | None:
        """The first Python that can import a peer."""
        pythons = [str(directory / "bin" / "python") for directory in self.directories]
        for python in [*(each for each in pythons if os.path.exists(each)), sys.executable]:
            code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
            if not subprocess.run([python, "-c", code], stderr=subprocess.DEVNULL).returncode:
                return python
        self._miss(module)
        return None

    def _miss(self, name: str) -> None:
        if name not in self.missing:
            self.missing.append(name)

    def versions(self) -> str:
        """Of every peer that is found, in one line."""
        asked = {"s5cmd": "version", "hf": "version", "aws": "--version", "aria2c": "--version", "curl": "--version"}
        said = []
        for name, option in asked.items():
            if tool := self.find(name):
                done = subprocess.run([tool, option], capture_output=True, text=True, env={"HOME": os.devnull})
                words = (done.stdout + done.stderr).replace("/", " ").split()
                said.append(f"{name} {next((word for word in words if word.strip('v')[:1].isdigit()), '?')}")
        for name in ("boto3", "obstore", "s3fs"):
            if python := self.python(name):
                code = f"import importlib.metadata as found; print(found.version({name!r}))"
                done = subprocess.run([python, "-c", code], capture_output=True, text=True)
                said.append(f"{name} {done.stdout.strip()}")
        nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr if shutil.which("nginx") else ""
        return ", ".join([*said, nginx.rpartition(" ")[2].strip() or "nginx"])


def environ(race: Race) -> dict[str, str]:
    """Nothing of this machine's settings; the server's certificate is trusted under every name that tools look for."""
    home, trusted = str(race.scratch / "home"), str(race.certificate)
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": home,
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONPYCACHEPREFIX": str(race.scratch / "pycache"),
        **dict.fromkeys(("SSL_CERT_FILE", "AWS_CA_BUNDLE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"), trusted),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "HF_HOME": f"{home}/hf",
        "HF_ENDPOINT": race.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }


def _module(name: str, python: str, who: str, race: Race, *options: str) -> Contestant:
    where = ["--listing", str(race.listing), "--url", race.url, "--to", str(race.target)]
    return Contestant(name, [python, "-m", "benchmarks.contestants", who, *where, *options])


def _ours(race: Race) -> Iterator[Contestant]:
    """Both ways of the engine, and for one file what a user types."""
    for name, options in {"modelstore, sums known": (), "modelstore, SHA-256": ("--sha256",)}.items():
        command = _module(name, sys.executable, "ours", race, *options).command
        yield Contestant(name, command, _blob, durable=True)
    if race.payload.single:
        script = os.path.join(sysconfig.get_path("scripts"), "modelstore")
        run = [script] if os.path.exists(script) else [sys.executable, "-m", "modelstore"]
        command = [*run, "--tier", str(race.target), "fetch", f"{race.url}/{race.payload.files[0].name}"]
        yield Contestant("modelstore fetch (SHA-256)", command, _blob, durable=True)


def _blob(file: Served) -> str:
    return f"blobs/sha256-{file.sha256}"


def _s5cmd(tool: str, race: Race) -> Contestant:
    """With a slash at the end, as it wants a directory to be written."""
    what = race.payload.files[0].name if race.payload.single else "*"
    copy = ["cp", f"s3://{race.payload.name}/{what}", f"{race.target}/"]
    return Contestant("s5cmd", [tool, "--no-sign-request", "--endpoint-url", race.endpoint, *copy])


def _aws(tool: str, race: Race) -> Contestant:
    what = f"/{race.payload.files[0].name}" if race.payload.single else "/"
    copy = ["s3", "cp", "--no-sign-request", "--endpoint-url", race.endpoint, "--only-show-errors"]
    recursive = [] if race.payload.single else ["--recursive"]
    return Contestant("aws s3 cp", [tool, *copy, *recursive, f"s3://{race.payload.name}{what}", f"{race.target}/"])


def _hf(tool: str, race: Race) -> Contestant:
    return Contestant("hf download", [tool, "download", f"bench/{race.payload.name}", "--local-dir", str(race.target)])


def _aria2(tool: str, race: Race) -> Contestant:
    """Sixteen connections, for one file each to a piece of it, for many each to one."""
    urls = race.scratch / f"{race.payload.name}.urls"
    urls.write_text("".join(f"{race.url}/{file.name}\n" for file in race.payload.files))
    split = ["-x16", "-s16", "-k1M", "-j16"] if race.payload.files[0].size > MANY_BELOW else ["-x1", "-s1", "-j16"]
    quiet = ["--quiet", "--file-allocation=none", "--no-conf", f"--ca-certificate={race.certificate}"]
    return Contestant("aria2c -x16", [tool, *split, *quiet, "-d", str(race.target), "-i", str(urls)])


#: A file smaller than this is not cut into pieces by anybody.
MANY_BELOW = 32 * 1024 * 1024


def _curl(tool: str, race: Race) -> Contestant:
    config = race.scratch / f"{race.payload.name}.curl"
    names = [file.name for file in race.payload.files]
    config.write_text("".join(f'url = "{race.url}/{name}"\noutput = "{race.target}/{name}"\n' for name in names))
    parallel = [] if race.payload.single else ["--parallel", "--parallel-max", "16"]
    name = "curl" if race.payload.single else "curl --parallel"
    return Contestant(name, [tool, "-q", "--silent", "--show-error", "--fail", *parallel, "--config", str(config)])
