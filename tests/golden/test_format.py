"""Every path and every byte of the format, as docs/format.md has it. Stores outlive the code that wrote them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any

import pytest

from modelstore import Store
from modelstore.config import TierConfig
from modelstore.digest import CHUNK_SIZE, Digest
from modelstore.fetching import put
from modelstore.tiers.directory import DirectoryTier

if TYPE_CHECKING:
    from pathlib import Path

CHANGED = "the format changed: bump the version and docs/format.md"

MTIME = 1_700_000_000
MODEL = {"1_Pooling/README.md": b"hi\n", "config.json": b"{}\n", "empty.txt": b"", "model.gguf": b"weights"}
README = "98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4"
CONFIG = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
WEIGHTS = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
MODEL_CONFIG = "aba7545f25341b4d0987938b851a0a09600d9535ae69e4b8a15fa4a7b6d755fc"
MANIFEST = "1048f6f2ad02cdd92b962caf3d672e0dcdc47f82ec09716469787c3b0a70bd7d"

MODEL_CONFIG_BYTES = (
    '{"config":{},"descriptor":{},"modelfs":{"diffIds":['
    f'"sha256:{README}","sha256:{CONFIG}","sha256:{EMPTY}","sha256:{WEIGHTS}"],"type":"layers"}}}}'
)
MANIFEST_BYTES = (
    '{"artifactType":"application/vnd.cncf.model.manifest.v1+json",'
    f'"config":{{"digest":"sha256:{MODEL_CONFIG}","mediaType":"application/vnd.cncf.model.config.v1+json","size":365}},'
    '"layers":['
    '{"annotations":{"org.cncf.model.filepath":"1_Pooling/README.md"},'
    f'"digest":"sha256:{README}","mediaType":"application/vnd.cncf.model.doc.v1.raw","size":3}},'
    '{"annotations":{"org.cncf.model.filepath":"config.json"},'
    f'"digest":"sha256:{CONFIG}","mediaType":"application/vnd.cncf.model.weight.config.v1.raw","size":3}},'
    '{"annotations":{"org.cncf.model.filepath":"empty.txt"},'
    f'"digest":"sha256:{EMPTY}","mediaType":"application/vnd.cncf.model.weight.config.v1.raw","size":0}},'
    '{"annotations":{"org.cncf.model.filepath":"model.gguf"},'
    f'"digest":"sha256:{WEIGHTS}","mediaType":"application/vnd.cncf.model.weight.v1.raw","size":7}}],'
    '"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
)
BLOBS = {
    README: "hi\n",
    CONFIG: "{}\n",
    EMPTY: "",
    WEIGHTS: "weights",
    MODEL_CONFIG: MODEL_CONFIG_BYTES,
    MANIFEST: MANIFEST_BYTES,
}
# XXH3-128 of each blob's only chunk, in canonical form.
SUMS = {
    README: '"f4d0497cf9394caab34d1a3ab2bece70"',
    CONFIG: '"7809095c382d5f77daa13e4f205dc5ba"',
    EMPTY: "",
    WEIGHTS: '"bdbda1eb6e05adc4800d98e5524fefbc"',
    MODEL_CONFIG: '"03bf7916d7e53932210af028066653e8"',
    MANIFEST: '"18b2dbe8814e1ab4bc63dcf7e8de92e2"',
}
TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file is a cache directory tag created by modelstore.\n"
    "# For information about cache directory tags see https://bford.info/cachedir/\n"
)


def expected() -> dict[str, tuple[str, str | None]]:
    """Mode and content of every path below the root. `<…>` stands for what differs from run to run."""
    folders = "blobs models models/<SHORT> models/<SHORT>/1_Pooling .modelstore".split()
    folders += [f".modelstore/{name}" for name in "ingest layouts locks quarantine refs sums".split()]
    tree = dict.fromkeys(("", *folders), ("drwxr-xr-x", None))
    files = {
        "CACHEDIR.TAG": TAG,
        ".modelstore/format.json": '{"version":1}',
        ".modelstore/locks/<KEY>.lock": "",
        ".modelstore/refs/<KEY>.json": (
            f'{{"checked":"<TIME>","fetched":"<TIME>","manifest":"sha256:{MANIFEST}","revision":null,"source":"<SOURCE>",'
            f'"validators":{{"1_Pooling/README.md":"stat:3-{MTIME}000000000-<INODE>",'
            f'"config.json":"stat:3-{MTIME}000000000-<INODE>","empty.txt":"stat:0-{MTIME}000000000-<INODE>",'
            f'"model.gguf":"stat:7-{MTIME}000000000-<INODE>"}},"version":1}}'
        ),
        ".modelstore/layouts/<TARGET KEY>.json": (
            '{"files":{"1_Pooling/README.md":[<INODE>,<MTIME>,3],"config.json":[<INODE>,<MTIME>,3],'
            '"empty.txt":[<INODE>,<MTIME>,0],"model.gguf":[<INODE>,<MTIME>,7]},"layout":"files",'
            f'"manifest":"sha256:{MANIFEST}","target":"<ROOT>/models/<SHORT>","version":1}}'
        ),
    }
    for digest, data in BLOBS.items():
        files[f".modelstore/sums/sha256-{digest}.json"] = (
            f'{{"algorithm":"xxh3-128","chunk_size":16777216,"chunks":[{SUMS[digest]}],'
            f'"file":{{"inode":<INODE>,"mtime_ns":<MTIME>}},"size":{len(data)},'
            '"verified":{"at":"<TIME>","how":"sha256"},"version":1}'
        )
    readonly = {f"blobs/sha256-{digest}": data for digest, data in BLOBS.items()}
    readonly |= {f"models/<SHORT>/{path}": data.decode() for path, data in MODEL.items()}
    tree |= {path: ("-rw-r--r--", data) for path, data in files.items()}
    return tree | {path: ("-r--r--r--", data) for path, data in readonly.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for path, data in MODEL.items():
        file = tmp_path / "source" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        os.utime(file, (MTIME, MTIME))
    return tmp_path / "source"


@pytest.fixture
def root(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that holds the model, laid out by hard links whatever the file system."""

    def ioctl(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    before = os.umask(0o027)
    try:
        Store(tiers=[tmp_path / "store"]).fetch(source)
    finally:
        os.umask(before)
    return tmp_path / "store"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def found(root: Path, source: Path) -> dict[str, tuple[str, str | None]]:
    key = sha256(source.as_uri())
    names = {
        key: "<KEY>",
        sha256(f"{root}/models/{key[:16]}"): "<TARGET KEY>",
        key[:16]: "<SHORT>",
        str(root): "<ROOT>",
        source.as_uri(): "<SOURCE>",
    }
    patterns = {
        r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"': '"<TIME>"',
        r'"inode":\d+,"mtime_ns":\d+': '"inode":<INODE>,"mtime_ns":<MTIME>',
        r"\[\d+,\d+,(\d+)\]": r"[<INODE>,<MTIME>,\1]",
        r'("stat:\d+-\d+)-\d+"': r'\1-<INODE>"',
    }

    def named(text: str) -> str:
        for name, placeholder in names.items():
            text = text.replace(name, placeholder)
        return text

    def masked(text: str) -> str:
        for pattern, placeholder in patterns.items():
            text = re.sub(pattern, placeholder, named(text))
        return text

    tree = {}
    for path in (root, *root.rglob("*")):
        content = None if path.is_dir() else path.read_bytes().decode()
        relative = named("" if path == root else str(path.relative_to(root)))
        in_own = relative.startswith(".modelstore/")
        tree[relative] = (stat.filemode(path.lstat().st_mode), masked(content) if content and in_own else content)
    return tree


def test_every_path_and_every_byte(root: Path, source: Path) -> None:
    actual, wanted = found(root, source), expected()
    assert actual.keys() == wanted.keys(), CHANGED
    for path, entry in wanted.items():
        assert actual[path] == entry, f"{path}: {CHANGED}"


def test_the_pinned_names_are_those_of_the_pinned_bytes() -> None:
    assert {sha256(data): data for data in BLOBS.values()} == BLOBS


def test_what_differs_from_run_to_run_is_what_it_says(root: Path, source: Path) -> None:
    key = sha256(source.as_uri())
    layout = json.loads((root / f".modelstore/layouts/{sha256(f'{root}/models/{key[:16]}')}.json").read_bytes())
    ref = json.loads((root / f".modelstore/refs/{key}.json").read_bytes())
    for path, data in MODEL.items():
        laid_out, origin = (root / f"models/{key[:16]}" / path).stat(), (source / path).stat()
        assert layout["files"][path] == [laid_out.st_ino, laid_out.st_mtime_ns, len(data)], CHANGED
        assert ref["validators"][path] == f"stat:{len(data)}-{origin.st_mtime_ns}-{origin.st_ino}", CHANGED
    for digest in BLOBS:
        blob = (root / f"blobs/sha256-{digest}").stat()
        sums = json.loads((root / f".modelstore/sums/sha256-{digest}.json").read_bytes())
        assert sums["file"] == {"inode": blob.st_ino, "mtime_ns": blob.st_mtime_ns}, CHANGED


def test_a_model_is_made_of_hard_links(root: Path, source: Path) -> None:
    short = sha256(source.as_uri())[:16]
    for path, data in MODEL.items():
        assert (root / "models" / short / path).samefile(root / f"blobs/sha256-{hashlib.sha256(data).hexdigest()}"), (
            CHANGED
        )


def test_a_chunk_is_16_mib() -> None:
    assert CHUNK_SIZE == 16_777_216, CHANGED


def test_a_wrong_blob_goes_to_quarantine_and_its_sums_go(root: Path) -> None:
    (root / f"blobs/sha256-{WEIGHTS}").chmod(0o644)
    (root / f"blobs/sha256-{WEIGHTS}").write_bytes(b"WEIGHTS")
    Store(tiers=[root]).verify()
    (kept,) = (root / ".modelstore/quarantine").iterdir()
    assert re.fullmatch(rf"sha256-{WEIGHTS}\.[0-9a-f]{{8}}", kept.name), CHANGED
    assert kept.read_bytes() == b"WEIGHTS"
    assert not (root / f".modelstore/sums/sha256-{WEIGHTS}.json").exists(), CHANGED


@pytest.mark.parametrize("killed_after", ["blobs", ".modelstore/ingest"])
def test_a_root_whose_making_was_cut_short_is_completed(tmp_path: Path, killed_after: str) -> None:
    """A process may die between any two steps; the next one that writes finds the rest missing."""
    for name in ("blobs", *(f".modelstore/{name}" for name in "refs sums layouts locks quarantine ingest".split())):
        (tmp_path / name).mkdir(parents=True)
        if name == killed_after:
            break
    put(DirectoryTier(TierConfig(str(tmp_path), "nvme")), b"x")
    assert (tmp_path / f"blobs/{Digest.of(b'x').filename}").is_file()
    assert (tmp_path / "CACHEDIR.TAG").read_text() == TAG
    assert (tmp_path / ".modelstore/format.json").read_text() == '{"version":1}'
