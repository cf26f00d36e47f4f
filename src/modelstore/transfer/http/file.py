"""A file behind a URL, and what ties its ranges together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = ["Access", "HttpFile", "origin_of"]


class Access(NamedTuple):
    """What a file is asked for with: a URL, perhaps signed, and headers, perhaps credentials. Never to be shown."""

    url: str
    headers: Mapping[str, str]


@dataclass
class HttpFile:
    """A file behind a URL. ``url`` may hold a signature, so only ``shown`` goes into messages.

    ``headers`` (credentials) are sent to the URL's own host, port and scheme only. ``renew`` makes both anew when they
    are refused, as when a signature runs out in the middle; with an empty ``url`` it is asked before the first use.

    What is known, or what ``probe`` found: ``size`` in bytes, whether the server answers ``ranges``, its ``etag`` and
    ``last_modified``, and whether the latter is ``settled``: long enough ago that another change would have moved it;
    and the ``name`` that the server gave the file.

    ``encoding`` is the Content-Encoding that the bytes were stored with, if a store gives it back with them.
    ``immutable`` is for a URL that names these bytes for good, with a digest that proves them: no validator is needed.
    ``promised`` are headers that the URL's own answer must not contradict. ``hint`` is what to do if it is refused.
    """

    url: str = field(repr=False)
    shown: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    size: int = -1
    ranges: bool = False
    etag: str | None = None
    last_modified: str | None = None
    settled: bool = False
    name: str | None = None
    encoding: str = "identity"
    immutable: bool = False
    promised: Mapping[str, str] = field(default_factory=dict, repr=False)
    hint: str = "check the credentials"
    renew: Callable[[Access, str], Access] | None = field(default=None, repr=False)
    redirected: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._access = Access(self.url, self.headers)

    @property
    def access(self) -> Access:
        """What to ask with now."""
        if not self._access.url:
            self.renew_access(self._access, "")
        return self._access

    def renew_access(self, refused: Access, challenge: str) -> bool:
        """Replace what was refused, once for all threads that were; False if there is no other.

        ``challenge`` is what the refusal wants (WWW-Authenticate), if it said so.
        """
        if self.renew is None:
            return False
        with self._lock:
            if self._access is refused:
                self._access = self.renew(refused, challenge)
        return True

    @property
    def strong_etag(self) -> str | None:
        """The ETag, if it promises the same bytes (RFC 9110 §8.8.1)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else None

    @property
    def pinned(self) -> bool:
        """Whether two ranges with the same validator are surely of the same bytes."""
        return bool(self.immutable or self.strong_etag or (self.etag is None and self.settled))

    @property
    def condition(self) -> dict[str, str]:
        """The header that makes a server refuse to answer for another version (RFC 9110 §13.1)."""
        if self.immutable:
            return {}
        if self.strong_etag:
            return {"If-Match": self.strong_etag}
        return {"If-Unmodified-Since": self.last_modified} if self.last_modified else {}


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what credentials are for."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
