"""``file://`` and local paths: one file, or a directory as a tree."""

import os
import stat
from collections.abc import Iterator
from urllib.parse import unquote

from modelstore.config import Config
from modelstore.errors import ConfigError, SourceChanged, SourceNotFound, SourceUnauthorized, SourceUnavailable
from modelstore.manifest import check_paths
from modelstore.source_url import Selection, SourceURL
from modelstore.sources.base import Resolved, SourceFile
from modelstore.transfer.files import read_pieces

__all__ = ["FileSource"]


class FileSource:
    """Reads local files. A file is recognised again by size, modification time and inode."""

    def __init__(self, config: Config) -> None:
        del config  # nothing to set

    def resolve(self, url: SourceURL) -> Resolved:
        """List a file or a directory. Links are followed as long as they stay inside the directory."""
        parts = url.split()
        path = unquote(parts.path, errors="surrogateescape")
        selection = Selection.parse(parts.query)
        if "\0" in path:
            raise ConfigError(f"malformed URL {url.text!r}", hint="a path holds no NUL")
        root = os.path.realpath(path)
        with _Errors(path):
            mode = os.stat(root).st_mode
            if stat.S_ISREG(mode):
                found = [(os.path.basename(path), root)]
            elif stat.S_ISDIR(mode):
                found = sorted(_walk(root, selection))
            else:
                raise ConfigError(f"{path} is neither a file nor a directory")
            if not found:
                raise SourceNotFound(f"{path} holds no files" + (" that are selected" if parts.query else ""))
            files = tuple(_describe(name, file) for name, file in found)
        try:
            check_paths(file.path for file in files)
        except ValueError as error:
            raise ConfigError(f"{path} cannot be stored: {error}") from error
        return Resolved(files, tree=stat.S_ISDIR(mode))

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        with _Errors(file.handle):
            fd = os.open(file.handle, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                yield from read_pieces(fd, start, stop)
                # After the last byte: a change before it would have moved the time.
                if _validator(os.fstat(fd)) != file.validator:
                    raise SourceChanged(f"{file.handle} changed while it was being read", hint="run it again")
            finally:
                os.close(fd)

    def close(self) -> None:
        """Nothing is kept open."""


def _walk(root: str, selection: Selection) -> Iterator[tuple[str, str]]:
    """(relative path, real path) of every wanted file below a directory."""
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(f"{root}/{folder}") as entries:
            for entry in entries:
                name = folder + entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                elif selection.picks(name):
                    yield name, _real_file(root, entry)


def _real_file(root: str, entry: "os.DirEntry[str]") -> str:
    file = os.path.realpath(entry.path)
    if entry.is_symlink() and not file.startswith(f"{root}/"):
        raise ConfigError(f"{entry.path} is a link that leaves {root}", hint="copy the file into the directory")
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise ConfigError(f"{entry.path} is not a plain file", hint="remove it, or leave it out with ?ignore=")
    return file


def _describe(name: str, file: str) -> SourceFile:
    found = os.stat(file)
    return SourceFile(name, found.st_size, validator=_validator(found), handle=file)


def _validator(found: os.stat_result) -> str:
    return f"stat:{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"


class _Errors:
    """Translates what the file system says about a local source."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, (SourceNotFound, SourceUnauthorized)):
            return
        where = error.filename or self._path
        reason = (error.strerror or str(error)).lower()
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise SourceNotFound(f"there is no file or directory {where}", hint="check the path") from error
        if isinstance(error, PermissionError):
            raise SourceUnauthorized(f"{where} may not be read: {reason}", hint="check its permissions") from error
        raise SourceUnavailable(f"{where} cannot be read: {reason}", retryable=False) from error
