"""What is downloaded: files made up on the spot, and what is known of them beforehand."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

__all__ = ["MIB", "Payload", "Served", "make_files", "make_payload", "make_sparse", "read_listing", "write_listing"]

MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class Served:
    """One file: what a listing of the Hub or of a bucket says about it, and the sums that a tier has recorded."""

    name: str
    size: int
    etag: str
    sha256: str
    sums: tuple[str, ...]


@dataclass(frozen=True)
class Payload:
    """Files served together. ``name`` is their directory below the server's root, their bucket and their repository."""

    name: str
    directory: Path
    files: tuple[Served, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def single(self) -> bool:
        return len(self.files) == 1


def make_payload(root: Path, name: str, count: int, size: int) -> Payload:
    """``count`` files of ``size`` bytes."""
    return make_files(root, name, {f"part-{index:04}.bin": size for index in range(count)})


def make_files(root: Path, name: str, sizes: Mapping[str, int]) -> Payload:
    """Write random bytes, so many for each path; every MiB tells its file and place, so none is mixed up."""
    directory = root / name
    directory.mkdir()
    block = bytearray(os.urandom(MIB))
    for index, (path, size) in enumerate(sizes.items()):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        with (directory / path).open("wb") as stream:
            for start in range(0, size, MIB):
                block[:16] = (index << 64 | start).to_bytes(16, "big")
                stream.write(memoryview(block)[: min(MIB, size - start)])
    return _describe(name, directory)


def make_sparse(root: Path, name: str, size: int) -> Payload:
    """One file with hardly a byte in it: as large as one likes, in no space."""
    directory = root / name
    directory.mkdir()
    with (directory / "part-0000.bin").open("wb") as stream:
        stream.write(name.encode())
        stream.truncate(size)
    return _describe(name, directory)


def _describe(name: str, directory: Path) -> Payload:
    from modelstore.transfer.files import hash_file

    files = []
    for path in sorted(each for each in directory.rglob("*") if each.is_file()):
        found = path.stat()
        digest, sums = hash_file(str(path))
        etag = f'"{int(found.st_mtime):x}-{found.st_size:x}"'  # as nginx makes it
        files.append(Served(str(path.relative_to(directory)), found.st_size, etag, digest.hex, tuple(sums.chunks)))
    return Payload(name, directory, tuple(files))


def write_listing(files: Sequence[Served], path: Path) -> None:
    """For a process of its own: what it would know of the files before it begins."""
    path.write_text(json.dumps([asdict(file) for file in files]))


def read_listing(path: str) -> list[Served]:
    """As written by :func:`write_listing`."""
    entries = json.loads(Path(path).read_bytes())
    return [Served(**{**entry, "sums": tuple(entry["sums"])}) for entry in entries]
