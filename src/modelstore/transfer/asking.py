"""Asks about many things at once: small requests of which each waits for the network."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

__all__ = ["AT_ONCE", "ask_each"]

#: Requests at once.
AT_ONCE: Final = 16

T = TypeVar("T")
R = TypeVar("R")


def ask_each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What the function gives for each item, in their order. The first failure ends all that have not begun."""
    pool = ThreadPoolExecutor(AT_ONCE, "modelstore-ask")
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
