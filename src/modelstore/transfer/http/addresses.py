"""Addresses that a server may not send us to: those of this machine, and of the cloud's own services beside it."""

import ipaddress
import socket
from contextlib import suppress
from typing import Final

from modelstore.errors import SourceUnavailable

__all__ = ["is_metadata", "refuse_inside"]

#: Where clouds keep credentials for whoever asks from the machine, besides the link-local 169.254.169.254 of most.
_METADATA: Final = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200")))


def refuse_inside(shown: str, host: str, origin: str) -> None:
    """Refuse a redirect from ``origin`` to link-local and metadata addresses, and to loopback from elsewhere.

    Names count as what they resolve to, and so do other spellings of an address (``127.1``, ``2852039166``). Raises
    ``SourceUnavailable``.
    """
    targets = _addresses(host)
    if any(map(is_metadata, targets)):
        raise SourceUnavailable(f"{shown} redirects to a link-local address", retryable=False)
    origins = _addresses(origin)
    if any(map(_is_here, targets)) and not (origins and all(map(_is_here, origins))):
        raise SourceUnavailable(f"{shown} redirects to an address of this machine itself", retryable=False)


def is_metadata(address: str) -> bool:
    """Whether an address is link-local, or one at which a cloud serves its metadata."""
    found = _parse(address)
    return found.is_link_local or found in _METADATA


def _is_here(address: str) -> bool:
    found = _parse(address)
    return found.is_loopback or found.is_unspecified


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def _addresses(host: str) -> list[str]:
    """What a host resolves to; nothing if that cannot be told, as behind a proxy: then connecting will tell."""
    literal = host.partition("%")[0]  # without an IPv6 zone
    with suppress(ValueError):
        return [str(ipaddress.ip_address(literal))]
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError):
        return []
