"""Our sources, by the suite that any source must pass."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelstore.config import load_config
from modelstore.sources.base import Source
from modelstore.sources.filesystem import FileSource
from modelstore.sources.web import WebSource
from modelstore.testing import SourceCase, SourceTests
from tests.support.httpserver import HttpServer

BODY = random.Random(2).randbytes(2_500_000)
TREE = {"config.json": b"{}", "model.safetensors": BODY, "sub/deep/empty": b"", "sub/ümlaut and space": b"x"}


class TestDirectory(SourceTests):
    @pytest.fixture
    def source(self) -> FileSource:
        return FileSource(load_config(environ={}))

    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        root = tmp_path / "a model"
        for path, body in TREE.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(body)
        return SourceCase(root.as_uri(), TREE, (tmp_path / "nothing").as_uri())

    def change(self, case: SourceCase) -> None:
        root = Path(case.url.removeprefix("file://").replace("%20", " "))
        for path, body in case.files.items():
            (root / path).write_bytes(bytes(len(body)))


class TestFile(SourceTests):
    @pytest.fixture
    def source(self) -> FileSource:
        return FileSource(load_config(environ={}))

    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        (tmp_path / "model.gguf").write_bytes(BODY)
        return SourceCase(str(tmp_path / "model.gguf"), {"model.gguf": BODY}, str(tmp_path / "nothing"))

    def change(self, case: SourceCase) -> None:
        Path(case.url).write_bytes(bytes(len(BODY)))


class TestWeb(SourceTests):
    @pytest.fixture
    def source(self) -> Iterator[Source]:
        source = WebSource(load_config(environ={}))
        yield source
        source.close()

    @pytest.fixture
    def case(self, http_server: HttpServer) -> SourceCase:
        self.server = http_server
        origin = http_server.add("/a/model.gguf", BODY)
        return SourceCase(origin.url, {"model.gguf": BODY}, origin.url + ".nothing")

    def change(self, case: SourceCase) -> None:
        self.server.add("/a/model.gguf", bytes(len(BODY)))
