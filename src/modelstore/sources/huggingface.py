"""``hf://owner/name[@rev][/path]``: a repository on the Hugging Face Hub, or one file or folder of it.

The two documents that are asked for are those of the Hub's own client (``/api/models/…/revision`` and ``…/tree``), and
so are the token and the environment. Bytes come from ``/resolve/<commit>/<path>`` in ranges; Xet is not needed.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote, unquote, urljoin, urlsplit

from modelstore.config import Config
from modelstore.digest import Digest
from modelstore.errors import (
    ConfigError,
    NotCached,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnavailable,
)
from modelstore.formats.selection import gguf_variants, loadable
from modelstore.manifest import check_paths, typed
from modelstore.progress import human_size
from modelstore.source_url import Selection, SourceURL
from modelstore.sources.base import Resolved, SourceFile
from modelstore.transfer import limits
from modelstore.transfer.http import Document, HttpClient, HttpFile, origin_of
from modelstore.transfer.http.credentials import authorize, bearer, configured

__all__ = ["HuggingFaceSource", "Place", "parse_listing"]

#: Bytes of one page of a listing: 1,000 entries of the longest paths that can be stored.
_MOST: Final = 8 * 1024 * 1024
#: Pages of 1,000 files that are followed.
_PAGES: Final = 1000
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_NEXT: Final = re.compile(r'<([^<>\s]+)>\s*;\s*rel="?next"?')
_PART: Final = r"[A-Za-z0-9][\w.-]{0,95}"
# Of revisions with a slash only these are written as they are; of others it is percent-encoded.
_REVISION: Final = r"[@:](?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/]+)"
_PATH: Final = r"(?:/(?P<path>[^/].*?))?"
#: After a name of one part, as the oldest models have, a path can only be told from its second part by a revision.
_PLACES: Final = (
    re.compile(rf"(?P<repo>{_PART}/{_PART})(?:{_REVISION})?{_PATH}/?", re.ASCII),
    re.compile(rf"(?P<repo>{_PART})(?:{_REVISION}{_PATH})?/?", re.ASCII),
)


@dataclass(frozen=True, slots=True)
class Place:
    """What a URL names: a repository, a revision (None for the default branch's), and a path in it (or nothing)."""

    repo: str
    revision: str | None
    path: str

    @classmethod
    def parse(cls, url: SourceURL) -> "Place":
        """Read an ``hf://`` URL; a revision may follow ``:`` as well, as in KServe. Raises ``ConfigError``."""
        if url.request != url.text and "@" in url.request.partition("://")[2].partition("/")[0]:
            raise ConfigError(f"{url} was given with a password", hint="set HF_TOKEN instead")
        text = url.text.partition("://")[2].partition("?")[0]
        match = next(filter(None, (form.fullmatch(text) for form in _PLACES)), None)
        if match is None or text.split("/")[0] in ("datasets", "spaces", "models", "kernels"):
            raise ConfigError(f"{url} names no model", hint="write hf://owner/name[@revision][/path]")
        found = match.groupdict()
        revision = None if found["revision"] is None else unquote(found["revision"])
        path = found.get("path") or ""
        try:
            if revision in (".", ".."):
                raise ValueError(f"the revision is {revision!r}")
            if path:
                check_paths([path])
        except ValueError as error:
            raise ConfigError(
                f"{url} names no model: {error}", hint="write hf://owner/name[@revision][/path]"
            ) from error
        return cls(found["repo"], url.revision or revision, path)


class HuggingFaceSource:
    """Reads models from the Hub, or from where ``HF_ENDPOINT`` says."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._client = HttpClient("modelstore", config.ca_bundle)

    def resolve(self, url: SourceURL) -> Resolved:
        """Pin the revision to a commit, list its files, and choose those that are wanted."""
        place, selection = Place.parse(url), Selection.parse(url.split().query)
        endpoint, token = _surroundings(url)
        headers = configured(endpoint, self._config)
        if token:
            headers = authorize(headers, bearer(token, "the Hub"))
        hub = _Hub(self._client, _shown(url, endpoint), endpoint, headers)
        commit = hub.commit(place)
        chosen, is_file = _choose(hub.files(place, commit), place, selection, url)
        if not chosen:
            raise SourceNotFound(f"{url} holds no files" + (" that are selected" if "?" in url.text else ""))
        files = tuple(replace(file, path=name, handle=hub.file(place, commit, file)) for name, file in chosen)
        return Resolved(files, commit, tree=not is_file)

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        return self._client.read(file.handle, start, stop, ranges=file.ranges)

    def close(self) -> None:
        self._client.close()


def _surroundings(url: SourceURL) -> tuple[str, str | None]:
    """The Hub's address and the user's token, by the rules of the Hub's own client."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about settings of its downloader
            from huggingface_hub import constants, get_token
            from huggingface_hub.errors import OIDCError
    except ValueError:  # it reads the environment; not chained: its text quotes what may be a password
        raise ConfigError("the Hub's settings in the environment are malformed", hint="check HF_ENDPOINT") from None
    if constants.HF_HUB_OFFLINE:
        raise NotCached(f"{url} is not cached, and HF_HUB_OFFLINE is set", hint="unset it, or fetch it elsewhere first")
    endpoint: str = constants.ENDPOINT.rstrip("/")
    try:
        scheme, host, _ = origin_of(endpoint)
    except ValueError:  # not chained: its text quotes what may be a password
        scheme, host = "", None
    if scheme not in ("http", "https") or not host:
        raise ConfigError("HF_ENDPOINT is not the address of a Hub", hint="write https://host")
    try:
        token: str | None = get_token()
    except OIDCError as error:
        raise SourceUnauthorized(f"no token for {url}: the exchange failed", hint="check HF_OIDC_RESOURCE") from error
    except (OSError, ValueError) as error:
        raise ConfigError("the Hub's token cannot be read", hint="check HF_TOKEN_PATH and HF_HOME") from error
    return endpoint, token


def _shown(url: SourceURL, endpoint: str) -> str:
    """What to call the model in messages: with the Hub that is asked, unless it is the one that everybody means."""
    host = urlsplit(endpoint).netloc.rpartition("@")[2]
    return url.text if host == "huggingface.co" else f"{url.text} at {host}"


class _Hub:
    """What is asked of one Hub about one model."""

    def __init__(self, client: HttpClient, shown: str, endpoint: str, headers: dict[str, str]) -> None:
        self._client = client
        self._shown = shown
        self._endpoint = endpoint
        self._headers = headers

    def commit(self, place: Place) -> str:
        """The commit that the revision names now."""
        if place.revision and _COMMIT.fullmatch(place.revision):
            return place.revision
        revision = quote(place.revision or "main", safe="")
        value = self._json(self._ask(f"{self._endpoint}/api/models/{place.repo}/revision/{revision}"))
        commit = value.get("sha") if isinstance(value, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise self._odd("does not say which commit it is at")
        return commit

    def files(self, place: Place, commit: str) -> dict[str, SourceFile]:
        """Every file of the commit, by path."""
        url: str | None = f"{self._endpoint}/api/models/{place.repo}/tree/{commit}?recursive=true&expand=false"
        files: dict[str, SourceFile] = {}
        size = 0
        for _ in range(_PAGES):
            if url is None:
                return files
            page = self._ask(url)
            size += len(page.body)
            if size > limits.LISTED_BYTES:
                raise self._odd("lists more files than can be kept")
            try:
                for file in parse_listing(self._json(page)):
                    if files.setdefault(file.path, file) is not file:
                        raise ValueError(f"{file.path!r:.80} is listed twice")
            except ValueError as error:
                raise self._odd(f"lists its files in a way that cannot be read: {error}") from error
            url = self._next(url, page)
        raise self._odd(f"lists its files on more than {_PAGES} pages")

    def file(self, place: Place, commit: str, file: SourceFile) -> HttpFile:
        """Where the bytes of a file are. What the Hub says of them with a redirect must be what it listed."""
        promised = {"X-Repo-Commit": commit}
        if file.digest:
            promised |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": file.digest.hex}
        return HttpFile(
            f"{self._endpoint}/{place.repo}/resolve/{commit}/{quote(file.path)}",
            f"{self._shown} ({file.path})",
            self._headers,
            size=file.size,
            immutable=True,
            promised=promised,
            hint=f"ask for access at {self._page(place)}, and set HF_TOKEN",
        )

    def _page(self, place: Place) -> str:
        return f"https://{urlsplit(self._endpoint).netloc.rpartition('@')[2]}/{place.repo}"

    def _ask(self, url: str) -> Document:
        file = HttpFile(url, self._shown, self._headers, hint="set HF_TOKEN, or ask for access on its page")
        return self._client.ask(file, {"Accept": "application/json"}, most=_MOST)

    def _json(self, document: Document) -> Any:
        try:
            return json.loads(document.body)
        except (ValueError, RecursionError) as error:
            raise self._odd("answered with something that is not JSON") from error

    def _next(self, url: str, page: Document) -> str | None:
        """The address of the next page: always at the same Hub, as it gets the token.

        A mirror may pass on the address that the Hub itself gave it.
        """
        match = _NEXT.search(page.headers.get("Link", ""))
        if match is None:
            return None
        try:
            following: str = urljoin(url, match[1])
            if origin_of(following) != origin_of(self._endpoint):
                parts = urlsplit(following)
                following = f"{self._endpoint}{parts.path}?{parts.query}"
        except ValueError as error:
            raise self._odd("continues its list of files at an address that is none") from error
        return following

    def _odd(self, what: str) -> SourceUnavailable:
        return SourceUnavailable(f"{self._shown}: the Hub {what}", hint="see HF_ENDPOINT", retryable=False)


def parse_listing(value: Any) -> list[SourceFile]:
    """The files of one page of ``/api/models/…/tree``. Raises :class:`ValueError`."""
    try:
        return [_parse_entry(entry) for entry in typed(value, list) if entry["type"] == "file"]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"an entry is malformed: {error!r:.80}") from error


def _parse_entry(entry: Any) -> SourceFile:
    path, lfs = typed(entry["path"], str), entry.get("lfs")
    check_paths([path])
    if lfs is not None:
        size, digest = typed(lfs["size"], int), Digest(typed(lfs["oid"], str))
        file = SourceFile(path, size, digest)
    else:
        size, name = typed(entry["size"], int), typed(entry["oid"], str)
        if not _COMMIT.fullmatch(name):
            raise ValueError(f"{path!r:.80} has no git SHA-1")
        file = SourceFile(path, size, None, f"git:{name}", git_sha1=name)
    if size < 0:
        raise ValueError(f"{path!r:.80} has a negative size")
    return file


def _choose(
    listed: Mapping[str, SourceFile], place: Place, selection: Selection, url: SourceURL
) -> tuple[list[tuple[str, SourceFile]], bool]:
    """The wanted files with the names they get, and whether it is just the one that the URL names."""
    for path in (place.path, unquote(place.path)):
        if path in listed:
            return [(path.rpartition("/")[2], listed[path])], True
        folder = f"{path}/" if path else ""
        below = {path.removeprefix(folder): file for path, file in listed.items() if path.startswith(folder)}
        if below:
            break
    if place.path and not below:
        raise SourceNotFound(f"{url} does not exist: no such file in it", hint="check the path")
    picked = {path for path in below if selection.picks(path)}
    if not selection.allow:
        picked = loadable(picked)
        _refuse_several(picked, below, url)
    return [(path, below[path]) for path in sorted(picked)], False


def _refuse_several(picked: set[str], files: Mapping[str, SourceFile], url: SourceURL) -> None:
    """Several GGUF files are variants of one model, of which somebody has to choose."""
    variants = gguf_variants(picked)
    if len(variants) < 2:
        return
    root = "hf://" + url.text.partition("://")[2].partition("?")[0].rstrip("/")
    projectors = any("mmproj" in path.rpartition("/")[2].lower() for path in picked)
    choices = []
    for paths in variants:
        size = human_size(sum(files[path].size for path in paths))
        if len(paths) == 1 and not projectors:
            choices.append(f"{root}/{quote(paths[0])} ({size})")
            continue
        # A comma divides patterns, even an encoded one.
        pattern = quote(re.sub(r"[\[*?]", r"[\g<0>]", paths[0]).replace(",", "?"), safe="/[]?*")
        if len(paths) > 1:
            pattern = re.sub(r"-\d{5}-of-\d{5}(?=\.gguf\Z)", "-*-of-*", pattern)
        more = ",*mmproj*" if projectors else ""
        choices.append(f"{root}?allow={pattern}{more} ({size})")
    error = ConfigError(f"{url} holds {len(variants)} GGUF variants, and none is chosen", hint="name one of them")
    error.choices = tuple(choices)
    raise error
