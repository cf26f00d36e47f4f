"""Fuzzing of what a Hub, or a user, may write: a value or a typed error, and never a path outside the model."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.errors import ConfigError
from modelstore.formats.selection import gguf_variants, loadable
from modelstore.source_url import SourceURL
from modelstore.sources.huggingface import Place, parse_listing

NAMES = st.sampled_from(["model.safetensors", "a/../b", "../x", "/etc/x", "a//b", ".", "", "a\0", "C:\\x", "a\\..\\b"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80) | NAMES
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
OIDS = st.text("0123456789abcdef", min_size=40, max_size=40) | SCALARS
LFS = st.fixed_dictionaries({"oid": st.text("0123456789abcdef", min_size=64, max_size=64) | SCALARS, "size": SCALARS})
ENTRIES = st.fixed_dictionaries(
    {"type": st.just("file") | SCALARS, "path": NAMES | SCALARS, "size": st.integers() | SCALARS, "oid": OIDS},
    optional={"lfs": LFS | VALUES, "xetHash": VALUES},
)


def stays_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path


@settings(max_examples=300, deadline=None)
@given(st.lists(ENTRIES, max_size=4) | VALUES)
def test_any_listing_gives_files_inside_or_a_value_error(value: Any) -> None:
    try:
        files = parse_listing(value)
    except ValueError:
        return
    for file in files:
        assert stays_inside(file.path), file
        assert type(file.size) is int
        assert file.size >= 0
        assert (file.digest is None) != (file.git_sha1 is None)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("ab/.@:%?#-_ ", max_size=40))
def test_any_url_gives_a_place_or_a_config_error(text: str) -> None:
    try:
        place = Place.parse(SourceURL.parse(f"hf://{text}"))
    except ConfigError:
        return
    parts = place.repo.split("/")
    assert len(parts) in (1, 2)
    assert not any(part in ("", ".", "..") for part in parts)
    assert place.revision not in ("", ".", "..")
    assert not place.path or stays_inside(place.path)


PARTS = "model original consolidated mmproj imatrix -00001-of-00002 -Q4_K .gguf .safetensors .bin .pth .json /".split()


@settings(max_examples=300, deadline=None)
@given(st.sets(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map("".join), max_size=6))
def test_what_is_chosen_is_some_of_it_and_chosen_again(paths: set[str]) -> None:
    chosen = loadable(paths)
    assert chosen <= paths
    assert bool(chosen) == bool(paths), "something is left of anything"
    assert loadable(chosen) == chosen
    listed = [path for variant in gguf_variants(chosen) for path in variant]
    assert len(listed) == len(set(listed))
    assert set(listed) <= chosen
