"""Manifests, refs and sums: one way to write them, and nothing that is read from outside is believed."""

from __future__ import annotations

import json
import posixpath
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelstore.digest import ChunkSums, Digest
from modelstore.manifest import Descriptor, FileEntry, Manifest, Ref, SumsRecord, canonical_json, check_paths

if TYPE_CHECKING:
    import random

A, B = Digest.of(b"a"), Digest.of(b"b")
PREFIX = "application/vnd.cncf.model."


def entries(*paths: str) -> list[FileEntry]:
    return [FileEntry(path, Digest.of(path.encode()), len(path)) for path in paths]


# -- writing -----------------------------------------------------------------------------------------------------------


def test_canonical_json() -> None:
    assert canonical_json({"b": [1, None, True], "a": "m\u00f6del"}) == '{"a":"m\u00f6del","b":[1,null,true]}'.encode()
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


def test_the_manifest_of_a_tree() -> None:
    manifest, config = Manifest.build(entries("model.safetensors", "config.json"))
    assert json.loads(config) == {
        "descriptor": {},
        "config": {},
        "modelfs": {
            "type": "layers",
            "diffIds": [str(Digest.of(b"config.json")), str(Digest.of(b"model.safetensors"))],
        },
    }
    assert json.loads(manifest.raw) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": f"{PREFIX}manifest.v1+json",
        "config": {"mediaType": f"{PREFIX}config.v1+json", "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [
            {
                "mediaType": f"{PREFIX}{kind}.v1.raw",
                "digest": str(Digest.of(path.encode())),
                "size": len(path),
                "annotations": {"org.cncf.model.filepath": path},
            }
            for kind, path in (("weight.config", "config.json"), ("weight", "model.safetensors"))
        ],
    }
    assert manifest.raw == canonical_json(json.loads(manifest.raw))
    assert manifest.digest == Digest.of(manifest.raw)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a/b/model-00001-of-00002.safetensors", "weight"),
        ("MODEL.GGUF", "weight"),
        ("pytorch_model.bin", "weight"),
        ("config.json", "weight.config"),
        ("model.safetensors.index.json", "weight.config"),
        ("safetensors", "weight.config"),
        ("README.md", "doc"),
        ("LICENSE", "doc"),
        ("x/NOTICE.txt", "doc"),
        ("modeling_llama.py", "code"),
        (".gitattributes", "weight.config"),
        ("x.py/vocab", "weight.config"),
    ],
)
def test_media_types_follow_from_the_name(path: str, kind: str) -> None:
    manifest, _ = Manifest.build(entries(path))
    assert manifest.layers[0].media_type == f"{PREFIX}{kind}.v1.raw"


names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\", exclude_categories=["Cc"]), min_size=1, max_size=8
)
plain = names.filter(lambda name: name not in (".", "..") and name[1:2] != ":")
trees = st.lists(plain, min_size=1, max_size=6, unique_by=lambda name: unicodedata.normalize("NFC", name).casefold())


@settings(deadline=None)
@given(trees, st.randoms(use_true_random=False))
def test_the_same_files_in_any_order_have_the_same_digest(paths: list[str], shuffler: random.Random) -> None:
    files = entries(*paths)
    manifest, config = Manifest.build(files)
    shuffler.shuffle(files)
    again, same_config = Manifest.build(iter(files))
    assert (again.raw, same_config) == (manifest.raw, config)
    assert Manifest.parse(manifest.raw) == manifest
    assert manifest.files == {file.path: file for file in files}
    assert manifest.size == sum(file.size for file in files)
    assert manifest.blobs == {**{file.digest: file.size for file in files}, Digest.of(config): len(config)}


def test_another_path_digest_or_size_is_another_manifest() -> None:
    variants = [FileEntry("a", A, 1), FileEntry("b", A, 1), FileEntry("a", B, 1), FileEntry("a", A, 2)]
    assert len({Manifest.build([variant])[0].digest for variant in variants}) == len(variants)


def test_bytes_that_several_files_share_are_one_blob() -> None:
    manifest, config = Manifest.build([FileEntry("a", A, 1), FileEntry("b", A, 1)])
    assert manifest.blobs == {A: 1, Digest.of(config): len(config)}
    assert list(manifest.files) == ["a", "b"]


def test_a_pin_names_the_manifest_or_the_only_file() -> None:
    one, _ = Manifest.build([FileEntry("a", A, 1)])
    two, _ = Manifest.build([FileEntry("a", A, 1), FileEntry("b", B, 1)])
    assert one.satisfies(A)
    assert one.satisfies(one.digest)
    assert two.satisfies(two.digest)
    assert not one.satisfies(B)
    assert not two.satisfies(A)
    assert not two.satisfies(one.digest)


# -- reading -----------------------------------------------------------------------------------------------------------


def manifest_json(**changes: Any) -> dict[str, Any]:
    config = {"mediaType": "c", "digest": str(B), "size": 1}
    layers = [{"mediaType": "m", "digest": str(A), "size": 1, "annotations": {"org.cncf.model.filepath": "a"}}]
    value = {"schemaVersion": 2, "config": config, "layers": layers}
    return {name: field for name, field in {**value, **changes}.items() if field is not ...}


def layer(**changes: Any) -> dict[str, Any]:
    value = {"mediaType": "m", "digest": str(A), "size": 1, "annotations": None, **changes}
    return {name: field for name, field in value.items() if field is not ...}


def test_a_manifest_of_others_keeps_its_bytes() -> None:
    raw = json.dumps(manifest_json(unknown={"x": 1}, layers=[layer(annotations=..., more=1)]), indent=2).encode()
    manifest = Manifest.parse(raw)
    assert manifest.raw == raw
    assert manifest.layers == (Descriptor("m", A, 1, None),)
    assert manifest.files == {}
    assert manifest.size == 1


@pytest.mark.parametrize(
    "value",
    [
        None, 0, "", [], {}, "layers",
        manifest_json(schemaVersion=...), manifest_json(schemaVersion=1), manifest_json(schemaVersion="2"),
        manifest_json(config=...), manifest_json(config=None), manifest_json(config=[]), manifest_json(config="x"),
        manifest_json(layers=...), manifest_json(layers=None), manifest_json(layers=[]), manifest_json(layers=3),
        manifest_json(layers={"a": 1}), manifest_json(layers="ab"), manifest_json(layers=[None]),
        manifest_json(layers=[[]]),
        *(manifest_json(layers=[layer(size=size)]) for size in (..., None, -1, 1.0, True, "1", [], 1e400)),
        *(
            manifest_json(layers=[layer(digest=digest)])
            for digest in (..., None, 1, [], {}, "", A.hex, f"sha512:{A.hex}", f"sha256:{A.hex.upper()}", f"{A}\n")
        ),
        *(manifest_json(layers=[layer(mediaType=media)]) for media in (..., None, 1, [])),
        *(manifest_json(layers=[layer(annotations=notes)]) for notes in ("x", 1, [1])),
        *(manifest_json(layers=[layer(annotations={"org.cncf.model.filepath": path})]) for path in (1, [], "", "../a")),
        manifest_json(layers=manifest_json()["layers"] * 2),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError):
        Manifest.parse(json.dumps(value).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
HOSTILE_BYTES = [
    b"",
    b"{",
    b"null",
    b"\xff",
    b"[" * 200_000,
    b"1" * 5000,
    b'{"a":' * 100_000,
    b"\xff\xfe{\0}\0",
    b"NaN",
]


def mutate(value: dict[str, Any], data: st.DataObject) -> bytes:
    """A sound record with one value anywhere in it replaced."""
    place: Any = value
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        if not (isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    return json.dumps(value).encode()


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_hostile_manifest_is_a_value_or_a_value_error(data: st.DataObject) -> None:
    try:
        manifest = Manifest.parse(mutate(manifest_json(), data))
    except ValueError:
        return
    assert all(type(blob.size) is int and blob.size >= 0 for blob in (*manifest.layers, manifest.config))
    assert all(isinstance(blob.digest, Digest) and isinstance(blob.media_type, str) for blob in manifest.layers)
    check_paths(manifest.files)


@pytest.mark.parametrize("read", [Manifest.parse, Ref.from_json, SumsRecord.from_json])
@pytest.mark.parametrize("raw", HOSTILE_BYTES, ids=range(len(HOSTILE_BYTES)))
def test_bytes_that_are_no_json_object_are_a_value_error(read: Any, raw: bytes) -> None:
    with pytest.raises(ValueError):
        read(raw)


@settings(deadline=None)
@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_value_error(raw: bytes) -> None:
    for read in (Manifest.parse, Ref.from_json, SumsRecord.from_json):
        with pytest.raises(ValueError):
            read(raw)


# -- paths -------------------------------------------------------------------------------------------------------------

ESCAPES = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "up": "../x",
    "up in the middle": "a/../../b",
    "up at the end": "a/..",
    "dot in the middle": "a/./b",
    "absolute": "/etc/passwd",
    "host": "//host/share",
    "empty name": "a//b",
    "slash at the end": "a/",
    "backslash": "a\\b",
    "up with backslashes": "..\\..\\x",
    "drive": "C:x",
    "drive and slash": "c:/x",
    "NUL": "a\0b",
    "newline": "a\nb",
    "escape": "\x1b[2J",
    "DEL": "a\x7f",
    "C1 control": "a\x9bb",
    "not UTF-8": "a\udcff",
    "surrogate": "\ud800",
    "long name": "x" * 256,
    "long name in UTF-8": "\u00e9" * 128,
    "long path": "/".join(["x" * 200] * 21),
}
FINE = [
    "config.json", "a/b/c", ".hidden", "..x", "x..", "...", "a b", "%2e%2e/x", "%252e", "CON", "a.", "a ", "\u00e9",
    "ab:c", "\uff0e\uff0e/x", "\u2025/x", "x" * 255, "\u00e9" * 127,
]  # fmt: skip
COLLISIONS = [
    ("a", "a"),
    ("a", "A"),
    ("config.json", "Config.json"),
    ("d/a", "D/A"),
    ("d/a", "D/a"),
    ("\u00e9", "e\u0301"),
    ("\u00e9", "E\u0301"),
    ("\u00df", "ss"),
    ("\u212a", "k"),
    ("\u017f", "S"),
    ("\u03a3", "\u03c2"),
    ("\ufb01", "fi"),
    ("\u1e9e", "SS"),
    ("\u2126", "\u03c9"),
    ("\u1fb4", "\u03b1\u0345\u0301"),
    ("a", "a/b"),
    ("a/b/c", "a/b"),
    ("A", "a/b"),
    ("\u00e9", "e\u0301/x"),
]


@pytest.mark.parametrize("path", ESCAPES.values(), ids=ESCAPES)
def test_paths_that_leave_the_tree_or_are_not_plain_are_refused(path: str) -> None:
    with pytest.raises(ValueError):
        check_paths([path])
    with pytest.raises(ValueError):
        Manifest.build([FileEntry("ok", A, 1), FileEntry(path, B, 1)])
    with pytest.raises(ValueError):
        Manifest.parse(
            json.dumps(manifest_json(layers=[layer(annotations={"org.cncf.model.filepath": path})])).encode()
        )


@pytest.mark.parametrize("path", FINE)
def test_paths_that_only_look_odd_are_accepted(path: str) -> None:
    check_paths([path])


@pytest.mark.parametrize("pair", COLLISIONS)
def test_paths_that_cannot_stand_side_by_side_are_refused(pair: tuple[str, str]) -> None:
    for paths in (pair, pair[::-1]):
        with pytest.raises(ValueError):
            check_paths(paths)


pieces = st.sampled_from(
    [
        "..",
        ".",
        "/",
        "//",
        "\\",
        "a",
        "A",
        "b",
        "C:",
        "%2e%2e",
        "\u2025",
        "\uff0e",
        "\u00e9",
        "e\u0301",
        "\u00df",
        "ss",
        "\0",
        "\ud800",
        "\u0345",
    ]
)
paths = st.lists(pieces, min_size=1, max_size=5).map("".join) | st.text(st.characters(), max_size=8)


def fold(path: str) -> str:
    """Canonical caseless matching (Unicode, D145), and nothing of the implementation's."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


@settings(deadline=None, max_examples=500)
@given(st.lists(paths, max_size=4))
@example(["\u00e9", "E\u0301"])
@example(["a", "A/b"])
def test_what_is_accepted_stays_inside_and_side_by_side(candidates: list[str]) -> None:
    try:
        check_paths(candidates)
    except ValueError:
        return
    for path in candidates:
        assert posixpath.normpath(posixpath.join("/root", path)) == f"/root/{path}"
        assert not {"\0", "\n", "\\"} & set(path)
        path.encode()
    folded = [fold(path) for path in candidates]
    assert len(set(folded)) == len(folded)
    assert not any(one.startswith(f"{other}/") for one in folded for other in folded)


# -- refs and sums -----------------------------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8"))


@settings(deadline=None)
@given(text, st.binary(), st.none() | text, st.dictionaries(text, text), text, text)
def test_a_ref_survives_the_way_to_disk(
    source: str, data: bytes, revision: str | None, validators: dict[str, str], fetched: str, checked: str
) -> None:
    ref = Ref(source, Digest.of(data), revision, validators, fetched, checked)
    assert Ref.from_json(ref.to_json()) == ref
    assert ref.key == Digest.of(source.encode()).hex
    assert Ref.from_json(ref.to_json()[:-1] + b',"new":1}') == ref


def ref_json(**changes: Any) -> dict[str, Any]:
    ref = Ref("https://h/m", A, "r1", {"m": "etag:1"}, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    value = {**json.loads(ref.to_json()), **changes}
    return {name: field for name, field in value.items() if field is not ...}


@pytest.mark.parametrize("field", ["version", "source", "manifest", "revision", "validators", "fetched", "checked"])
@pytest.mark.parametrize("value", [..., 0, 3, 2.5, False, [], ["x"], {"x": 1}])
def test_a_damaged_ref_is_a_value_error(field: str, value: Any) -> None:
    with pytest.raises(ValueError):
        Ref.from_json(json.dumps(ref_json(**{field: value})).encode())


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_hostile_ref_is_a_value_or_a_value_error(data: st.DataObject) -> None:
    try:
        ref = Ref.from_json(mutate(ref_json(), data))
    except ValueError:
        return
    assert isinstance(ref.manifest, Digest)
    assert all(isinstance(value, str) for value in (ref.source, ref.fetched, ref.checked, *ref.validators.values()))
    assert ref.revision is None or isinstance(ref.revision, str)


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(1, 16), text, st.none() | st.tuples(st.integers(0), st.integers()))
def test_sums_survive_the_way_to_disk(data: bytes, chunk_size: int, at: str, file: tuple[int, int] | None) -> None:
    record = SumsRecord(ChunkSums.of([data], chunk_size), at, *(file or ()))
    assert SumsRecord.from_json(record.to_json()) == record
    assert SumsRecord.from_json(record.to_json()[:-1] + b',"new":1}') == record


def sums_json(**changes: Any) -> dict[str, Any]:
    record = SumsRecord(ChunkSums.of([b"0123456789"], 4), "2026-01-01T00:00:00Z", 7, 8)
    value = {**json.loads(record.to_json()), **changes}
    return {name: field for name, field in value.items() if field is not ...}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2}, {"version": ...}, {"algorithm": "sha256"}, {"algorithm": ...},
        {"size": ...}, {"size": -1}, {"size": 9.5}, {"size": True, "chunks": ["0" * 32]}, {"size": "10"}, {"size": 13},
        {"chunk_size": ...}, {"chunk_size": 0}, {"chunk_size": 4.5}, {"chunk_size": float("inf"), "chunks": ["0" * 32]},
        {"chunk_size": float("nan")}, {"size": 10**400, "chunk_size": 4.5}, {"chunk_size": "4"},
        {"chunks": ...}, {"chunks": []}, {"chunks": "0" * 3}, {"chunks": [1, 2, 3]}, {"chunks": None},
        {"verified": ...}, {"verified": None}, {"verified": {}}, {"verified": {"at": 3}},
        {"file": 3}, {"file": "x"}, {"file": {"inode": "x", "mtime_ns": []}},
    ],
    ids=lambda changes: str(changes)[:60],
)  # fmt: skip
def test_damaged_sums_are_a_value_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SumsRecord.from_json(json.dumps(sums_json(**changes)).encode())


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_hostile_sums_are_usable_or_a_value_error(data: st.DataObject) -> None:
    try:
        record = SumsRecord.from_json(mutate(sums_json(), data))
    except ValueError:
        return
    assert isinstance(record.verified, str)
    assert record.sums.match([b"0123456789"]) in (True, False)
    assert all(value is None or type(value) is int for value in (record.inode, record.mtime_ns))
