"""`import modelstore` is cheap and changes nothing. Each look is taken in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

import modelstore

HEAVY = "urllib3 fsspec s3fs huggingface_hub asyncio requests click tqdm filelock xxhash boto3 ssl http.client".split()


def run(code: str, *flags: str) -> str:
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("use", ["modelstore", "modelstore.Store", "modelstore.Store(tiers=['/nowhere'])"])
def test_import_loads_no_sdk_and_no_http_stack(use: str) -> None:
    loaded = run(f"import sys, modelstore; {use}; print(*sys.modules)").split()
    assert "modelstore" in loaded
    assert "Store" not in use or "modelstore.store" in loaded
    assert not set(HEAVY) & set(loaded)


def test_import_makes_no_warning() -> None:
    assert run("import modelstore, modelstore.cli", "-W", "error", "-bb") == ""


def test_import_leaves_logging_and_signals_alone() -> None:
    code = """
import logging, signal
before = {number: signal.getsignal(number) for number in signal.valid_signals()}
import modelstore, modelstore.store
names = [name for name in logging.root.manager.loggerDict if name.startswith("modelstore")]
assert names, "there is something to look at"
assert not logging.root.handlers
for logger in map(logging.getLogger, names):
    assert logger.level == logging.NOTSET and logger.propagate, logger
    assert all(isinstance(handler, logging.NullHandler) for handler in logger.handlers), logger
assert before == {number: signal.getsignal(number) for number in signal.valid_signals()}
"""
    run(code)


def test_import_starts_no_thread_and_reads_no_settings() -> None:
    code = """
import os, threading
os.environ["MODELSTORE_NONSENSE"] = os.environ["MODELSTORE_CONFIG"] = "/nowhere"
import modelstore, modelstore.store
assert threading.active_count() == 1
"""
    run(code)


@pytest.mark.parametrize("name", modelstore.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(modelstore, name) is not None


def test_the_public_names_are_those_of_the_design() -> None:
    errors = set(modelstore.errors.__all__)
    assert set(modelstore.__all__) == {"Store", "Model", "fetch", "cache_key", "Digest", "errors"} | errors
    assert len(modelstore.__all__) == len(set(modelstore.__all__))
    assert all(issubclass(getattr(modelstore, name), modelstore.errors.ModelStoreError) for name in errors)
