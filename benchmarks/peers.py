"""Peers that may be installed. What they do here is what they offer for the same job: find a model that is cached."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

__all__ = ["HUB_REPO", "has_hub", "hub_command", "hub_lookup", "make_hub_cache"]

HUB_REPO = "bench/model-{files}"


def has_hub() -> bool:
    """Whether huggingface_hub is installed."""
    return find_spec("huggingface_hub") is not None


def make_hub_cache(cache: Path, paths: Sequence[str], tree: Path) -> None:
    """Put a tree into a cache as huggingface_hub lays it out: blobs, a snapshot of links to them, a ref.

    And the listing by which its newer versions see that a snapshot is complete, as a download leaves it there.
    """
    repo = cache / f"models--{HUB_REPO.format(files=len(paths)).replace('/', '--')}"
    commit = hashlib.sha1(repr(paths).encode(), usedforsecurity=False).hexdigest()
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    listing = {}
    for path in paths:
        data = (tree / path).read_bytes()
        blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        link = repo / "snapshots" / commit / path
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (2 + path.count("/"))
        link.symlink_to(f"{up}blobs/{blob.name}")
        listing[path] = {"size": len(data), "blob_id": commit, "lfs_sha256": blob.name, "lfs_size": len(data)}
    (repo / "trees").mkdir()
    (repo / "trees" / f"{commit}.json").write_text(json.dumps({"format_version": 1, "files": listing}))


def hub_lookup(cache: Path, files: int) -> Callable[[], object]:
    """``snapshot_download`` of a cached model, which asks nobody."""
    from huggingface_hub import snapshot_download

    return lambda: snapshot_download(HUB_REPO.format(files=files), cache_dir=cache, local_files_only=True)


def hub_command(python: str, cache: Path, files: int) -> list[str]:
    """The same as a command of its own."""
    code = (
        "import sys; from huggingface_hub import snapshot_download; "
        "print(snapshot_download(sys.argv[1], cache_dir=sys.argv[2], local_files_only=True))"
    )
    return [python, "-c", code, HUB_REPO.format(files=files), str(cache)]
