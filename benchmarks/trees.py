"""Models made up on the spot: the same every time, no two files alike."""

from pathlib import Path

__all__ = ["make_tree"]


def make_tree(directory: Path, files: int, size: int) -> list[str]:
    """Write ``files`` files of ``size`` bytes in a few folders; returns their paths in the tree.

    Only the first bytes of a file differ from zero, so that large ones cost no space here; a store writes them out.
    """
    paths = []
    for index in range(files):
        path = f"part-{index % 4}/model-{index:05}-of-{files:05}.bin"
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as stream:
            stream.write(f"{path} of {size}\n".encode()[:size])
            stream.truncate(size)
        paths.append(path)
    return paths
