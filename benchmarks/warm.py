"""What a model that is there already costs: finding it, the command that prints its path, laying it out by link.

A pod that starts on a warm node waits for exactly this, and a launcher asks for it before every start. The bounds are
those the project promises; beside them stand what the system takes for the same work and what huggingface_hub does.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from fcntl import ioctl
from itertools import count
from pathlib import Path

from benchmarks.measure import time_calls, time_commands
from benchmarks.peers import has_hub, hub_command, hub_lookup, make_hub_cache
from benchmarks.report import Note, Row, Settings
from benchmarks.trees import make_tree
from modelstore import Model, Store
from modelstore.transfer.link import FICLONE

__all__ = ["run"]

#: Medians in seconds, as promised: a fetch of what is there, by its number of files.
FETCH_LIMITS = {1: 0.001, 100: 0.005}
#: The command against an interpreter that does nothing.
COMMAND_LIMIT = 8.0
#: Laying out 100 files by link, of any size.
LAYOUT_LIMIT = 0.050
LAYOUT_SIZES = {"1 KiB": 1024, "4 MiB": 4 * 1024 * 1024}


def run(settings: Settings) -> Iterator[Row | Note]:
    """The command first: a child starts slower once this process has loaded a peer."""
    os.environ.update(_environ(settings.directory))
    yield from _commands(settings)
    yield from _fetches(settings)
    yield from _layouts(settings)


def _environ(directory: Path) -> dict[str, str]:
    """No settings of this machine, and byte code cached as an installed package has it."""
    for name in [*os.environ]:
        if name.startswith(("MODELSTORE_", "HF_")) or name == "PYTHONDONTWRITEBYTECODE":
            del os.environ[name]
    return {
        "XDG_CONFIG_HOME": str(directory / "config"),
        "XDG_CACHE_HOME": str(directory / "cache"),
        "HF_HOME": str(directory / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPYCACHEPREFIX": str(directory / "pycache"),
    }


def _model(settings: Settings, files: int) -> Path:
    """The source of a model with so many files of 1 KiB: one file, or a tree."""
    tree = settings.directory / f"source-{files}"
    paths = make_tree(tree, files, 1024) if not tree.exists() else []
    if paths and has_hub():
        make_hub_cache(settings.directory / "hub", paths, tree)
    return tree if files > 1 else next(path for path in tree.rglob("*") if path.is_file())


def _commands(settings: Settings) -> Iterator[Row | Note]:
    """``modelstore path`` of a cached model, whole process, beside a Python that starts and ends."""
    root = str(settings.directory / "store")
    sources = {files: _model(settings, files).as_uri() for files in FETCH_LIMITS}
    for source in sources.values():
        Store(tiers=[root]).fetch(source)
    python = sys.executable
    script = os.path.join(sysconfig.get_path("scripts"), "modelstore")
    ours = [script] if os.path.exists(script) else [python, "-m", "modelstore"]
    commands = {"python -c pass": [python, "-c", "pass"]}
    for files, source in sources.items():
        commands[f"modelstore path, {_files(files)}"] = [*ours, "--tier", root, "path", source]
    commands["modelstore --help"] = [*ours, "--help"]
    if has_hub():
        for files in sources:
            name = f"peer: python -c 'snapshot_download(...)', {_files(files)}"
            commands[name] = hub_command(python, settings.directory / "hub", files)
    samples = time_commands(commands, settings.share(10), {**os.environ})
    baseline = Row("python -c pass", samples.pop("python -c pass"))
    yield baseline
    for name, times in samples.items():
        limit = COMMAND_LIMIT if name.startswith("modelstore path") else None
        yield Row(name, times, limit, baseline)


def _fetches(settings: Settings) -> Iterator[Row | Note]:
    """``Store.fetch`` of what is there, in this process: with the store at hand, and with one made for it."""
    root = str(settings.directory / "store")
    for files, limit in FETCH_LIMITS.items():
        source = _model(settings, files).as_uri()
        store = Store(tiers=[root])
        model = store.fetch(source)
        ours = Row(f"Store.fetch, {_files(files)}", time_calls(lambda: store.fetch(source), settings.runs), limit)  # noqa: B023
        yield ours
        times = time_calls(lambda: Store(tiers=[root]).fetch(source), settings.runs)  # noqa: B023
        yield Row(f"Store(...).fetch, {_files(files)}", times)
        paths = [str(file.path) for file in model.files.values()]
        times = time_calls(lambda: [os.lstat(path) for path in paths], settings.runs)  # noqa: B023
        yield Row(f"floor: os.lstat of {_files(files)}", times)
        if has_hub():
            times = time_calls(hub_lookup(settings.directory / "hub", files), settings.runs)
            yield Row(f"peer: snapshot_download(local_files_only=True), {_files(files)}", times, None, ours)
    if not has_hub():
        yield Note("huggingface_hub is not installed, so it is not compared with")


def _layouts(settings: Settings) -> Iterator[Row | Note]:
    """``Model.materialize`` of 100 files into a directory that is not there yet; durable when it returns."""
    for label, size in LAYOUT_SIZES.items():
        work = settings.directory / f"layout-{size}"
        make_tree(work / "source", 100, size)
        model = Store(tiers=[str(work / "store")]).fetch(work / "source")
        targets = (work / f"target-{number}" for number in count())
        yield _layout(f"Model.materialize, 100 files of {label}", model, targets, settings)
        yield _link_floor(f"floor: os.link of 100 files of {label}", model, work, settings.share(5))
        yield _copy_floor(f"floor: shutil.copytree of 100 files of {label}", model, work, settings.share(20))
        yield Note(f"100 files of {label} were laid out by {_way(model, work / 'store')}")
        shutil.rmtree(work)


def _layout(name: str, model: Model, targets: Iterator[Path], settings: Settings) -> Row:
    made: list[Path] = []

    def lay_out() -> None:
        made.append(model.materialize("files", to=next(targets)))

    times = time_calls(lay_out, settings.share(5), warm_up=3, after=lambda: shutil.rmtree(made.pop()))
    return Row(name, times, LAYOUT_LIMIT)


def _link_floor(name: str, model: Model, work: Path, runs: int) -> Row:
    """Folders and hard links, and nothing made durable."""
    target = work / "links"
    pairs = [(str(file.path), str(target / path)) for path, file in model.files.items()]
    folders = sorted({os.path.dirname(new) for _, new in pairs})

    def link() -> None:
        for folder in folders:
            os.makedirs(folder)
        for old, new in pairs:
            os.link(old, new)

    return Row(name, time_calls(link, runs, warm_up=3, after=lambda: shutil.rmtree(target)))


def _copy_floor(name: str, model: Model, work: Path, runs: int) -> Row:
    """What laying out costs who does not link; nothing made durable here either."""
    target = work / "copies"
    after = lambda: shutil.rmtree(target)  # noqa: E731
    return Row(name, time_calls(lambda: shutil.copytree(model.path, target), runs, warm_up=1, after=after))


def _way(model: Model, root: Path) -> str:
    """How the model's first file came from its blob."""
    file = next(iter(model.files.values()))
    blob = root / "blobs" / file.digest.filename
    if os.path.samefile(blob, file.path):
        return "hard link"
    probe = root / "probe"
    try:
        with blob.open("rb") as source, probe.open("wb") as copy:
            ioctl(copy.fileno(), FICLONE, source.fileno())
    except OSError:
        return "copy"
    return "reflink"


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"
