"""One cell of the matrix: a server with one fault at one phase, the fetch, and everything that must hold after it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modelstore import Store
from modelstore.digest import CHUNK_SIZE
from modelstore.errors import BlobArchived, SourceError
from modelstore.source_url import SourceURL
from modelstore.sources.web import WebSource
from modelstore.transfer import limits
from modelstore.transfer.download import Job, download
from tests.faults.bend import Blow
from tests.faults.catalogue import MIB, Fault, Mode, Phase
from tests.faults.server import FaultServer, Resource
from tests.faults.wire import Answer, Request
from tests.support import finish, sha256_of, visible
from tests.support.httpserver import PatternBody

SIZE = 2 * CHUNK_SIZE + MIB + 4321
BODY = PatternBody(SIZE, seed=1)
OTHER = PatternBody(MIB + 77, seed=2)  # the first of two files
CONNECTIONS = 3
#: Where a fetch is killed for "resume": two chunks are complete, the third is not.
KILLED_AT = 2 * CHUNK_SIZE + 300_000
POSITIONS: dict[Phase, int] = {
    "probe": 0,
    "first": 0,
    "mid": CHUNK_SIZE + CHUNK_SIZE // 2 + 7,
    "border": CHUNK_SIZE - 1,
    "between": CHUNK_SIZE,
    "last": SIZE - 1,
    "second": CHUNK_SIZE + CHUNK_SIZE // 2 + 7,
    "resume": 2 * CHUNK_SIZE + 600_000,
}
#: What a request that is given up may have under way: the buffers of both ends.
UNDER_WAY = 4 * MIB


class Plan:
    """A resource's script: bends the answers that the phase says, and counts them."""

    def __init__(self, server: FaultServer, resource: Resource, fault: Fault, phase: Phase) -> None:
        self._server, self._resource, self._fault, self._phase = server, resource, fault, phase
        self._position = POSITIONS[phase]
        self._left = fault.times
        # A whole answer can only be bent in the middle of a chunk if the client has to ask again there.
        begins = phase in ("probe", "first", "resume") or (phase == "between" and resource.ranges)
        self._armed = fault.kind == "body" or begins
        self._cut = fault.kind == "server"
        self.pausing = False
        self.struck: list[Request] = []
        self.bent = 0

    def __call__(self, request: Request, answer: Answer) -> None:
        if self._fault.kind == "server":
            self._bend(request, answer)
        if answer.status not in (200, 206) or request.method != "GET":
            return
        if self.pausing:
            if _covers(answer, KILLED_AT) and not request.is_probe:
                answer.strike, answer.at = "stall", KILLED_AT
        elif self._is_meant(request, answer):
            self._hit(request, answer)

    def _is_meant(self, request: Request, answer: Answer) -> bool:
        if self._phase == "probe":
            return request.nth == 1 or request.is_probe
        if self._fault.kind == "body" and self._left is None and not request.is_probe:
            # For good: what follows in the same chunk is no better.
            end = self._position - self._position % CHUNK_SIZE + CHUNK_SIZE
            return answer.start < end and answer.stop > self._position
        return not request.is_probe and _covers(answer, self._position)

    def _hit(self, request: Request, answer: Answer) -> None:
        if self._cut or not self._armed:
            if self._cut:
                self._strike(request)
            (
                self._cut,
                self._armed,
            ) = False, True
            answer.strike, answer.at = "close", self._position
        elif self._fault.kind != "server" and self._left != 0:
            self._left = None if self._left is None else self._left - 1
            self._strike(request)
            self._bend(request, answer)

    def _strike(self, request: Request) -> None:
        request.struck = self._fault.id
        self.struck.append(request)

    def _bend(self, request: Request, answer: Answer) -> None:
        self.bent += 1
        position = max(self._position, answer.start) if self._fault.kind == "body" else self._position
        self._fault.bend(Blow(self._server, self._resource, request, answer, position))


def _covers(answer: Answer, position: int) -> bool:
    return answer.start <= position < answer.stop


@dataclass
class Outcome:
    seconds: float
    digests: list[str] = field(default_factory=list)  # of what was fetched, in order
    error: SourceError | BlobArchived | None = None


class Cell:
    """The server and the store of one cell."""

    def __init__(self, server: FaultServer, root: Path, fault: Fault, phase: Phase, mode: Mode) -> None:
        self.server, self.root, self.fault, self.phase, self.mode = server, root, fault, phase, mode
        fields = {"ranges": mode == "ranges", **fault.resource}
        path = "/signed.gguf" if fault.redirected else "/m.gguf"
        self.resource = server.add(path, BODY, **fields)
        self.plan = Plan(server, self.resource, fault, phase)
        self.resource.script = self.plan
        self.url = f"{server.url}/m.gguf"
        if fault.redirected:
            origin = server.add("/m.gguf", b"")
            origin.script = _sign
        if fault.pinned:
            self.url += f"#sha256={BODY.sha256}"
        if phase == "second":
            server.add("/first.gguf", OTHER, ranges=mode == "ranges")

    def attempt(self) -> Outcome:
        """Fetch, and see how that ends. Anything but a `SourceError` or `BlobArchived` is the test's own failure."""
        begun = time.monotonic()
        try:
            digests = self._fetch_two() if self.phase == "second" else [self._fetch_one()]
        except (SourceError, BlobArchived) as error:
            return Outcome(time.monotonic() - begun, error=error)
        return Outcome(time.monotonic() - begun, digests)

    def _fetch_one(self) -> str:
        model = Store([self.root]).fetch(self.url, connections=CONNECTIONS)
        return sha256_of(model.path / "m.gguf")

    def _fetch_two(self) -> list[str]:
        """Two files in one fetch, by the engine itself."""
        store = Store([self.root])
        with contextlib.ExitStack() as stack:
            jobs = []
            for text in (f"{self.server.url}/first.gguf", self.url):
                url = SourceURL.parse(text)
                source = stack.enter_context(contextlib.closing(WebSource(store.config)))
                (file,) = source.resolve(url).files
                jobs.append(Job(file, source, url.pin))
            brought = download(jobs, store.tiers[0], connections=CONNECTIONS)
        return [sha256_of(self.root / "blobs" / one.digest.filename) for one in brought]

    def kill_one_midway(self) -> None:
        """A fetch in another process, killed when two of three chunks have come."""
        self.plan.pausing = True
        with kill_when_still(self.url, self.root, connections=1):
            pass
        self.plan.pausing = False
        self.server.forget()

    def heal(self) -> None:
        """The server is good from now on."""
        self.resource.script = None
        self.server.at_accept = None

    # -- what must hold ---------------------------------------------------------------------------------------------

    def judge(self, outcome: Outcome) -> None:
        refused_before = self.fault.kind == "server" and outcome.error is not None and self.plan.bent
        assert self.plan.struck or refused_before, "the fault never came"
        check_published(self.root)
        if outcome.error is None:
            assert self.fault.right, "a fault that must be refused was not"
            assert outcome.digests in self.right_digests()
        else:
            assert isinstance(outcome.error, self.fault.errors), repr(outcome.error)
            assert self.fault.says in str(outcome.error)
            seen = [name for name in visible(self.root) if OTHER.sha256 not in name]
            assert seen == []
        assert outcome.seconds < longest()
        self._judge_log(complete=outcome.error is None)

    def right_digests(self) -> list[list[str]]:
        whole = [BODY.sha256, self.resource.body.sha256]
        return [[OTHER.sha256, digest] if self.phase == "second" else [digest] for digest in whole]

    def _judge_log(self, *, complete: bool) -> None:
        asked = [request for request in self.server.requests(self._path) if request.genuine]
        strikes = len(self.plan.struck)
        assert self.fault.asks is None or strikes <= self.fault.asks
        if self.mode == "ranges" and not self.fault.again:
            self._judge_ranges(asked, complete=complete)
        sent = self.server.bytes_sent(self._path)
        # Without ranges every failure begins again; what is not struck itself was cut to have the fault follow.
        times = 1 + (self.fault.again if self.mode == "ranges" else strikes + 1 + self.fault.again)
        given_up = strikes + 3
        assert sent <= times * SIZE + given_up * UNDER_WAY
        if self.fault.gap:
            self._judge_gap()

    @property
    def _path(self) -> str:
        return "/signed.gguf" if self.fault.redirected else "/m.gguf"

    def _judge_ranges(self, asked: list[Request], *, complete: bool) -> None:
        """No byte is sent twice, but for those that a strike may lose."""
        spans = [(request.start, request.start + request.body_bytes) for request in asked if not request.is_probe]
        repeated = sum(stop - start for start, stop in spans) - _union(spans)
        assert repeated <= len(self.plan.struck) * max(self.fault.loss, 2 * MIB if not self._is_exact else 0)
        if self.phase == "resume":
            assert all(start >= 2 * CHUNK_SIZE for start, _ in spans), "a complete chunk was fetched again"
        for start in {request.start for request in asked}:
            tries = [request for request in asked if request.start == start and not request.is_probe]
            assert len(tries) <= limits.TRIES + (self.fault.times or 0)
        if complete and self.phase != "resume":
            assert _union(spans) == SIZE

    @property
    def _is_exact(self) -> bool:
        """Whether a client that counts loses nothing at all: what came before the end of the body was all right."""
        return self.fault.kind in ("body", "server") or self.fault.number in (10, 11, 12)

    def _judge_gap(self) -> None:
        """Whoever asks for the same bytes again has waited."""
        struck = self.plan.struck[0]
        after = [request.begun for request in self.server.requests(self._path) if request.start == struck.start]
        after = [begun for begun in after if begun > struck.ended]
        assert after[0] - struck.ended >= 0.9 * self.fault.gap


def run(cell: Cell) -> None:
    """The cell, then a plain second fetch from the same server, now healthy."""
    if cell.phase == "resume":
        cell.kill_one_midway()
    outcome = cell.attempt()
    cell.judge(outcome)
    if outcome.error is not None:
        cell.heal()
        again = cell.attempt()
        assert again.error is None
        assert again.digests in cell.right_digests()
        check_published(cell.root)


def longest() -> float:
    """Seconds that no fetch of a few chunks may take, whatever happens: from the limits in force."""
    waits = (limits.CONNECT_SECONDS, limits.HEADER_SECONDS, limits.STALL_SECONDS, limits.SLOW_SECONDS)
    each = max(waits) + limits.LONGEST_DELAY + limits.MAX_RETRY_AFTER
    return 15 + 2 * limits.TRIES * each


def check_published(root: Path) -> None:
    """Every blob is what its name says."""
    for path in (root / "blobs").glob("*"):
        with path.open("rb") as file:
            assert path.name == f"sha256-{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _union(spans: list[tuple[int, int]]) -> int:
    """How many bytes are in at least one of the spans."""
    total = reached = 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def _sign(request: Request, answer: Answer) -> None:
    """An origin that sends to a signed address, another one every time."""
    answer.replace(302, Location=f"/signed.gguf?token={request.number}")


# -- a fetch that is killed -------------------------------------------------------------------------------------------

_CHILD = """
import sys
from modelstore import Store
url, root, connections = sys.argv[1:]
Store([root]).fetch(url, connections=int(connections), progress=lambda update: print(update.bytes_done, flush=True))
print("complete", flush=True)
"""


@contextlib.contextmanager
def kill_when_still(url: str, root: Path, connections: int) -> Iterator[None]:
    """Fetch in another process until nothing moves any more, which the server must see to; then kill -9.

    Still means that half a second of progress reports say the same: by then what has come is written down.
    """
    command = [sys.executable, "-c", _CHILD, url, str(root), str(connections)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        seen: list[str] = []
        for line in child.stdout:
            seen = [*seen, line.strip()] if not seen or line.strip() == seen[-1] else [line.strip()]
            assert seen[-1] != "complete", "the server let it through"
            if len(seen) >= 5 and re.fullmatch(r"\d+", seen[-1]) and int(seen[-1]) > 0:
                break
        else:
            raise AssertionError(finish(child))
        yield
    finally:
        child.kill()
        child.communicate()
