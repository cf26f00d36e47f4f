"""Two tiers to build stores from."""

from pathlib import Path

import pytest

from modelstore.config import TierConfig
from modelstore.tiers.directory import DirectoryTier


@pytest.fixture
def fast(tmp_path: Path) -> DirectoryTier:
    return DirectoryTier(TierConfig(str(tmp_path / "fast"), "fast"))


@pytest.fixture
def slow(tmp_path: Path) -> DirectoryTier:
    return DirectoryTier(TierConfig(str(tmp_path / "slow"), "slow"))
