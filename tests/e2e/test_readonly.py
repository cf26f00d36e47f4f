"""A read-only root gives hits: mounted read-only, owned by somebody else, or without write permission."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support import Modelstore, digests, impossible, sha256_of, stats, unshare, without_privileges
from tests.support.httpserver import HttpServer, PatternBody

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = (1 << 24) + 99
NOBODY = 65534
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro,nosuid,nodev,noexec "$0" && exec "$@"'


@dataclass
class Frozen:
    """A store that was filled, then made read-only for `cli`, in one of three ways."""

    how: str
    cli: Modelstore
    root: Path

    def freeze(self) -> dict[str, tuple[int, ...]]:
        """The state of the store, for comparison. What follows runs without privileges to break in."""
        match self.how:
            case "read-only mount":
                self.cli = self.cli.with_prefix(*unshare("--mount", script=READ_ONLY, root=self.root))
            case "somebody else's":
                if os.geteuid() != 0:
                    impossible("only root can give files away")
                self.cli = self.cli.with_prefix(*without_privileges())
                subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", self.root], check=True)
            case _:
                self.cli = self.cli.with_prefix(*without_privileges())
                subprocess.run(["chmod", "-R", "a-w", self.root], check=True)
        return stats(self.root)


@pytest.fixture(params=["read-only mount", "somebody else's", "no write permission"])
def frozen(request: pytest.FixtureRequest, cli: Modelstore, store_root: Path) -> Iterator[Frozen]:
    store_root.mkdir()
    yield Frozen(request.param, cli, store_root)
    subprocess.run(["chmod", "-R", "u+w", store_root], check=True)  # so that pytest can remove it


def test_hits(frozen: Frozen, sharded_model_dir: Path) -> None:
    fetched = frozen.cli("fetch", "--json", sharded_model_dir).json
    expected = digests(sharded_model_dir)
    shutil.rmtree(sharded_model_dir)
    before = frozen.freeze()
    for command in (("fetch",), ("fetch", "--offline"), ("fetch", "--verify", "full"), ("path",)):
        path = frozen.cli(*command, sharded_model_dir).path
        assert (str(path), digests(path)) == (fetched["path"], expected)
    assert [entry["key"] for entry in frozen.cli("list", "--json").json] == [fetched["key"]]
    assert frozen.cli("show", "--json", fetched["key"]).json["manifest"] == fetched["manifest"]
    assert frozen.cli("verify", "--json").json["corrupt"] == []
    assert stats(frozen.root) == before


def test_hit_to_a_target_of_the_readers_own(frozen: Frozen, http_server: HttpServer, tmp_path: Path) -> None:
    """Another mount, or another owner's files, cannot be linked: a copy is made."""
    origin = http_server.add("/m.gguf", PatternBody(SIZE))
    frozen.cli("fetch", origin.url).ok()
    asked, before = len(http_server.requests), frozen.freeze()
    own = tmp_path / "own"
    own.mkdir()
    target = frozen.cli("fetch", origin.url, "--to", own / "serve").path
    assert sha256_of(target / "m.gguf") == origin.body.sha256
    assert os.listdir(own) == ["serve"]
    assert len(http_server.requests) == asked
    after = stats(frozen.root)
    assert after.keys() == before.keys()
    assert all(after[path][:4] == before[path][:4] for path in before), "all but ctime, which a hard link moves"


def test_cold(frozen: Frozen, sharded_model_dir: Path) -> None:
    """What is not there cannot be put there: a clear error, and the store as it was."""
    frozen.cli("fetch", sharded_model_dir / "config.json").ok()
    before = frozen.freeze()
    frozen.cli("fetch", sharded_model_dir).failed(9, str(frozen.root))
    assert stats(frozen.root) == before


def test_cold_and_empty(frozen: Frozen, tiny_model_dir: Path) -> None:
    """No store yet, and none may be made."""
    frozen.freeze()
    frozen.cli("path", tiny_model_dir).failed(11)
    frozen.cli("fetch", tiny_model_dir).failed(9, str(frozen.root))
    assert os.listdir(frozen.root) == []
