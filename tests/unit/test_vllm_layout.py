"""What vLLM's default loader takes from a local path, and what it does not (vLLM 0.33, weight_utils.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from modelstore.config import TierConfig
from modelstore.digest import Digest
from modelstore.errors import LayoutError
from modelstore.fetching import put
from modelstore.layouts.vllm import VllmLayout
from modelstore.manifest import FileEntry, Manifest
from modelstore.tiers.directory import DirectoryTier

WEIGHTS = save({"weight": np.arange(4, dtype=np.float32)})
OTHER = save({"other": np.arange(4, dtype=np.float32)})
CONFIG = {"config.json": b"{}"}


def index(*names: str) -> bytes:
    return json.dumps({"weight_map": {f"t{number}": name for number, name in enumerate(names)}}).encode()


def lay_out(tmp_path: Path, files: dict[str, bytes]) -> Path:
    tier = DirectoryTier(TierConfig(str(tmp_path / "store"), "store"))
    for body in files.values():
        put(tier, body)
    model, _ = Manifest.build(FileEntry(path, Digest.of(body), len(body)) for path, body in files.items())
    return Path(VllmLayout().materialize(model, tier, str(tmp_path / "out")))


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": WEIGHTS},
        {"pytorch_model.bin": b"x"},
        {"params.json": b"{}", "consolidated.safetensors": WEIGHTS},
        {"model.safetensors": WEIGHTS, "rng_state.pth": b"x", "optimizer.pt": b"x", "training_args.bin": b"x"},
        {"a.safetensors": WEIGHTS, "b.safetensors": OTHER, "model.safetensors.index.json": index("a.safetensors")},
        {"a.safetensors": WEIGHTS, "b.safetensors": OTHER},
        {"model.safetensors": WEIGHTS, "sub/model.bin": b"x"},
    ],
    ids=lambda files: " ".join(files),
)
def test_accepts(tmp_path: Path, files: dict[str, bytes]) -> None:
    target = lay_out(tmp_path, {**CONFIG, **files})
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == {*CONFIG, *files}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"model.safetensors": WEIGHTS}, "no config.json"),
        ({"config.json": b"{", "model.safetensors": WEIGHTS}, "config.json is not a JSON object"),
        (CONFIG, "no weights"),
        ({**CONFIG, "x.pth": b"x"}, "no weights"),
        ({**CONFIG, "sub/model.safetensors": WEIGHTS}, "no weights"),
        ({**CONFIG, "sub/consolidated.safetensors": WEIGHTS}, "no weights"),
        ({**CONFIG, "model.safetensors": WEIGHTS, "model.bin": b"x"}, "more than one format"),
        ({**CONFIG, "model.safetensors": WEIGHTS, "sub/consolidated.safetensors": OTHER}, "more than one format"),
        ({**CONFIG, "model.safetensors": WEIGHTS[:-1]}, "not sound"),
        ({**CONFIG, "a.safetensors": WEIGHTS, "model.safetensors.index.json": index("b.safetensors")}, "not there"),
        ({**CONFIG, "a.safetensors": WEIGHTS, "model.safetensors.index.json": index("../a.safetensors")}, "not there"),
        ({**CONFIG, "a.safetensors": WEIGHTS, "model.safetensors.index.json": b"[]"}, "not an index"),
        ({**CONFIG, "a.safetensors": WEIGHTS, "model.safetensors.index.json": b'{"weight_map":{"a":1}}'}, "not an"),
        (
            {**CONFIG, "consolidated.safetensors": WEIGHTS, "consolidated.safetensors.index.json": index("c")},
            "not there",
        ),
    ],
)
def test_refuses(tmp_path: Path, files: dict[str, bytes], why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        lay_out(tmp_path, files)
    assert not (tmp_path / "out").exists()
