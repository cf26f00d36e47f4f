"""The registry source, by the suite that any source must pass, against a real registry."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from modelstore.config import load_config
from modelstore.source_url import SourceURL
from modelstore.sources.ollama import OllamaSource
from modelstore.testing import SourceCase, SourceTests
from tests.support import impossible
from tests.support.registry import Registry, config, find_registry, image, ollama, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelstore.sources.base import Source

BODY = random.Random(4).randbytes(2_500_000)
FILES = {"model.gguf": BODY, "template": b"{{ .Prompt }}", "LICENSE": b"MIT", "LICENSE-2": b"Apache-2.0"}


def push(registry: Registry, body: bytes) -> None:
    """The model under its tag, with this as its weights."""
    layers = [ollama("model", body), ollama("template", FILES["template"])]
    layers += [ollama("license", FILES[name]) for name in ("LICENSE", "LICENSE-2")]
    registry.push("library/tiny", "latest", image(config(), *layers))


class TestRegistry(SourceTests):
    @pytest.fixture
    def registry(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
        program = find_registry()
        if program is None:
            impossible("docker-registry is not installed")
        with serve(program, tmp_path_factory.mktemp("registry")) as found:
            push(found, BODY)
            yield found

    @pytest.fixture
    def source(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
        monkeypatch.setenv("DOCKER_CONFIG", "/nonexistent")
        source = OllamaSource(load_config(environ={}))
        yield source
        source.close()

    @pytest.fixture
    def case(self, registry: Registry) -> SourceCase:
        self.registry = registry
        return SourceCase(registry.source("library/tiny"), FILES, registry.source("library/nothing"))

    def test_a_change_does_not_go_unnoticed(self, source: Source, case: SourceCase) -> None:
        """A digest stays: what was resolved can still be read, and what is resolved now is another."""
        before = source.resolve(SourceURL.parse(case.url))
        push(self.registry, bytes(len(BODY)))
        for file in before.files:
            assert b"".join(source.open_range(file, 0, file.size)) == FILES[file.path]
        after = source.resolve(SourceURL.parse(case.url))
        assert before.revision != after.revision
        assert {file.path: file.digest for file in before.files} != {file.path: file.digest for file in after.files}
