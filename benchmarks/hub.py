"""A model from the Hub: what a user types, beside the Hub's own client, which does not look at what it gets.

The same repository, of the same server, which redirects to another for the large files as the Hub does; nothing is
known beforehand, and nothing is there. How often each asks is counted in a download of its own before the times.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.hub_server import Hub, Requests, serve_hub
from benchmarks.machine import file_system
from benchmarks.payload import MIB, Payload, make_files, write_listing
from benchmarks.race import Course
from benchmarks.report import Bound, Entry, Note, Settings
from benchmarks.server import COMMIT
from benchmarks.tools import Contestant, Race, Toolbox, environ
from benchmarks.transfer import memory_for, ratio_bound

__all__ = ["run"]

_TOTAL: Final = 2048 * MIB
_OURS: Final = "modelstore fetch"
_THEIRS: Final = "hf download"
_METADATA: Final = 3.0
_RATIO: Final = 0.7
#: No authority of its own is needed, and neither side would load one for what is not encrypted.
_TRUST: Final = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
_MODEL: Final = {
    ".gitattributes": 1_570,
    "LICENSE": 11_343,
    "README.md": 18_412,
    "added_tokens.json": 707,
    "chat_template.jinja": 4_168,
    "config.json": 1_236,
    "generation_config.json": 242,
    "merges.txt": 1_671_853,
    "model.safetensors.index.json": 63_914,
    "preprocessor_config.json": 482,
    "special_tokens_map.json": 613,
    "tokenizer.json": 11_422_654,
    "tokenizer.model": 587_404,
    "tokenizer_config.json": 9_732,
    "vocab.json": 2_776_833,
}


def _shapes(part: int) -> dict[str, dict[str, int]]:
    """Names and sizes of the files of each repository; the large ones of a ``part`` of what they are."""
    small = dict(_MODEL)
    small |= {f"figures/benchmark-{index:02}.png": 40_000 + 9_001 * index for index in range(12)}
    small |= {f"evaluation/task-{index:02}.json": 700 + 1_511 * index for index in range(25)}
    shards = 8
    each, rest = divmod(_TOTAL - sum(small.values()), shards)
    large = {
        f"model-{index:05}-of-{shards:05}.safetensors": max(1, (each + (rest if index == shards else 0)) // part)
        for index in range(1, shards + 1)
    }
    return {"model": large | small, "many": {f"data/part-{index:04}.json": 100 * 1024 for index in range(500)}}


_COURSES: Final = {
    "60 files, 2 GiB, tmpfs": "model",
    "60 files, 2 GiB, disk": "model",
    "500 files, 50 MB, tmpfs": "many",
}


def run(settings: Settings) -> Iterator[Entry | Bound | Note]:
    """Every course, then the bounds on those that were run."""
    tools = Toolbox(settings.peers)
    if not tools.find("hf"):
        yield Note("huggingface_hub is not installed, so it is not compared with")
    entries: list[Entry] = []
    counts: dict[str, Requests] = {}
    with memory_for(settings) as memory:
        for shape, files in _shapes(16 if settings.quick else 1).items():
            courses = [
                name for name, of in _COURSES.items() if of == shape and all(word in name for word in settings.only)
            ]
            if not courses:
                continue
            payload = make_files(memory, shape, files)
            with serve_hub(payload, settings.directory / shape) as hub:
                for name in courses:
                    for item in _run_course(name, settings, tools, hub, payload, memory, counts):
                        if isinstance(item, Entry):
                            entries.append(item)
                        yield item
            shutil.rmtree(payload.directory)
    yield Note(f"peers: {tools.versions()}")
    yield from _bounds(entries, counts)


def _run_course(
    name: str,
    settings: Settings,
    tools: Toolbox,
    hub: Hub,
    payload: Payload,
    memory: Path,
    counts: dict[str, Requests],
) -> Iterator[Entry | Note]:
    on_disk = name.endswith("disk")
    target = (settings.directory if on_disk else memory) / "target"
    listing = settings.directory / f"{payload.name}.json"
    write_listing(sorted(payload.files, key=lambda file: -file.size), listing)
    (settings.directory / "home").mkdir(exist_ok=True)
    race = Race(payload, hub.endpoint, target, listing, settings.directory, Path(os.devnull))
    field = _left(_field(race, hub, tools), settings)
    surroundings = {key: value for key, value in environ(race).items() if key not in _TRUST}
    course = Course(name, payload, target, durable=on_disk)
    if on_disk:
        yield Note(f"{name}: onto {file_system(str(settings.directory))}; peers are followed by sync of their files")
    for each in field:
        hub.requests()
        yield from (item for item in course.run([each], 1, surroundings, rehearse=False) if isinstance(item, Note))
        counted = hub.requests()
        counts[f"{name}, {each.name}"] = counted
        yield Note(f"{name}, {each.name}: {counted}")
    if not on_disk:
        field += _left((each for each in tools.yardsticks(race) if each.name.startswith("openssl")), settings)
    yield from course.run(field, settings.runs, surroundings)


def _left(field: Iterable[Contestant], settings: Settings) -> list[Contestant]:
    """Those who are not left out."""
    return [each for each in field if not any(word in each.name for word in settings.without)]


def _field(race: Race, hub: Hub, tools: Toolbox) -> Iterator[Contestant]:
    """Ours, and the Hub's client into its cache, which is new for each run, and into a directory."""
    script = os.path.join(sysconfig.get_path("scripts"), "modelstore")
    ours = [script] if os.path.exists(script) else [sys.executable, "-m", "modelstore"]
    command = [*ours, "--tier", str(race.target), "fetch", f"hf://{hub.repository}"]
    yield Contestant(_OURS, command, lambda file: f"blobs/sha256-{file.sha256}", durable=True)
    if tool := tools.find("hf"):
        fetch = ["env", f"HF_HOME={race.target}/hf", tool, "download", hub.repository]
        cache = f"hf/hub/models--{hub.repository.replace('/', '--')}/snapshots/{COMMIT}"
        yield Contestant(_THEIRS, fetch, lambda file: f"{cache}/{file.name}")
        to_files = [*fetch, "--local-dir", f"{race.target}/files"]
        yield Contestant("hf download --local-dir", to_files, lambda file: f"files/{file.name}")
    url = f"{hub.endpoint}/{hub.repository}/resolve/{COMMIT}"
    where = ["--listing", str(race.listing), "--url", url, "--to", str(race.target)]
    yield Contestant("floor: bare urllib3", [sys.executable, "-m", "benchmarks.contestants", "floor", *where])


def _bounds(entries: Sequence[Entry], counts: dict[str, Requests]) -> Iterator[Bound]:
    for course in dict.fromkeys(entry.course for entry in entries):
        asked = [found.metadata for name, found in counts.items() if name == f"{course}, {_OURS}"]
        yield Bound(f"{course}: requests for metadata", max(asked, default=None), _METADATA, "requests")
        of = [entry for entry in entries if entry.course == course]
        yield ratio_bound(f"{course}: modelstore to hf download", [_OURS], [_THEIRS], of, _RATIO)
