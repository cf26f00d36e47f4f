"""Our layouts, by the suite that any layout of a plain tree must pass."""

from collections.abc import Mapping

import numpy as np
import pytest
from safetensors.numpy import save

from modelstore.layouts.files import FilesLayout
from modelstore.layouts.vllm import VllmLayout
from modelstore.testing import LayoutTests

WEIGHTS = save({"weight": np.arange(12, dtype=np.float32).reshape(3, 4)})


@pytest.fixture
def files() -> Mapping[str, bytes]:
    return {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/deep/x.txt": b"deep", "sub/empty": b""}


class TestFiles(LayoutTests):
    @pytest.fixture
    def layout(self) -> FilesLayout:
        return FilesLayout()


class TestVllm(LayoutTests):
    @pytest.fixture
    def layout(self) -> VllmLayout:
        return VllmLayout()
