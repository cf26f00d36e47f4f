"""Keeps signatures out of what other libraries log about our requests."""

import logging

__all__ = ["hide_queries"]


def hide_queries() -> None:
    """Have urllib3 log addresses without their queries, where signatures are. Done when the first client is made."""
    logging.getLogger("urllib3.connectionpool").addFilter(_hide)


def _hide(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(_without_query(value) for value in record.args)
    return True


def _without_query(value: object) -> object:
    if isinstance(value, str) and "?" in value:
        return value.partition("?")[0] + "?…"
    return value
