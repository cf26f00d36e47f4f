"""Modes do not depend on the umask: files everybody may read and nobody write, directories everybody may enter."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Modelstore
    from tests.support.httpserver import HttpServer


def modes(directory: Path, kind: int) -> dict[str, str]:
    paths = (directory, *directory.rglob("*"))
    found = {path: path.lstat().st_mode for path in paths}
    return {str(path): oct(stat.S_IMODE(mode)) for path, mode in found.items() if stat.S_IFMT(mode) == kind}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_modes(
    cli: Modelstore, http_server: HttpServer, sharded_model_dir: Path, store_root: Path, tmp_path: Path, umask: int
) -> None:
    target = tmp_path / "serve"
    sharded_model_dir.joinpath("config.json").chmod(0o600)
    origin = http_server.add("/m.gguf", b"weights")
    cli("fetch", origin.url, umask=umask).ok()
    cli("fetch", sharded_model_dir, umask=umask).ok()
    cli("fetch", sharded_model_dir, "--to", target, umask=umask).ok()
    for directory in (store_root, target):
        assert set(modes(directory, stat.S_IFDIR).values()) == {"0o755"}, modes(directory, stat.S_IFDIR)
    for directory in (store_root / "blobs", store_root / "models", target):
        assert set(modes(directory, stat.S_IFREG).values()) == {"0o444"}, modes(directory, stat.S_IFREG)
    ours = modes(store_root, stat.S_IFREG)
    unreadable = {path: mode for path, mode in ours.items() if int(mode, 8) & 0o444 != 0o444 and "/locks/" not in path}
    assert unreadable == {}
    writable = {path: mode for path, mode in ours.items() if int(mode, 8) & 0o022 and "/locks/" not in path}
    assert writable == {}, "by others than the owner"
