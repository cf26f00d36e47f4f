"""How the command speaks on stderr: logs, progress, and the one line of an error."""

import json
import logging
import sys
import time
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelstore.progress import LogProgress, TerminalProgress

__all__ = ["Output"]


class Output:
    """stderr, as text or as one JSON object a line."""

    def __init__(self) -> None:
        self._quiet = self._verbose = self._json = False

    def set_up(self, *, quiet: bool, verbose: bool, as_json: bool) -> None:
        """Send the library's logs to stderr. What a user should know unless ``quiet``, everything with ``verbose``."""
        self._quiet, self._verbose, self._json = quiet, verbose, as_json
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
        library = logging.getLogger("modelstore")
        library.handlers = [handler]
        library.propagate = False
        library.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)

    def progress(self, label: str) -> "TerminalProgress | LogProgress | None":
        """A bar on a terminal, a line every ten seconds elsewhere, nothing if ``quiet``."""
        if self._quiet:
            return None
        from modelstore.progress import LogProgress, TerminalProgress

        if sys.stderr.isatty() and not self._json:
            return TerminalProgress(label)
        return LogProgress(self._write if self._json else self._write_text, as_json=self._json)

    def error(self, message: str, code: int, error: BaseException | None) -> None:
        """The one line that ends a failed command; with ``verbose`` the traceback comes before it."""
        if self._verbose and error is not None:
            self._write("".join(traceback.format_exception(error)).rstrip())
        choices = list(getattr(error, "choices", ()))
        line = " ".join(message.removesuffix(": " + ", ".join(choices)).split())
        if self._json:
            more = {"choices": choices} if choices else {}
            self._write(json.dumps({"level": "error", "message": line, "exit_code": code, **more}))
        else:
            for choice in choices:  # before the error, which is the last line
                self._write_text(choice)
            self._write(f"modelstore: error: {line}")

    def _write_text(self, line: str) -> None:
        self._write(f"modelstore: {line}")

    def _write(self, line: str) -> None:
        print(_plain(line), file=sys.stderr, flush=True)  # noqa: T201


def _plain(text: str) -> str:
    """Text without what a terminal would obey: some of it comes from servers."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _plain(f"modelstore: {record.levelname.lower()}: {record.getMessage()}")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return json.dumps({"time": stamp, "level": record.levelname.lower(), "message": record.getMessage()})
