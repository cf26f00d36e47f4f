"""``https://`` and ``http://``: one file."""

from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from modelstore.config import Config
from modelstore.errors import ConfigError
from modelstore.manifest import check_paths
from modelstore.source_url import SourceURL
from modelstore.sources.base import Resolved, SourceFile
from modelstore.transfer.http import HttpClient, HttpFile

__all__ = ["WebSource"]


class WebSource:
    """Reads one file from a web server, in ranges where the server has them."""

    def __init__(self, config: Config) -> None:
        del config  # nothing to set yet
        self._client = HttpClient("modelstore")

    def resolve(self, url: SourceURL) -> Resolved:
        """Ask for size, validators and ranges. The file is named by the last part of the URL's path."""
        name = _file_name(url)
        file = HttpFile(*_without_userinfo(url))
        self._client.probe(file)
        # Ranges that nothing ties together could be of two versions: then only one stream is safe.
        ranges = file.ranges and (file.pinned or url.pin is not None)
        validator = None
        if file.strong_etag:
            validator = f"etag:{file.strong_etag}"
        elif file.pinned:
            validator = f"modified:{file.last_modified}"
        return Resolved((SourceFile(name, file.size, None, validator, ranges, handle=file),))

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        # A whole file is asked for as one: servers and caches answer that more readily than a range.
        if file.ranges and (start, stop) != (0, file.size):
            return self._client.read_range(file.handle, start, stop)
        return self._client.read_all(file.handle)

    def close(self) -> None:
        self._client.close()


def _file_name(url: SourceURL) -> str:
    name = unquote(url.split().path.rpartition("/")[2])
    try:
        if "/" in name:
            raise ValueError(f"the name {name!r} would leave the model's directory")
        check_paths([name])
    except ValueError as error:
        raise ConfigError(f"{url} does not end in a file name: {error}") from error
    return name


def _without_userinfo(url: SourceURL) -> tuple[str, str, dict[str, str]]:
    """The URL to ask, the URL to show, and the credentials as a header."""
    parts = urlsplit(url.request)
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return url.request, url.text, {}
    name, _, password = userinfo.partition(":")
    token = b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    return parts._replace(netloc=host).geturl(), url.text, {"Authorization": f"Basic {token}"}
