"""One download as a process of its own: ``python -m benchmarks.contestants WHO --listing FILE --url URL --to DIR``.

Only what the named contestant needs is imported, and this package imports nothing of modelstore here: the peers run
under the Python that has them.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Final

from benchmarks.payload import MIB, Served, read_listing

__all__ = ["main"]

_RANGE: Final = 32 * MIB
_THREADS: Final = 4
_POOL: Final = 16


def ours(files: Sequence[Served], options: argparse.Namespace) -> None:
    """The engine into a directory tier. One file is asked about; of many, a listing has told, as with the peers."""
    from modelstore.config import load_config
    from modelstore.digest import ChunkSums, Digest
    from modelstore.source_url import SourceURL
    from modelstore.sources.base import SourceFile
    from modelstore.sources.web import WebSource
    from modelstore.tiers.directory import DirectoryTier
    from modelstore.transfer.download import Job, download
    from modelstore.transfer.http import HttpFile

    config = load_config(tiers=[options.to], environ={})
    source = WebSource(config)
    jobs = []
    for file in files:
        url = f"{options.url}/{file.name}"
        if len(files) == 1:
            found = source.resolve(SourceURL.parse(url)).files[0]
        else:
            handle = HttpFile(url, url, size=file.size, ranges=True, etag=file.etag)
            found = SourceFile(file.name, file.size, None, f"etag:{file.etag}", ranges=True, handle=handle)
        if options.sha256:
            jobs.append(Job(found, source))
        else:
            jobs.append(Job(found, source, Digest(file.sha256), "peer", ChunkSums(file.size, file.sums)))
    brought = download(jobs, DirectoryTier(config.tiers[0]), connections=None)
    if [blob.digest.hex for blob in brought] != [file.sha256 for file in files]:
        raise SystemExit("a digest is wrong")
    source.close()


def floor(files: Sequence[Served], options: argparse.Namespace) -> None:
    """urllib3 and nothing else: no check, no retry, no name that is there only when the bytes are."""
    import urllib3

    pool = urllib3.PoolManager(maxsize=max(_POOL, options.connections))
    lock = Lock()

    def whole(file: Served) -> None:
        with open(f"{options.to}/{file.name}", "wb", buffering=0) as out:
            out.write(pool.request("GET", f"{options.url}/{file.name}").data)

    def ranges(file: Served, out: int, starts: Iterator[int]) -> None:
        while (start := _next(starts, lock)) is not None:
            stop = min(start + _RANGE, file.size)
            wanted = {"Range": f"bytes={start}-{stop - 1}"}
            answer = pool.request("GET", f"{options.url}/{file.name}", headers=wanted, preload_content=False)
            for piece in answer.stream(MIB, decode_content=False):
                if out >= 0:
                    os.pwrite(out, piece, start)
                start += len(piece)
            answer.release_conn()
            if start != stop:
                raise RuntimeError(f"{file.name} was cut off at {start}")

    _make_folders(files, options.to)
    if files[0].size < _RANGE:
        with ThreadPoolExecutor(_POOL) as workers:
            list(workers.map(whole, files))
        return
    with ThreadPoolExecutor(options.connections) as workers:
        for file in files:
            out = -1 if options.nowhere else os.open(f"{options.to}/{file.name}", os.O_WRONLY | os.O_CREAT, 0o644)
            starts = iter(range(0, file.size, _RANGE))
            for done in [workers.submit(ranges, file, out, starts) for _ in range(options.connections)]:
                done.result()


def _make_folders(files: Sequence[Served], place: str) -> None:
    for folder in {os.path.dirname(file.name) for file in files}:
        os.makedirs(f"{place}/{folder}", exist_ok=True)


def _next(starts: Iterator[int], lock: Lock) -> int | None:
    with lock:
        return next(starts, None)


def boto3(files: Sequence[Served], options: argparse.Namespace) -> None:
    """``download_file``; of many, as many at once as botocore has connections."""
    import boto3 as sdk
    from botocore import UNSIGNED
    from botocore.config import Config

    endpoint, _, bucket = options.url.rpartition("/")
    config = Config(signature_version=UNSIGNED, s3={"addressing_style": "path"}, max_pool_connections=_POOL)
    client = sdk.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)
    with ThreadPoolExecutor(1 if len(files) == 1 else _POOL if files[0].size < _RANGE else 2) as workers:
        list(workers.map(lambda file: client.download_file(bucket, file.name, f"{options.to}/{file.name}"), files))


def obstore(files: Sequence[Served], options: argparse.Namespace) -> None:
    """Ranges into place from a few threads for large files, which is faster than its stream; small ones as a whole."""
    from obstore import get, get_range, store

    endpoint, _, bucket = options.url.rpartition("/")
    kept: Any = store.S3Store(
        bucket,
        endpoint=endpoint,
        region="us-east-1",
        skip_signature=True,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "allow_invalid_certificates": True, "timeout": "600s"},
    )

    def small(file: Served) -> None:
        with open(f"{options.to}/{file.name}", "wb", buffering=0) as out:
            out.write(get(kept, file.name).bytes())

    if files[0].size < _RANGE:
        with ThreadPoolExecutor(_POOL) as workers:
            list(workers.map(small, files))
        return
    part = 8 * MIB
    with ThreadPoolExecutor(8) as workers:
        for file in files:
            out = os.open(f"{options.to}/{file.name}", os.O_WRONLY | os.O_CREAT, 0o644)

            def fetch(start: int, file: Served = file, out: int = out) -> None:
                os.pwrite(out, get_range(kept, file.name, start=start, end=min(start + part, file.size)), start)

            list(workers.map(fetch, range(0, file.size, part)))


def s3fs(files: Sequence[Served], options: argparse.Namespace) -> None:
    """``S3FileSystem.get``, of all files in one call, with the pool that its own concurrency needs."""
    from s3fs import S3FileSystem

    endpoint, _, bucket = options.url.rpartition("/")
    kept = S3FileSystem(
        anon=True,
        endpoint_url=endpoint,
        client_kwargs={"region_name": "us-east-1"},
        config_kwargs={"s3": {"addressing_style": "path"}, "max_pool_connections": 64},
    )
    kept.get([f"{bucket}/{file.name}" for file in files], [f"{options.to}/{file.name}" for file in files])


_WHO: Final = {"ours": ours, "floor": floor, "boto3": boto3, "obstore": obstore, "s3fs": s3fs}


def main() -> None:
    """Download, or end with a traceback."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contestants", description=__doc__)
    parser.add_argument("who", choices=_WHO)
    parser.add_argument("--listing", required=True, help="the files, as benchmarks.payload writes them")
    parser.add_argument("--url", required=True, help="of the directory or bucket that they are in")
    parser.add_argument("--to", required=True, help="the directory, or the tier, that they go to")
    parser.add_argument("--sha256", action="store_true", help="ours: nothing is known before, so SHA-256 runs")
    parser.add_argument("--connections", type=int, default=_THREADS, help="floor: ranges at once")
    parser.add_argument("--nowhere", action="store_true", help="floor: write nothing")
    options = parser.parse_args()
    _WHO[options.who](read_listing(options.listing), options)


if __name__ == "__main__":
    main()
