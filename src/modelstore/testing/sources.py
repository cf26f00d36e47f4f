"""What every source must do."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from modelstore.digest import Digest
from modelstore.errors import SourceChanged, SourceNotFound
from modelstore.manifest import check_paths
from modelstore.source_url import SourceURL
from modelstore.sources.base import Source, SourceFile

__all__ = ["SourceCase", "SourceTests"]


@dataclass(frozen=True, slots=True)
class SourceCase:
    """A URL, the files behind it by path, and a URL like it behind which there is nothing."""

    url: str
    files: Mapping[str, bytes]
    missing: str


def _read(source: Source, file: SourceFile, start: int, stop: int) -> bytes:
    return b"".join(source.open_range(file, start, stop))


class SourceTests:
    """Fixtures to give: ``source``, and ``case``, a :class:`SourceCase` with a file of more than 1 MiB.

    Override ``change`` to put other bytes of the same length behind the URL.
    """

    def change(self, case: SourceCase) -> None:
        """Replace the files' content at the source."""
        pytest.skip("this suite was not told how to change the source")

    def test_lists_every_file_with_its_size(self, source: Source, case: SourceCase) -> None:
        resolved = source.resolve(SourceURL.parse(case.url))
        assert {file.path: file.size for file in resolved.files} == {
            path: len(body) for path, body in case.files.items()
        }
        check_paths(file.path for file in resolved.files)

    def test_digests_are_true(self, source: Source, case: SourceCase) -> None:
        for file in source.resolve(SourceURL.parse(case.url)).files:
            assert file.digest in (None, Digest.of(case.files[file.path]))

    def test_reads_whole_files(self, source: Source, case: SourceCase) -> None:
        for file in source.resolve(SourceURL.parse(case.url)).files:
            pieces = list(source.open_range(file, 0, file.size)) if file.size else []
            assert b"".join(pieces) == case.files[file.path]
            assert all(len(piece) <= 2**20 for piece in pieces)

    def test_reads_ranges_in_parallel(self, source: Source, case: SourceCase) -> None:
        for file in source.resolve(SourceURL.parse(case.url)).files:
            if not file.ranges:
                continue
            borders = [*range(0, file.size, 300_007), file.size]
            with ThreadPoolExecutor(4) as pool:
                parts = list(pool.map(lambda pair, f=file: _read(source, f, *pair), pairwise(borders)))
            assert b"".join(parts) == case.files[file.path]

    def test_is_the_same_twice(self, source: Source, case: SourceCase) -> None:
        one, two = (source.resolve(SourceURL.parse(case.url)) for _ in range(2))
        assert one == two

    def test_nothing_there(self, source: Source, case: SourceCase) -> None:
        with pytest.raises(SourceNotFound) as caught:
            source.resolve(SourceURL.parse(case.missing))
        assert isinstance(caught.value, FileNotFoundError)

    def test_a_change_does_not_go_unnoticed(self, source: Source, case: SourceCase) -> None:
        before = source.resolve(SourceURL.parse(case.url))
        self.change(case)
        for file in before.files:
            if file.size and file.ranges:
                with pytest.raises(SourceChanged):
                    _read(source, file, 0, file.size)
        after = source.resolve(SourceURL.parse(case.url))
        for old, new in zip(before.files, after.files, strict=True):
            assert not old.size or old.validator is None or old.validator != new.validator

    def test_handle_is_its_own_business(self, source: Source, case: SourceCase) -> None:
        for file in source.resolve(SourceURL.parse(case.url)).files:
            assert replace(file, handle=None) == file
            assert "handle" not in repr(file)
