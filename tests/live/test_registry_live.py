"""Real registries, on request: `LIVE_TESTS=1 pytest tests/live`. A few MB from each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import Modelstore, blob, sha256_of

pytestmark = pytest.mark.skipif(
    os.environ.get("LIVE_TESTS") != "1", reason="needs the internet: set LIVE_TESTS=1 to run it"
)
ENV = {
    name: value for name, value in os.environ.items() if name.lower() in ("https_proxy", "no_proxy", "ssl_cert_file")
}


def assert_whole(root: Path, found: dict[str, object], names: set[str]) -> None:
    files = {file["path"]: file["digest"] for file in found["files"]}  # type: ignore[attr-defined]
    assert names <= files.keys()
    for name, digest in files.items():
        assert f"sha256:{sha256_of(Path(str(found['path'])) / name)}" == digest
    assert f"sha256:{sha256_of(blob(root, str(found['manifest'])))}" == found["manifest"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("ollama://all-minilm:22m", {"model.gguf", "LICENSE"}),
        ("ollama://hf.co/ggml-org/tiny-llamas:stories260K.gguf", {"model.gguf"}),
    ],
)
def test_a_tiny_model(cli: Modelstore, store_root: Path, url: str, names: set[str]) -> None:
    found = cli.with_env(**ENV)("fetch", url, "--json", timeout=500).json
    assert_whole(store_root, found, names)
    offline = cli.with_env(**ENV)("fetch", "--offline", url, "--json").json
    assert offline["manifest"] == found["manifest"]


@pytest.mark.parametrize(
    "url", ["ollama://no-such-model-of-anybody:latest", "ollama://registry.ollama.ai/library/all-minilm:no-such-tag"]
)
def test_what_is_not_there(cli: Modelstore, url: str) -> None:
    cli.with_env(**ENV)("fetch", url).failed(3)
