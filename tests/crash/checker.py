"""An independent checker of a tier's directory: what must hold after any crash, whatever was going on.

Written from docs/format.md alone: standard library only, and nothing of modelstore or of the other tests, so that no
mistake is shared. `violations` reads everything and returns sentences; none means that all of this holds:

- every file in blobs/ has the SHA-256 that names it, mode 0444, and is a plain file;
- every ref is valid and its manifest and all its blobs are there and right (or there is no ref);
- every model directory is complete and equal to one manifest, 0444 files in 0755 directories (or it is absent);
- nothing staged or foreign has a published name, and leftovers are bounded in number and bytes;
- no secret is in any name or file.

`Watch` sees whether anything outside a tier was touched, and whether published files were changed in place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

HEX64 = re.compile(r"[0-9a-f]{64}")
BLOB = re.compile(r"sha256-([0-9a-f]{64})")
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
SIBLING = re.compile(r"\..+\.[0-9a-f]{16}(\.old)?\.modelstore")
PATH = "org.cncf.model.filepath"
#: Names of ours in the root, and in its .modelstore.
TOP = {"CACHEDIR.TAG", "blobs", "manifests", "models", ".modelstore"}
OWN = {"format.json", "refs", "sums", "layouts", "ingest", "locks", "quarantine"}
PIECE = 1 << 20

Tree = dict[str, str]  # relative path -> SHA-256


@dataclass
class Limits:
    """How much may be left behind."""

    staged_files: int = 0
    staged_bytes: int = 0
    siblings: int = 0
    quarantined: int = 0


@dataclass
class Checker:
    """One look at one root. `trees`: what a model directory may hold, if the test knows; else any manifest's files."""

    root: Path
    targets: Iterable[Path] = ()
    trees: Iterable[Tree] | None = None
    secrets: Iterable[str] = ()
    limits: Limits = field(default_factory=Limits)
    power_lost: bool = False  # records that are not synced may be torn then, and count as absent
    found: list[str] = field(default_factory=list)
    _hashes: dict[tuple[int, int], str] = field(default_factory=dict)
    _needles: list[bytes] = field(default_factory=list)

    def run(self) -> list[str]:
        self._needles = [needle for secret in self.secrets for needle in _spellings(secret)]
        if self.root.is_dir():
            self._top()
            self._blobs()
            self._refs()
            self._leftovers()
            for model in _entries(self.root / "models"):
                self._model(model)
            self._secrets(self.root)
        for target in self.targets:
            if target.parent.is_dir():
                self._target(target)
        return self.found

    def _say(self, sentence: str) -> None:
        self.found.append(sentence)

    # -- what is where ----------------------------------------------------------------------------------------------

    def _top(self) -> None:
        own = self.root / ".modelstore"
        for folder, known in ((self.root, TOP), (own, OWN)):
            for path in _entries(folder):
                if path.name not in known:
                    self._say(f"{path} has no business there")
                elif path.name not in ("CACHEDIR.TAG", "format.json"):
                    self._is_folder(path)
        if self.root.stat().st_mode & 0o7777 != 0o755:
            self._say(f"{self.root} is not 0755")
        marker = own / "format.json"
        if marker.exists() and marker.read_bytes() != b'{"version":1}':
            self._say(f"{marker} is damaged: {marker.read_bytes()!r}")
        self._records(own)

    def _records(self, own: Path) -> None:
        for folder in ("refs", "sums", "layouts"):
            for path in _entries(own / folder):
                self._is_file(path, 0o644)
                if not re.fullmatch(r"(sha256-)?[0-9a-f]{64}\.json", path.name):
                    self._say(f"{path} has a name that nothing has")
                elif not self.power_lost and not isinstance(_json(path), dict):
                    self._say(f"{path} is no JSON object: a record is written whole or not at all")

    def _is_folder(self, path: Path) -> None:
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode) or mode & 0o7777 != 0o755:
            self._say(f"{path} is no directory of mode 0755: {mode:o}")

    def _is_file(self, path: Path, mode: int) -> bool:
        actual = path.lstat().st_mode
        if not stat.S_ISREG(actual) or actual & 0o7777 != mode:
            self._say(f"{path} is no plain file of mode {mode:o}: {actual:o}")
        return stat.S_ISREG(actual)

    def _hash(self, path: Path) -> str:
        at = path.stat()
        key = (at.st_dev, at.st_ino)
        if key not in self._hashes:
            with path.open("rb") as file:
                self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[key]

    # -- what is promised -------------------------------------------------------------------------------------------

    def _blobs(self) -> None:
        for path in _entries(self.root / "blobs"):
            match = BLOB.fullmatch(path.name)
            if not match:
                self._say(f"{path} has no blob's name")
            elif self._is_file(path, 0o444) and self._hash(path) != match.group(1):
                self._say(f"{path} holds other bytes: {self._hash(path)}")

    def _blob(self, digest: Any) -> Path | None:
        match = DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        path = self.root / "blobs" / f"sha256-{match.group(1)}" if match else None
        return path if path and path.is_file() and self._hash(path) == path.name.removeprefix("sha256-") else None

    def _refs(self) -> None:
        for path in _entries(self.root / ".modelstore" / "refs"):
            ref = _json(path)
            if not isinstance(ref, dict) or ref.get("version") != 1:
                self._say(f"{path} is not a ref of version 1")
                continue
            if hashlib.sha256(str(ref.get("source")).encode()).hexdigest() != path.stem:
                self._say(f"{path} is not named by its source")
            manifest = self._blob(ref.get("manifest"))
            if manifest is None:
                self._say(f"{path} names a manifest that is not there, or wrong")
                continue
            content = _json(manifest)
            for layer in [content["config"], *content["layers"]]:
                blob = self._blob(layer["digest"])
                if blob is None or blob.stat().st_size != layer["size"]:
                    self._say(f"{path} needs {layer['digest']}, which is not there, or wrong")

    def _manifests(self) -> Iterator[Tree]:
        """The files of every manifest among the blobs."""
        for path in _entries(self.root / "blobs"):
            if path.is_file() and path.stat().st_size < 4 * PIECE:
                content = _json(path)
                if isinstance(content, dict) and isinstance(content.get("layers"), list):
                    yield {
                        layer["annotations"][PATH]: layer["digest"].removeprefix("sha256:")
                        for layer in content["layers"]
                    }

    def _model(self, path: Path) -> None:
        if SIBLING.fullmatch(path.name):
            return  # counted as a leftover
        if not re.fullmatch(r"[0-9a-f]{16}", path.name):
            self._say(f"{path} has no model's name")
        self._tree(path)

    def _tree(self, path: Path) -> None:
        tree: Tree = {}
        for below in (path, *sorted(path.rglob("*"))):
            if stat.S_ISDIR(below.lstat().st_mode):
                self._is_folder(below)
            elif self._is_file(below, 0o444):
                tree[below.relative_to(path).as_posix()] = self._hash(below)
        allowed = list(self._manifests() if self.trees is None else self.trees)
        if tree not in allowed:
            self._say(f"{path} is no model's tree: {tree}")

    def _target(self, target: Path) -> None:
        if os.path.lexists(target):
            self._tree(target)
        self._count("siblings of a target", _siblings(target.parent), self.limits.siblings)

    # -- what is left -----------------------------------------------------------------------------------------------

    def _leftovers(self) -> None:
        own = self.root / ".modelstore"
        staged = list(_entries(own / "ingest"))
        self._count("staged files", staged, self.limits.staged_files)
        for path in staged:
            if not re.fullmatch(r"[0-9a-zA-Z._-]+\.(staged|journal)", path.name):
                self._say(f"{path} has no staged file's name")
        size = sum(_room(path.lstat()) for path in staged)
        if size > self.limits.staged_bytes:
            self._say(f"{size} bytes are left staged, more than {self.limits.staged_bytes}")
        self._count("quarantined files", list(_entries(own / "quarantine")), self.limits.quarantined)
        self._count("hidden siblings", _siblings(self.root / "models"), self.limits.siblings)

    def _count(self, what: str, paths: list[Path], limit: int) -> None:
        if len(paths) > limit:
            self._say(f"{len(paths)} {what} are left, more than {limit}: {[str(path) for path in paths]}")

    def _secrets(self, folder: Path) -> None:
        for path in folder.rglob("*") if self._needles else ():
            texts = [os.fsencode(path.name)]
            if path.is_symlink():
                texts.append(os.fsencode(path.readlink()))
            elif path.is_file():
                texts += _pieces(path)
            for needle in self._needles:
                if any(needle in text for text in texts):
                    self._say(f"{path} has a secret in it")


def violations(root: Path, **options: Any) -> list[str]:
    """What does not hold in the tier at `root`; options are the fields of `Checker`."""
    return Checker(root, **options).run()


def leaks(text: str, secrets: Iterable[str]) -> list[str]:
    """The secrets that are in an output, in any spelling."""
    return [secret for secret in secrets if any(needle in text.encode() for needle in _spellings(secret))]


@dataclass
class Watch:
    """Files and directories as they were. Changed in place or gone: `outside` may not, `published` may not change."""

    outside: Iterable[Path] = ()
    published: Iterable[Path] = ()

    def __post_init__(self) -> None:
        self._before = {str(folder): _snapshot(folder) for folder in self.outside}
        self._inodes = {state[0]: state for folder in self.published for state in _snapshot(folder).values()}

    def violations(self) -> list[str]:
        found = []
        for folder, before in self._before.items():
            after = _snapshot(Path(folder))
            changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
            found += [f"{folder}/{name} was touched, and is outside" for name in sorted(changed)]
        for folder in self.published:
            for name, state in _snapshot(folder).items():
                before_state = self._inodes.get(state[0])
                if before_state is not None and stat.S_ISREG(state[1]) and before_state != state:
                    found.append(f"{folder}/{name} was changed in place")
        return found


State = tuple[int, int, int, int, str]


def _snapshot(folder: Path) -> Mapping[str, State]:
    """By relative path: inode, mode, size, mtime, and the SHA-256 of a file or the text of a link."""
    found: dict[str, State] = {}
    for path in (folder, *folder.rglob("*")) if folder.exists() else ():
        at = path.lstat()
        content = ""
        if stat.S_ISREG(at.st_mode):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        elif stat.S_ISLNK(at.st_mode):
            content = str(path.readlink())
        found[path.relative_to(folder).as_posix()] = (at.st_ino, at.st_mode, at.st_size, at.st_mtime_ns, content)
    return found


def _room(at: os.stat_result) -> int:
    """What a file takes, holes not counted."""
    return min(at.st_size, at.st_blocks * 512)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def _siblings(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if SIBLING.fullmatch(path.name)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _pieces(path: Path) -> Iterator[bytes]:
    """The content in pieces that overlap, so that nothing hides on a border."""
    last = b""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield last[-512:] + piece
            last = piece


def _spellings(secret: str) -> list[bytes]:
    """A secret as text, and as the middle of some base64 at each of the three offsets (a Basic header's)."""
    raw = secret.encode()
    found = [raw]
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + raw)
        found.append(text[4 if shift else 0 :].rstrip(b"=")[:-2])
    return found
