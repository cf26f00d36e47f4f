"""Planted secrets of the web: in no log at its loudest, no error, no file, no process list, whatever a server does.

Bearer, basic, userinfo, cookies, signatures of the five families, netrc, proxy password. Those of the Hub, of S3 and of
registries are in test_planted_tokens.py, what a killed process leaves in test_planted_halfway.py.
"""

from __future__ import annotations

import base64
import json
import sys
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.faults.server import FaultServer
from tests.support import Modelstore, wait_until
from tests.support.planted import VOICES, Watched, canary, find, forms, process_list
from tests.support.planted_origins import Script, behaviours, share, web
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOUD = pytest.mark.parametrize("voice", VOICES)
FINE = {"good", "elsewhere"}


@pytest.fixture
def watched(cli: Modelstore, store_root: Path, tmp_path: Path) -> Watched:
    return Watched(cli, store_root, tmp_path / "work")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as origin:
        yield origin


@pytest.fixture
def elsewhere() -> Iterator[FaultServer]:
    """Another host."""
    with FaultServer("127.0.0.2") as other:
        yield other


def baked(watched: Watched, scripts: dict[str, Script | None]) -> dict[str, Script | None]:
    """The same, but each answer sets a cookie besides."""
    cookie = canary("set-cookie")
    watched.needles.append(cookie)

    def with_cookie(script: Script | None) -> Script:
        def both(request: object, answer: object) -> None:
            if script:
                script(request, answer)  # type: ignore[arg-type]
            answer.headers.append(("Set-Cookie", f"session={cookie}; Path=/"))  # type: ignore[attr-defined]

        return both

    return {name: with_cookie(script) for name, script in scripts.items()}


def everything(watched: Watched, server: FaultServer, elsewhere: FaultServer, voice: str) -> dict[str, str]:
    watched.needles.append(hop := canary("hop"))
    return web(server, baked(watched, share(behaviours(elsewhere, hop), voice)))


def families() -> dict[str, tuple[str, list[str]]]:
    """Query and secrets of each kind of signature."""
    wanted = {
        "aws": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date=20260101T000000Z&X-Amz-Expires=60"
        "&X-Amz-Security-Token={}&X-Amz-SignedHeaders=host&X-Amz-Signature={}",
        "aws-v2": "AWSAccessKeyId={}&Expires=1&x-amz-security-token={}&Signature={}",
        "google": "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential={}&X-Goog-Expires=60&X-Goog-Signature={}",
        "azure": "sv=2024-11-04&ss=b&srt=sco&sp=r&se=2027-01-01&skoid={}&sig={}",
        "cloudfront": "Policy={}&Key-Pair-Id={}&Signature={}",
    }
    found = {}
    for name, form in wanted.items():
        secrets = [canary(f"{name}-{number}", "/+=") for number in range(form.count("{}"))]
        found[name] = (form.format(*(quote(secret, safe="") for secret in secrets)), secrets)
    return found


def was_asked_with(server: FaultServer, *secrets: str) -> None:
    """It did get them: else nothing was tested."""
    heard = "\n".join(f"{request.query} {request.headers}" for request in server.log).encode()
    for secret in secrets:
        assert any(form in heard for form in forms(secret)), secret


@LOUD
def test_userinfo_signatures_and_the_proxys_password(
    watched: Watched, server: FaultServer, elsewhere: FaultServer, voice: str
) -> None:
    signed = families()
    user, proxy_password = canary("userinfo", "@/"), canary("proxy", "/@")
    secrets = [user, proxy_password, *(secret for _, each in signed.values() for secret in each)]
    watched.needles += secrets
    plain = everything(watched, server, elsewhere, voice)
    every = "&".join(query for query, _ in signed.values())
    account = f"://me:{quote(user, safe='')}@"
    urls = {name: f"{url.replace('://', account)}?{every}" for name, url in plain.items()}
    urls["pinned"] += f"#sha256={'0' * 64}"
    for family, (query, _) in signed.items():
        for name in plain.keys() & {"good", "n403", "n500", "elsewhere403", "nowhere"}:
            urls[f"{name}:{family}"] = f"{plain[name]}?of={family}&{query}"
    with Proxy(f"me:{proxy_password}") as proxy:
        address = proxy.url_with(f"me:{quote(proxy_password, safe='')}")
        fine = {name for name in urls if name.partition(":")[0] in FINE}
        watched.with_env(HTTP_PROXY=address).endure(urls, voice, fine)
        assert proxy.log
    was_asked_with(server, *(secret for secret in secrets if secret != proxy_password))
    assert not find([user], {"elsewhere": repr(elsewhere.log).encode()})
    assert not find([proxy_password], {"servers": repr([*server.log, *elsewhere.log]).encode()})


@LOUD
@pytest.mark.parametrize("kind", ["bearer", "basic"])
def test_headers_of_the_config(
    watched: Watched, server: FaultServer, elsewhere: FaultServer, voice: str, kind: str
) -> None:
    secret, cookie = canary(kind), canary("cookie")
    value = f"Bearer {secret}" if kind == "bearer" else "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()
    watched.needles += [secret, cookie]
    urls = everything(watched, server, elsewhere, voice)
    urls["pinned"] += f"#sha256={'0' * 64}"
    headers = '{ Authorization = "${SECRET_VALUE}", Cookie = "session=${SECRET_COOKIE}" }'
    settings = watched.plant(".config.toml", f'[hosts."127.0.0.1"]\nheaders = {headers}\n')
    watched.planted.remove(settings)  # it has names, not values
    env = {"MODELSTORE_CONFIG": str(settings), "SECRET_VALUE": value, "SECRET_COOKIE": cookie}
    watched.with_env(**env).endure(urls, voice, FINE)
    was_asked_with(server, secret, cookie)
    assert not find([secret, cookie], {"elsewhere": repr(elsewhere.log).encode()})


@LOUD
def test_a_value_that_no_header_may_hold(watched: Watched, server: FaultServer, voice: str) -> None:
    """Said by us: the standard library's error quotes it."""
    secret = canary("bearer")
    watched.needles.append(secret)
    settings = watched.plant(".config.toml", '[hosts."127.0.0.1"]\nheaders = { Authorization = "Bearer ${SECRET}" }\n')
    env = {"MODELSTORE_CONFIG": str(settings), "SECRET": f"{secret}\n"}
    options = VOICES[voice]
    urls = web(server, {"good": None})
    codes = watched.with_env(**env).run(urls, *(options or ()), api=options is None)
    assert set(codes.values()) == {2}


@LOUD
@pytest.mark.parametrize("broken", [False, True], ids=["good", "malformed"])
def test_netrc(watched: Watched, server: FaultServer, elsewhere: FaultServer, voice: str, broken: bool) -> None:
    secret = canary("netrc")
    watched.needles.append(secret)
    more = f"machine 127.0.0.2 login me password {secret}\n" + ("passwort x\n" if broken else "")
    watched.plant(".netrc", f"machine 127.0.0.1 login me password {secret}\n{more}")
    urls = everything(watched, server, elsewhere, voice)
    urls["pinned"] += f"#sha256={'0' * 64}"
    watched.endure(urls, voice, FINE)
    if not broken:
        was_asked_with(server, secret)
    assert not find([secret], {"elsewhere": repr(elsewhere.log).encode()})


@LOUD
@pytest.mark.parametrize("form", ["http://me:{}@{}", "me:{}@{}", "http://me:{}@[{}", "ftp://me:{}@{}", "http://{}:{}@"])
def test_a_proxy_that_refuses_or_is_none(watched: Watched, server: FaultServer, voice: str, form: str) -> None:
    wrong = canary("proxy", "/@")
    watched.needles.append(wrong)
    urls = web(server, {"n404": None})
    del urls["pinned"]
    with Proxy("me:right") as proxy:
        place = f"{proxy.host}:{proxy.port}"
        watched = watched.with_env(HTTP_PROXY=form.format(quote(wrong, safe=""), place))
        options = VOICES[voice]
        codes = watched.run(urls, *(options or ()), api=options is None)
    assert set(codes.values()) <= {2, 4, 5}
    assert server.log == []


@LOUD
def test_urls_that_cannot_be_read(watched: Watched, voice: str) -> None:
    secret = canary("userinfo")
    watched.needles.append(secret)
    watched = watched.with_env(HF_ENDPOINT="http://127.0.0.1:1")
    shapes = {
        "port": "https://me:{}@127.0.0.1:port/m.gguf",
        "bracket": "https://me:{}@[127.0.0.1/m.gguf",
        "no host": "https://me:{}@/m.gguf",
        "slash": "https://me:{}/x@127.0.0.1/m.gguf",
        "unknown": "unknown://me:{}@127.0.0.1/m.gguf",
        "pin": "https://me:{}@127.0.0.1/m.gguf#sha256=1",
        "newline": "https://me:{}@127.0.0.1/m\n.gguf",
        "signed": "https://[127.0.0.1/m.gguf?X-Amz-Signature={}",
        "hf": "hf://me:{}@o/m",
        "hf token": "hf://me:{}@",
        "s3": "s3://me:{}@",
        "sftp": "sftp://me:{}@127.0.0.1:1/x",
        "ftp": "ftp://me:{}@127.0.0.1:1/x",
        "webdav": "webdav+https://me:{}@127.0.0.1:1/x",
        "gs": "gs://me:{}@bucket/x",
        "chained": "zip://x::https://me:{}@127.0.0.1:1/x.zip",
        "ollama port": "ollama://me:{}@127.0.0.1:port/o/m",
        "ollama": "ollama://me:{}@127.0.0.1:1/a/b/..",
    }
    urls = {name.replace(" ", "-"): shape.format(secret) for name, shape in shapes.items()}
    options = VOICES[voice]
    codes = watched.run(urls, *(options or ()), api=options is None)
    assert set(codes.values()) <= {2, 5}


# -- the search itself -------------------------------------------------------------------------------------------------

#: How a secret might be leaked, and where to.
LEAKS: dict[str, Callable[[str, Path], str]] = {
    "stdout": lambda secret, root: f"print({secret!r})",
    "percent-encoded": lambda secret, root: f"print('x?sig={quote(secret, safe='')}&b')",
    "lower case": lambda secret, root: f"print('x?sig={quote(secret, safe='').lower()}&b')",
    "base64": lambda secret, root: f"print({base64.b64encode(f'me:{secret}'.encode()).decode()!r})",
    "base64, one on": lambda secret, root: f"print({base64.b64encode(f'm:{secret}!'.encode()).decode()!r})",
    "base64, two on": lambda secret, root: f"print({base64.b64encode(f'{secret}??'.encode()).decode()!r})",
    "json": lambda secret, root: f"import json; print(json.dumps({{'a': {secret!r}}}))",
    "repr": lambda secret, root: f"print([{secret!r}.encode()])",
    "a log": lambda secret, root: f"import logging; logging.getLogger('x.y').debug('%s', {secret!r})",
    "a file": lambda secret, root: f"import pathlib; pathlib.Path({str(root)!r}, 'a').write_text({secret!r})",
    "a name": lambda secret, root: f"import pathlib; pathlib.Path({str(root)!r}, {quote(secret, safe='')!r}).touch()",
    "an argument": lambda secret, root: f"import subprocess; subprocess.run(['true', {secret!r}])",
    "a cause": lambda secret, root: (
        "import modelstore.config as c\n"
        "def load(*a, **k):\n"
        f"    try: raise OSError({secret!r})\n"
        "    except OSError as error: raise c.ConfigError('x') from error\n"
        "c.load_config = load\nimport modelstore.store\nmodelstore.store.load_config = load"
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_what_is_leaked_is_found(watched: Watched, server: FaultServer, leak: str, store_root: Path) -> None:
    """The negative control: one more line in the process, and the look at what it left fails."""
    secret = canary("leak", "/+= \u00e9")
    watched.needles.append(secret)
    store_root.mkdir()
    urls = {"good": web(server, {"good": None})["good"]}
    result = watched.command(urls, api=True, also=LEAKS[leak](secret, store_root))()
    with pytest.raises(AssertionError, match="c4nary-leak"):
        watched.judge(result)


def test_what_is_in_the_process_list_is_found(start: Callable[..., Popen[str]], cli: Modelstore) -> None:
    secret = canary("argument")
    assert not find([secret], process_list())
    program = Modelstore(cli.home, command=(sys.executable, "-c", "input()"))
    process = start(program, secret, stdin=PIPE)
    wait_until(lambda: bool(find([secret], process_list())), process)


def test_every_form_is_looked_for() -> None:
    secret = "a/b+c=d e@f\u00e9"
    for text in (secret, quote(secret, safe=""), quote(secret), json.dumps(secret), quote(secret, safe="").lower()):
        assert find([secret], {"x": text.encode()}), text
    for before in range(4):
        for after in range(4):
            plain = b"u" * before + secret.encode() + b"v" * after
            assert find([secret], {"x": base64.b64encode(plain)})
            assert find([secret], {"x": base64.urlsafe_b64encode(plain)})
    assert not find([secret], {"x": b"a/b+c=d e@", "y": base64.b64encode(b"another text of some length")})
