"""Fixtures of the whole suite."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support import Modelstore, impossible
from tests.support.httpserver import HttpServer
from tests.support.hub import Hub
from tests.support.hub_client import RealClient
from tests.support.nginx import find_nginx, serve
from tests.support.s3 import S3, S3Server, environment, moto, new_bucket, new_client

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    """A scriptable origin; see tests/support/httpserver.py."""
    with HttpServer() as server:
        yield server


@pytest.fixture
def tls_server() -> Iterator[HttpServer]:
    with HttpServer(tls=True) as server:
        yield server


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A stand-in for the Hugging Face Hub; see tests/support/hub.py."""
    with Hub() as server:
        yield server


@pytest.fixture
def real_client(hub: Hub, tmp_path: Path) -> RealClient:
    """The real `huggingface_hub`, with the stand-in as its endpoint."""
    return RealClient(hub.endpoint, tmp_path / "real")


@pytest.fixture
def hf(cli: Modelstore, hub: Hub) -> Modelstore:
    """The command, with the stand-in as its Hub."""
    return cli.with_env(HF_ENDPOINT=hub.endpoint)


@pytest.fixture
def nginx_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """Call it with a directory; it gives the base URL of an nginx that serves it."""
    program = find_nginx()
    if program is None:
        impossible("nginx is not installed")
    with ExitStack() as stack:
        yield lambda root: stack.enter_context(serve(program, root, tmp_path_factory.mktemp("nginx")))


@pytest.fixture
def store_root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def run_modelstore(tmp_path: Path) -> Modelstore:
    """The command as installed, with no options."""
    home = tmp_path / "home"
    home.mkdir()
    command = Modelstore(home)
    assert Path(command.command[0]).is_file(), "the package is not installed in this environment"
    return command


@pytest.fixture
def cli(run_modelstore: Modelstore, store_root: Path) -> Modelstore:
    """The command with its store in `store_root`."""
    return run_modelstore.at(store_root)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start(cli, "fetch", url)`: the command in the background, killed at the end of the test if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def launch(command: Modelstore, *args: Path | str, **popen: Any) -> subprocess.Popen[str]:
        started.append(command.start(*args, **popen))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        with process:  # closes the pipes, reaps
            pass


@pytest.fixture
def tiny_model_dir(tmp_path: Path) -> Path:
    """A model as on the Hub, a few KiB: config, tokenizer, one safetensors file."""
    directory = tmp_path / "tiny-model"
    _write_texts(directory)
    save_file(_tensors(0), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture
def sharded_model_dir(tmp_path: Path) -> Path:
    """The same in two shards with an index, a file in a subdirectory and an empty file."""
    directory = tmp_path / "sharded-model"
    _write_texts(directory)
    weight_map: dict[str, str] = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        tensors = _tensors(number)
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    size = sum(tensor.nbytes for number in (1, 2) for tensor in _tensors(number).values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (directory / "empty.txt").touch()
    return directory


def _tensors(layer: int) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(layer)
    return {f"layers.{layer}.{name}": generator.standard_normal((8, 16), np.float32) for name in ("weight", "bias")}


def _write_texts(directory: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "torch_dtype": "float32"}
    tokenizer = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.fixture(scope="session")
def moto_client() -> Iterator[Any]:
    """A boto3 client of a moto server that all tests of this process share; each takes a bucket of its own."""
    with moto() as url, closing(new_client(url)) as client:
        yield client


@pytest.fixture
def s3(moto_client: Any, tmp_path: Path) -> Iterator[S3]:
    """A new bucket behind a server that checks and records; see tests/support/s3.py."""
    with S3Server(moto_client.meta.endpoint_url) as server:
        yield S3(server, moto_client, new_bucket(moto_client), environment(server.url, tmp_path))


@pytest.fixture
def aws(cli: Modelstore, s3: S3) -> Modelstore:
    """The command with the keys and the endpoint of `s3` in its environment."""
    return cli.with_env(**s3.env)
