"""Object stores by the suite that any source must pass: s3:// against moto, memory:// through fsspec."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import fsspec
import pytest

from modelstore.config import load_config
from modelstore.sources.fsspec import FsspecSource
from modelstore.sources.s3 import S3Source
from modelstore.testing import SourceCase, SourceTests
from tests.support.filesystems import AsyncRemoteFileSystem, PlainFileSystem, Remote, registered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelstore.sources.base import Source
    from tests.support.s3 import S3

BODY = random.Random(3).randbytes(2_500_000)
TREE = {"config.json": b"{}", "model.safetensors": BODY, "sub/deep/empty": b"", "sub/ümlaut and + space": b"x"}


class S3Tests(SourceTests):
    @pytest.fixture
    def source(self, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        self.s3 = s3
        source = S3Source(load_config(environ={}))
        yield source
        source.close()


class TestS3Prefix(S3Tests):
    @pytest.fixture
    def case(self, s3: S3) -> SourceCase:
        s3.fill(TREE, "a model/")
        return SourceCase(s3.url("a model/"), TREE, s3.url("a mode/"))

    def change(self, case: SourceCase) -> None:
        self.s3.fill({path: bytes(len(body)) for path, body in case.files.items()}, "a model/")


class TestS3Object(S3Tests):
    @pytest.fixture
    def case(self, s3: S3) -> SourceCase:
        s3.put("dir/m+1.gguf", BODY)
        return SourceCase(s3.url("dir/m+1.gguf"), {"m+1.gguf": BODY}, s3.url("dir/m"))

    def change(self, case: SourceCase) -> None:
        self.s3.put("dir/m+1.gguf", bytes(len(BODY)))


class TestS3ObjectWithDigest(S3Tests):
    @pytest.fixture
    def case(self, s3: S3) -> SourceCase:
        s3.put("m.gguf", BODY, ChecksumAlgorithm="SHA256")
        return SourceCase(s3.url("m.gguf"), {"m.gguf": BODY}, f"s3://no-such-{s3.bucket}/m.gguf")

    def change(self, case: SourceCase) -> None:
        self.s3.put("m.gguf", bytes(len(BODY)))


class FsspecTests(SourceTests):
    @pytest.fixture
    def source(self) -> Iterator[Source]:
        source = FsspecSource(load_config(environ={}))
        yield source
        source.close()


class TestMemory(FsspecTests):
    @pytest.fixture
    def case(self, tmp_path: Path) -> Iterator[SourceCase]:
        self.files = fsspec.filesystem("memory")
        url = f"memory://{tmp_path.name}/a model/"
        for path, body in TREE.items():
            self.files.pipe_file(url + path, body)
        yield SourceCase(url, TREE, f"memory://{tmp_path.name}/a mode/")
        self.files.rm(f"/{tmp_path.name}", recursive=True)

    def change(self, case: SourceCase) -> None:
        for path, body in case.files.items():
            self.files.pipe_file(case.url + path, bytes(len(body)))


class RemoteTests(FsspecTests):
    base: type

    @pytest.fixture
    def remote(self) -> Iterator[Remote]:
        with registered(self.base) as remote:
            self.behind = remote
            yield remote

    @pytest.fixture
    def case(self, remote: Remote) -> SourceCase:
        remote.fill(TREE, "bucket/a model/")
        return SourceCase(remote.url("bucket/a model/"), TREE, remote.url("bucket/a mode/"))

    def change(self, case: SourceCase) -> None:
        self.behind.fill({path: bytes(len(body)) for path, body in case.files.items()}, "bucket/a model/")


class TestPlainFilesystem(RemoteTests):
    base = PlainFileSystem


class TestAsyncFilesystem(RemoteTests):
    base = AsyncRemoteFileSystem
