"""Asks one registry about one repository: manifests as they are, blobs as files that the engine can read.

Our own, as the libraries at hand (oras, dxf) send credentials to whatever realm a registry names, keep no manifest
bytes, and read blobs in one stream.
"""

import json
import os
from collections.abc import Mapping
from functools import partial
from threading import Lock
from typing import Any, Final

from modelstore.config import Config
from modelstore.digest import Digest
from modelstore.errors import ConfigError, SourceCorrupt, SourceNotFound, SourceUnauthorized, SourceUnavailable
from modelstore.manifest import MANIFEST_TYPE, MAX_MANIFEST_SIZE, Manifest
from modelstore.registry.docker_config import Account, find_account
from modelstore.registry.name import Name
from modelstore.registry.tokens import Challenge, may_be_realm, parse_challenges, parse_token
from modelstore.transfer.http import Access, Document, HttpClient, HttpFile, origin_of
from modelstore.transfer.http.credentials import authorize, basic, bearer, configured

__all__ = ["Registry", "choose_child"]

_DOCKER_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
_INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
# Docker's first: what Ollama asks for, so that its registry answers as it does to Ollama.
_ACCEPT: Final = ", ".join((_DOCKER_TYPE, MANIFEST_TYPE, *_INDEX_TYPES))
#: Bytes of an answer with a token.
_MOST_TOKEN: Final = 256 * 1024
_HF_HOSTS: Final = ("hf.co", "huggingface.co")


class Registry:
    """One repository. ``userinfo`` counts before what docker's config has. Safe to use from several threads."""

    def __init__(
        self, client: HttpClient, name: Name, shown: str, config: Config, userinfo: tuple[str, str] | None
    ) -> None:
        self._client = client
        self._name = name
        self._shown = shown
        try:
            _, host, port = origin_of(f"https://{name.address}")
        except ValueError as error:
            raise ConfigError(f"{shown} names no registry", hint="write host or host:port") from error
        self._settings = config.host(host or "", port)
        plain = name.is_local or self._settings.plain_http
        self._base = f"{'http' if plain else 'https'}://{name.address}"
        self._headers = configured(self._base, config)
        self._userinfo = userinfo
        self._lock = Lock()
        self._authorization = self._first_authorization()

    def manifest(self, reference: str) -> Manifest:
        """The manifest that a tag or a digest names; of an index, the one manifest in it that is for any platform."""
        raw = self._document(reference)
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise SourceCorrupt(f"{self._shown} has a manifest that is not JSON") from error
        if isinstance(value, dict) and "manifests" in value:
            try:
                child = choose_child(value)
            except LookupError as error:
                raise ConfigError(f"{self._shown} is an index: {error}", hint="name a tag with one manifest") from error
            except ValueError as error:
                raise SourceCorrupt(f"{self._shown} has an index that cannot be read: {error}") from error
            raw = self._document(str(child))
            if Digest.of(raw) != child:
                raise SourceCorrupt(f"{self._shown}: the manifest {child} was sent as {Digest.of(raw)}")
        try:
            manifest = Manifest.parse(raw)
        except ValueError as error:
            raise SourceCorrupt(f"{self._shown} has a manifest that cannot be used: {error}") from error
        if not manifest.files:
            raise SourceCorrupt(f"{self._shown} holds no file of a kind that is known here")
        return manifest

    def blob(self, digest: Digest, size: int) -> HttpFile:
        """Where a blob can be read."""
        url = f"{self._base}/v2/{self._name.repository}/blobs/{digest}"
        return HttpFile(
            "",  # with whatever credentials there are by then
            f"{self._shown} ({digest})",
            size=size,
            immutable=True,
            renew=partial(self._renew, url),
        )

    # -- asking -----------------------------------------------------------------------------------------------------

    def _document(self, reference: str) -> bytes:
        """A manifest's bytes, which are what the registry's own headers say they are."""
        answer = self._ask(self._url(reference))
        if answer.status == 401:
            self._authorize(answer.headers.get("WWW-Authenticate", ""))
            answer = self._ask(self._url(reference))
        if answer.status == 401:
            raise self._unauthorized("the credentials are refused")
        if answer.status == 400:
            raise SourceNotFound(f"{self._shown} is refused: {_explanation(answer)}", hint="check the name and the tag")
        actual = Digest.of(answer.body)
        for name in ("Docker-Content-Digest", "Ollama-Content-Digest"):
            promised = answer.headers.get(name, "").strip().removeprefix("sha256:")
            if promised and ":" not in promised and promised != actual.hex:
                raise SourceCorrupt(f"{self._shown} has a manifest that is {actual}, but {name} is {promised:.80}")
        return answer.body

    def _url(self, reference: str) -> str:
        return f"{self._base}/v2/{self._name.repository}/manifests/{reference}"

    def _ask(self, url: str) -> Document:
        file = HttpFile(url, self._shown, self._current())
        return self._client.ask(file, {"Accept": _ACCEPT}, most=MAX_MANIFEST_SIZE, accept=(200, 400, 401))

    def _current(self) -> dict[str, str]:
        return authorize(self._headers, self._authorization) if self._authorization else dict(self._headers)

    # -- credentials ------------------------------------------------------------------------------------------------

    def _first_authorization(self) -> str | None:
        if self._name.host.lower() in _HF_HOSTS and self._base.startswith("https") and not self._userinfo:
            token = os.environ.get("HF_TOKEN", "").strip()
            return bearer(token, "HF_TOKEN") if token else None
        return None

    def _renew(self, url: str, refused: Access, challenge: str) -> Access:
        """What to ask for a blob with: what others found out meanwhile, or what the challenge brings."""
        with self._lock:
            if challenge and refused.headers.get("Authorization") == self._current().get("Authorization"):
                self._authorize(challenge)
            return Access(url, self._current())

    def _authorize(self, header: str) -> None:
        """Have the credentials that a challenge asks for. Raises ``SourceUnauthorized``."""
        challenges = {challenge.scheme: challenge for challenge in parse_challenges(header)}
        account = Account(*self._userinfo) if self._userinfo else find_account(self._name.host)
        if account and account.registry_token:
            self._authorization = bearer(account.registry_token, self._name.host)
        elif "bearer" in challenges:
            self._authorization = f"Bearer {self._token(challenges['bearer'], account)}"
        elif "basic" in challenges and account and account.name:
            self._authorization = basic(account.name, account.password)
        else:
            raise self._unauthorized("it wants credentials")

    def _token(self, challenge: Challenge, account: Account | None) -> str:
        realm = challenge.parameters.get("realm", "")
        if not may_be_realm(realm, self._base, self._settings.token_host):
            raise SourceUnauthorized(
                f"{self._shown} wants tokens from a place that is not known to belong to it",
                hint="if it does, name it as token_host in [hosts]",
            )
        url = challenge.token_url(self._name.repository)
        form: Mapping[str, str] | None = None
        headers: dict[str, str] = {}
        if account and account.identity_token:
            url, form = realm, self._refresh_form(challenge, account)
        elif account and account.name:
            headers["Authorization"] = basic(account.name, account.password)
        file = HttpFile(url, f"{self._shown} (its token)", headers)
        try:
            answer = self._client.ask(file, {"Accept": "application/json"}, most=_MOST_TOKEN, form=form)
        except SourceNotFound as error:
            raise SourceUnauthorized(f"{self._shown}: tokens cannot be had where it says") from error
        try:
            return parse_token(json.loads(answer.body))
        except (ValueError, RecursionError):  # not chained: its text may quote the answer
            raise SourceUnavailable(
                f"{self._shown}: no token in the answer to a request for one", retryable=False
            ) from None

    def _refresh_form(self, challenge: Challenge, account: Account) -> dict[str, str]:
        """As docs/spec/auth/oauth of distribution/distribution has it."""
        return {
            "grant_type": "refresh_token",
            "service": challenge.parameters.get("service", ""),
            "client_id": "modelstore",
            "scope": challenge.parameters.get("scope", f"repository:{self._name.repository}:pull"),
            "refresh_token": account.identity_token,
        }

    def _unauthorized(self, why: str) -> SourceUnauthorized:
        way = "set HF_TOKEN" if self._name.host.lower() in _HF_HOSTS else f"run docker login {self._name.host}"
        return SourceUnauthorized(f"{self._shown} may not be read: {why}", hint=f"check the name, or {way}")


def choose_child(index: Mapping[str, Any]) -> Digest:
    """The one manifest of an index that is for any platform, or its only one.

    Raises :class:`LookupError` if that is not one, :class:`ValueError` for an index that cannot be read.
    """
    try:
        children = [(Digest.parse(child["digest"]), _platform(child)) for child in index["manifests"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"an entry is malformed: {error!r:.80}") from error
    children = [child for child in children if child[1] != "unknown/unknown"]  # attestations
    free = [digest for digest, platform in children if platform is None] or [digest for digest, _ in children]
    if len(free) != 1:
        raise LookupError(f"it lists {len(free)} manifests that could be meant")
    return free[0]


def _explanation(answer: Document) -> str:
    """What a refusal says in its own words, a few of them: hf.co tells so what is wrong with a tag."""
    try:
        value = json.loads(answer.body)
        said = value.get("error") or value["errors"][0]["message"]
        return "".join(character for character in str(said)[:200] if character.isprintable())
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return f"HTTP {answer.status}"


def _platform(child: Mapping[str, Any]) -> str | None:
    platform = child.get("platform")
    return None if not platform else f"{platform.get('os')}/{platform.get('architecture')}"
