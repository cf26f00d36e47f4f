"""Which files of a Hub repository are fetched when nobody says which: what an engine loads, and no format twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import Modelstore, digests, sha256_of, visible
from tests.support.hub import Hub

TEXTS = [".gitattributes", "README.md", "config.json", "tokenizer.json", "1_Pooling/config.json"]
KIB = 1 << 10


def fetch(hf: Modelstore, hub: Hub, names: list[str], query: str = "") -> set[str]:
    """What comes of a repository of these files, whose content is their name."""
    hub.repo("acme/model", {name: name.encode() for name in names})
    found = digests(hf("fetch", f"hf://acme/model{query}").path)
    assert found == {name: sha256_of(name.encode()) for name in found}
    return set(found)


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors", "model.Q4_K_M.gguf", "model.Q8_0.gguf"], ["model.safetensors"]),
        (["model.Q8_0.gguf", "pytorch_model.bin"], ["model.Q8_0.gguf"]),
        (["pytorch_model.bin", "model.pth", "model.pt", "model.ckpt"], ["pytorch_model.bin"]),
        (["pytorch_model.bin", "colbert_linear.pt", "training_args.bin"], ["pytorch_model.bin", "colbert_linear.pt"]),
        (["model.pth", "model.pt", "model.ckpt"], ["model.pth", "model.pt", "model.ckpt"]),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], None),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["model.safetensors", "original/consolidated.00.pth", "original/params.json"], ["model.safetensors"]),
        (["model.safetensors", "original/model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "consolidated-00001-of-00002.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors", "pytorch_model.bin"], ["consolidated.safetensors"]),
        (["consolidated.00.pth", "consolidated.01.pth"], None),
        (["2_Dense/model.safetensors", "model.safetensors", "2_Dense/pytorch_model.bin"], [
            "2_Dense/model.safetensors", "model.safetensors"]),
        (["adapter_model.safetensors", "adapter_model.bin"], ["adapter_model.safetensors"]),
        (["model.onnx"], None),
        (["original/consolidated.00.pth", "original/params.json"], None),
        ([], None),
    ],
)  # fmt: skip
def test_one_weight_format(hf: Modelstore, hub: Hub, weights: list[str], chosen: list[str] | None) -> None:
    assert fetch(hf, hub, [*TEXTS, *weights]) == {*TEXTS, *(weights if chosen is None else chosen)}


def test_weights_of_other_frameworks_are_other_formats(hf: Modelstore, hub: Hub) -> None:
    """As of openai-community/gpt2, which has its weights five times."""
    others = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"]
    assert fetch(hf, hub, [*TEXTS, "model.safetensors", *others]) == {*TEXTS, "model.safetensors"}


def test_allow_is_taken_at_its_word(hf: Modelstore, hub: Hub) -> None:
    names = [*TEXTS, "model.safetensors", "pytorch_model.bin", "original/x.pth", "consolidated.safetensors"]
    assert fetch(hf, hub, names, "?allow=*") == set(names)


def test_ignore_comes_before_the_choice(hf: Modelstore, hub: Hub) -> None:
    names = [*TEXTS, "model.safetensors", "pytorch_model.bin", "original/x.pth"]
    assert fetch(hf, hub, names, "?ignore=*.safetensors,README.md") == {*TEXTS, "pytorch_model.bin"} - {"README.md"}


def test_a_file_named_by_its_path_is_not_chosen_among(hf: Modelstore, hub: Hub) -> None:
    hub.repo("acme/model", {"model.safetensors": b"a", "original/x.pth": b"x", "pytorch_model.bin": b"b"})
    assert digests(hf("fetch", "hf://acme/model/pytorch_model.bin").path) == {"pytorch_model.bin": sha256_of(b"b")}
    assert digests(hf("fetch", "hf://acme/model/original/x.pth").path) == {"x.pth": sha256_of(b"x")}


def test_the_folder_original_named_by_its_path(hf: Modelstore, hub: Hub) -> None:
    hub.repo("acme/model", {"model.safetensors": b"a", "original/x.pth": b"x", "original/params.json": b"{}"})
    assert set(digests(hf("fetch", "hf://acme/model/original").path)) == {"x.pth", "params.json"}


# ---------------------------------------------------------------- GGUF


def test_one_variant_with_its_projector(hf: Modelstore, hub: Hub) -> None:
    names = [*TEXTS, "model.Q4_K_M.gguf", "mmproj-model-f16.gguf"]
    assert fetch(hf, hub, names) == set(names)


def test_shards_are_one_variant(hf: Modelstore, hub: Hub) -> None:
    names = [*TEXTS, *(f"BF16/model-BF16-0000{number}-of-00003.gguf" for number in (1, 2, 3))]
    assert fetch(hf, hub, names) == set(names)


def test_an_importance_matrix_is_no_variant(hf: Modelstore, hub: Hub) -> None:
    names = [*TEXTS, "model.Q4_K_M.gguf", "model.imatrix.gguf", "imatrix.dat"]
    assert fetch(hf, hub, names) >= {*TEXTS, "model.Q4_K_M.gguf"}


SHARDS = [f"BF16/m-BF16-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
VARIANTS = {"m-Q4_K_M.gguf": 4 * KIB, "m-Q8_0.gguf": 8 * KIB, **dict.fromkeys(SHARDS, 5 * KIB)}


def variants(hub: Hub, branch: str = "main") -> dict[str, str]:
    """A repository of three variants, one of them in shards; the digests of all its files."""
    weights = {name: name.encode().ljust(size, b".") for name, size in VARIANTS.items()}
    rest = {"README.md": b"#", "config.json": b"{}", "mmproj-F16.gguf": b"p" * 999, "m.imatrix.gguf": b"i" * 99}
    repo = hub.repos.get("acme/many") or hub.repo("acme/many")
    repo.commit({**weights, **rest}, branch=branch)
    return {name: sha256_of(body) for name, body in {**weights, **rest}.items()}


@pytest.mark.parametrize("revision", ["", "@dev", "@refs/pr/2"])
def test_several_variants_are_listed_with_an_address_for_each(
    hf: Modelstore, hub: Hub, store_root: Path, revision: str
) -> None:
    """And every address that is listed gives that variant, whole, and no other."""
    hub.repo("acme/many", {"config.json": b"only here"})
    files = variants(hub, revision.removeprefix("@") or "main")
    result = hf("fetch", f"hf://acme/many{revision}")
    result.failed(2)
    assert visible(store_root) == {}
    assert not any("/resolve/" in line for line in hub.lines())
    urls = [url.rstrip(".,;:)'\"") for url in re.findall(r"hf://[^\s]+", result.stderr)]
    urls = [url for url in dict.fromkeys(urls) if url != f"hf://acme/many{revision}"]
    assert len(urls) == 3, result
    assert "mmproj" not in result.stderr.replace("mmproj*", "")
    assert not any("imatrix" in url for url in urls)
    for size in (r"4(\.\d+)?", r"8(\.\d+)?", r"15(\.\d+)?"):
        assert re.search(rf"\b{size} ?Ki?B\b", result.stderr), (size, result)
    wanted = [{"m-Q4_K_M.gguf"}, {"m-Q8_0.gguf"}, {path.rpartition("/")[2] for path in SHARDS}]
    by_name = {path.rpartition("/")[2]: digest for path, digest in files.items()}
    found = []
    for url in urls:
        got = {path.rpartition("/")[2]: digest for path, digest in digests(hf("fetch", url).path).items()}
        assert got.items() <= by_name.items()
        found.append({name for name in got if name.startswith("m-") and name.endswith(".gguf")})
    assert sorted(found, key=sorted) == sorted(wanted, key=sorted)


def test_a_variant_by_its_pattern(hf: Modelstore, hub: Hub) -> None:
    files = variants(hub)
    assert digests(hf("fetch", "hf://acme/many?allow=*Q4_K_M*").path) == {"m-Q4_K_M.gguf": files["m-Q4_K_M.gguf"]}


def test_what_is_left_by_ignore_is_one_variant(hf: Modelstore, hub: Hub) -> None:
    files = variants(hub)
    found = set(digests(hf("fetch", "hf://acme/many?ignore=BF16/*,*Q8_0*").path))
    assert found >= {"m-Q4_K_M.gguf", "mmproj-F16.gguf", "config.json", "README.md"}
    assert not found & {"m-Q8_0.gguf", *SHARDS}
    assert found <= set(files)
