"""Settings of hosts, authorities and paying buckets: what may be written, what is refused, and that no secret shows."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.config import Config, load_config
from modelstore.errors import ConfigError
from modelstore.transfer.http.credentials import configured

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cret-c4nary"


def load(tmp_path: Path, toml: str, **environ: str) -> Config:
    file = tmp_path / "c.toml"
    file.write_text(toml)
    return load_config(file, environ=environ)


def headers_for(config: Config, url: str, monkeypatch: pytest.MonkeyPatch, **environ: str) -> dict[str, str]:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return dict(configured(url, config))


def test_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(
        tmp_path,
        """
        ca_bundle = "/etc/corp.pem"
        requester_pays = ["bucket-a", "bucket-b"]
        [hosts."models.example.com"]
        headers = { Authorization = "Bearer ${MODELS_TOKEN}", X-Team = "ml" }
        [hosts."registry.internal:5000"]
        plain_http = true
        token_host = "auth.internal"
        """,
    )
    assert config.ca_bundle == "/etc/corp.pem"
    assert config.requester_pays == ("bucket-a", "bucket-b")
    registry = config.host("registry.internal", 5000)
    assert (registry.plain_http, registry.token_host, dict(registry.headers)) == (True, "auth.internal", {})
    found = headers_for(config, "https://models.example.com/m", monkeypatch, MODELS_TOKEN="t")
    assert found == {"Authorization": "Bearer t", "X-Team": "ml"}


def test_nothing_of_it_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(tmp_path, "")
    assert (config.ca_bundle, tuple(config.requester_pays), dict(config.hosts)) == (None, (), {})
    assert headers_for(config, "https://models.example.com/m", monkeypatch) == {}
    nobody = config.host("models.example.com", 443)
    assert (nobody.plain_http, nobody.token_host) == (False, None)


def test_a_bundle_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load(tmp_path, 'ca_bundle = "~/corp.pem"').ca_bundle == "/home/me/corp.pem"


@pytest.mark.parametrize(
    ("toml", "near"),
    [
        ('ca_bundel = "/x"', "'ca_bundle'"),
        ('requester_pay = ["x"]', "'requester_pays'"),
        ("[host.x]", "'hosts'"),
        ("[hosts.x]\nheader = {}", "'headers'"),
        ("[hosts.x]\nplain-http = true", "'plain_http'"),
        ('[hosts.x]\ntoken_hosts = "y"', "'token_host'"),
        ("[hosts.x]\ninsecure = true", "'"),
        ("[hosts.x]\nverify = false", "'"),
    ],
)
def test_an_unknown_setting_names_the_nearest_known_one(tmp_path: Path, toml: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown .*did you mean {near}"):
        load(tmp_path, toml)


@pytest.mark.parametrize(
    "toml",
    [
        "ca_bundle = 3",
        "ca_bundle = true",
        'ca_bundle = ""',
        'ca_bundle = ["/a", "/b"]',
        'requester_pays = "bucket"',
        "requester_pays = true",
        "requester_pays = [3]",
        "requester_pays = [[]]",
        "requester_pays = {}",
        'hosts = "models.example.com"',
        "hosts = []",
        'hosts = { x = "Bearer y" }',
        "hosts = { x = [] }",
        "[hosts.x]\nheaders = []",
        '[hosts.x]\nheaders = "Authorization: y"',
        "[hosts.x]\nheaders = { A = 3 }",
        '[hosts.x]\nheaders = { A = ["y"] }',
        '[hosts.x]\nheaders = { "" = "y" }',
        '[hosts.x]\nheaders = { "A:" = "y" }',
        '[hosts.x]\nheaders = { "A B" = "y" }',
        '[hosts.x]\nheaders = { "A\\r\\nB" = "y" }',
        '[hosts.x]\nheaders = { "\u00c4" = "y" }',
        '[hosts.x]\nplain_http = "true"',
        "[hosts.x]\nplain_http = 1",
        "[hosts.x]\ntoken_host = true",
        '[hosts.x]\ntoken_host = ["a"]',
    ],
)
def test_wrong_values_are_config_errors(tmp_path: Path, toml: str) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, toml)


@pytest.mark.parametrize(
    ("url", "team"),
    [
        ("https://models.example.com/m", "host"),
        ("https://MODELS.Example.com/m", "host"),
        ("https://models.example.com:8443/m", "port"),
        ("https://models.example.com:8444/m", "host"),
        ("https://me:pw@models.example.com:8443/m", "port"),
        ("https://models.example.com@evil.example/m", None),
        ("https://evil.example/models.example.com", None),
        ("https://sub.models.example.com/m", None),
        ("https://example.com/m", None),
        ("https://models.example.com./m", None),
    ],
)
def test_which_section_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, team: str | None) -> None:
    config = load(
        tmp_path,
        """
        [hosts."Models.example.COM"]
        headers = { X-Team = "host" }
        [hosts."models.EXAMPLE.com:8443"]
        headers = { X-Team = "port" }
        """,
    )
    assert headers_for(config, url, monkeypatch).get("X-Team") == team


@pytest.mark.parametrize("url", ["https://models.example.com/m", "https://models.example.com:443/m"])
def test_the_port_that_goes_without_saying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    config = load(tmp_path, '[hosts."models.example.com:443"]\nheaders = { X-Team = "port" }')
    assert headers_for(config, url, monkeypatch) == {"X-Team": "port"}
    assert headers_for(config, url.replace("https", "http").replace(":443", ""), monkeypatch) == {}


@pytest.mark.parametrize("section", ["[::1]:8443", "[::1]"])
def test_an_address_in_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str) -> None:
    config = load(tmp_path, f'[hosts."{section}"]\nheaders = {{ X-Team = "six" }}')
    assert headers_for(config, "https://[::1]:8443/m", monkeypatch) == {"X-Team": "six"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("", ""),
        ("${TOKEN}", SECRET),
        ("Bearer ${TOKEN}", f"Bearer {SECRET}"),
        ("${TOKEN}${TOKEN}-${OTHER}", f"{SECRET}{SECRET}-o"),
        ("$TOKEN", "$TOKEN"),
        ("cost: 5$", "cost: 5$"),
        ("${NESTED}", "${TOKEN}"),
    ],
)
def test_variables_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, value: str) -> None:
    """Once, and never what they hold: a token with a dollar in it stays as it is."""
    config = load(tmp_path, f"[hosts.h]\nheaders = {{ A = {json.dumps(text)} }}")
    environ = {"TOKEN": SECRET, "OTHER": "o", "NESTED": "${TOKEN}"}
    assert headers_for(config, "https://h/m", monkeypatch, **environ) == {"A": value}


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    config = load(tmp_path, f'[hosts.h]\nheaders = {{ A = "{SECRET} ${{C4_TOKEN}}", B = "x" }}')
    environ = {} if value is None else {"C4_TOKEN": value}
    with pytest.raises(ConfigError, match="C4_TOKEN") as caught:
        headers_for(config, "https://h/m", monkeypatch, **environ)
    assert SECRET not in str(caught.value)
    assert headers_for(config, "https://another/m", monkeypatch) == {}, "it is not needed there"


NO_HEADER = [f"{SECRET}\n", f"{SECRET}\r\nX: y", f"{SECRET}\x01", f"{SECRET}\u2100", f"\x7f{SECRET}"]


@pytest.mark.parametrize("value", NO_HEADER)
def test_a_value_that_no_header_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    config = load(tmp_path, '[hosts.h]\nheaders = { A = "${C4_TOKEN}" }')
    with pytest.raises(ConfigError) as caught:
        headers_for(config, "https://h/m", monkeypatch, C4_TOKEN=value)
    assert SECRET not in f"{caught.value} {caught.value.__cause__!r}"


def test_the_config_does_not_show_headers(tmp_path: Path) -> None:
    """Whether or not a value was written out in the file, against the advice."""
    config = load(
        tmp_path,
        f'[hosts.h]\nheaders = {{ Authorization = "Bearer {SECRET}", A = "${{TOKEN}}" }}\nplain_http = true',
        TOKEN=SECRET,
    )
    for text in (repr(config), str(config), f"{config.host('h', None)}", f"{config.hosts}"):
        assert SECRET not in text


def test_an_error_about_a_header_does_not_show_it(tmp_path: Path) -> None:
    for toml in (
        f'[hosts.h]\nheaders = "Authorization: {SECRET}"',
        f'[hosts.h]\nheaders = {{ A = ["{SECRET}"] }}',
        f'[hosts.h]\nheaders = {{ A = {{ B = "{SECRET}" }} }}',
        f'hosts = {{ h = "{SECRET}" }}',
        f'[hosts.h]\nheaders = {{ A = "{SECRET}\\u0000" }}',
    ):
        try:
            load(tmp_path, toml)
        except ConfigError as error:
            assert SECRET not in f"{error} {error.__cause__!r}"  # noqa: PT017  a NUL may be found out later


def test_a_file_that_is_not_toml_does_not_show_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f'[hosts.h]\nheaders = {{ A = "Bearer {SECRET}"\n')
    assert SECRET not in f"{caught.value} {caught.value.__cause__!r}"


def test_a_config_can_be_compared_and_sent_to_a_worker(tmp_path: Path) -> None:
    toml = 'ca_bundle = "/x"\n[hosts.h]\nheaders = { A = "b" }'
    config = load(tmp_path, toml)
    assert config == load(tmp_path, toml)
    assert pickle.loads(pickle.dumps(config)) == config


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["headers", "plain_http", "token_host", "A"]), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.text(max_size=12), values, max_size=3) | values)
def test_any_table_of_hosts_is_read_or_a_config_error(value: Any) -> None:
    from modelstore import config

    with suppress(ConfigError):
        for host, found in config._parse_hosts(value).items():
            assert host == host.lower()
            assert all(isinstance(text, str) for pair in found.headers.items() for text in pair)
