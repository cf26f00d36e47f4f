"""Credentials for registries, where ``docker login`` keeps them (github.com/docker/cli, docs "docker login")."""

import json
import logging
import os
import re
import subprocess
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Account", "find_account"]

logger = logging.getLogger(__name__)

#: Seconds that a credential helper may take.
_HELPER_SECONDS: Final = 30
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
#: Docker's own registry goes by another name in the file.
_DOCKER_KEY: Final = "https://index.docker.io/v1/"
#: The name that a helper gives when its secret is an identity token.
_TOKEN_NAME: Final = "<token>"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Account:
    """Name and password; or an ``identity_token`` to get tokens for; or a ``registry_token`` to be used as it is."""

    name: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


def find_account(host: str) -> Account | None:
    """What ``config.json`` has for a registry, itself or through a credential helper; None if that is nothing.

    What cannot be read is passed over with a warning: most models are public.
    """
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        return _find(value, host)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not in docker's form"  # its own text may quote a secret
        logger.warning("%s is passed over: %s", path, reason)
        return None


def _find(value: Mapping[str, Any], host: str) -> Account | None:
    keys = list(_keys(host))
    helpers = _table(value, "credHelpers")
    names = [(helpers[key], key) for key in keys if key in helpers]
    if value.get("credsStore"):
        names.append((value["credsStore"], keys[0]))
    for name, key in names:
        if account := _ask_helper(name, key):
            return account
    auths = _table(value, "auths")
    entries = (auths[key] for key in keys if key in auths)
    return next((account for entry in entries if (account := _parse_entry(entry))), None)


def _keys(host: str) -> Iterator[str]:
    if host in ("docker.io", "index.docker.io", "registry-1.docker.io"):
        yield _DOCKER_KEY
    yield host
    for scheme in ("https", "http"):
        yield from (f"{scheme}://{host}{path}" for path in ("", "/", "/v1/", "/v2/"))


def _table(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = value.get(name) or {}
    if not isinstance(table, dict):
        raise ValueError(f"{name} is not an object")
    return table


def _parse_entry(entry: Any) -> Account | None:
    if not isinstance(entry, dict):
        raise ValueError("an entry is not an object")
    fields = {
        name: entry.get(name) or "" for name in ("auth", "username", "password", "identitytoken", "registrytoken")
    }
    if not all(isinstance(text, str) for text in fields.values()):
        raise ValueError("an entry is not of text")
    name, password = fields["username"], fields["password"]
    if fields["auth"]:
        name, _, password = b64decode(fields["auth"], validate=True).decode().rstrip("\0").partition(":")
    "".join((name, password, *fields.values())).encode()  # JSON can hold what no header can
    account = Account(name, password, fields["identitytoken"], fields["registrytoken"])
    return None if account == Account() else account


def _ask_helper(name: Any, server: str) -> Account | None:
    """``docker-credential-<name> get``: the server on its input, an object on its output."""
    if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
        raise ValueError("the name of a helper is no plain name")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(  # noqa: S603  the program that the user's own file names
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
        if done.returncode:
            logger.debug("%s has nothing for %s", program, server)
            return None
        value = json.loads(done.stdout)
        user, secret = value["Username"], value["Secret"]
        if not (isinstance(user, str) and isinstance(secret, str)):
            raise ValueError("not text")
        f"{user}{secret}".encode()
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it did not answer as a helper does"
        logger.warning("%s is passed over: %s", program, reason)
        return None
    if user == _TOKEN_NAME:
        return Account(identity_token=secret)
    return Account(user, secret)
