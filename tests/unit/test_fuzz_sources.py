"""Whatever a user writes: a source that can be asked for, or a config error. No password shown, no key that changes."""

from __future__ import annotations

import re
import unicodedata
from functools import partial
from urllib.parse import quote

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from urllib3.util import parse_url

from modelstore.config import Config, HostConfig
from modelstore.errors import ConfigError
from modelstore.formats.selection import gguf_variants, loadable
from modelstore.registry.name import Name
from modelstore.source_url import SourceURL, cache_key
from modelstore.sources import huggingface

SECRET = "S3CRET"
CONFIG = Config(())
some = partial(settings, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# -- what a user writes ------------------------------------------------------------------------------------------------

SCHEMES = ["hf", "ollama", "s3", "gs", "az", "abfs", "sftp", "memory", "https", "http", "HF", "ftp", "file"]
PIECES = ["/", "//", "@", ":", "?", "#", "&", "=", "%2F", "%00", "%", "..", ".", "~", " ", "\\",
          "\u00e9", "\u2100", "[", "]", "owner", "name", "refs/pr/1", "main", "latest", "model.gguf",
          "127.0.0.1", "bucket", "*", "allow=", ",", "ignore=", "versionId=1", "sha256=", "sig=1",
          "sv=2", "datasets", "\udcff", "\n", "-", "_", "::", "5000", "x" * 100]  # fmt: skip
tails = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=10).map("".join)


@some(max_examples=300)
@given(st.sampled_from(SCHEMES), tails)
@example("hf", "owner/name@refs/pr/1/model.gguf?allow=*.gguf")
@example("abfs", "container@account.dfs.core.windows.net/x")
@example("ollama", "registry:5000/a/b/c:tag")
def test_any_url_has_a_stable_key_or_is_a_config_error(scheme: str, tail: str) -> None:
    try:
        parsed = SourceURL.parse(f"{scheme}://{tail}")
    except ConfigError:
        return
    assert cache_key(parsed.text) == parsed.key == SourceURL.parse(parsed).key
    assert SourceURL.parse(parsed.text).text == parsed.text
    assert parsed.scheme == scheme.lower()


@some(max_examples=300)
@given(
    st.sampled_from(SCHEMES),
    st.text(st.sampled_from("ab-._~%40"), max_size=4),
    st.text(st.sampled_from("ab%40:!$&'()*+,;=.-"), max_size=4),
    st.sampled_from(["o", "127.0.0.1:5000", "bucket", "h:x", "[h", "", "a@b"]),
    tails,
)
def test_a_password_is_in_no_text(scheme: str, name: str, around: str, host: str, tail: str) -> None:
    """Neither of a URL that is read, nor of an error about one that is not."""
    url = f"{scheme}://{name}:{around}{SECRET}{around}@{host}/{tail}"
    try:
        parsed = SourceURL.parse(url)
    except ConfigError as error:
        assert SECRET not in f"{error} {error.__cause__!r}"  # noqa: PT017  some are read
        return
    assert SECRET not in f"{parsed} {parsed!r} {parsed.text} {parsed.split()}"


@some(max_examples=300)
@given(tails)
@example("owner/..")
@example("owner/name@..")
@example("owner/name@%2e%2e/x")
@example("owner/name@a%2Fb/x")
def test_what_an_hf_url_names(tail: str) -> None:
    """A repository of one or two plain names; what is asked for does not climb out of the Hub's API."""
    try:
        place = huggingface.Place.parse(SourceURL.parse(f"hf://{tail}"))
    except ConfigError:
        return
    assert re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place.repo, re.ASCII), place
    assert not {"..", "."} & set(place.repo.split("/")), place
    asked = f"https://hub.example/api/models/{place.repo}/revision/{quote(place.revision or 'main', safe='')}"
    assert str(parse_url(asked).path) == asked.removeprefix("https://hub.example"), "no dot segments to resolve"


@some(max_examples=300)
@given(tails)
@example("a/b/c/d:e")
@example("../../x")
@example("host:99999/n/m")
def test_a_name_of_a_model_is_read_or_refused(text: str) -> None:
    try:
        name = Name.parse(text)
    except ValueError:
        return
    assert Name.parse(str(name)) == name
    for part in str(name).split("/"):
        assert part not in ("", ".", ".."), name
    assert not any(unicodedata.category(letter).startswith("C") or letter in "\\?#@% " for letter in str(name)), name


# -- which files -------------------------------------------------------------------------------------------------------

stems = st.sampled_from(
    ["model", "a", "consolidated", "mmproj-model", "x.imatrix", "model-00001-of-00003", "model-00002-of-00003"]
)
folders = st.sampled_from(["", "original/", "sub/", "onnx/"])
extensions = st.sampled_from(["safetensors", "gguf", "GGUF", "bin", "pt", "pth", "ckpt", "json", "md", "txt", "onnx"])
repositories = st.sets(
    st.builds(lambda folder, stem, kind: f"{folder}{stem}.{kind}", folders, stems, extensions), max_size=8
)
WEIGHTS = ({"safetensors"}, {"gguf"}, {"bin", "pt", "pth", "ckpt"}, {"onnx"})


@some(max_examples=300)
@given(repositories)
def test_what_is_chosen_of_a_repository(paths: set[str]) -> None:
    """One weight format, something of whatever there is, and no second thoughts."""
    chosen = loadable(paths)
    assert chosen <= paths
    assert loadable(chosen) == chosen
    kinds = {path.rpartition(".")[2].lower() for path in chosen}
    assert sum(bool(kinds & group) for group in WEIGHTS) <= 1, kinds
    assert bool(chosen) == bool(paths)
    shown = [path for variant in gguf_variants(paths) for path in variant]
    assert len(shown) == len(set(shown))
    assert set(shown) <= paths


@some(max_examples=100)
@given(st.text(max_size=12), st.integers(-5, 70_000) | st.none())
def test_settings_are_looked_up_for_any_host(host: str, port: int | None) -> None:
    assert isinstance(CONFIG.host(host, port), HostConfig)
