"""``s3://bucket/key`` and ``s3://bucket/prefix/``: objects in any store that speaks S3.

botocore finds, lists and signs, with the environment, profiles and roles that the AWS command line knows; bytes are
read by our engine from the signed URLs. Not s3fs, which brings botocore along, takes twice its start-up and half again
its memory, runs an event loop in a thread that no fork survives, and remembers listings.
"""

import base64
import binascii
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import parse_qs, unquote

from modelstore.config import Config
from modelstore.digest import Digest
from modelstore.errors import (
    BlobArchived,
    ConfigError,
    SourceCorrupt,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnavailable,
)
from modelstore.manifest import check_paths
from modelstore.source_url import Selection, SourceURL
from modelstore.sources.base import Resolved, SourceFile
from modelstore.transfer import limits
from modelstore.transfer.asking import AT_ONCE, ask_each
from modelstore.transfer.http import Access, HttpClient, HttpFile
from modelstore.transfer.http.tls import named_authorities

if TYPE_CHECKING:
    from botocore.client import BaseClient

__all__ = ["S3Source"]

logger = logging.getLogger(__name__)

#: Seconds that a signed URL is good for; a fresh one is made when it is refused.
_EXPIRES: Final = 3600
_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}")
#: The system's authorities, where the large distributions keep them: botocore has a list of its own.
_SYSTEM: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_ARCHIVES: Final = ("GLACIER", "DEEP_ARCHIVE")
#: Error codes of S3 (Amazon S3 API, "Error responses"); HEAD has no body, so there the status stands for the code.
_ABSENT: Final = ("NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound", "404")
_REFUSED: Final = (
    "AccessDenied AllAccessDisabled ExpiredToken Forbidden InvalidAccessKeyId InvalidToken SignatureDoesNotMatch"
    " RequestTimeTooSkewed 401 403"
).split()


class S3Source:
    """Reads objects, each with ``If-Match``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._http = HttpClient("modelstore", config.ca_bundle)
        self._authorities: BinaryIO | None = None

    def resolve(self, url: SourceURL) -> Resolved:
        """List an object, or all objects below a prefix, with size, ETag and whatever SHA-256 there is.

        Without a slash at the end it is an object, or if there is none, the prefix of that name and a slash.
        """
        place, _, query = url.text.partition("://")[2].partition("?")
        bucket, _, key = place.partition("/")
        store = _Bucket(self._config, bucket, url, self._trusted())
        is_tree = not key or key.endswith("/")
        if not is_tree:
            version = _version(url, query)
            if (head := store.head(key, version)) is not None:
                name = key.rpartition("/")[2]
                return Resolved((store.file(name, key, head, version),))
            if version:
                raise SourceNotFound(f"{url} does not exist", hint="check the key and the version")
            key += "/"
        selection = Selection.parse(query)
        names = {name: key + name for name in store.names(key) if selection.picks(name)}
        try:
            check_paths(names)
        except ValueError as error:
            raise SourceCorrupt(f"{url} cannot be stored: {error}") from error
        if not names:
            raise SourceNotFound(f"{url} holds no objects" + (" that are selected" if query else ""))
        return Resolved(tuple(store.files(names)), tree=True)

    def open_range(self, file: SourceFile, start: int, stop: int) -> Iterator[bytes]:
        return self._http.read(file.handle, start, stop, ranges=file.ranges)

    def _trusted(self) -> str | None:
        """A file of the authorities that botocore believes and of those that were named besides; None if none were.

        In memory, where it needs no directory that can be written.
        """
        system = [path for path in _SYSTEM if os.path.isfile(path)][:1]
        named = [path for _, path in named_authorities(self._config.ca_bundle) if os.path.isfile(path)]
        if not system and not named:
            return None
        from botocore.httpsession import get_cert_path

        if self._authorities is None:
            self._authorities = os.fdopen(os.memfd_create("authorities"), "wb")
            for path in (get_cert_path(True), *system, *named):
                try:
                    with open(path, "rb") as file:
                        self._authorities.write(file.read() + b"\n")
                except OSError as error:
                    raise ConfigError(f"the certificates in {path} cannot be read") from error
            self._authorities.flush()
        return f"/proc/self/fd/{self._authorities.fileno()}"

    def close(self) -> None:
        self._http.close()
        if self._authorities:
            self._authorities.close()


def _version(url: SourceURL, query: str) -> str | None:
    try:
        fields = parse_qs(query, strict_parsing=True) if query else {}
    except ValueError:
        fields = {"": [""]}
    if fields and fields.keys() != {"versionId"}:
        if not fields.keys() - {"allow", "ignore"}:
            return None
        raise ConfigError(
            f"unknown parameter in {url}", hint="use versionId= for an object, allow= and ignore= for a prefix"
        )
    return fields["versionId"][0] if fields else None


class _Bucket:
    """One bucket, as it is asked on behalf of one URL."""

    def __init__(self, config: Config, bucket: str, url: SourceURL, trusted: str | None) -> None:
        self._bucket = bucket
        self._url = url
        self._payer = {"RequestPayer": "requester"} if bucket in config.requester_pays else {}
        self._lock = Lock()
        with self._errors():
            self._connect = partial(_connect, url, trusted)
            self._client = self._connect(None)
            self._client.meta.events.register("after-call.s3", self._note_region)
        self._region: str = self._client.meta.region_name
        self._signers = {self._region: self._client}

    # -- finding ----------------------------------------------------------------------------------------------------

    def names(self, prefix: str) -> list[str]:
        """The keys below a prefix, less the prefix. Markers of folders, which end in a slash, are none."""
        with self._errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix, **self._payer
            )
            keys: list[str] = []
            size = 0
            for page in pages:
                found = [str(entry["Key"]) for entry in page.get("Contents", ())]
                size += sum(map(len, found))
                keys += found
                if size > limits.LISTED_BYTES or (page.get("IsTruncated") and not page.get("NextContinuationToken")):
                    raise SourceUnavailable(f"{self._url} cannot be listed to its end", retryable=False)
        return [key.removeprefix(prefix) for key in keys if not key.endswith("/")]

    def head(self, key: str, version: str | None = None) -> Mapping[str, Any] | None:
        """What S3 says of an object; None if there is none."""
        more = {**self._payer, **({"VersionId": version} if version else {})}
        try:
            with self._errors():
                return self._ask_head(key, more)
        except SourceNotFound:
            return None

    def _ask_head(self, key: str, more: Mapping[str, str]) -> Mapping[str, Any]:
        from botocore.exceptions import ClientError

        try:
            found: Mapping[str, Any] = self._client.head_object(
                Bucket=self._bucket, Key=key, ChecksumMode="ENABLED", **more
            )
        except ClientError as error:
            # A bad or expired token, for one. An answer to HEAD has no body that says so.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 400:
                self._client.get_object(Bucket=self._bucket, Key=key, Range="bytes=0-0", **more)["Body"].close()
            raise
        return found

    def files(self, names: Mapping[str, str]) -> Iterable[SourceFile]:
        """The objects of these keys, under these names."""

        def file(item: tuple[str, str]) -> SourceFile:
            head = self.head(item[1])
            if head is None:
                raise SourceUnavailable(f"{self._url}: {item[1]} was listed and is not there", hint="run it again")
            return self.file(*item, head, None)

        # The listing has no checksums, no metadata and no archive tier.
        return ask_each(file, names.items())

    def file(self, name: str, key: str, head: Mapping[str, Any], version: str | None) -> SourceFile:
        """An object as the engine reads it."""
        try:
            check_paths([name])
        except ValueError as error:
            raise ConfigError(f"{self._url} does not end in a file name: {error}") from error
        shown = f"s3://{self._bucket}/{key}"
        _refuse_archived(shown, head)
        size, etag = head.get("ContentLength"), head.get("ETag")
        if not isinstance(size, int):
            raise SourceUnavailable(f"{shown} does not say how long it is", retryable=False)
        pinned = head.get("VersionId") if head.get("VersionId") != "null" else None
        handle = HttpFile(
            "",
            shown,
            size=size,
            etag=etag,
            last_modified=head.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("last-modified"),
            encoding=head.get("ContentEncoding") or "identity",
            hint="check the credentials and the bucket's policy",
            renew=lambda _refused, _challenge: self._sign(key, version),
        )
        validator = f"etag:{etag}" + (f";version:{pinned}" if pinned else "") if etag else None
        return SourceFile(name, size, _digest(head), validator, ranges=bool(etag), handle=handle)

    def _note_region(self, context: Mapping[str, Any], **_: Any) -> None:
        """botocore follows a bucket to its region, but signs URLs for its own."""
        self._region = context.get("signing", {}).get("region") or self._region

    def _signer(self) -> "BaseClient":
        with self._lock:
            if self._region not in self._signers:
                self._signers[self._region] = self._connect(self._region)
            return self._signers[self._region]

    def _sign(self, key: str, version: str | None) -> Access:
        parameters = {"Bucket": self._bucket, "Key": key, **self._payer, **({"VersionId": version} if version else {})}
        with self._errors():
            url = self._signer().generate_presigned_url("get_object", parameters, ExpiresIn=_EXPIRES)
        return Access(url, {"x-amz-request-payer": "requester"} if self._payer else {})

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what botocore says into a SourceError."""
        from botocore import exceptions

        try:
            yield
        except exceptions.ClientError as error:
            raise self._translate(error) from error
        except (
            exceptions.NoCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.PartialCredentialsError,
            exceptions.SSOError,
            exceptions.SSOTokenLoadError,
            exceptions.TokenRetrievalError,
            exceptions.InfiniteLoopConfigError,
        ) as error:
            raise SourceUnauthorized(
                f"{self._url} may not be read: {_reason(error)}", hint="check the AWS credentials"
            ) from error
        except (
            exceptions.ParamValidationError,
            exceptions.ProfileNotFound,
            exceptions.ConfigParseError,
            exceptions.InvalidConfigError,
            exceptions.InvalidS3AddressingStyleError,
        ) as error:
            raise ConfigError(f"{self._url} cannot be asked for: {str(error).splitlines()[-1]}") from error
        except (exceptions.BotoCoreError, exceptions.HTTPClientError, ValueError) as error:
            # Not chained: its text quotes addresses, with what may be a password in them.
            retryable = isinstance(error, exceptions.HTTPClientError)
            raise SourceUnavailable(
                f"{self._url} could not be asked for: {_reason(error)}",
                hint="check AWS_ENDPOINT_URL, the region and the network",
                retryable=retryable,
            ) from None
        except (LookupError, TypeError, AttributeError, OSError) as error:
            raise SourceUnavailable(
                f"{self._url} could not be asked for: {_reason(error)}",
                hint="check the AWS credentials' files and programs",
                retryable=False,
            ) from error

    def _translate(self, error: Any) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        said = f"HTTP {status}, {code}" if code and code != str(status) else f"HTTP {status}"
        if code in _ABSENT or status == 404:
            return SourceNotFound(f"{self._url} does not exist ({said})", hint="check the bucket and the key")
        if code in _REFUSED or status in (401, 403):
            hint = "check the credentials and the bucket's policy"
            return SourceUnauthorized(f"{self._url} may not be read ({said})", hint=hint)
        unavailable = SourceUnavailable(f"{self._url} answered {said}", retryable=status >= 500 or status == 429)
        unavailable.overloaded = status in (429, 503)
        return unavailable


def _connect(url: SourceURL, trusted: str | None, region: str | None) -> "BaseClient":
    """A client by the rules of the AWS command line; one that does not sign if there are no credentials at all."""
    from botocore import UNSIGNED
    from botocore.config import Config as BotoConfig
    from botocore.session import Session

    for noisy in ("botocore.auth", "botocore.endpoint", "botocore.parsers"):  # they log whatever is sent and comes
        logging.getLogger(noisy).addFilter(_is_no_request)
    session = Session()
    name, _, secret = url.request.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")
    if name and secret and url.request != url.text:
        session.set_credentials(unquote(name), unquote(secret))
    signature = "s3v4"
    if session.get_credentials() is None:
        logger.debug("no AWS credentials were found: %s is asked for without", url)
        signature = UNSIGNED
    config = BotoConfig(
        signature_version=signature,
        connect_timeout=5,
        read_timeout=20,
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=AT_ONCE,
        # Ranges have no checksum of their own, and others than AWS do not know the new ones.
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
    )
    region = region or session.get_config_variable("region") or "us-east-1"
    return session.create_client("s3", region_name=region, config=config, verify=trusted)


def _is_no_request(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


def _digest(head: Mapping[str, Any]) -> Digest | None:
    """The SHA-256 that S3 has checked, or that whoever put the object there has noted."""
    checksum = head.get("ChecksumSHA256", "")
    # Of an object that came in parts it is that of the parts' checksums; not every store says so.
    in_parts = head.get("ChecksumType") == "COMPOSITE" or re.search(r"-\d+\"?\Z", head.get("ETag", ""))
    try:
        if checksum and "-" not in checksum and not in_parts:
            return Digest(base64.b64decode(checksum, validate=True).hex())
    except (binascii.Error, ValueError):
        logger.debug("a checksum that is none is passed over")
    noted = head.get("Metadata", {}).get("sha256", "")
    return Digest(noted.lower()) if _HEX.fullmatch(noted) else None


def _refuse_archived(shown: str, head: Mapping[str, Any]) -> None:
    """Raise ``BlobArchived`` for an object that has to be restored before it can be read."""
    archive = head.get("ArchiveStatus") or (head.get("StorageClass") if head.get("StorageClass") in _ARCHIVES else None)
    restore = head.get("Restore", "")
    if archive and 'ongoing-request="false"' not in restore:
        under_way = "; its restore is under way" if "true" in restore else ""
        raise BlobArchived(
            f"{shown} is archived ({archive}){under_way}", op="read", hint="aws s3api restore-object brings it back"
        )


def _reason(error: Exception) -> str:
    """A few words; botocore's own may quote an address with a password in it."""
    words = re.sub(r"(?<!^)([A-Z])", r" \1", type(error).__name__.removesuffix("Error")).lower()
    return "no connection to the endpoint" if words == "endpoint connection" else words
