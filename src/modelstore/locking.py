"""One process at a time, where that can be had. Saves bandwidth; nothing that is correct depends on it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event
from time import monotonic
from typing import Final

from modelstore.errors import Cancelled

__all__ = ["single_flight"]

_POLL: Final = 0.05
_NOTICE: Final = 10.0

logger = logging.getLogger(__name__)


@contextmanager
def single_flight(path: str, timeout: float, cancel: Event | None = None) -> Iterator[bool]:
    """Hold the lock file at ``path``, waiting up to ``timeout`` seconds; yields False if somebody held it all the time.

    Where the file system has no locks nobody can be seen, and it yields True at once. The file stays: removing it would
    let two processes lock two files of one name. Raises ``Cancelled`` once ``cancel`` is set.
    """
    # The soft lock that filelock falls back to elsewhere is left behind by a kill, and lets two pods in.
    from filelock import Timeout, UnixFileLock

    lock = UnixFileLock(path, timeout=0, mode=0o644, fallback_to_soft=False, is_singleton=False)
    held = late = False
    begun = noticed = monotonic()
    while not held:
        try:
            lock.acquire(timeout=0)
            held = True
        except Timeout:
            now = monotonic()
            if now - begun >= timeout:
                logger.warning("another process has held %s for %.0f s; not waiting any longer", path, timeout)
                late = True
                break
            if now - noticed >= _NOTICE:
                noticed = now
                logger.info("waiting for another process that fetches the same model (%s)", os.path.basename(path))
            if cancel is None:
                Event().wait(_POLL)
            elif cancel.wait(_POLL):
                raise Cancelled("the fetch was cancelled while it waited for another process") from None
        except (OSError, NotImplementedError) as error:
            logger.debug("no lock on %s: %s", path, error)
            break
    try:
        yield not late
    finally:
        if held:
            with suppress(OSError):
                lock.release()
