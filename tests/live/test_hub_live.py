"""The real Hub, if LIVE_TESTS=1: a tiny public repository, fetched by us and by the real client."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import Modelstore, digests
from tests.support.hub_client import RealClient

LIVE = pytest.mark.skipif(os.environ.get("LIVE_TESTS") != "1", reason="set LIVE_TESTS=1 to use the network")
pytestmark = [LIVE, pytest.mark.timeout(300)]
REPO = "hf-internal-testing/tiny-random-bert"  # under a megabyte


@pytest.fixture
def surroundings() -> dict[str, str]:
    """The proxy, the authorities and the mirror that this machine needs."""
    names = [name for name in os.environ if name.lower().endswith("_proxy") or name.endswith("_CA_BUNDLE")]
    return {name: os.environ[name] for name in (*names, "SSL_CERT_FILE", "HF_ENDPOINT") if name in os.environ}


@pytest.fixture
def client(tmp_path: Path, surroundings: dict[str, str]) -> RealClient:
    return RealClient(None, tmp_path / "real", surroundings)


@pytest.fixture
def online(cli: Modelstore, surroundings: dict[str, str]) -> Modelstore:
    return cli.with_env(**surroundings)


def test_everything(online: Modelstore, client: RealClient) -> None:
    theirs = digests(client.snapshot(REPO))
    assert digests(online("fetch", f"hf://{REPO}?allow=*", timeout=240).path) == theirs


def test_one_file_of_one_commit(online: Modelstore, client: RealClient) -> None:
    theirs = client.snapshot(REPO, allow_patterns=["config.json"])
    found = online("fetch", f"hf://{REPO}@{theirs.name}/config.json", timeout=240).path
    assert digests(found) == digests(theirs)


def test_a_repository_that_was_renamed(online: Modelstore, client: RealClient) -> None:
    theirs = client.snapshot("gpt2", allow_patterns=["*config.json"])
    assert digests(online("fetch", "hf://gpt2?allow=*config.json", timeout=240).path) == digests(theirs)


def test_what_is_not_there(online: Modelstore) -> None:
    online("fetch", "hf://hf-internal-testing/no-such-model-here").failed(3)
    online("fetch", f"hf://{REPO}@no-such-revision").failed(3)
