"""Ranges over HTTP, with urllib3. Every answer is checked before a byte of it is believed."""

from modelstore.transfer.http.answers import Document
from modelstore.transfer.http.client import HttpClient
from modelstore.transfer.http.file import Access, HttpFile, origin_of

__all__ = ["Access", "Document", "HttpClient", "HttpFile", "origin_of"]
