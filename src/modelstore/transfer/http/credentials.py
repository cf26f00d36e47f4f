"""What goes with requests to the host that a source URL names: from the URL itself, the config, and netrc."""

import logging
import netrc
import os
import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from modelstore.config import Config
from modelstore.errors import ConfigError
from modelstore.transfer.http.file import origin_of

__all__ = ["authorize", "basic", "bearer", "configured", "from_netrc", "split_userinfo"]

_TOKEN: Final = re.compile(r"[\x21-\x7e]+")

logger = logging.getLogger(__name__)


def basic(name: str, password: str) -> str:
    """The value of an Authorization header (RFC 7617)."""
    return f"Basic {b64encode(f'{name}:{password}'.encode()).decode()}"


def authorize(headers: Mapping[str, str], authorization: str) -> dict[str, str]:
    """The headers with this Authorization, in place of any other."""
    others = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    return {**others, "Authorization": authorization}


def bearer(token: str, name: str) -> str:
    """The value of an Authorization header (RFC 6750). Raises ``ConfigError`` that tells where the token was."""
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"the token of {name} holds a character that no header can hold", hint="check it")
    return f"Bearer {token}"


def split_userinfo(url: str) -> tuple[str, tuple[str, str] | None]:
    """A URL without its ``user:password@``, and these two, decoded."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    name, _, password = userinfo.partition(":")
    return parts._replace(netloc=host).geturl(), (unquote(name), unquote(password))


def configured(url: str, config: Config) -> dict[str, str]:
    """The headers that the config has for the host of a URL. Raises ``ConfigError``."""
    parts = urlsplit(url)
    return config.host(parts.hostname or "", origin_of(url)[2]).expand(os.environ)


def from_netrc(url: str) -> tuple[str, str] | None:
    """Name and password for the host of a URL in the file that ``NETRC`` names, or in ``~/.netrc``.

    As curl reads it: the ``default`` entry counts too. A file that cannot be read is passed over with a warning.
    """
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(path).authenticators(urlsplit(url).hostname or "")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
        reason = getattr(error, "strerror", None) or "it is not in netrc's form"  # its own text may quote a password
        logger.warning("%s is passed over: %s", path, reason)
        return None
    return (found[0], found[2]) if found else None
