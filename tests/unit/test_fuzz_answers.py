"""Whatever a Hub, a registry or a web server answers: files inside the root, or a typed error, and soon."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from urllib3.util import parse_url

from modelstore.config import Config
from modelstore.errors import ModelStoreError, SourceError
from modelstore.registry.tokens import may_be_realm, parse_challenges, parse_token
from modelstore.source_url import SourceURL
from modelstore.sources import huggingface, ollama, web
from modelstore.sources.base import Resolved
from modelstore.transfer.http.answers import Document, given_name, redirect_target
from modelstore.transfer.http.file import HttpFile

CONFIG = Config(())
COMMIT = "0123456789abcdef" * 2 + "01234567"
SHA256 = "fedcba9876543210" * 4
some = partial(settings, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class FakeClient:
    """Gives each question the next answer, the last one for ever."""

    answers: list[Document]
    disposition: str | None = None

    def __init__(self, *_: Any) -> None:
        self.asked: list[str] = []

    def ask(self, file: HttpFile, headers: Mapping[str, str], *, accept: Iterable[int] = (200,), **_: Any) -> Document:
        self.asked.append(file.url)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if answer.status not in accept:
            raise SourceError("refused")
        return answer

    def probe(self, file: HttpFile) -> None:
        file.size, file.ranges, file.etag, file.name = 7, True, '"x"', given_name(self.disposition)

    def close(self) -> None:
        """Nothing is open."""


def check_paths_stay(resolved: Resolved) -> None:
    """By other means than the code's own."""
    for file in resolved.files:
        path = PurePosixPath(file.path)
        assert not path.is_absolute(), file
        assert path.parts, file
        assert not {"..", "."} & set(file.path.split("/")), file
        assert "\\" not in file.path, file
        assert "" not in file.path.split("/"), file
        assert not any(ord(letter) < 32 or ord(letter) == 127 for letter in file.path), file
        assert all(len(part.encode()) <= 255 for part in path.parts), file
        assert file.size >= 0
    names = [unicodedata.normalize("NFC", file.path).casefold() for file in resolved.files]
    assert len(set(names)) == len(names), "two files in one place"


def resolve(module: Any, source: str, url: str, answers: list[Document], disposition: str | None = None) -> None:
    """The answers are given to a source: what it makes of them is right, or a typed error."""
    client = type("Client", (FakeClient,), {"answers": answers, "disposition": disposition})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HttpClient", client)
        patch.setenv("DOCKER_CONFIG", "/nonexistent")
        patch.setenv("NETRC", "/nonexistent")
        patch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
        with suppress(ModelStoreError):
            check_paths_stay(getattr(module, source)(CONFIG).resolve(SourceURL.parse(url)))


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PATHS = ["config.json", "model.safetensors", "a.gguf", "b.gguf", "A.gguf",
         "x/model-00001-of-00002.gguf", "../x", "/etc/x", "a/../../x", "a/./b", "a//b", "", ".", "..",
         "C:\\x", "a\\..\\b", "a\0b", "a\nb", "\u00e9", "e\u0301", "x" * 300, "\udcff",
         "original/x.pth", "consolidated.safetensors", "pytorch_model.bin", ".gitattributes",
         "a.gguf/b", "~/x", "%2e%2e/x", "a/..", "\u202egnp.bin", "CON"]  # fmt: skip
paths = st.sampled_from(PATHS) | st.text(max_size=6)
sizes = st.integers(-2, 10) | st.sampled_from([2**40, 2**63, 2**70, -1, True, "7", None, 1.5, [], float("inf")])
hashes = st.sampled_from(
    [COMMIT, SHA256, f"sha256:{SHA256}", "", "x" * 40, COMMIT.upper(), SHA256[1:], "../x", None, 7]
)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Usually as it should be."""
    return st.one_of(strategy, strategy, strategy, anything)


lfs = st.none() | maybe(st.fixed_dictionaries({"oid": hashes, "size": sizes}, optional={"pointerSize": sizes}))
entries = maybe(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["file", "file", "directory", "x", None]),
            "path": paths,
            "size": sizes,
            "oid": hashes,
        },
        optional={"lfs": lfs, "xetHash": anything, "z": anything},
    )
)
links = st.none() | st.sampled_from(
    [
        '<https://huggingface.co/next>; rel="next"',
        '<https://evil.example/next>; rel="next"',
        "<>; rel=next",
        "<[::1>; rel=next",
        ";",
        "<x",
    ]
)


@some(max_examples=200)
@given(
    maybe(st.just({"sha": COMMIT})),
    maybe(st.lists(entries, max_size=6)),
    links,
    st.sampled_from(
        [
            "hf://o/m",
            "hf://o/m/x",
            "hf://o/m/a.gguf",
            "hf://o/m?allow=*.gguf",
            "hf://o/m?ignore=a*",
            "hf://o/m@" + COMMIT,
        ]
    ),
)
@example({"sha": COMMIT}, [{"type": "file", "path": "../x", "size": 1, "oid": COMMIT}], None, "hf://o/m")
@example({"sha": COMMIT}, [{"type": "file", "path": "a", "size": 10**400, "oid": COMMIT}], None, "hf://o/m")
def test_any_listing_of_a_hub(revision: Any, listing: Any, link: str | None, url: str) -> None:
    headers = {} if link is None else {"Link": link}
    first, page = (json.dumps(value).encode() for value in (revision, listing))
    answers = [Document(200, {}, first), Document(200, headers, page), Document(200, {}, page)]
    resolve(huggingface, "HuggingFaceSource", url, answers[1:] if "@" in url else answers)


@some(max_examples=100)
@given(
    st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"\xff", b"1e999", b"-" + b"9" * 5000])
)
def test_any_bytes_instead_of_a_listing(body: bytes) -> None:
    resolve(
        huggingface,
        "HuggingFaceSource",
        "hf://o/m",
        [Document(200, {}, b'{"sha": "%b"}' % COMMIT.encode()), Document(200, {}, body)],
    )
    resolve(ollama, "OllamaSource", "ollama://127.0.0.1:5000/o/m", [Document(200, {}, body)])


MEDIA = ["application/vnd.ollama.image.model", "application/vnd.ollama.image.license",
         "application/vnd.docker.ai.gguf.v3", "application/vnd.cncf.model.weight.v1.tar",
         "application/vnd.kitops.modelkit.model.v1.tar+gzip", "", "x", None,
         "application/vnd.ollama.image.tensor", "application/octet-stream"]  # fmt: skip
annotations = maybe(
    st.dictionaries(
        st.sampled_from(["org.cncf.model.filepath", "org.opencontainers.image.title", "x"]), paths, max_size=2
    )
)
descriptors = maybe(
    st.fixed_dictionaries(
        {
            "mediaType": st.sampled_from(MEDIA),
            "digest": st.sampled_from(
                [f"sha256:{SHA256}", f"sha256:{'0' * 64}", "sha256:../x", SHA256, f"sha512:{SHA256}", None]
            ),
            "size": sizes,
        },
        optional={"annotations": annotations, "name": paths, "urls": anything, "platform": anything},
    )
)
manifests = maybe(
    st.fixed_dictionaries(
        {"schemaVersion": st.sampled_from([2, 2, 2, 1, "2", None])},
        optional={
            "config": descriptors,
            "layers": maybe(st.lists(descriptors, max_size=4)),
            "manifests": maybe(st.lists(descriptors, max_size=3)),
            "mediaType": st.sampled_from(
                [
                    "application/vnd.oci.image.manifest.v1+json",
                    "application/vnd.docker.distribution.manifest.v2+json",
                    "application/vnd.oci.image.index.v1+json",
                    "x",
                    7,
                ]
            ),
        },
    )
)
URLS = [
    "ollama://127.0.0.1:5000/o/m",
    "ollama://m",
    "ollama://h:99999/o/m",
    "ollama://h:x/o/m",
    "ollama://a:b:c/o/m",
    "ollama://-/o/m",
]


@some(max_examples=200)
@given(manifests, st.sampled_from(["", f"sha256:{SHA256}", "x", "sha256:"]), st.sampled_from(URLS))
def test_any_manifest_of_a_registry(manifest: Any, promised: str, url: str) -> None:
    headers = {"Docker-Content-Digest": promised} if promised else {}
    resolve(ollama, "OllamaSource", url, [Document(200, headers, json.dumps(manifest).encode())])


HEADER = ["Bearer", "Basic", " ", ",", "=", '"', "\\", "realm", "service", "scope",
          "https://r.example/token", "x", "\t", "repository:o/m:pull", "error", ";", "Negotiate",
          "YII=", "\u00e9"]  # fmt: skip
challenge_texts = st.lists(
    st.sampled_from(HEADER) | st.text(st.characters(max_codepoint=255), max_size=3), max_size=14
).map("".join)


@some(max_examples=300)
@given(
    challenge_texts, maybe(st.fixed_dictionaries({"token": st.text(max_size=5)}, optional={"access_token": scalars}))
)
def test_any_challenge_of_a_registry(header: str, token: Any) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)
        with suppress(ValueError):
            challenge.token_url("o/m")
    answers = [Document(401, {"WWW-Authenticate": header}, b"{}"), Document(200, {}, json.dumps(token).encode())]
    resolve(ollama, "OllamaSource", "ollama://127.0.0.1:5000/o/m", answers)


names = st.text(st.sampled_from("abcxyz_-"), min_size=1, max_size=8).filter(lambda name: name[0].isalpha())
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)


@some(max_examples=200)
@given(st.lists(st.tuples(names, st.dictionaries(names, values, min_size=1, max_size=3)), min_size=1, max_size=3))
def test_a_challenge_is_read_as_it_was_written(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    assert [(found.scheme, dict(found.parameters)) for found in parse_challenges(header)] == challenges


LONG = 60_000
SLOW = {
    "word": "a" * LONG + "!",
    "words": "a " * (LONG // 2),
    "spaces": "a" + " " * LONG + "!",
    "dashes": "a" + "-" * LONG + "!",
    "quote": 'a b="' + "\\a" * (LONG // 2),
    "equals": "a=" * (LONG // 2),
    "commas": "a," * (LONG // 2),
    "semicolons": "a;" * (LONG // 2),
    "escapes": 'attachment; filename="' + '\\"' * (LONG // 2),
    "parts": "attachment" + "".join(f"; filename*{number}=x" for number in range(LONG // 16)),
    "percent": "attachment; filename*=UTF-8''" + "%41" * (LONG // 3),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", SLOW)
@pytest.mark.parametrize("read", [parse_challenges, given_name], ids=["challenge", "disposition"])
def test_no_header_takes_long(read: Callable[[str], object], text: str) -> None:
    """64 KiB is the longest line that comes through. One pass of it takes some milliseconds."""
    begun = time.process_time()
    with suppress(SourceError):
        read(SLOW[text])
    assert time.process_time() - begun < 1.0


REALM = ["https://", "http://", "r.example", "evil.example", "@", ":", "443", "5000", "/", "\\", "?", "#", "%2e", ".",
         " ", "\t", "\n", "[", "]", "::1", "token", "user", "//", "\u2100", "R.Example", "hf.co"]  # fmt: skip
realms = st.lists(st.sampled_from(REALM), max_size=8).map("".join)


@some(max_examples=200)
@given(realms, st.sampled_from([None, "auth.example", "auth.example:444"]))
@example("https://r.example@evil.example/", None)
@example("https://r.example\\@evil.example/", None)
@example("https://evil.example#@r.example/", None)
@example("https://r.example:443@evil.example/", None)
@example("https://r.example.evil.example/", None)
@example("http://r.example/", None)
@example("https://user@r.example/", None)
@example("https://r.example:444/", None)
def test_tokens_come_from_nobody_else(realm: str, token_host: str | None) -> None:
    """Who is asked is decided by another parser than who is allowed: they must agree."""
    if not may_be_realm(realm, "https://r.example", token_host):
        return
    with suppress(ValueError):  # it is refused when it is asked for: nothing is sent
        found = parse_url(realm)
        allowed = {"r.example": (None, 443), "auth.example": (None, 443, 444)}
        assert found.scheme == "https"
        assert found.auth is None
        assert found.port in allowed[str(found.host)], found


@some(max_examples=200)
@given(anything | st.dictionaries(st.sampled_from(["token", "access_token"]), scalars))
def test_any_answer_with_a_token(value: Any) -> None:
    with suppress(ValueError):
        token = parse_token(value)
        assert token.isascii()
        assert token.isprintable()
        assert not set(token) & set(" \r\n")


# -- names and places from web servers ---------------------------------------------------------------------------------

DISPOSITION = ["attachment", "inline", ";", "; ", "filename", "filename*", "filename*0", "filename*1*",
               "=", '"', "\\", "'", "UTF-8''", "utf-7''", "undefined''", "idna''", "hex''", "%2F",
               "%2E%2E", "%00", "%FF", "..", "/", "a.gguf", " ", "=?utf-8?b?Li4vYQ==?=", "\u00e9", "\t",
               ",", "x" * 200]  # fmt: skip
dispositions = st.lists(
    st.sampled_from(DISPOSITION) | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=3),
    max_size=10,
).map("".join)


@some(max_examples=300)
@given(dispositions, st.sampled_from(["https://h/m.gguf", "https://h/", "https://h/a/"]))
@example("attachment; filename*=undefined''x", "https://h/m.gguf")
@example("attachment; filename*0=../; filename*1=x", "https://h/m.gguf")
@example('attachment; filename="=?utf-8?b?Li4vYQ==?="', "https://h/m.gguf")
def test_any_disposition(header: str, url: str) -> None:
    resolve(web, "WebSource", url, [], disposition=header)


LOCATION = ["http://", "https://", "//", "/", "..", "\\", "@", ":", "h.example", "127.0.0.1",
            "169.254.169.254", "[::1]", "[", "99999", "?", "#", "%00", " ", "\t", "\u00e9", "file://",
            "javascript:", "x", "0x7f.1", "me:pw"]  # fmt: skip
locations = st.lists(st.sampled_from(LOCATION), max_size=6).map("".join)


@some(max_examples=300)
@given(locations)
def test_any_redirect(location: str) -> None:
    """To the web and not to the cloud's own services, by the parser that will connect as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.getaddrinfo", no_names)
        try:
            target = redirect_target(HttpFile("https://h.example/m", "shown"), "https://h.example/m", location)
        except SourceError as error:
            assert "pw" not in str(error)  # noqa: PT017  some are followed
            return
    assert target.startswith("https://")
    with suppress(ValueError):
        assert str(parse_url(target).host) not in ("127.0.0.1", "169.254.169.254", "[::1]")


def no_names(*_: object, **__: object) -> list[object]:
    raise OSError("nothing is looked up here")
