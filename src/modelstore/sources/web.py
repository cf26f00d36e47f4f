"""``https://`` and ``http://``: one file."""

from collections.abc import Iterator
from urllib.parse import unquote

from modelstore.config import Config
from modelstore.errors import ConfigError, SourceCorrupt
from modelstore.manifest import check_paths
from modelstore.source_url import SourceURL
from modelstore.sources.base import Resolved, SourceFile
from modelstore.transfer.http import HttpClient, HttpFile
from modelstore.transfer.http.credentials import authorize, basic, configured, from_netrc, split_userinfo

__all__ = ["WebSource"]


class WebSource:
    """Reads one file from a web server, in ranges where the server has them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._client = HttpClient("modelstore", config.ca_bundle)

    def resolve(self, url: SourceURL) -> Resolved:
        """Ask for size, validators and ranges.

        The file is named by the server (Content-Disposition), else by the last part of the URL's path.
        """
        named = _file_name(url)
        asked, userinfo = split_userinfo(url.request)
        file = HttpFile(asked, url.text, self._headers(asked, userinfo))
        self._client.probe(file)
        name = named if file.name is None else _given_name(url, file.name)
        if not name:
            raise ConfigError(f"{url} does not end in a file name, and the server gives none")
        # Ranges that nothing ties together could be of two versions: then only one stream is safe.
        ranges = file.ranges and (file.pinned or url.pin is not None)
        validator = None
        if file.strong_etag:
            validator = f"etag:{file.strong_etag}"
        elif file.pinned:
            validator = f"modified:{file.last_modified}"
        return Resolved((SourceFile(name, file.size, None, validator, ranges, handle=file),))

    def _headers(self, url: str, userinfo: tuple[str, str] | None) -> dict[str, str]:
        """Those of the config; the URL's own credentials count before them, those in netrc after them."""
        headers = configured(url, self._config)
        given = any(name.lower() == "authorization" for name in headers)
        account = userinfo or (None if given else from_netrc(url))
        return authorize(headers, basic(*account)) if account else headers

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        return self._client.read(file.handle, start, stop, ranges=file.ranges)

    def close(self) -> None:
        self._client.close()


def _file_name(url: SourceURL) -> str:
    """The last part of the URL's path; empty if it ends in a slash."""
    name = unquote(url.split().path.rpartition("/")[2])
    try:
        if name:
            _check_name(name)
    except ValueError as error:
        raise ConfigError(f"{url} does not end in a file name: {error}") from error
    return name


def _given_name(url: SourceURL, name: str) -> str:
    try:
        _check_name(name)
    except ValueError as error:
        raise SourceCorrupt(f"the server gives {url} a name that is not a plain file name: {error}") from error
    return name


def _check_name(name: str) -> None:
    if "/" in name:
        raise ValueError(f"the name {name!r:.200} would leave the model's directory")
    check_paths([name])
