"""s3://: keys, tokens and signatures get into no output, no log, no error and no file."""

from __future__ import annotations

import itertools
import os
import re
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from modelstore import ModelStoreError, Store
from tests.support import Modelstore
from tests.support.s3 import ACCESS_KEY, S3, SECRET_KEY, Key, error, kind

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.wire import Answer, Request

BODY = b"weights " * 5000
TOKEN = "CANARYSESSIONTOKEN//+=="
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def without_keys(command: Modelstore) -> Modelstore:
    return replace(command, env={name: value for name, value in command.env.items() if name not in CREDENTIALS})


def loudly_refused(request: Request, answer: Answer) -> None:
    """As S3 explains a wrong signature: with everything that it was computed from."""
    if kind(request) == "get" or request.nth > 2:
        said = {"AWSAccessKeyId": ACCESS_KEY, "StringToSign": request.query, "SignatureProvided": request.query}
        error(answer, 403, "SignatureDoesNotMatch", f"?{request.query} {request.headers}", **said)


def moved(request: Request, answer: Answer) -> None:
    if kind(request) == "get":
        error(answer, 412, "PreconditionFailed")


def broken(request: Request, answer: Answer) -> None:
    if kind(request) == "get":
        error(answer, 500, "InternalError", f"?{request.query} {request.headers}", Retry_After="0")


SCRIPTS = {"fetched": None, "refused": loudly_refused, "changed": moved, "broken": broken}


def secrets_of(s3: S3) -> set[str]:
    """The planted ones, and every signature that was made with them."""
    texts = [f"{request.query} {request.headers.get('authorization', '')}" for request in s3.server.log]
    made = {match for text in texts for match in re.findall(r"Signature=([0-9a-f]{64})", text)}
    planted = {ACCESS_KEY, SECRET_KEY, TOKEN, "X-Amz-Signature", "X-Amz-Credential"}
    return planted | {quote(secret, safe="") for secret in planted} | made


@pytest.mark.parametrize(
    ("name", "options", "given"),
    [
        *itertools.product(["fetched", "refused", "changed"], [("-v",)], ["environment", "userinfo"]),
        *itertools.product(["fetched", "refused"], [("-v", "--log-format", "json")], ["environment", "userinfo"]),
        ("broken", ("-v",), "environment"),
    ],
)
def test_no_secret_is_shown_or_stored(
    aws: Modelstore, s3: S3, store_root: Path, tmp_path: Path, name: str, options: tuple[str, ...], given: str
) -> None:
    s3.server.keys = {ACCESS_KEY: Key(SECRET_KEY, TOKEN if given == "environment" else None)}
    s3.server.script = SCRIPTS[name]
    command = replace(aws, options=(*aws.options, *options))
    url = s3.url("m.gguf")
    if given == "userinfo":
        command = without_keys(command)
        url = url.replace("s3://", f"s3://{ACCESS_KEY}:{quote(SECRET_KEY, safe='')}@")
    else:
        command = command.with_env(AWS_SESSION_TOKEN=TOKEN)
    s3.put("m.gguf", BODY)
    result = command("fetch", url)
    assert result.returncode == {"fetched": 0, "refused": 4, "changed": 6, "broken": 5}[name], result
    said = [result.stdout, result.stderr]
    left = [path for place in (store_root, aws.home) for path in place.rglob("*")]
    said += [str(path) for path in left] + [path.read_bytes().decode("latin-1") for path in left if path.is_file()]
    secrets = secrets_of(s3)
    assert len(secrets) > 8, "some signatures were seen"
    for secret in secrets:
        assert not any(secret in text for text in said), (secret, result)


@pytest.fixture
def environ(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of `s3` in this process."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MODELSTORE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)


def logged_and_raised(s3: S3, root: Path, caplog: pytest.LogCaptureFixture) -> str:
    """All that comes of a fetch in this process, logged by anybody at any level, or raised."""
    caplog.set_level(1)
    said = ""
    try:
        Store([root]).fetch(s3.url("m.gguf"))
    except ModelStoreError as error:
        said = "".join(traceback.format_exception(error)) + repr(error.__dict__)
    return said + "".join(f"{record.name}: {record.getMessage()}\n" for record in caplog.records)


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize("name", ["fetched", "refused", "changed"])
def test_no_secret_is_logged_or_raised(s3: S3, store_root: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does any library that we use do it."""
    s3.put("m.gguf", BODY)
    s3.server.script = SCRIPTS[name]
    said = logged_and_raised(s3, store_root, caplog)
    assert (name == "fetched") != ("Traceback" in said)
    assert [line for line in said.splitlines() for secret in secrets_of(s3) if secret in line] == []


@pytest.mark.usefixtures("environ")
def test_no_role_is_logged(
    s3: S3, store_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token service answers with new keys, in the body."""
    s3.put("m.gguf", BODY)
    s3.server.keys = {}
    (tmp_path / "token").write_text("CANARYWEBTOKEN")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    said = logged_and_raised(s3, store_root, caplog)
    (key,) = s3.server.keys.values()
    secrets = {"CANARYWEBTOKEN", key.secret, key.token or "", *secrets_of(s3)}
    assert [line for line in said.splitlines() for secret in secrets if secret in line] == []
