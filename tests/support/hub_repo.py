"""What a stand-in Hub holds: repositories of commits, with the digests that git and git-lfs give their files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.support.httpserver import PIECE, Body, BytesBody

LARGE = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".model")


def is_large(path: str) -> bool:
    """What the Hub's own .gitattributes send to LFS, by name."""
    return path.endswith(LARGE)


@dataclass(frozen=True)
class FileBody:
    """A file on disk, whose digest may be known already: nothing of it is ever in memory as a whole."""

    path: Path
    known: str | None = None

    @functools.cached_property
    def size(self) -> int:
        return self.path.stat().st_size

    @functools.cached_property
    def sha256(self) -> str:
        if self.known:
            return self.known
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def tag(self) -> str:
        return self.sha256[:32]

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            while start < stop and (piece := file.read(min(PIECE, stop - start))):
                yield piece
                start += len(piece)


@dataclass(frozen=True)
class HubFile:
    """One file of a commit. `xet` is whether the Hub would rather have it fetched by Xet."""

    body: Body
    lfs: bool
    xet: bool = False

    @property
    def pointer(self) -> bytes:
        """What git has instead of an LFS file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.body.sha256}\nsize {self.body.size}\n"
        return text.encode()

    @functools.cached_property
    def blob_id(self) -> str:
        """git's SHA-1 of the file, or of the pointer to it."""
        body = BytesBody(self.pointer) if self.lfs else self.body
        digest = hashlib.sha1(b"blob %d\0" % body.size, usedforsecurity=False)
        for piece in body.read(0, body.size):
            digest.update(piece)
        return digest.hexdigest()

    @property
    def etag(self) -> str:
        return f'"{self.body.sha256 if self.lfs else self.blob_id}"'

    @property
    def xet_hash(self) -> str:
        return hashlib.sha256(f"xet {self.body.sha256}".encode()).hexdigest()

    def entry(self, path: str) -> dict[str, object]:
        """As a listing of the tree shows it."""
        found: dict[str, object] = {"type": "file", "oid": self.blob_id, "size": self.body.size, "path": path}
        if self.lfs:
            lfs = {"oid": self.body.sha256, "size": self.body.size, "pointerSize": len(self.pointer)}
            found["lfs"] = lfs
        if self.xet:
            found["xetHash"] = self.xet_hash
        return found

    def sibling(self, path: str) -> dict[str, object]:
        """As the information on a model shows it, with blobs=true."""
        found: dict[str, object] = {"rfilename": path, "size": self.body.size, "blobId": self.blob_id}
        if self.lfs:
            lfs = {"sha256": self.body.sha256, "size": self.body.size, "pointerSize": len(self.pointer)}
            found["lfs"] = lfs
        return found


@dataclass(frozen=True)
class Commit:
    id: str
    files: Mapping[str, HubFile]

    def listing(self, folder: str, *, recursive: bool) -> list[dict[str, object]] | None:
        """The entries below `folder`, folders included, in the order of their paths; None if it is no folder."""
        prefix = f"{folder}/" if folder else ""
        below = {path for path in self.files if path.startswith(prefix)}
        if not below and folder:
            return None
        folders = {str(parent) for path in below for parent in PurePosixPath(path).parents}
        folders = {path for path in folders if path.startswith(prefix) and path not in (".", "/")}
        entries = {path: self.files[path].entry(path) for path in below}
        entries |= {path: {"type": "directory", "oid": _oid(path), "size": 0, "path": path} for path in folders}
        return [entries[path] for path in sorted(entries) if recursive or "/" not in path[len(prefix) :]]


@dataclass
class Repo:
    """One model repository. `readers` are the tokens that may read it where it is private or gated."""

    name: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    added: Callable[[Commit], None] = lambda _: None

    def commit(
        self,
        files: Mapping[str, Body | bytes],
        *,
        branch: str = "main",
        lfs: Callable[[str], bool] = is_large,
        xet: bool = False,
    ) -> str:
        """A commit that holds exactly `files`, made the head of `branch` (or of a ref such as refs/pr/1)."""
        found = {
            path: HubFile(BytesBody(body) if isinstance(body, bytes) else body, lfs(path), xet and lfs(path))
            for path, body in files.items()
        }
        names = "".join(f"{path} {file.blob_id}\n" for path, file in sorted(found.items()))
        commit = Commit(_oid(f"{self.name} {len(self.commits)}\n{names}"), found)
        self.added(commit)
        self.commits[commit.id] = commit
        self.refs[branch] = commit.id
        return commit.id

    def find(self, revision: str) -> Commit | None:
        name = revision.removeprefix("refs/heads/")
        return self.commits.get(self.refs.get(name, name))

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["main"]]


def _oid(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
