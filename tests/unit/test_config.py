"""Settings: where they come from, which wins, and that a misspelt one is never ignored."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelstore.config import Config, TierConfig, load_config, parse_duration
from modelstore.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def locations(config: Config) -> list[str]:
    return [tier.location for tier in config.tiers]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_defaults(home: Path) -> None:
    config = load_config(environ={})
    assert config == Config((TierConfig(f"{home}/.cache/modelstore", f"{home}/.cache/modelstore"),))
    assert (config.offline, config.connections, config.max_age, config.lock_timeout) == (False, None, None, 1800.0)


def test_the_cache_is_where_xdg_says_unless_that_is_relative(home: Path) -> None:
    assert locations(load_config(environ={"XDG_CACHE_HOME": "/var/cache"})) == ["/var/cache/modelstore"]
    assert locations(load_config(environ={"XDG_CACHE_HOME": "cache"})) == [f"{home}/.cache/modelstore"]


def test_every_setting_of_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.toml",
        """
        tiers = ["/fast", {location = "/slow", name = "pvc", mode = "ro"}, "memory://x"]
        offline = true
        connections = 3
        max_age = "7d"
        lock_timeout = 90
        """,
    )
    tiers = (TierConfig("/fast", "/fast"), TierConfig("/slow", "pvc", "ro"), TierConfig("memory://x", "memory://x"))
    assert load_config(file, environ={}) == Config(tiers, True, 3, 7 * 86400.0, 90.0)


def test_which_file_is_read(home: Path) -> None:
    write(home / ".config/modelstore/config.toml", "connections = 1")
    write(home / "xdg/modelstore/config.toml", "connections = 2")
    named = write(home / "named.toml", "connections = 3")
    given_file = write(home / "given.toml", "connections = 4")
    environ: dict[str, str] = {}
    assert load_config(environ=environ).connections == 1
    environ["XDG_CONFIG_HOME"] = str(home / "xdg")
    assert load_config(environ=environ).connections == 2
    environ["MODELSTORE_CONFIG"] = str(named)
    assert load_config(environ=environ).connections == 3
    assert load_config(given_file, environ=environ).connections == 4


def test_arguments_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'tiers = ["/file"]\noffline = true')
    assert locations(load_config(file, environ={})) == ["/file"]
    environ = {"MODELSTORE_TIERS": " /a ,, /b,", "MODELSTORE_OFFLINE": "0"}
    assert locations(load_config(file, environ=environ)) == ["/a", "/b"]
    assert load_config(file, environ=environ).offline is False
    assert locations(load_config(file, environ=environ, tiers=["/given", tmp_path])) == ["/given", str(tmp_path)]


def test_empty_variables_are_unset(tmp_path: Path, home: Path) -> None:
    environ = {"MODELSTORE_TIERS": "", "MODELSTORE_OFFLINE": "", "MODELSTORE_CONFIG": ""}
    assert load_config(environ=environ) == load_config(environ={})


@pytest.mark.parametrize(
    ("toml", "near"),
    [
        ("connection = 8", "'connections'"),
        ('tier = ["/a"]', "'tiers'"),
        ("max-age = 1", "'max_age'"),
        ('tiers = [{location = "/a", mod = "ro"}]', "'mode'"),
        ('tiers = [{loc = "/a"}]', "'location'"),
        ("[tiers2]", "'tiers'"),
    ],
)
def test_an_unknown_setting_names_the_nearest_known_one(tmp_path: Path, toml: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown .*did you mean {near}"):
        load_config(write(tmp_path / "c.toml", toml), environ={})


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("MODELSTORE_TIER", "MODELSTORE_TIERS"),
        ("MODELSTORE_OFLINE", "MODELSTORE_OFFLINE"),
        ("MODELSTORE_CONFIG_FILE", "MODELSTORE_CONFIG"),
        ("MODELSTORE_PROT", "MODELSTORE_"),
        ("MODELSTORE_", "MODELSTORE_"),
        ("MODELSTORE_SERVICES", "MODELSTORE_"),
    ],
)
def test_an_unknown_variable_names_the_nearest_known_one(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown environment variable '{name}'; did you mean '{near}"):
        load_config(environ={name: "1"})


def test_what_kubernetes_sets_for_a_service_of_our_name_is_not_ours() -> None:
    names = "SERVICE_HOST SERVICE_PORT SERVICE_PORT_HTTP PORT PORT_80_TCP PORT_80_TCP_PROTO PORT_80_TCP_ADDR".split()
    load_config(
        environ={f"MODELSTORE_{name}": "tcp://10.0.0.1:80" for name in names} | {"modelstore_x": "", "MODELSTOREX": ""}
    )


@pytest.mark.parametrize(
    "toml",
    [
        "tiers = 3",
        'tiers = "/a"',
        "tiers = [3]",
        "tiers = [[]]",
        'tiers = [""]',
        "tiers = [{}]",
        'tiers = [{name = "x"}]',
        "tiers = [{location = 3}]",
        'tiers = [{location = "/a", mode = "wr"}]',
        'tiers = [{location = "/a", mode = []}]',
        'tiers = [{location = "/a", name = ""}]',
        'tiers = [{location = "/a", name = "origin"}]',
        'tiers = [{location = "/a", name = "reused"}]',
        'tiers = [{location = "/a", name = 3}]',
        'tiers = ["/a", "/a/"]',
        'tiers = ["/a", {location = "/b", name = "/a"}]',
        "offline = 1",
        'offline = "yes"',
        "connections = 0",
        "connections = 257",
        "connections = true",
        "connections = 8.0",
        'max_age = "soon"',
        "max_age = -1",
        "max_age = inf",
        "max_age = nan",
        "max_age = true",
        "lock_timeout = []",
        "connections =",
        "= 3",
        "connections = 1\nconnections = 2",
    ],
)
def test_wrong_values_are_config_errors(tmp_path: Path, toml: str) -> None:
    with pytest.raises(ConfigError):
        load_config(write(tmp_path / "c.toml", toml), environ={})


def test_a_file_that_is_named_must_be_readable(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for name in ("missing.toml", "binary.toml", "."):
        with pytest.raises(ConfigError, match="config file"):
            load_config(tmp_path / name, environ={})
        with pytest.raises(ConfigError, match="config file"):
            load_config(environ={"MODELSTORE_CONFIG": str(tmp_path / name)})


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        *dict.fromkeys(("1", "on", "YES", " true "), True).items(),
        *dict.fromkeys(("0", "off", "No", "false"), False).items(),
    ],
)
def test_flags(value: str, flag: bool) -> None:
    assert load_config(environ={"MODELSTORE_OFFLINE": value}).offline is flag


@pytest.mark.parametrize("value", ["2", "maybe", "-1", "truee", " "])
def test_a_flag_that_is_neither_is_an_error(value: str) -> None:
    with pytest.raises(ConfigError, match="MODELSTORE_OFFLINE"):
        load_config(environ={"MODELSTORE_OFFLINE": value})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        (90, 90.0),
        ("90s", 90.0),
        ("30m", 1800.0),
        ("12h", 43200.0),
        ("7d", 604800.0),
        ("1.5h", 5400.0),
        ("2 m", 120.0),
    ],
)
def test_durations(value: Any, seconds: float) -> None:
    assert parse_duration("x", value) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "s", "1", "1w", "-1s", "1s\n", " 1s", "1h30m", ".5h", "1e3s", "1_0s", None, [], True, -1,
     float("nan"), float("inf"), 10**400, "9" * 400 + "d"],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_what_is_no_duration_is_a_config_error(value: Any) -> None:
    with pytest.raises(ConfigError):
        parse_duration("x", value)


@settings(deadline=None)
@given(st.text() | st.integers() | st.floats() | st.none())
def test_any_value_is_a_duration_or_a_config_error(value: Any) -> None:
    with suppress(ConfigError):
        assert 0.0 <= parse_duration("x", value) < float("inf")


def test_locations_are_made_absolute(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for location, absolute in (
        ("~/x", f"{home}/x"),
        ("x/../y", f"{tmp_path}/y"),
        ("/a//b/", "/a/b"),
        ("s3://b/p/", "s3://b/p/"),
    ):
        assert TierConfig.parse(location) == TierConfig(absolute, absolute)
    assert TierConfig.parse(tmp_path).location == os.fspath(tmp_path)
