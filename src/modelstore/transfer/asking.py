"""Asks what there is: small requests of which each waits for the network, and nobody for longer than is bearable."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, wait
from functools import partial
from threading import Event
from typing import Final, TypeVar

from modelstore.errors import Cancelled, SourceUnavailable
from modelstore.transfer import limits
from modelstore.transfer.lanes import Lanes

__all__ = ["AT_ONCE", "ask", "ask_each"]

#: Requests at once.
AT_ONCE: Final = 16

T = TypeVar("T")
R = TypeVar("R")


def ask_each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What the function gives for each item, in their order. The first failure ends all that have not begun."""
    lanes = Lanes(AT_ONCE, "modelstore-ask")
    try:
        futures = lanes.submit(partial(function, item) for item in items)
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
        return [future.result() for future in futures]
    finally:
        lanes.close()


def ask(question: Callable[[], R], shown: str, cancel: Event | None) -> R:
    """What the question is answered with.

    It is asked in another thread: libraries that list and sign for us wait for as long as bytes drip in. Raises
    ``Cancelled`` soon after ``cancel`` is set, and ``SourceUnavailable`` after ten minutes.
    """
    lanes = Lanes(1, "modelstore-ask")
    deadline = time.monotonic() + limits.ASK_SECONDS
    try:
        [future] = lanes.submit([question])
        while not wait([future], timeout=limits.REPORT_SECONDS).done:
            if cancel is not None and cancel.is_set():
                raise Cancelled("the fetch was cancelled while it asked the source")
            if time.monotonic() > deadline:
                raise SourceUnavailable(
                    f"{shown} did not say in {limits.ASK_SECONDS:g} seconds what it holds",
                    hint="check the URL and the network",
                    retryable=False,  # or it would be asked for as long again
                )
        return future.result()
    finally:
        lanes.close()
