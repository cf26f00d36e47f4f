"""What a registry's 401 asks for, and where a token may be had (distribution/distribution, docs/spec/auth)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from modelstore.transfer.http import origin_of

__all__ = ["Challenge", "may_be_realm", "parse_challenges", "parse_token"]

_PIECE: Final = re.compile(
    r"(?<![\w-])(?P<scheme>[A-Za-z][\w-]*)(?=\s+[\w-]+\s*=|\s*(?:,|\Z))"
    r'|(?<![\w-])(?P<name>[\w-]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s,"]+))',
    re.ASCII,
)
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,65536}")
#: Hosts that give out tokens for registries of another name. Nobody else's realm is asked: a registry could have the
#: credentials sent to anybody by naming him (CVE-2025-51471).
_REALMS: Final = {
    "hf.co": ("hf.co", "huggingface.co"),
    "huggingface.co": ("hf.co", "huggingface.co"),
    "registry.ollama.ai": ("ollama.com", "registry.ollama.ai"),
    "ollama.com": ("ollama.com", "registry.ollama.ai"),
    "registry-1.docker.io": ("auth.docker.io",),
    "registry.gitlab.com": ("gitlab.com",),
}


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a 401 names: its scheme, in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    def token_url(self, repository: str) -> str:
        """Where to ask for a token to pull from a repository."""
        scopes = self.parameters.get("scope", "").split() or [f"repository:{repository}:pull"]
        query = [("service", self.parameters["service"])] if self.parameters.get("service") else []
        realm = self.parameters.get("realm", "").partition("#")[0]
        joint = "&" if urlsplit(realm).query else "?"
        return f"{realm}{joint}{urlencode(query + [('scope', scope) for scope in scopes])}"


def parse_challenges(header: str) -> list[Challenge]:
    """Read a WWW-Authenticate header (RFC 9110 §11.6.1). What cannot be read is left out."""
    challenges: list[tuple[str, dict[str, str]]] = []
    for match in _PIECE.finditer(header):
        if match["scheme"]:
            challenges.append((match["scheme"].lower(), {}))
        elif challenges:
            quoted = match["quoted"]
            value = match["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            challenges[-1][1].setdefault(match["name"].lower(), value)
    return [Challenge(scheme, parameters) for scheme, parameters in challenges]


def may_be_realm(realm: str, registry: str, token_host: str | None) -> bool:
    """Whether a registry at the URL ``registry`` may have tokens given out by ``realm``.

    By itself, by a host known to belong to it, or by ``token_host`` of the config; over TLS if it is itself.
    """
    try:
        scheme, host, port = origin_of(realm)
        netloc = urlsplit(realm).netloc
    except ValueError:
        return False
    own_scheme, own_host, own_port = origin_of(registry)
    if not host or "@" in netloc or "\\" in realm or scheme not in ("https", own_scheme):
        return False
    if (host, port) == (own_host, own_port) or (token_host or "").lower() in (host, f"{host}:{port}"):
        return True
    return scheme == "https" and port == 443 and own_port == 443 and host in _REALMS.get(own_host or "", ())


def parse_token(value: Any) -> str:
    """The token in an answer. Raises :class:`ValueError`."""
    found = (value.get("token") or value.get("access_token")) if isinstance(value, dict) else None
    if not isinstance(found, str) or not _TOKEN.fullmatch(found):
        raise ValueError("there is no token in it")
    return found
