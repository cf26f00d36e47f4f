"""Whose certificates are believed: the system's authorities, and those that somebody named besides."""

import os
import ssl

from urllib3.util.ssl_ import create_urllib3_context

from modelstore.errors import ConfigError

__all__ = ["named_authorities", "trust"]

#: Read by OpenSSL, requests, curl and the AWS command line. There each replaces the system's authorities; here each is
#: added to them.
_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")


def trust(ca_bundle: str | None) -> ssl.SSLContext:
    """A TLS context that believes the system's authorities, those in the environment's files, and ``ca_bundle``.

    Raises ``ConfigError`` for a file that is not there or holds no certificates.
    """
    context = create_urllib3_context()
    context.load_default_certs()
    system = ssl.get_default_verify_paths()
    if os.path.isfile(system.openssl_cafile) or os.path.isdir(system.openssl_capath):
        # Again, by name: SSL_CERT_FILE and SSL_CERT_DIR have replaced them above.
        _load(context, system.openssl_cafile, system.openssl_capath)
    for name, path in named_authorities(ca_bundle):
        _add(context, name, path)
    return context


def named_authorities(ca_bundle: str | None) -> list[tuple[str, str]]:
    """What names a file of authorities besides the system's, and the file."""
    named = [(name, os.environ.get(name)) for name in _VARIABLES]
    return [(name, path) for name, path in [*named, ("ca_bundle", ca_bundle)] if path]


def _load(context: ssl.SSLContext, file: str, folder: str) -> None:
    context.load_verify_locations(
        cafile=file if os.path.isfile(file) else None, capath=folder if os.path.isdir(folder) else None
    )


def _add(context: ssl.SSLContext, name: str, path: str) -> None:
    try:
        if os.path.isdir(path):  # as requests has it: hashed names, see openssl-rehash(1)
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        reason = "holds no certificates" if isinstance(error, ssl.SSLError) else (error.strerror or "").lower()
        raise ConfigError(f"{name} is {path}: {reason}", hint="name a file of certificates in PEM form") from error
