"""What every layout of a plain tree must do."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from modelstore.config import TierConfig
from modelstore.digest import Digest
from modelstore.errors import BlobNotFound, LayoutError
from modelstore.fetching import put
from modelstore.layouts.base import Layout
from modelstore.manifest import FileEntry, Manifest
from modelstore.tiers.directory import DirectoryTier

__all__ = ["LayoutTests"]


def _tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _states(path: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_ino, file.stat().st_ctime_ns) for file in [path, *path.rglob("*")]}


class LayoutTests:
    """Fixtures to give: ``layout``, and ``files``, the bytes by path of a model that this layout accepts."""

    @pytest.fixture
    def tier(self, tmp_path: Path) -> DirectoryTier:
        """Where the blobs are."""
        return DirectoryTier(TierConfig.parse(tmp_path / "store"))

    @pytest.fixture
    def model(self, tier: DirectoryTier, files: Mapping[str, bytes]) -> Manifest:
        """The model, stored."""
        return self.store(tier, files)

    @pytest.fixture
    def target(self, tmp_path: Path) -> Path:
        """Where to lay it out."""
        return tmp_path / "out" / "model"

    @staticmethod
    def store(tier: DirectoryTier, files: Mapping[str, bytes]) -> Manifest:
        """Put a model's blobs into a tier."""
        for body in files.values():
            put(tier, body)
        return Manifest.build(FileEntry(path, Digest.of(body), len(body)) for path, body in files.items())[0]

    def test_makes_the_tree(
        self, layout: Layout, tier: DirectoryTier, model: Manifest, files: Mapping[str, bytes], target: Path
    ) -> None:
        assert not layout.is_complete(model, tier, str(target))
        assert layout.materialize(model, tier, str(target)) == str(target)
        assert _tree(target) == dict(files)
        assert layout.is_complete(model, tier, str(target))
        assert os.listdir(target.parent) == [target.name]

    def test_leaves_a_complete_target_alone(
        self, layout: Layout, tier: DirectoryTier, model: Manifest, target: Path
    ) -> None:
        layout.materialize(model, tier, str(target))
        before = _states(target)
        layout.materialize(model, tier, str(target))
        assert _states(target) == before

    def test_recognises_a_complete_target_without_a_record(
        self, layout: Layout, tier: DirectoryTier, model: Manifest, files: Mapping[str, bytes], target: Path
    ) -> None:
        for path, body in files.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(body)
        before = _states(target)
        layout.materialize(model, tier, str(target))
        assert _states(target) == before
        assert layout.is_complete(model, tier, str(target))

    def test_refuses_a_foreign_target(self, layout: Layout, tier: DirectoryTier, model: Manifest, target: Path) -> None:
        target.mkdir(parents=True)
        (target / "mine.txt").write_text("mine")
        with pytest.raises(LayoutError, match=r"mine\.txt"):
            layout.materialize(model, tier, str(target))
        with pytest.raises(LayoutError, match=r"mine\.txt"):
            layout.check_target({}, tier, str(target))
        assert _tree(target.parent) == {"model/mine.txt": b"mine"}

    def test_refuses_a_file_or_a_link_as_target(
        self, layout: Layout, tier: DirectoryTier, model: Manifest, target: Path
    ) -> None:
        target.parent.mkdir()
        target.symlink_to(target.parent)
        with pytest.raises(LayoutError):
            layout.materialize(model, tier, str(target))
        target.unlink()
        target.write_text("mine")
        with pytest.raises(LayoutError):
            layout.materialize(model, tier, str(target))
        assert target.read_text() == "mine"

    def test_fills_an_empty_target(
        self, layout: Layout, tier: DirectoryTier, model: Manifest, files: Mapping[str, bytes], target: Path
    ) -> None:
        target.mkdir(parents=True)
        layout.materialize(model, tier, str(target))
        assert _tree(target) == dict(files)

    def test_replaces_its_own_older_version(
        self, layout: Layout, tier: DirectoryTier, model: Manifest, files: Mapping[str, bytes], target: Path
    ) -> None:
        layout.materialize(model, tier, str(target))
        newer = {**files, "added.txt": b"new"}
        layout.materialize(self.store(tier, newer), tier, str(target))
        assert _tree(target) == newer
        assert os.listdir(target.parent) == [target.name]

    def test_mends_a_target_that_lost_a_file(
        self, layout: Layout, tier: DirectoryTier, model: Manifest, files: Mapping[str, bytes], target: Path
    ) -> None:
        layout.materialize(model, tier, str(target))
        (target / min(files)).unlink()
        assert not layout.is_complete(model, tier, str(target))
        layout.materialize(model, tier, str(target))
        assert _tree(target) == dict(files)

    def test_refuses_a_target_that_somebody_changed(
        self, layout: Layout, tier: DirectoryTier, model: Manifest, files: Mapping[str, bytes], target: Path
    ) -> None:
        layout.materialize(model, tier, str(target))
        changed = target / min(files)
        changed.unlink()
        changed.write_bytes(b"edited")
        assert not layout.is_complete(model, tier, str(target))
        with pytest.raises(LayoutError, match=changed.name):
            layout.materialize(model, tier, str(target))
        assert changed.read_bytes() == b"edited"

    def test_needs_every_blob(self, layout: Layout, tier: DirectoryTier, model: Manifest, target: Path) -> None:
        tier.delete(max(model.layers, key=lambda layer: layer.size).digest)
        with pytest.raises((BlobNotFound, LayoutError)):
            layout.materialize(model, tier, str(target))
        assert not target.exists()
        assert not target.parent.exists() or os.listdir(target.parent) == []
