"""What S3 checks of a request before it does anything: AWS Signature Version 4, in headers or in the query.

Written from the documentation of the protocol and not with the library that signs, so that a URL which arrives with
other escapes, without one of its signed headers, or for another method, does not pass.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW = timedelta(minutes=15)


@dataclass(frozen=True)
class Key:
    """An access key: its secret and, if it is a temporary one, its session token."""

    secret: str
    token: str | None = None


@dataclass(frozen=True)
class Refusal:
    """How S3 says no."""

    status: int
    code: str
    message: str = "no"


@dataclass(frozen=True)
class _Claim:
    credential: str
    signed: str
    signature: str
    date: str
    token: str | None
    payload: str
    expires: int | None  # seconds, of a signed URL


def is_signed(query: str, headers: Mapping[str, str]) -> bool:
    return "authorization" in headers or "X-Amz-Signature" in _pairs(query)


def check(method: str, path: str, query: str, headers: Mapping[str, str], keys: Mapping[str, Key], region: str) -> (
    Refusal | None
):  # fmt: skip
    """None if the request is signed as it must be. `path` and `query` are as on the request line."""
    claim = _claim(query, headers)
    if claim is None or claim.credential.count("/") != 4:
        return Refusal(400, "AuthorizationHeaderMalformed")
    name, day, where, service, _ = claim.credential.split("/")
    if name not in keys:
        return Refusal(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    if where != region:
        return Refusal(400, "AuthorizationHeaderMalformed", f"the region '{where}' is wrong; expecting '{region}'")
    if claim.token != keys[name].token:
        return Refusal(400, "InvalidToken")
    if _is_late(claim):
        return Refusal(403, "AccessDenied", "Request has expired")
    signed = claim.signed.split(";")
    unsigned = [header for header in headers if header.startswith("x-amz-") and header not in signed]
    if unsigned:
        return Refusal(403, "AccessDenied", f"There were headers present which were not signed: {unsigned}")
    if "+" in path:
        return Refusal(400, "InvalidURI", "an unescaped + in the path means different things to different servers")
    canonical = "\n".join(
        [
            method,
            quote(unquote(path), safe="/~"),
            _canonical_query(query),
            *(f"{header}:{' '.join(headers.get(header, '').split())}" for header in signed),
            "",
            claim.signed,
            claim.payload,
        ]
    )
    scope = f"{day}/{where}/{service}/aws4_request"
    text = "\n".join([ALGORITHM, claim.date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    secret = f"AWS4{keys[name].secret}".encode()
    for part in (day, where, service, "aws4_request"):
        secret = _hmac(secret, part)
    if not hmac.compare_digest(_hmac(secret, text).hex(), claim.signature):
        return Refusal(403, "SignatureDoesNotMatch", "The signature we calculated does not match the one you provided.")
    return None


def _claim(query: str, headers: Mapping[str, str]) -> _Claim | None:
    pairs = _pairs(query)
    if "X-Amz-Signature" in pairs:
        return _Claim(
            pairs.get("X-Amz-Credential", ""),
            pairs.get("X-Amz-SignedHeaders", ""),
            pairs["X-Amz-Signature"],
            pairs.get("X-Amz-Date", ""),
            pairs.get("X-Amz-Security-Token"),
            "UNSIGNED-PAYLOAD",
            int(pairs.get("X-Amz-Expires", "0")),
        )
    match = re.fullmatch(
        rf"{ALGORITHM} Credential=(\S+?), *SignedHeaders=(\S+?), *Signature=([0-9a-f]{{64}})",
        headers.get("authorization", ""),
    )
    if match is None:
        return None
    payload = headers.get("x-amz-content-sha256", "")
    return _Claim(*match.groups(), headers.get("x-amz-date", ""), headers.get("x-amz-security-token"), payload, None)


def _is_late(claim: _Claim) -> bool:
    begun = datetime.strptime(claim.date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    now = datetime.now(UTC)
    return begun > now + SKEW or now > begun + (SKEW if claim.expires is None else timedelta(seconds=claim.expires))


def _pairs(query: str) -> dict[str, str]:
    split = (piece.partition("=") for piece in query.split("&") if piece)
    return {unquote(name): unquote(value) for name, _, value in split}


def _canonical_query(query: str) -> str:
    pairs = [(name, value) for name, value in _pairs(query).items() if name != "X-Amz-Signature"]
    return "&".join(sorted(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in pairs))


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
