"""``gs://``, ``az://``, ``sftp://``, ``memory://`` and whatever else fsspec knows: objects and prefixes.

fsspec finds, lists and signs. What it can sign is read by our engine from the signed URL, anything else with
``cat_file``; never by its own downloads and caches, which leave holes of zeros behind a failure.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any, Final

from modelstore.config import Config
from modelstore.errors import (
    ConfigError,
    ModelStoreError,
    SourceChanged,
    SourceCorrupt,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnavailable,
)
from modelstore.manifest import check_paths
from modelstore.source_url import Selection, SourceURL
from modelstore.sources.base import Resolved, SourceFile
from modelstore.transfer.asking import ask_each
from modelstore.transfer.http import Access, HttpClient, HttpFile

__all__ = ["FsspecSource", "is_known"]

logger = logging.getLogger(__name__)

#: Bytes of one call of ``cat_file``: what it gives is in memory as a whole, for every connection.
_PIECE: Final = 1024 * 1024
#: Seconds that a signed URL is good for; a fresh one is made when it is refused.
_EXPIRES: Final = 3600
#: Archives, caches and wrappers of other file systems, and what has a source of its own.
_REFUSED: Final = frozenset(
    "async_wrapper blockcache cached data dir dirfs file filecache generic hf http https libarchive local reference s3"
    " s3a simplecache tar zip".split()
)
#: Extras of ours, where there is one.
_EXTRAS: Final = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure",
                  "sftp": "sftp", "ssh": "sftp"}  # fmt: skip
#: Packages that are not called as what is in them.
_PACKAGES: Final = {"smbclient": "smbprotocol", "git": "pygit2", "distributed": "dask distributed"}
#: By what file systems recognise a version, best first: gcsfs, adlfs, ossfs and others; then times.
_VERSIONS: Final = "generation etag ETag version_id md5Hash content_md5 checksum sha hash md5 crc32c".split()
_TIMES: Final = "mtime last_modified LastModified updated modified modify modificationTime timeModified created".split()


def is_known(scheme: str) -> bool:
    """Whether fsspec has a file system for a scheme, installed or not."""
    from fsspec.registry import known_implementations, registry

    return scheme in known_implementations or scheme in registry


class FsspecSource:
    """Reads through one of fsspec's file systems."""

    def __init__(self, config: Config) -> None:
        self._http = HttpClient("modelstore", config.ca_bundle)
        self._lock = Lock()

    def _turn(self, fs: Any) -> AbstractContextManager[Any]:
        """To be held while a file system is asked: only the asynchronous ones bear to be by several threads.

        FTP has one connection for commands, and mixes up what it is asked for.
        """
        return nullcontext() if getattr(fs, "async_impl", False) else self._lock

    def resolve(self, url: SourceURL) -> Resolved:
        """List an object, or all objects below a prefix; without a slash at the end, whichever there is."""
        place, _, query = url.request.partition("?")
        with _errors(url):
            fs, path = _open(url, place)
            found = None if path.endswith("/") or place.endswith("/") else _info(fs, path)
        if found and found.get("type") == "file":
            name = str(found.get("name", path)).rstrip("/").rpartition("/")[2]
            return Resolved((self._file(fs, name, found, url),))
        selection = Selection.parse(query)
        with _errors(url):
            files = {name: info for name, info in _below(fs, path) if selection.picks(name)}
        if not files:
            raise SourceNotFound(f"{url} holds no objects" + (" that are selected" if query else ""))
        listed = ask_each(lambda item: self._file(fs, item[0], item[1], url), sorted(files.items()))
        return Resolved(tuple(listed), tree=True)

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        handle = file.handle
        if isinstance(handle, HttpFile):
            return self._http.read(handle, start, stop, ranges=file.ranges)
        return handle.read(start, stop)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._http.close()

    def _file(self, fs: Any, name: str, info: Mapping[str, Any], url: SourceURL) -> SourceFile:
        try:
            check_paths([name])
        except ValueError as error:
            raise SourceCorrupt(f"{url} cannot be stored: {error}") from error
        with _errors(url), self._turn(fs):
            path = str(info["name"])
            info = fs.info(path)  # a listing may say the same in other words, and not follow links
        if info.get("type") != "file":
            raise SourceUnavailable(f"{url}: {name} is no file", hint="leave it out with ?ignore=", retryable=False)
        size, validator = info.get("size"), _validator(info)
        if type(size) is not int or size < 0:
            raise SourceUnavailable(f"{url} does not say how long {name} is", retryable=False)
        handle = self._handle(fs, path, size, url, validator)
        ranges = not isinstance(handle, HttpFile) or (handle.ranges and handle.pinned)
        return SourceFile(name, size, None, validator, ranges, handle=handle)

    def _handle(self, fs: Any, path: str, size: int, url: SourceURL, validator: str | None) -> Any:
        signed = self._sign(fs, path)
        if signed is None:
            return _Reader(fs, path, size, url, validator, self._turn(fs))
        file = HttpFile(signed, f"{url.scheme}://{path}", renew=lambda *_: Access(self._sign(fs, path) or signed, {}))
        self._http.probe(file)  # for its ETag: the one in the listing is of another interface
        if file.size != size:
            raise SourceChanged(f"{file.shown} was listed with {size} bytes and has {file.size}", hint="run it again")
        return file

    def _sign(self, fs: Any, path: str) -> str | None:
        with self._turn(fs):
            return _sign(fs, path)


class _Reader:
    """Reads one object with ``cat_file``."""

    def __init__(
        self,
        fs: Any,
        path: str,
        size: int,
        url: SourceURL,
        validator: str | None,
        turn: AbstractContextManager[Any],
    ) -> None:
        self._fs = fs
        self._path = path
        self._size = size
        self._url = url
        self._validator = validator
        self._turn = turn

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        for begin in range(start, stop, _PIECE):
            end = min(begin + _PIECE, stop)
            with _errors(self._url), self._turn:
                piece = self._fs.cat_file(self._path, start=begin, end=end)
            if not isinstance(piece, (bytes, bytearray, memoryview)):
                raise SourceUnavailable(f"{self._url} was read as {type(piece).__name__}", retryable=False)
            if len(piece) != end - begin:
                self._check()
                raise SourceUnavailable(f"{self._url}: {len(piece)} bytes came for {end - begin}", hint="run it again")
            yield bytes(piece)
        self._check()

    def _check(self) -> None:
        """After the last byte: a change before it would show now."""
        with _errors(self._url), self._turn:
            self._fs.invalidate_cache()
            info = self._fs.info(self._path)
        if info.get("size") != self._size or _validator(info) != self._validator:
            raise SourceChanged(f"{self._url} changed while it was being read", hint="run it again")


def _open(url: SourceURL, place: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it. A new one: it remembers no listing."""
    import fsspec

    if url.scheme in _REFUSED or "::" in place:
        raise ConfigError(
            f"{url} is a view of something else (an archive, a cache or a chain)", hint="name the objects themselves"
        )
    try:
        fs, path = fsspec.core.url_to_fs(place, skip_instance_cache=True)
    except ImportError as error:
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        module = (cause.name or url.scheme).partition(".")[0]
        extra = _EXTRAS.get(url.scheme)
        package = f"'llm-modelstore[{extra}]'" if extra else _PACKAGES.get(module, module)
        raise ConfigError(
            f"{url.scheme}:// needs {module}, which is not here", hint=f"pip install {package}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"malformed URL {url}", hint=f"write {url.scheme}://…/path") from error
    return fs, path


def _info(fs: Any, path: str) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = fs.info(path)
    except FileNotFoundError:
        return None
    return found


def _below(fs: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The files below a path, exactly, by their names relative to it."""
    # Not fs.find: it passes over folders that cannot be listed, and over links.
    prefix = f"{path.rstrip('/')}/"
    pending, seen = [path], {path.rstrip("/")}
    while pending:
        for info in fs.ls(pending.pop(), detail=True):
            name = str(info["name"])
            if not name.startswith(prefix) or name.rstrip("/") in seen:
                continue
            seen.add(name.rstrip("/"))
            if info["type"] == "directory":
                pending.append(name)
            elif not name.endswith("/"):
                yield name.removeprefix(prefix), info


def _sign(fs: Any, path: str) -> str | None:
    """A URL to read the object from; None if this file system, or this user, cannot make one."""
    try:
        url = fs.sign(path, expiration=_EXPIRES)
    except Exception as error:  # noqa: BLE001  each backend has errors of its own; reading works without it
        logger.debug("%s cannot be signed: %s", path, type(error).__name__)
        return None
    return url if isinstance(url, str) and re.match(r"https?://", url) else None


def _validator(info: Mapping[str, Any]) -> str | None:
    for name in (*_VERSIONS, *_TIMES):
        if (value := info.get(name)) is not None:
            return f"{name.lower()}:{value}".encode(errors="backslashreplace").decode()
    return None


@contextmanager
def _errors(url: SourceURL) -> Iterator[None]:
    """Turn whatever a backend raises into a SourceError: each has errors of its own."""
    try:
        yield
    except ModelStoreError:
        raise
    except FileNotFoundError as error:
        raise SourceNotFound(f"{url} does not exist", hint="check the URL") from error
    except PermissionError as error:
        raise SourceUnauthorized(f"{url} may not be read", hint="check the credentials") from error
    except Exception as error:
        kind = type(error).__name__
        raise SourceUnavailable(f"{url} could not be read ({kind})", hint="check the URL and the network") from error
