"""Settings, from a TOML file and the environment. Only what is asked for explicitly goes above them."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from modelstore.errors import ConfigError

__all__ = ["Config", "HostConfig", "Reserve", "TierConfig", "load_config", "parse_duration"]

#: Kubernetes puts these into every pod beside a Service called "modelstore"; they are not settings of ours.
_SERVICE_VARIABLES: Final = re.compile(r"MODELSTORE_(SERVICE_|PORT(_|\Z))")
_VARIABLES: Final = ("MODELSTORE_CONFIG", "MODELSTORE_OFFLINE", "MODELSTORE_TIERS")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|%|[KMGT]i?B?)?")
_UNITS: Final = {"K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY: Final = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}
_LONGEST: Final = 100 * 365 * 86400.0
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
#: RFC 9110 §5.1: a token. And §5.5: what a value may hold.
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: What the engine itself says; another value would break it.
_ENGINES: Final = frozenset(
    "accept-encoding connection content-length host if-match if-none-match if-range if-unmodified-since range te"
    " transfer-encoding".split()
)
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Reserve:
    """Space to leave free: ``share`` of the file system, but at most ``most`` bytes."""

    share: float = 0.05
    most: float = 1024.0**3

    @classmethod
    def parse(cls, value: Any) -> "Reserve":
        """Read bytes (``0``, ``"10GiB"``, ``"500MB"``, Kubernetes' ``"10Gi"``) or a share (``"15%"``)."""
        if type(value) is int and 0 <= value < 2**63:
            return cls(1.0, value)
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None or (match[2] == "%" and float(match[1]) > 100):
            raise ConfigError(f"reserve is {value!r:.40}", hint='write "15%", "10GiB" or a number of bytes')
        number, unit = float(match[1]), (match[2] or "B").removesuffix("B")
        if unit == "%":
            return cls(number / 100, float("inf"))
        return cls(1.0, number * {**_UNITS, **_BINARY, "": 1}[unit])

    def of(self, size: int) -> int:
        """Bytes to leave free on a file system of ``size`` bytes."""
        return int(min(size * self.share, self.most))


@dataclass(frozen=True, slots=True)
class TierConfig:
    """One tier: where it is, what to call it in messages, and whether it may be written (``rw``) or not (``ro``).

    ``reserve`` is the space to leave free, by default 5 % of the file system and at most 1 GiB.
    """

    location: str
    name: str
    mode: Literal["rw", "ro"] = "rw"
    reserve: Reserve = Reserve()

    @classmethod
    def parse(cls, value: Any) -> "TierConfig":
        """Read a location, or a TOML table with ``location`` and any of ``name``, ``mode`` and ``reserve``."""
        table = {"location": value} if isinstance(value, (str, os.PathLike)) else value
        if not isinstance(table, Mapping):
            raise ConfigError(f"a tier is a location or a table, not {value!r}")
        _refuse_unknown(table, [field.name for field in fields(cls)], "tier setting")
        location, mode = table.get("location"), table.get("mode", "rw")
        if isinstance(location, os.PathLike):
            location = os.fspath(location)
        if not isinstance(location, str) or not location:
            raise ConfigError("a tier has no location", hint='write location = "/path" or location = "scheme://…"')
        if mode not in ("rw", "ro"):
            raise ConfigError(f"mode of the tier {location} is {mode!r}", hint='write "rw" or "ro"')
        if not location.isprintable() or (location.startswith("file://") and not location.startswith("file:///")):
            raise ConfigError(f"{location!r} cannot be the location of a tier", hint="write /path or scheme://…")
        if "://" not in location:
            location = os.path.abspath(os.path.expanduser(location))
        name = table.get("name", location)
        if not isinstance(name, str) or not name or name in ("origin", "reused"):
            raise ConfigError(f"{name!r} cannot be the name of the tier {location}")
        reserve = Reserve.parse(table["reserve"]) if "reserve" in table else Reserve()
        return cls(location, name, "ro" if mode == "ro" else "rw", reserve)


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What is to be done at one host, named as ``host`` or ``host:port``.

    ``headers`` go with each request to it, if a source URL names it; in their values ``${NAME}`` stands for a variable
    of the environment. For registries: ``plain_http`` asks without TLS, ``token_host`` may give out tokens, too.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    plain_http: bool = False
    token_host: str | None = None

    @classmethod
    def parse(cls, host: str, table: Any) -> "HostConfig":
        """Read one TOML table of ``[hosts]``."""
        if not isinstance(table, Mapping):
            raise ConfigError(f"the host {host} is not a table", hint='write [hosts."host"] and settings below it')
        _refuse_unknown(table, [field.name for field in fields(cls)], f"setting of the host {host}:")
        headers, plain = table.get("headers", {}), table.get("plain_http", False)
        if not isinstance(headers, Mapping) or not all(isinstance(value, str) for value in headers.values()):
            raise ConfigError(f"the headers of {host} are not text by name")
        for name in headers:
            if not _HEADER.fullmatch(name) or name.lower() in _ENGINES:
                raise ConfigError(f"{name!r:.40} cannot be a header for {host}")
        token_host = table.get("token_host")
        if not isinstance(plain, bool) or not (token_host is None or isinstance(token_host, str)):
            raise ConfigError(f"a setting of the host {host} has the wrong type")
        return cls(dict(headers), plain, token_host)

    def expand(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The headers with their values. Raises :class:`ConfigError`, which names a variable and never a value."""
        return {name: _expand(name, value, environ) for name, value in self.headers.items()}


def _expand(name: str, text: str, environ: Mapping[str, str]) -> str:
    for variable in _VARIABLE.findall(text):
        if not environ.get(variable):
            raise ConfigError(f"the header {name} needs the environment variable {variable}, which is not set")
    if "${" in _VARIABLE.sub("", text):
        raise ConfigError(f"the header {name} has a malformed variable in it", hint="write ${NAME}")
    value = _VARIABLE.sub(lambda match: environ[match[1]], text)
    if not _HEADER_VALUE.fullmatch(value):
        raise ConfigError(f"the value of the header {name} holds a character that no header may hold")
    return value


@dataclass(frozen=True, slots=True)
class Config:
    """All settings.

    ``tiers`` fastest first. ``offline``: never ask a source. ``connections``: ranges read at once;
    None for as many as help.
    ``max_age``: seconds after which a cached ref is checked with its source again; None for never.
    ``lock_timeout``: seconds to wait for another process that fetches the same model.
    ``hosts``: settings by ``host`` or ``host:port``, in lower case. ``ca_bundle``: a file of certificate authorities to
    trust besides the system's. ``requester_pays``: S3 buckets of which this side pays for the requests.
    """

    tiers: tuple[TierConfig, ...]
    offline: bool = False
    connections: int | None = None
    max_age: float | None = None
    lock_timeout: float = 1800.0
    hosts: Mapping[str, HostConfig] = field(default_factory=dict)
    ca_bundle: str | None = None
    requester_pays: tuple[str, ...] = ()

    def host(self, name: str, port: int | None) -> HostConfig:
        """The settings of a host; those of ``host:port`` count before those of ``host``."""
        name = f"[{name.lower()}]" if ":" in name else name.lower()
        return self.hosts.get(f"{name}:{port}") or self.hosts.get(name) or HostConfig()


def load_config(
    path: str | os.PathLike[str] | None = None,
    *,
    tiers: Iterable[Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The settings in force: ``tiers`` if given, else the environment, else the file, else the default.

    The file is ``path``, else ``MODELSTORE_CONFIG``, else ``~/.config/modelstore/config.toml`` if there is one.
    Raises :class:`ConfigError` for a file that is named and cannot be read, for an unknown key, for a wrong value.
    """
    environ = os.environ if environ is None else environ
    names = [name for name in environ if name.startswith("MODELSTORE_") and not _SERVICE_VARIABLES.match(name)]
    _refuse_unknown(names, _VARIABLES, "environment variable")
    settings = _read_file(path or environ.get("MODELSTORE_CONFIG") or None, environ)
    _refuse_unknown(settings, [field.name for field in fields(Config)], "setting")
    if listed := environ.get("MODELSTORE_TIERS"):
        settings["tiers"] = [location.strip() for location in listed.split(",") if location.strip()]
    if tiers is not None:
        settings["tiers"] = list(tiers)
    if offline := environ.get("MODELSTORE_OFFLINE"):
        settings["offline"] = _parse_flag("MODELSTORE_OFFLINE", offline)
    return _build(settings, environ)


def _build(settings: dict[str, Any], environ: Mapping[str, str]) -> Config:
    listed = settings.get("tiers") or [_home(environ, "XDG_CACHE_HOME", ".cache") / "modelstore"]
    if not isinstance(listed, list):
        raise ConfigError("tiers is not a list", hint='write tiers = ["/path", …], fastest first')
    tiers = tuple(tier if isinstance(tier, TierConfig) else TierConfig.parse(tier) for tier in listed)
    if len({tier.name for tier in tiers}) < len(tiers):
        raise ConfigError("two tiers have the same name")
    offline, connections = settings.get("offline", False), settings.get("connections")
    if not isinstance(offline, bool):
        raise ConfigError(f"offline is {offline!r}", hint="write true or false")
    if connections is not None and (type(connections) is not int or not 1 <= connections <= 256):
        raise ConfigError(f"connections is {connections!r}", hint="write a number from 1 to 256")
    max_age = settings.get("max_age")
    return Config(
        tiers=tiers,
        offline=offline,
        connections=connections,
        max_age=None if max_age is None else parse_duration("max_age", max_age),
        lock_timeout=parse_duration("lock_timeout", settings.get("lock_timeout", 1800)),
        hosts=_parse_hosts(settings.get("hosts", {})),
        ca_bundle=_parse_path("ca_bundle", settings.get("ca_bundle")),
        requester_pays=_parse_names("requester_pays", settings.get("requester_pays", [])),
    )


def _parse_hosts(value: Any) -> dict[str, HostConfig]:
    if not isinstance(value, Mapping):
        raise ConfigError("hosts is not a table", hint='write [hosts."host"] and settings below it')
    hosts = {host.lower(): HostConfig.parse(host, table) for host, table in value.items()}
    if len(hosts) < len(value):
        raise ConfigError("a host is there twice in hosts")
    return hosts


def _parse_path(name: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ConfigError(f"{name} is {value!r:.40}", hint="write the path of a file")
    return None if value is None else os.path.expanduser(value)


def _parse_names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name} is {value!r:.40}", hint='write a list of names: ["one", "two"]')
    return tuple(value)


def parse_duration(name: str, value: Any) -> float:
    """Seconds of a number or of text such as ``"90s"``, ``"30m"``, ``"12h"``, ``"7d"``."""
    seconds = -1.0
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LONGEST:
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        seconds = float(match.group(1)) * _SECONDS[match.group(2)]
    if not 0 <= seconds <= _LONGEST:
        raise ConfigError(f"{name} is {value!r:.40}", hint='write seconds, or "90s", "30m", "12h", "7d"')
    return seconds


def _read_file(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> dict[str, Any]:
    named = path is not None
    file = Path(path) if path is not None else _home(environ, "XDG_CONFIG_HOME", ".config") / "modelstore/config.toml"
    try:
        raw = file.read_bytes()
    except FileNotFoundError as error:
        if not named:
            return {}
        raise ConfigError(f"the config file {file} does not exist") from error
    except OSError as error:
        raise ConfigError(f"the config file {file} cannot be read: {error.strerror}") from error
    import tomllib

    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the config file {file} is not TOML: {error}") from error


def _home(environ: Mapping[str, str], variable: str, default: str) -> Path:
    # The XDG base directory specification: a relative value is to be ignored.
    value = environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path(os.path.expanduser("~")) / default


def _parse_flag(name: str, value: str) -> bool:
    lowered = value.strip().lower()
    if lowered in ("1", "on", "yes", "true"):
        return True
    if lowered in ("0", "off", "no", "false"):
        return False
    raise ConfigError(f"{name} is {value!r}", hint="write 1 or 0")


def _refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            from difflib import get_close_matches

            near = get_close_matches(name, known, n=1, cutoff=0.0)
            raise ConfigError(f"unknown {what} {name!r}", hint=f"did you mean {near[0]!r}?")
