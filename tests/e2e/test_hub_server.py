"""The stand-in Hub, judged by the real `huggingface_hub`: what it accepts from the Hub it accepts from this."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import digests, sha256_of
from tests.support.httpserver import PatternBody
from tests.support.hub import Hub, scripted
from tests.support.hub_client import RealClient, Refusal
from tests.support.hub_repo import FileBody

FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": PatternBody(3_000_001),
    "empty.txt": b"",
    "sub/deep/x.txt": b"deep",
    "sub/\N{LATIN SMALL LETTER U WITH DIAERESIS} a+b%.bin": b"odd name",
}
SUMS = {path: sha256_of(body) if isinstance(body, bytes) else body.sha256 for path, body in FILES.items()}


def real_client(hub: Hub, home: Path) -> RealClient:
    return RealClient(hub.endpoint, home / "real")


def test_snapshot_over_several_pages(tmp_path: Path) -> None:
    with Hub(page_size=3) as hub:
        commit = hub.repo("acme/tiny", FILES).refs["main"]
        assert digests(real_client(hub, tmp_path).snapshot("acme/tiny")) == SUMS
        pages = [line for line in hub.api() if f"/tree/{commit}?recursive=true" in line]
        assert len(pages) == 3, "8 entries: six files and two folders"
        assert len(hub.api()) == 4
        assert sum(line.startswith("HEAD") for line in hub.lines()) == len(FILES)
        assert {request.status for request in hub.cdn.log} <= {200, 206}
        assert len(hub.cdn.log) == 2


@pytest.mark.parametrize("options", [{"resolve_cache": True}, {"prefix": "/mirror/hf"}], ids=str)
def test_snapshot_of_a_hub_of_another_build(tmp_path: Path, options: dict[str, str]) -> None:
    with Hub(**options) as hub:
        hub.repo("acme/tiny", FILES)
        assert digests(real_client(hub, tmp_path).snapshot("acme/tiny")) == SUMS


def test_content_from_another_server(tmp_path: Path, nginx_factory: object) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"w" * 100_000)
    root = tmp_path / "www"
    root.mkdir()
    body = FileBody(weights)
    (root / body.sha256).hardlink_to(weights)
    with Hub(content_base=nginx_factory(root).replace("127.0.0.1", "localhost")) as hub:  # type: ignore[operator]
        hub.repo("acme/tiny", {"config.json": b"{}", "model.safetensors": body})
        found = digests(real_client(hub, tmp_path).snapshot("acme/tiny"))
        assert found["model.safetensors"] == body.sha256
        assert hub.cdn.log == []


def test_files_by_the_other_ways_in(hub: Hub, real_client: RealClient) -> None:
    hub.repo("acme/tiny", FILES).commit({"config.json": b"[]"}, branch="refs/pr/1")
    path = real_client("hf_hub_download('acme/tiny', name)", name="sub/ü a+b%.bin")
    assert Path(path).read_bytes() == b"odd name"
    path = real_client("hf_hub_download('acme/tiny', 'config.json', revision='refs/pr/1')")
    assert Path(path).read_bytes() == b"[]"
    listed = real_client("HfFileSystem().find('acme/tiny')")
    assert sorted(listed) == sorted(f"acme/tiny/{path}" for path in FILES)
    assert real_client("HfFileSystem().cat_file('acme/tiny/sub/deep/x.txt').decode()") == "deep"
    part = "HfFileSystem().cat_file('acme/tiny/model.safetensors', start=1048580, end=1048590).hex()"
    assert bytes.fromhex(real_client(part)) == b"".join(PatternBody(3_000_001).read(1048580, 1048590))
    infos = "[[i.path, i.size] for i in huggingface_hub.HfApi().get_paths_info('acme/tiny', ['empty.txt', 'nope'])]"
    assert real_client(infos) == [["empty.txt", 0]]


@pytest.mark.parametrize(
    ("repo", "arguments", "kind"),
    [
        ("acme/nothing", {}, "RepositoryNotFoundError"),
        ("acme/private", {}, "RepositoryNotFoundError"),
        ("acme/gated", {}, "GatedRepoError"),
        ("acme/gated", {"token": "other"}, "GatedRepoError"),
        ("acme/tiny", {"revision": "nope"}, "RevisionNotFoundError"),
        ("acme/tiny", {"token": "unheard-of"}, "HfHubHTTPError"),
    ],
)
def test_refusals(hub: Hub, real_client: RealClient, repo: str, arguments: dict[str, str], kind: str) -> None:
    hub.repo("acme/tiny", {"config.json": b"{}"})
    hub.repo("acme/private", {"config.json": b"{}"}, private=True, readers={"reader"})
    hub.repo("acme/gated", {"config.json": b"{}"}, gated=True, readers={"reader"})
    hub.tokens.add("other")
    with pytest.raises(Refusal) as caught:
        real_client.snapshot(repo, **arguments)
    assert kind in caught.value.kinds


def test_a_missing_file(hub: Hub, real_client: RealClient) -> None:
    hub.repo("acme/tiny", {"config.json": b"{}"})
    with pytest.raises(Refusal) as caught:
        real_client("hf_hub_download('acme/tiny', 'nope.json')")
    assert "EntryNotFoundError" in caught.value.kinds


@pytest.mark.parametrize("name", ["acme/private", "acme/gated"])
def test_a_token_opens_and_stays_with_the_hub(hub: Hub, real_client: RealClient, name: str) -> None:
    hub.repo(name, {"model.bin": b"w"}, **{name.removeprefix("acme/"): True}, readers={"reader"})
    assert digests(real_client.snapshot(name, token="reader")) == {"model.bin": sha256_of(b"w")}
    assert {request.headers.get("authorization") for request in hub.log} == {"Bearer reader"}
    assert [request.headers.get("authorization") for request in hub.cdn.log] == [None]


def test_a_repository_that_was_renamed(hub: Hub, real_client: RealClient) -> None:
    hub.repo("acme/tiny", {"config.json": b"{}"})
    hub.moved["tiny"] = "acme/tiny"
    assert digests(real_client.snapshot("tiny")) == {"config.json": sha256_of(b"{}")}


def test_xet_is_offered_as_the_hub_does(hub: Hub, real_client: RealClient) -> None:
    """With Xet the real client turns to an address that only a Hub with a content store has; without, it is fine."""
    hub.repo("acme/tiny", {"model.safetensors": b"w"}, xet=True)
    with pytest.raises(Refusal):
        real_client("snapshot_download('acme/tiny')", env={"HF_HUB_DISABLE_XET": "0"})
    assert any("/xet-read-token/" in line for line in hub.lines())
    assert digests(real_client.snapshot("acme/tiny")) == {"model.safetensors": sha256_of(b"w")}


def test_an_address_expires(hub: Hub, real_client: RealClient) -> None:
    hub.repo("acme/tiny", {"model.safetensors": b"w"})
    with scripted(hub, lambda *_: hub.cdn.expire()), pytest.raises(Refusal) as caught:
        real_client.snapshot("acme/tiny")
    assert "HfHubHTTPError" in caught.value.kinds
    assert {request.status for request in hub.cdn.log} == {403}
