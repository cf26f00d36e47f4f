"""A real bucket, opt-in: LIVE_S3_URL=s3://bucket/prefix/ (or an object), with credentials as botocore finds them.

    LIVE_S3_URL=s3://bucket/model/ pytest tests/live/test_s3_live.py

Nothing is written to the bucket. What comes is compared with what boto3 gets.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import boto3
import pytest

from modelstore import Store
from tests.support import digests, sha256_of

if TYPE_CHECKING:
    from pathlib import Path

URL = os.environ.get("LIVE_S3_URL", "")
pytestmark = [
    pytest.mark.skipif(not URL.startswith("s3://"), reason="set LIVE_S3_URL=s3://bucket/prefix/ to run it"),
    pytest.mark.timeout(3600),
]


def by_the_real_client(url: str) -> dict[str, str]:
    """Relative path -> SHA-256 of what is behind the URL."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    found: dict[str, str] = {}
    with closing(boto3.client("s3")) as client:
        if key and not key.endswith("/"):
            names = [key]
        else:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
            names = [each["Key"] for page in pages for each in page.get("Contents", ())]
        for name in names:
            if not name.endswith("/"):
                path = name.removeprefix(key) if key != name else name.rpartition("/")[2]
                found[path] = sha256_of(client.get_object(Bucket=bucket, Key=name)["Body"].read())
    return found


def test_the_same_files_as_the_real_client(tmp_path: Path) -> None:
    store = Store([tmp_path / "store"])
    model = store.fetch(URL)
    assert digests(model.path) == by_the_real_client(URL)
    assert store.fetch(URL).bytes["origin"] == 0
    assert store.fetch(URL, refresh=True).bytes["origin"] == 0
