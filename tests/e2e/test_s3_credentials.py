"""s3://: whose keys are used, and for what; endpoints, regions and who pays."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.faults.server import tls_context
from tests.support import Modelstore, digests, key_of, sha256_of, visible
from tests.support.httpserver import TLS_CERT
from tests.support.s3 import S3, Key, S3Server, error, hashed, kind

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.wire import Answer, Request
    from tests.support.httpserver import HttpServer

CHUNK = 16 << 20
BODY = b"weights " * 5000
WANTED = {"m.gguf": sha256_of(BODY)}
OTHER = Key("another/secret+key/of/forty/characters/1")
TOKEN = "CANARYSESSIONTOKEN//+=="
TEMPORARY = Key("temporary/secret/of/forty/characters/012", TOKEN)
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

# For credential_process: other keys at each call, which soon run out.
PROGRAM = """
import datetime, json, os, sys
with open(sys.argv[1], "a") as calls:
    calls.write("x")
    number = calls.tell()
soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=5)
keys = {"Version": 1, "AccessKeyId": f"ASIATEMPORARY{number}", "SecretAccessKey": os.environ["SECRET"]}
print(json.dumps({**keys, "SessionToken": os.environ["TOKEN"], "Expiration": soon.isoformat()}))
"""


def without_keys(command: Modelstore) -> Modelstore:
    return replace(command, env={name: value for name, value in command.env.items() if name not in CREDENTIALS})


def configured(command: Modelstore, directory: Path, text: str) -> Modelstore:
    """The command with a config file of ours."""
    (directory / "config.toml").write_text(text)
    return replace(command, options=(*command.options, "--config", str(directory / "config.toml")))


# ---------------------------------------------------------------- where keys come from


def test_profile(aws: Modelstore, s3: S3) -> None:
    s3.put("m.gguf", BODY)
    s3.server.keys = {"AKIAOTHER": OTHER}
    with open(s3.env["AWS_CONFIG_FILE"], "w") as file:
        file.write("[profile lab]\nregion = us-east-1\n[default]\nregion = eu-west-9\n")
    with open(s3.env["AWS_SHARED_CREDENTIALS_FILE"], "w") as file:
        file.write(f"[lab]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = {OTHER.secret}\n")
    named = without_keys(aws)
    named = replace(named, env={**named.env, "AWS_PROFILE": "lab"})
    assert digests(named("fetch", s3.url("m.gguf")).path) == WANTED


def test_a_profile_that_is_not_there(aws: Modelstore, s3: S3) -> None:
    result = without_keys(aws).with_env(AWS_PROFILE="nobody")("fetch", s3.url("m.gguf"))
    assert result.returncode in (2, 4), result
    result.failed(result.returncode, "nobody")
    assert s3.server.log == []


def test_endpoint_of_a_profile(aws: Modelstore, s3: S3) -> None:
    s3.put("m.gguf", BODY)
    with open(s3.env["AWS_CONFIG_FILE"], "w") as file:
        file.write(f"[profile lab]\nservices = here\n[services here]\ns3 =\n  endpoint_url = {s3.server.url}\n")
    command = aws.with_env(AWS_PROFILE="lab", AWS_ENDPOINT_URL="")
    assert digests(command("fetch", s3.url("m.gguf")).path) == WANTED


def test_endpoint_for_s3_alone(aws: Modelstore, s3: S3) -> None:
    s3.put("m.gguf", BODY)
    command = aws.with_env(AWS_ENDPOINT_URL="http://127.0.0.1:1", AWS_ENDPOINT_URL_S3=s3.server.url)
    assert digests(command("fetch", s3.url("m.gguf")).path) == WANTED


def test_session_token(aws: Modelstore, s3: S3) -> None:
    s3.fill({"m.gguf": BODY, "m/a": BODY})
    s3.server.keys = {"ASIATEMPORARY": TEMPORARY}
    keys = {"AWS_ACCESS_KEY_ID": "ASIATEMPORARY", "AWS_SECRET_ACCESS_KEY": TEMPORARY.secret}
    command = aws.with_env(**keys, AWS_SESSION_TOKEN=TOKEN)
    assert digests(command("fetch", s3.url("m.gguf")).path) == WANTED
    assert digests(command("fetch", s3.url("m/")).path) == hashed({"a": BODY})


def test_userinfo(aws: Modelstore, s3: S3, store_root: Path) -> None:
    """The keys of the URL come before those of the environment, and leave no trace."""
    s3.fill({"m.gguf": BODY, "m/a": BODY})
    s3.server.keys = {"AKIAOTHER": OTHER}
    aws = aws.with_env(AWS_SESSION_TOKEN="of the other keys")
    for key, files in (("m.gguf", {"m.gguf": BODY}), ("m/", {"a": BODY})):
        url = f"s3://AKIAOTHER:{quote(OTHER.secret, safe='')}@{s3.bucket}/{key}"
        result = aws("fetch", url)
        assert digests(result.path) == hashed(files)
        assert result.path.name == key_of(s3.url(key))[:16], "they are no part of the key"
        assert aws("fetch", s3.url(key)).path == result.path
    said = b"".join(path.read_bytes() for path in store_root.rglob("*") if path.is_file())
    assert b"AKIAOTHER" not in said
    assert OTHER.secret.encode() not in said


def test_userinfo_that_is_not_escaped(aws: Modelstore, s3: S3) -> None:
    """Every other secret has a slash in it. It is not shown, and not taken for the name of a bucket."""
    url = f"s3://AKIAOTHER:{OTHER.secret}@{s3.bucket}/m.gguf"
    for options in ((), ("-v",)):
        result = replace(aws, options=(*aws.options, *options))("fetch", url)
        assert result.returncode == 2, result
        assert not any(part in result.stderr for part in OTHER.secret.split("/") if len(part) > 5)
    assert s3.server.log == []


def test_web_identity(aws: Modelstore, s3: S3, tmp_path: Path) -> None:
    """As EKS gives a pod a role: IRSA."""
    s3.put("m.gguf", BODY)
    s3.server.keys = {}
    (tmp_path / "token").write_text("CANARYWEBTOKEN")
    role = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/reader", "AWS_ROLE_SESSION_NAME": "test"}
    command = without_keys(aws).with_env(**role, AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"))
    assert digests(command("fetch", s3.url("m.gguf")).path) == WANTED
    assert sum(request.method == "POST" for request in s3.server.log) == 1


def test_role_of_a_container(aws: Modelstore, s3: S3, http_server: HttpServer) -> None:
    """As EKS Pod Identity and ECS give it."""
    s3.put("m.gguf", BODY)
    s3.server.keys = {"ASIATEMPORARY": TEMPORARY}
    later = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    keys = {"AccessKeyId": "ASIATEMPORARY", "SecretAccessKey": TEMPORARY.secret, "Token": TOKEN, "Expiration": later}
    http_server.add("/v1/credentials", json.dumps(keys).encode())
    command = without_keys(aws).with_env(
        AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{http_server.url}/v1/credentials",
        AWS_CONTAINER_AUTHORIZATION_TOKEN="CANARYPODTOKEN",
    )
    assert digests(command("fetch", s3.url("m.gguf")).path) == WANTED
    assert {request.headers["authorization"] for request in http_server.requests} == {"CANARYPODTOKEN"}


@pytest.mark.parametrize("status", [400, 403])
def test_keys_that_run_out_in_the_middle(aws: Modelstore, s3: S3, tmp_path: Path, status: int) -> None:
    """A program gives new ones each time. S3 itself says 400 to an expired token; others say 403."""
    body = os.urandom(3 * CHUNK + 99)
    s3.put("m.gguf", body)
    s3.server.keys = {f"ASIATEMPORARY{number}": TEMPORARY for number in range(1000)}
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with open(s3.env["AWS_CONFIG_FILE"], "w") as file:
        file.write(f"[default]\ncredential_process = {sys.executable} {program} {tmp_path / 'calls'}\n")

    def script(request: Request, answer: Answer) -> None:
        if request.status != 400 and kind(request) == "get" and not s3.server.expired:
            s3.server.expired = set(re.findall(r"ASIATEMPORARY\d+", " ".join(r.query for r in s3.server.log)))
        elif answer.status == 400:
            answer.status = status

    s3.server.script = script
    command = without_keys(aws).with_env(SECRET=TEMPORARY.secret, TOKEN=TOKEN)
    result = command("fetch", "--connections", "1", s3.url("m.gguf"))
    assert digests(result.path) == hashed({"m.gguf": body})
    assert s3.server.data_sent <= len(body) + 4096
    assert len(s3.server.log) <= 10, "signed again once, not for every range"


@pytest.mark.parametrize("key", ["m.gguf", "m/"])
def test_anonymous(aws: Modelstore, s3: S3, key: str) -> None:
    s3.put("m.gguf", BODY, ACL="public-read")
    s3.put("m/m.gguf", BODY, ACL="public-read")
    s3.server.anonymous = True
    assert digests(without_keys(aws)("fetch", s3.url(key)).path) == WANTED
    assert not any("authorization" in r.headers or "X-Amz-" in r.query for r in s3.server.log)


def test_no_region_is_needed_where_there_is_an_endpoint(aws: Modelstore, s3: S3) -> None:
    s3.fill({"m.gguf": BODY, "m/m.gguf": BODY})
    env = {name: value for name, value in aws.env.items() if name != "AWS_DEFAULT_REGION"}
    for key in ("m.gguf", "m/"):
        assert digests(replace(aws, env=env)("fetch", s3.url(key)).path) == WANTED


def test_a_bucket_in_another_region(aws: Modelstore, s3: S3) -> None:
    """S3 names the region in its refusal; what follows is signed for that one."""
    s3.fill({"m.gguf": BODY, "m/m.gguf": BODY})
    s3.server.region = "eu-central-1"
    for key in ("m.gguf", "m/"):
        assert digests(aws("fetch", s3.url(key)).path) == WANTED


def test_an_endpoint_with_a_name(aws: Modelstore, s3: S3) -> None:
    """As of a service in a cluster, which knows no `bucket.name`."""
    s3.fill({"m.gguf": BODY, "m/m.gguf": BODY})
    named = aws.with_env(AWS_ENDPOINT_URL=f"http://localhost:{s3.server.port}", NO_PROXY="localhost")
    for key in ("m.gguf", "m/"):
        assert digests(named("fetch", s3.url(key)).path) == WANTED
    assert all(request.path.startswith(f"/{s3.bucket}") for request in s3.server.log)


@pytest.mark.parametrize("how", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "config"])
def test_an_endpoint_with_an_authority_of_its_own(aws: Modelstore, s3: S3, tmp_path: Path, how: str) -> None:
    s3.fill({"m.gguf": BODY, "m/m.gguf": BODY})
    with S3Server(s3.client.meta.endpoint_url, tls=tls_context()) as server:
        command = aws.with_env(AWS_ENDPOINT_URL=server.url)
        if how == "config":
            command = configured(command, tmp_path, f'ca_bundle = "{TLS_CERT}"')
        else:
            command = command.with_env(**{how: str(TLS_CERT)})
        assert digests(command("fetch", s3.url("m.gguf")).path) == WANTED


def test_an_endpoint_that_nobody_vouches_for(aws: Modelstore, s3: S3) -> None:
    s3.put("m.gguf", BODY)
    with S3Server(s3.client.meta.endpoint_url, tls=tls_context()) as server:
        aws.with_env(AWS_ENDPOINT_URL=server.url)("fetch", s3.url("m.gguf")).failed(5)
        assert server.log == []


# ---------------------------------------------------------------- keys that are not good enough


@pytest.mark.parametrize("key", ["m.gguf", "m/"])
@pytest.mark.parametrize(
    "env",
    [{"AWS_ACCESS_KEY_ID": "AKIANOBODY"}, {"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_SESSION_TOKEN": "old"}, {}],
    ids=["unknown key", "wrong secret", "wrong token", "none"],
)
def test_refused(aws: Modelstore, s3: S3, store_root: Path, key: str, env: dict[str, str]) -> None:
    s3.fill({"m.gguf": BODY, "m/m.gguf": BODY})
    command = aws.with_env(**env) if env else without_keys(aws)
    command("fetch", s3.url(key)).failed(4, s3.bucket)
    assert visible(store_root) == {}
    assert len(s3.server.log) <= 6, "the answer will not change"


def test_objects_that_may_be_listed_but_not_read(aws: Modelstore, s3: S3, store_root: Path) -> None:
    s3.fill({"a": BODY, "b": BODY}, "m/")

    def script(request: Request, answer: Answer) -> None:
        if kind(request) == "get":
            error(answer, 403, "AccessDenied", "Access Denied")

    s3.server.script = script
    aws("fetch", s3.url("m/")).failed(4)
    assert visible(store_root) == {}
    assert len(s3.server.log) <= 12


def test_not_there_or_not_allowed(aws: Modelstore, s3: S3) -> None:
    """Without the right to list, S3 answers 403 for what is not there."""
    s3.server.script = lambda request, answer: error(answer, 403, "AccessDenied", "Access Denied")
    aws("fetch", s3.url("nothing")).failed(4)


# ---------------------------------------------------------------- requester pays


@pytest.mark.parametrize("key", ["m.gguf", "m/"])
def test_requester_pays(aws: Modelstore, s3: S3, tmp_path: Path, key: str) -> None:
    s3.fill({"m.gguf": BODY, "m/m.gguf": BODY})
    s3.server.payers.add(s3.bucket)
    aws("fetch", s3.url(key)).failed(4)
    configured(aws, tmp_path, 'requester_pays = ["another"]')("fetch", s3.url(key)).failed(4)
    assert not any("payer" in f"{request.headers}{request.query}" for request in s3.server.log), "it was not agreed to"
    s3.server.forget()
    paying = configured(aws, tmp_path, f'requester_pays = ["another", "{s3.bucket}"]')
    assert digests(paying("fetch", s3.url(key)).path) == WANTED
    assert all("payer" in f"{request.headers}{request.query}" for request in s3.server.log)


@pytest.mark.parametrize("value", ["true", '"bucket"', "[1]"])
def test_requester_pays_is_a_list_of_names(aws: Modelstore, s3: S3, tmp_path: Path, value: str) -> None:
    configured(aws, tmp_path, f"requester_pays = {value}")("fetch", s3.url("m.gguf")).failed(2, "requester_pays")
