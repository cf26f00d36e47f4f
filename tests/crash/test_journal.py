"""What a kill left is damaged, foreign or hostile: the next fetch works all the same, and touches nothing else.

A journal may only ever save bytes. Every test puts something wrong in place of a journal or a staged file, and looks
at a fetch after it: right bytes, and whatever a link pointed to as it was.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash.checker import Watch
from tests.crash.lab import BIG, CHUNK, MIB, Model, Store, pinned, served, some
from tests.support import flip_byte, without_privileges
from tests.support.httpserver import HttpServer

Damage = Callable[[Path, Path], None]  # of a journal; it may use a directory outside
ALL = BIG + 64 * 1024


@pytest.fixture
def model(http_server: HttpServer) -> Model:
    return served(http_server)


@pytest.fixture
def half(store: Store, model: Model) -> Store:
    """A store with a staged file and a journal that names its first chunk."""
    store.half_done(model)
    return store


def journal_of(store: Store) -> Path:
    (journal,) = store.journals()
    assert journal.with_suffix(".staged").exists()
    return journal


def test_without_damage_it_goes_on(half: Store, model: Model) -> None:
    """What the other tests take away: the second fetch asks for the rest only."""
    sent = model.origin.sent
    half.recover(model)
    assert model.origin.sent - sent <= ALL - CHUNK
    assert half.ingest() == [], "and cleans up"


# -- journals ---------------------------------------------------------------------------------------------------------


def rewrite(change: Callable[[bytes], bytes]) -> Damage:
    def damage(journal: Path, _: Path) -> None:
        journal.write_bytes(change(journal.read_bytes()))

    return damage


def header(**fields: object) -> Damage:
    def change(raw: bytes) -> bytes:
        first, _, rest = raw.partition(b"\n")
        value = {**json.loads(first), **fields}
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n" + rest

    return rewrite(change)


def replaced(make: Callable[[Path, Path], object]) -> Damage:
    def damage(journal: Path, outside: Path) -> None:
        journal.unlink()
        make(journal, outside)

    return damage


def sparse(journal: Path, _: Path) -> None:
    with journal.open("wb") as file:
        file.truncate(100 * MIB)


def endless_line(journal: Path, _: Path) -> None:
    with journal.open("ab") as file:
        for _ in range(100):
            file.write(b"0" * MIB)


JOURNALS: dict[str, Damage] = {
    "empty": rewrite(lambda _: b""),
    "gone": replaced(lambda journal, _: None),
    "zeros": rewrite(lambda raw: bytes(len(raw))),
    "garbage": rewrite(lambda raw: random.Random(1).randbytes(4096)),
    "no text": rewrite(lambda raw: b"\xff\xfe" + raw),
    "JSON of another type": rewrite(lambda raw: b"[]\n" + raw.partition(b"\n")[2]),
    "deep JSON": rewrite(lambda raw: b"[" * 100_000 + b"\n"),
    "100 MB of nothing": sparse,
    "an endless line": endless_line,
    "a newer version": header(version=2),
    "no version": header(version=None),
    "an older version": header(version=0),
    "another size": header(size=BIG - 1),
    "a huge size": header(size=2**63),
    "another chunk size": header(chunk_size=MIB),
    "another identity": header(identity="0" * 64),
    "unknown fields": header(more="of it"),
    "every chunk promised": rewrite(lambda raw: raw + b"".join(_line(n, "0" * 32) for n in range(3))),
    "a wrong sum": rewrite(lambda raw: raw.partition(b"\n")[0] + b"\n" + _line(0, "f" * 32)),
    "a sum of another chunk": rewrite(lambda raw: raw + raw.splitlines(keepends=True)[1].replace(b"0 ", b"1 ", 1)),
    "chunks that do not exist": rewrite(lambda raw: raw + _line(3, "0" * 32) + _line(10**8, "0" * 32)),
    "a negative chunk": rewrite(lambda raw: raw + b"-1 " + b"0" * 32 + b"\n"),
    "a number without end": rewrite(lambda raw: raw + b"9" * 5000 + b" " + b"0" * 32 + b"\n"),
    "many times the same": rewrite(lambda raw: raw + raw.splitlines(keepends=True)[1] * 100_000),
    "contradictions": rewrite(lambda raw: raw + _line(0, "1" * 32) + raw.splitlines(keepends=True)[1]),
    "another line end": rewrite(lambda raw: raw.replace(b"\n", b"\r\n")),
    "no line end": rewrite(lambda raw: raw.replace(b"\n", b"")),
    "a link to a file": replaced(lambda journal, outside: journal.symlink_to(outside / "file")),
    "a link to nowhere": replaced(lambda journal, outside: journal.symlink_to(outside / "new")),
    "a link to a directory": replaced(lambda journal, outside: journal.symlink_to(outside)),
    "a link to itself": replaced(lambda journal, _: journal.symlink_to(journal)),
    "a hard link to a file": replaced(lambda journal, outside: journal.hardlink_to(outside / "file")),
    "a directory": replaced(lambda journal, _: journal.mkdir()),
    "a full directory": replaced(lambda journal, _: (journal / "below").mkdir(parents=True)),
    "a pipe": replaced(lambda journal, _: os.mkfifo(journal)),
    "endless zeros": replaced(lambda journal, _: journal.symlink_to("/dev/zero")),
    "unreadable": lambda journal, _: journal.chmod(0),
}


def _line(number: int, chunk_sum: str) -> bytes:
    return f"{number} {chunk_sum}\n".encode()


def judge(store: Store, model: Model) -> None:
    """Right bytes, and nothing harmed; what is left of the damage may stay for a day."""
    store.kills += 7
    done = store.recover(model, timeout=20)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", some(JOURNALS, 4))
def test_damaged_journal(half: Store, model: Model, tmp_path: Path, damage: str) -> None:
    half.cli = half.cli.with_prefix(*without_privileges())  # so that modes count
    JOURNALS[damage](journal_of(half), tmp_path / "outside")
    half.watch = Watch(outside=half.watch.outside)
    judge(half, model)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_journal_cut_anywhere(store: Store, model: Model) -> None:
    """A torn write, or a power cut: after any byte of it."""
    store.half_done(model, 2)
    journal = journal_of(store)
    raw = journal.read_bytes()
    saved = store.place.seen / "saved"
    shutil.copytree(store.root, saved)
    for length in range(len(raw)):
        store.remove()
        shutil.copytree(saved, store.root)
        os.truncate(journal, length)
        judge(store, model)
        store.kills = 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_journal_with_any_bit_flipped(store: Store, model: Model) -> None:
    store.half_done(model, 2)
    journal = journal_of(store)
    saved = store.place.seen / "saved"
    shutil.copytree(store.root, saved)
    for offset in range(journal.stat().st_size):
        store.remove()
        shutil.copytree(saved, store.root)
        flip_byte(journal, offset)
        judge(store, model)
        store.kills = 0


def test_journal_of_another_model(store: Store, http_server: HttpServer) -> None:
    """Of the same size, with sums that are right for the other one."""
    one, other = served(http_server), served(http_server, seed=1)
    store.half_done(one)
    mine = journal_of(store)
    theirs = replace(store, name="other", kills=0, outputs=[])
    theirs.half_done(other)
    mine.write_bytes(journal_of(theirs).read_bytes())
    mine.with_suffix(".staged").write_bytes(journal_of(theirs).with_suffix(".staged").read_bytes())
    judge(store, one)


def test_staged_pair_of_another_model_under_its_name(store: Store, http_server: HttpServer) -> None:
    """Even one that is consistent in itself, as if made for this one. Only a digest known beforehand tells."""
    one, other = pinned(served(http_server)), served(http_server, seed=1)
    store.half_done(one)
    mine = journal_of(store)
    first_line = mine.read_bytes().partition(b"\n")[0]
    theirs = replace(store, name="other", kills=0, outputs=[])
    theirs.half_done(other)
    lines = journal_of(theirs).read_bytes().partition(b"\n")[2]
    mine.write_bytes(first_line + b"\n" + lines)
    mine.with_suffix(".staged").write_bytes(journal_of(theirs).with_suffix(".staged").read_bytes())
    judge(store, one)


# -- staged files -----------------------------------------------------------------------------------------------------


def with_file(make: Callable[[Path, Path], object]) -> Damage:
    def damage(journal: Path, outside: Path) -> None:
        staged = journal.with_suffix(".staged")
        staged.unlink()
        make(staged, outside)

    return damage


def sized(size: int) -> Damage:
    return lambda journal, _: os.truncate(journal.with_suffix(".staged"), size)


def sentinel_of_a_chunk(staged: Path, outside: Path) -> None:
    """A file outside that is big enough to be written into."""
    with (outside / "big").open("wb") as file:
        file.truncate(CHUNK)
    staged.symlink_to(outside / "big")


def hard_linked(journal: Path, outside: Path) -> None:
    """Somebody has kept a second name of the staged file: it is theirs, too."""
    (outside / "kept").hardlink_to(journal.with_suffix(".staged"))


STAGED: dict[str, Damage] = {
    "gone": with_file(lambda staged, _: None),
    "empty": sized(0),
    "a byte": sized(1),
    "a byte less than its chunk": sized(CHUNK - 1),
    "its chunk": sized(CHUNK),
    "all of the size, with holes": sized(BIG),
    "a byte too long": sized(BIG + 1),
    "far too long": sized(4 * BIG),
    "a bit flipped at the start": lambda journal, _: flip_byte(journal.with_suffix(".staged"), 0),
    "a bit flipped at the end": lambda journal, _: flip_byte(journal.with_suffix(".staged"), CHUNK - 1),
    "a link to a file": with_file(lambda staged, outside: staged.symlink_to(outside / "file")),
    "a link to a file of its size": with_file(sentinel_of_a_chunk),
    "a link to nowhere": with_file(lambda staged, outside: staged.symlink_to(outside / "new")),
    "a hard link to a file": with_file(lambda staged, outside: staged.hardlink_to(outside / "file")),
    "two names": hard_linked,
    "a directory": with_file(lambda staged, _: staged.mkdir()),
    "a pipe": with_file(lambda staged, _: os.mkfifo(staged)),
    "a device": with_file(lambda staged, _: staged.symlink_to("/dev/full")),
    "unreadable": lambda journal, _: journal.with_suffix(".staged").chmod(0),
    "read-only": lambda journal, _: journal.with_suffix(".staged").chmod(0o444),
    "executable, for everybody": lambda journal, _: journal.with_suffix(".staged").chmod(0o4777),
}


@pytest.mark.parametrize("damage", some(STAGED, 4))
def test_damaged_staged_file(half: Store, model: Model, tmp_path: Path, damage: str) -> None:
    half.cli = half.cli.with_prefix(*without_privileges())
    STAGED[damage](journal_of(half), tmp_path / "outside")
    half.watch = Watch(outside=half.watch.outside)
    judge(half, model)


def test_blob_in_place_of_the_staged_file(half: Store, model: Model, http_server: HttpServer) -> None:
    """A hard link of a published blob under a staged name: it is not written into."""
    other = served(http_server, seed=1)
    half.fetch(other).ok()
    (digest,) = other.tree.values()
    staged = journal_of(half).with_suffix(".staged")
    staged.unlink()
    staged.hardlink_to(half.root / "blobs" / f"sha256-{digest}")
    half.watch = Watch(outside=half.watch.outside, published=[half.root / "blobs"])
    half.kills += 7
    half.recover(model, trees=(model.tree, other.tree))
