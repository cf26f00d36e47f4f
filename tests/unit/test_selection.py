"""`?allow=…&ignore=…`: which files of a tree are wanted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.config import load_config
from modelstore.errors import ConfigError
from modelstore.source_url import Selection, SourceURL
from modelstore.sources.filesystem import FileSource

if TYPE_CHECKING:
    from pathlib import Path

FILES = ["config.json", "model.safetensors", "pytorch_model.bin", "original/model.safetensors", "a[1].txt", "A.JSON"]


@pytest.mark.parametrize(
    ("query", "picked"),
    [
        ("", FILES),
        ("allow=", FILES),
        ("&&", FILES),
        ("allow=*.json", ["config.json"]),
        ("allow=*.safetensors", ["model.safetensors", "original/model.safetensors"]),
        ("allow=*.safetensors&ignore=original/*", ["model.safetensors"]),
        ("allow=*.safetensors&ignore=original/", ["model.safetensors"]),
        ("allow=original/", ["original/model.safetensors"]),
        ("allow=*.json,*.bin", ["config.json", "pytorch_model.bin"]),
        ("allow=*.json&allow=*.bin", ["config.json", "pytorch_model.bin"]),
        ("allow=%2A.json%2C%2A.bin", ["config.json", "pytorch_model.bin"]),
        ("allow=config.jso?", ["config.json"]),
        ("allow=[cp]*n", ["config.json", "pytorch_model.bin"]),
        ("allow=a[[]1].txt", ["a[1].txt"]),
        ("allow=model", []),
        ("ignore=*", []),
        ("allow=*&ignore=*.json", [name for name in FILES if name != "config.json"]),
    ],
)
def test_patterns(query: str, picked: list[str]) -> None:
    selection = Selection.parse(query)
    assert [name for name in FILES if selection.picks(name)] == picked


@pytest.mark.parametrize("query", ["alow=*.json", "allow=a&x=1", "ALLOW=a", "versionId=3", "=a", "allow=a&b"])
def test_a_parameter_that_would_be_ignored_is_refused(query: str) -> None:
    with pytest.raises(ConfigError, match=r"allow= and ignore="):
        Selection.parse(query)


@settings(deadline=None)
@given(st.text(), st.text())
def test_any_query_is_a_selection_or_a_config_error(query: str, path: str) -> None:
    for text in (query, f"allow={query}", f"ignore={query}"):
        try:
            selection = Selection.parse(text)
        except ConfigError:
            continue
        assert selection.picks(path) in (True, False)


@settings(deadline=None)
@given(st.lists(st.sampled_from(FILES), unique=True))
def test_ignoring_wins_over_allowing(names: list[str]) -> None:
    escaped = ",".join(name.replace("[", "[[]") for name in names)
    selection = Selection.parse(f"allow=*&ignore={escaped}")
    assert [name for name in FILES if selection.picks(name)] == [name for name in FILES if name not in names]


# -- on a directory ----------------------------------------------------------------------------------------------------


def names(path: str) -> list[str]:
    return [file.path for file in FileSource(load_config(environ={})).resolve(SourceURL.parse(path)).files]


def test_a_directory_is_listed_by_the_selection_in_its_path(tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    for name in ("config.json", "model-1.safetensors", "original/x.json"):
        (tmp_path / name).write_text("{}")
    assert names(f"{tmp_path}") == ["config.json", "model-1.safetensors", "original/x.json"]
    assert names(f"{tmp_path}?allow=*.json&ignore=original/*") == ["config.json"]
    assert names(f"{tmp_path}?ignore=*.json") == ["model-1.safetensors"]


@pytest.mark.parametrize("pattern", ["model-?.safetensors", "model-%3F.safetensors"])
@pytest.mark.parametrize("form", ["file://{}?allow={}", "{}?allow={}"], ids=["url", "bare path"])
def test_a_question_mark_is_a_pattern_in_both_forms(tmp_path: Path, form: str, pattern: str) -> None:
    for name in ("config.json", "model-1.safetensors"):
        (tmp_path / name).write_text("{}")
    assert names(form.format(tmp_path, pattern)) == ["model-1.safetensors"]


@pytest.mark.parametrize("kind", ["fifo", "dangling link", "link that leaves"])
def test_what_is_ignored_may_be_anything(tmp_path: Path, kind: str) -> None:
    """As the error's own hint promises: "leave it out with ?ignore="."""
    (tmp_path / "config.json").write_text("{}")
    odd = tmp_path / "odd"
    if kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.symlink_to("nowhere" if kind == "dangling link" else "/etc/passwd")
    assert names(f"{tmp_path}?ignore=odd") == ["config.json"]
