"""Ranges over HTTP, with urllib3. Every answer is checked before a byte of it is believed."""

from modelstore.transfer.http.client import HttpClient
from modelstore.transfer.http.file import HttpFile

__all__ = ["HttpClient", "HttpFile"]
