"""The safety lines of the sources, and the tests that guard them."""

from tests.controls.lines import Control

__all__ = ["SOURCE_CONTROLS"]

SOURCE_CONTROLS = [
    Control(
        "1 verified before visible: git's SHA-1",
        "transfer/reading.py",
        "        if self._git and (actual := self._git.hexdigest()) != job.file.git_sha1:",
        "        if False and (actual := ''):",
        "tests/e2e/test_hub_faults.py -k flipped_bit",
    ),
    Control(
        "1 verified before visible: a large file with only git's SHA-1",
        "transfer/download.py",
        "    if job.file.git_sha1 and job.file.size > CHUNK_SIZE:",
        "    if False:",
        "tests/e2e/test_hub_odd.py -k large_file_in_git",
    ),
    Control(
        "1 verified before visible: the pin of a manifest",
        "fetching.py",
        "        if pin and manifest.digest != pin:",
        "        if False:",
        "tests/e2e/registry/test_pull.py -k wrong_pin",
    ),
    Control(
        "1 verified before visible: the manifest in an index",
        "registry/client.py",
        "            if Digest.of(raw) != child:",
        "            if False:",
        "tests/e2e/registry/test_hostile.py -k child_that_is_another",
    ),
    Control(
        "7 a source cannot change silently: the listing",
        "transfer/http/answers.py",
        '        if found is not None and found.removeprefix("W/").strip(\'"\') != expected:',
        "        if False:",
        "tests/e2e/test_hub_faults.py -k disagree",
    ),
    Control(
        "7 a source cannot change silently: after the last byte of fsspec",
        "sources/fsspec.py",
        '        if info.get("size") != self._size or _validator(info) != self._validator:',
        "        if False:",
        "tests/e2e/test_fsspec_reading.py -k changed",
    ),
    Control(
        "7 a source cannot change silently: bytes that are missing",
        "sources/fsspec.py",
        "            if len(piece) != end - begin:",
        "            if False:",
        "tests/e2e/test_fsspec_reading.py -k another_length",
    ),
    Control(
        "9 bounded: a document",
        "transfer/http/client.py",
        "                if len(content) > most:",
        "                if False:",
        "tests/e2e/registry/test_hostile.py -k huge_manifest",
    ),
    Control(
        "10 credentials: realms of others",
        "registry/tokens.py",
        '    return scheme == "https" and port == 443 and own_port == 443 and host in _REALMS.get(own_host or "", ())',
        "    return True",
        "tests/e2e/registry/test_tokens.py -k realm_on_another_host",
    ),
    Control(
        "10 credentials: the next page of a list",
        "sources/huggingface.py",
        "            if origin_of(following) != origin_of(self._endpoint):",
        "            if False:",
        "tests/e2e/test_hub_access.py -k goes_on_elsewhere",
    ),
    Control(
        "10 credentials: where a redirect leads",
        "transfer/http/client.py",
        "        own = access.headers if origin_of(url) == origin_of(access.url) else {}",
        "        own = access.headers",
        "tests/e2e/test_hub_access.py -k redirect_to_another_host",
    ),
    Control(
        "10 credentials: the logs of urllib3",
        "transfer/http/client.py",
        "        hide_queries()\n",
        "",
        "tests/e2e/test_fsspec_reading.py -k nobody_logs",
    ),
    Control(
        "10 credentials: the logs of botocore",
        "sources/s3.py",
        "        logging.getLogger(noisy).addFilter(_is_no_request)\n",
        "        pass\n",
        "tests/e2e/test_planted_tokens.py -k keys_of_a_bucket",
    ),
    Control(
        "10 credentials: a password with a slash",
        "source_url.py",
        "        _refuse_broken_userinfo(text)\n",
        "",
        "tests/e2e/test_s3_credentials.py -k not_escaped",
    ),
    Control(
        "11 nothing outside: the name that a server gives",
        "sources/web.py",
        '    if "/" in name:',
        "    if False:",
        "tests/e2e/test_web_names.py -k another_name",
    ),
    Control(
        "11 nothing outside: the name of a credential helper",
        "registry/docker_config.py",
        "    if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):",
        "    if False:",
        "tests/e2e/registry/test_credentials.py -k helper",
    ),
    Control(
        "12 failures have names: an archived object",
        "transfer/http/answers.py",
        '    if code == "InvalidObjectState":',
        "    if False:",
        "tests/unit/test_http_refusals.py -k InvalidObjectState",
    ),
]
