"""A file behind a URL, and what ties its ranges together."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["HttpFile", "origin_of"]


@dataclass
class HttpFile:
    """A file behind a URL. ``url`` may hold a signature, so only ``shown`` goes into messages.

    ``headers`` (credentials) are sent to the URL's own host, port and scheme only. What ``probe`` found: ``size`` in
    bytes, whether the server answers ``ranges``, its ``etag`` and ``last_modified``, and whether the latter is
    ``settled``: long enough ago that another change would have moved it.
    """

    url: str = field(repr=False)
    shown: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    size: int = -1
    ranges: bool = False
    etag: str | None = None
    last_modified: str | None = None
    settled: bool = False
    redirected: str | None = field(default=None, repr=False)

    @property
    def strong_etag(self) -> str | None:
        """The ETag, if it promises the same bytes (RFC 9110 §8.8.1)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else None

    @property
    def pinned(self) -> bool:
        """Whether two ranges with the same validator are surely of the same bytes."""
        return bool(self.strong_etag or (self.etag is None and self.settled))

    @property
    def condition(self) -> dict[str, str]:
        """The header that makes a server refuse to answer for another version (RFC 9110 §13.1)."""
        if self.strong_etag:
            return {"If-Match": self.strong_etag}
        return {"If-Unmodified-Since": self.last_modified} if self.last_modified else {}


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what credentials are for."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
