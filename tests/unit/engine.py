"""What the engine's tests share: chunks that are small, readers that follow a script, attempts that were cut off."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstore.config import TierConfig
from modelstore.digest import CHUNK_SIZE, ChunkSums, Digest
from modelstore.sources.base import SourceFile
from modelstore.tiers.directory import DirectoryTier
from modelstore.transfer import limits, tier_files
from modelstore.transfer.journal import Journal
from modelstore.transfer.leftovers import JOURNAL, STAGED, staged_name
from modelstore.transfer.plan import plan_chunks

if TYPE_CHECKING:
    import pytest

CHUNK = 4096
PIECE = 1000
IDENTITY = Digest.of(b"the same bytes")
Script = Callable[["Reader", int, int], Iterator[bytes] | None]


def shrink_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 KiB, so that a file of many is quick to hash; and no pause before a retry."""
    for name, module in list(sys.modules.items()):
        if name.startswith("modelstore.") and getattr(module, "CHUNK_SIZE", None) == CHUNK_SIZE:
            monkeypatch.setattr(module, "CHUNK_SIZE", CHUNK)
    functions: tuple[Any, ...] = (plan_chunks, ChunkSums.__init__, ChunkSums.of.__func__)  # type: ignore[attr-defined]
    for function in functions:
        monkeypatch.setattr(function, "__defaults__", (CHUNK,))
    monkeypatch.setattr(limits, "FIRST_DELAY", 0.0)


def body_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def chunk(body: bytes, index: int) -> bytes:
    return body[index * CHUNK : (index + 1) * CHUNK]


def sum_of(data: bytes) -> str:
    return ChunkSums.of([data], 2**30).chunks[0]


def flipped(data: bytes, *offsets: int) -> bytes:
    changed = bytearray(data)
    for offset in offsets:
        changed[offset] ^= 1
    return bytes(changed)


class Reader:
    """Serves a body. ``script`` may do something else for a range, and sees how often its start was asked for."""

    def __init__(self, body: bytes, script: Script = lambda *_: None) -> None:
        self.body = body
        self._script = script
        self._lock = threading.Lock()
        self.reads: list[tuple[int, int]] = []
        self.closed = False

    def asked(self, start: int) -> int:
        return sum(begin == start for begin, _ in self.reads)

    @property
    def asked_for(self) -> int:
        return sum(stop - start for start, stop in self.reads)

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        with self._lock:
            self.reads.append((start, stop))
        pieces = self._script(self, start, stop)
        return self.serve(start, stop) if pieces is None else pieces

    def serve(self, start: int, stop: int, error: Exception | None = None) -> Iterator[bytes]:
        for position in range(start, stop, PIECE):
            yield self.body[position : min(position + PIECE, stop)]
        if error:
            raise error

    def close(self) -> None:
        self.closed = True


def make_tier(root: Path, monkeypatch: pytest.MonkeyPatch, *, local: bool = True) -> DirectoryTier:
    """A tier whose locks are believed (``local``) or not, with its directories made. What is not written is dead."""
    monkeypatch.setattr(tier_files, "is_local", lambda _: local)
    monkeypatch.setattr(limits, "DEAD_AFTER", -1.0)
    tier = DirectoryTier(TierConfig(str(root), "home"))
    with tier.ingest(0, None) as ingest:
        ingest.commit(ChunkSums.of([]))
    return tier


def staging(root: Path) -> Path:
    return root / ".modelstore" / "ingest"


def leave(
    root: Path, body: bytes, chunks: dict[int, str] | None = None, *, identity: Digest = IDENTITY, age: float = 0.0
) -> Path:
    """What a killed process leaves of a body: the staged file, and a journal that names ``chunks``, or all."""
    folder = staging(root)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / staged_name(identity)
    staged = Path(f"{stem}{STAGED}")
    staged.write_bytes(body)
    if chunks is None:
        chunks = {index: sum_of(chunk(body, index)) for index in range(-(-len(body) // CHUNK))}
    Journal(f"{stem}{JOURNAL}", identity, len(body), chunks).close()
    if age:
        made_old(staged, age)
    return staged


def made_old(path: Path, age: float) -> None:
    at = path.lstat().st_mtime - age
    os.utime(path, (at, at), follow_symlinks=False)


def open_files() -> set[str]:
    """The descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))
