"""``ollama://[host/][namespace/]model[:tag]``: a model in Ollama's registry, or in any other."""

from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import unquote

from modelstore.config import Config
from modelstore.errors import ConfigError, SourceError
from modelstore.registry.client import Registry
from modelstore.registry.name import Name
from modelstore.source_url import SourceURL
from modelstore.sources.base import Resolved, SourceFile
from modelstore.transfer.http import HttpClient

__all__ = ["OllamaSource"]


class OllamaSource:
    """Reads models from registries. The manifest stays as it is, so its digest is the registry's."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._client = HttpClient("modelstore", config.ca_bundle)

    def resolve(self, url: SourceURL) -> Resolved:
        """Ask for the manifest that the tag names now."""
        try:
            name = Name.parse(url.text.partition("://")[2])
        except ValueError as error:
            raise ConfigError(
                f"malformed URL {url}: {error}",
                hint="write ollama://[host/][namespace/]model[:tag], and #sha256= to pin it",
            ) from error
        reference = url.revision or name.tag
        registry = Registry(self._client, name, url.text, self._config, _userinfo(url))
        manifest = registry.manifest(reference)
        if url.pin and manifest.digest != url.pin:
            with suppress(SourceError):  # the tag has moved, and what it named may still be there
                manifest = registry.manifest(str(url.pin))
        files = tuple(
            SourceFile(file.path, file.size, file.digest, handle=registry.blob(file.digest, file.size))
            for file in manifest.files.values()
        )
        listed = {file.digest for file in files}
        others = tuple(
            # A path that no file can have.
            SourceFile(f"/{digest}", size, digest, handle=registry.blob(digest, size))
            for digest, size in manifest.blobs.items()
            if digest not in listed
        )
        return Resolved(files, str(manifest.digest), tree=True, manifest=manifest, others=others)

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        return self._client.read(file.handle, start, stop, ranges=file.ranges)

    def close(self) -> None:
        self._client.close()


def _userinfo(url: SourceURL) -> tuple[str, str] | None:
    """What stands before the host of the URL as it was written, and not in its text."""
    if url.request == url.text:
        return None
    name, _, password = url.request.partition("://")[2].split("/")[0].rpartition("@")[0].partition(":")
    return unquote(name), unquote(password)
