"""Our tiers, by the suite that any tier must pass."""

from pathlib import Path

import pytest

from modelstore.config import TierConfig
from modelstore.digest import Digest
from modelstore.testing import TierTests
from modelstore.tiers.base import Tier
from modelstore.tiers.directory import DirectoryTier
from modelstore.tiers.memory import MemoryTier


class TestDirectoryTier(TierTests):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> DirectoryTier:
        return DirectoryTier(TierConfig.parse(tmp_path / "store"))

    def damage(self, tier: Tier, digest: Digest) -> None:
        assert isinstance(tier, DirectoryTier)
        path = Path(tier.local_path(digest))
        path.chmod(0o644)
        body = bytearray(path.read_bytes())
        body[-1] ^= 1
        path.write_bytes(body)


class TestMemoryTier(TierTests):
    @pytest.fixture
    def tier(self) -> MemoryTier:
        return MemoryTier()

    def damage(self, tier: Tier, digest: Digest) -> None:
        assert isinstance(tier, MemoryTier)
        tier._blobs[digest] = b"?" + tier._blobs[digest][1:]
