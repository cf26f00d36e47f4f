"""Source URLs: what a user writes to name a model, and the cache key that follows from it."""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from modelstore.digest import Digest
from modelstore.errors import ConfigError

__all__ = ["CacheKey", "Selection", "SourceURL", "cache_key"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PIN_SUFFIX = re.compile(r"#sha\d+=[^#]*\Z")
_SELECTION_SUFFIX = re.compile(r"\?(?:allow|ignore)=.*\Z", re.DOTALL)
_HASH_NAME = re.compile(r"(sha|md5|blake|xxh)[\w-]*=", re.IGNORECASE)
_WEB: Final = ("http", "https")

#: Azure's shared access signature: "sig" and the fields that it signs (Azure Storage, "Create a service SAS").
_AZURE_SAS: Final = frozenset(
    "sig sv ss srt sp se st spr sip sr si skoid sktid skt ske sks skv saoid suoid scid sdd ses".split()
)


class CacheKey(str):
    """SHA-256 of a source URL: 64 lowercase hexadecimal digits, of which the first 16 are the ``short`` key."""

    __slots__ = ()

    def __new__(cls, text: str) -> "CacheKey":
        return super().__new__(cls, Digest(text).hex)

    @property
    def short(self) -> str:
        """The 16 digits that LLMKube and KServe use for the same URL, and that name ``models/<short key>``."""
        return self[:16]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a tree are wanted: ``?allow=*.safetensors,*.json&ignore=original/*``.

    Patterns are those of :func:`fnmatch.fnmatchcase` on the whole relative path, so ``*`` crosses ``/``; one that ends
    in ``/`` means everything below, as the Hub's client has it.
    """

    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    @classmethod
    def parse(cls, query: str) -> "Selection":
        """Read a query string; raises :class:`ConfigError` for a parameter other than ``allow`` and ``ignore``."""
        found: dict[str, tuple[str, ...]] = {}
        for piece in filter(None, query.split("&")):
            name, _, value = piece.partition("=")
            if name not in ("allow", "ignore"):
                raise ConfigError(f"unknown parameter {name!r} in the source's query", hint="use allow= and ignore=")
            patterns = (pattern + "*" if pattern.endswith("/") else pattern for pattern in unquote(value).split(","))
            found[name] = (*found.get(name, ()), *filter(None, patterns))
        return cls(**found)

    def picks(self, path: str) -> bool:
        """Whether a relative path is wanted."""
        from fnmatch import fnmatchcase

        allowed = not self.allow or any(fnmatchcase(path, pattern) for pattern in self.allow)
        return allowed and not any(fnmatchcase(path, pattern) for pattern in self.ignore)


@dataclass(frozen=True, slots=True)
class SourceURL:
    """A parsed source URL.

    ``text`` is what is hashed, shown and stored: the URL as written, less what must never be in a key. ``request`` is
    what a source may need to ask with, credentials and signature included: never log it, never store it.
    ``pin`` is the digest of ``#sha256=``, if there was one. ``revision`` is what a source has pinned the URL to before,
    if just that is to be had again.
    """

    text: str
    scheme: str
    request: str = field(repr=False, compare=False)
    pin: Digest | None = None
    revision: str | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, source: "str | os.PathLike[str] | SourceURL") -> "SourceURL":
        """Read a URL, or a local path, which is made absolute and written as ``file:///…``.

        Raises :class:`ConfigError` for text that is neither.
        """
        if isinstance(source, SourceURL):
            return source
        text = os.fspath(source)
        if not text.strip():
            raise ConfigError("the source is empty", hint="give a URL or a path")
        if _CONTROL.search(text):
            raise ConfigError(f"the source {_mask(text)!r} contains a control character")
        if re.match(r"[^/]+::\S*://", text):
            raise ConfigError(f"malformed URL {_mask(text)!r}", hint="a chain of file systems cannot be read")
        if not _SCHEME.match(text):
            text = _path_to_url(text)
        _refuse_broken_userinfo(text)
        if not _is_utf8(text):
            raise ConfigError(f"the source {_mask(text)!r} is not UTF-8", hint="percent-encode the other bytes")
        scheme = text.partition("://")[0].lower()
        body, _, fragment = text.partition("#")
        _check(scheme, body, _mask(text))
        return cls(text=_redact(body), scheme=scheme, request=body, pin=_parse_pin(fragment))

    @property
    def key(self) -> CacheKey:
        """The cache key: SHA-256 of ``text``."""
        return CacheKey(hashlib.sha256(self.text.encode()).hexdigest())

    def split(self) -> SplitResult:
        """The parts of ``text``."""
        return urlsplit(self.text)

    def __str__(self) -> str:
        return self.text


def cache_key(source: "str | os.PathLike[str]") -> CacheKey:
    """The cache key of a source URL or local path.

    SHA-256 of the UTF-8 URL exactly as written, after dropping only what must never be in a key: the fragment,
    ``user:password@``, and the parameters of a recognised signature (AWS ``X-Amz-*`` and its older form, Google
    ``X-Goog-*``, Azure SAS, CloudFront: each only when its signature parameter is there). So a clean URL has the key
    that LLMKube and KServe give it. A local path is made absolute and written as ``file:///…`` first.

    Raises :class:`ConfigError` for a malformed URL.
    """
    return SourceURL.parse(source).key


def _path_to_url(text: str) -> str:
    if re.match(r"\s+\S*://|(?:[A-Za-z][A-Za-z0-9+.-]*)?:/", text):
        raise ConfigError(f"malformed URL {_mask(text)!r}", hint="write scheme://…, or ./ before a local path")
    pin = _PIN_SUFFIX.search(text)
    path, suffix = (text[: pin.start()], pin.group()) if pin else (text, "")
    selection = _SELECTION_SUFFIX.search(path)
    if selection:
        path, suffix = path[: selection.start()], selection.group() + suffix
    if not path:
        raise ConfigError("the source names no path", hint="give a URL or a path")
    try:
        return PurePosixPath(os.path.abspath(path)).as_uri() + suffix
    except UnicodeEncodeError as error:
        raise ConfigError(f"the path {path!r} cannot be a file's name") from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_pin(fragment: str) -> Digest | None:
    """The digest of a ``sha256=`` fragment. A misspelt pin is an error: ignoring it would drop the check."""
    if not _HASH_NAME.match(fragment):
        return None
    name, _, value = fragment.partition("=")
    try:
        if name != "sha256":
            raise ValueError(f"unknown hash {name!r}")
        return Digest(value.lower())
    except ValueError as error:
        raise ConfigError(f"malformed pin #{fragment!s:.80}", hint="write #sha256=<64 hex digits>") from error


def _check(scheme: str, body: str, shown: str) -> None:
    """Refuse what two URL parsers could read differently, and what cannot name anything."""
    try:
        parts = urlsplit(body)
        good = scheme not in _WEB or (parts.hostname and "\\" not in body and " " not in body and parts.port != 0)
    except ValueError:  # not chained: its text quotes what may be a password
        good = False
    if not good:
        raise ConfigError(f"malformed URL {shown!r}", hint="write https://host/path, percent-encoded")
    if scheme not in (*_WEB, "file") and re.search(r"::[A-Za-z][\w+.-]*://", body):
        raise ConfigError(f"{shown!r} is a chain", hint="name the objects themselves")
    if scheme == "file" and (parts.netloc not in ("", "localhost") or not parts.path.startswith("/")):
        raise ConfigError(f"malformed URL {shown!r}", hint="write file:///absolute/path")
    if scheme != "file" and not _SCHEME.sub("", _redact(body)).strip("/"):
        raise ConfigError(f"malformed URL {shown!r}: it names nothing")


def _refuse_broken_userinfo(text: str) -> None:
    """Refuse a password with a character in it that ends it too early: its rest would be taken for a path."""
    scheme, _, rest = text.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    later = rest[len(authority) :]
    if ":" not in authority or "@" in authority or "@" not in later or authority.startswith("arn:"):
        return
    if scheme.lower() in ("ollama", "s3") or not re.search(r":\d*\Z", authority):
        raise ConfigError(f"malformed URL {_mask(text)!r}", hint="percent-encode the password")


def _mask(text: str) -> str:
    """A URL that could not be read, less all that could be a secret in it."""
    shown = re.sub(r"(:/+|^).*@", r"\1…@", text, flags=re.DOTALL)
    return re.sub(r"[?#].*", "?…", shown, flags=re.DOTALL)


def _redact(body: str) -> str:
    """The URL as written, less userinfo and signature: safe to show, to store and to hash."""
    match = _SCHEME.match(body)
    if not match:
        return body
    rest = body[match.end() :]
    end = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
    userinfo, at, host = rest[:end].rpartition("@")
    # Elsewhere a bare name before "@" is part of the place: abfs://container@account, hf://name@revision.
    if at and (":" in userinfo or match.group(1).lower() in _WEB):
        rest = host + rest[end:]
    path, question, query = rest.partition("?")
    kept = _drop_signature(query)
    return match.group() + path + (question if kept or not query else "") + kept


def _drop_signature(query: str) -> str:
    """The query without the parameters of a recognised signature; the others stay exactly as written."""
    pieces = query.split("&")
    names = [unquote(piece.partition("=")[0]).lower() for piece in pieces]
    secret = _signature_names(frozenset(names))
    return "&".join(piece for piece, name in zip(pieces, names, strict=True) if name not in secret)


def _signature_names(names: frozenset[str]) -> frozenset[str]:
    secret: set[str] = set()
    for prefix in ("x-amz-", "x-goog-"):
        if prefix + "signature" in names:
            secret.update(name for name in names if name.startswith(prefix))
    if "signature" in names:
        if names & {"awsaccesskeyid", "googleaccessid"}:
            secret.update(("signature", "expires", "awsaccesskeyid", "googleaccessid", "x-amz-security-token"))
        if "key-pair-id" in names:
            secret.update(("signature", "expires", "policy", "key-pair-id", "hash-algorithm"))
    if {"sig", "sv"} <= names:
        secret.update(_AZURE_SAS)
    return frozenset(secret)
