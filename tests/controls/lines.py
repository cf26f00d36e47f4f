"""The safety lines of the store and the engine, and the tests that guard them."""

from dataclasses import dataclass

__all__ = ["CONTROLS", "Control"]


@dataclass(frozen=True)
class Control:
    """A line of ``file`` (``old`` made ``new``) whose loss ``test`` notices."""

    promise: str
    file: str
    old: str
    new: str
    test: str


CONTROLS = [
    Control(
        "1 verified before visible: the digest",
        "transfer/staging.py",
        "if self._expected is not None and digest != self._expected:",
        "if False:",
        "tests/conformance/test_tiers.py::TestDirectoryTier::test_wrong_bytes_are_refused",
    ),
    Control(
        "1 verified before visible: the size",
        "transfer/staging.py",
        "if found.st_size != self._size or sums.size != self._size:",
        "if False:",
        "tests/conformance/test_tiers.py::TestDirectoryTier::test_sums_of_another_size_are_refused",
    ),
    Control(
        "1 verified before visible: a pin",
        "fetching.py",
        "            expected[resolved.files[0].path] = self._url.pin",
        "            pass",
        "tests/e2e/test_bad_input.py -k pin",
    ),
    Control(
        "1 verified before visible: a blob without proof is hashed",
        "tiers/directory.py",
        "if record and record.is_of(found):\n            return True",
        "if True:\n            return True",
        "tests/unit/test_store.py -k without_proof",
    ),
    Control(
        "2 all or nothing: the ref last",
        "fetching.py",
        "        put(self._home, manifest.raw)\n"
        "        ref = self._ref(resolved, manifest, known, brought)\n"
        "        self._home.write_ref(self._url.key, ref)\n",
        "        ref = self._ref(resolved, manifest, known, brought)\n"
        "        self._home.write_ref(self._url.key, ref)\n"
        "        put(self._home, manifest.raw)\n",
        "tests/unit/test_store.py -k ref_is_written_last",
    ),
    Control(
        "2 all or nothing: a foreign target is refused",
        "transfer/tree.py",
        "                raise _foreign(self.target, path)",
        "                return",
        "tests/conformance/test_layouts.py::TestFiles::test_refuses_a_target_that_somebody_changed",
    ),
    Control(
        "4 durable on return: the bytes",
        "transfer/staging.py",
        "            os.fsync(self._fd)\n",
        "",
        "tests/unit/test_staging.py",
    ),
    Control(
        "4 durable on return: the name",
        "tiers/directory.py",
        "        self._names.sync()\n",
        "",
        "tests/unit/test_staging.py",
    ),
    Control(
        "5 locks save bandwidth: the look after waiting",
        "store.py",
        "        known = self._tiers.find(self._url)  # again: another process may have brought it meanwhile",
        "        known = None",
        "tests/e2e/test_concurrency.py -k eight_processes",
    ),
    Control(
        "6 size proves nothing: a laid-out file is proved",
        "transfer/tree.py",
        '        return hash_file(f"{self.target}/{entry.path}")[0] == entry.digest',
        "        return True",
        "tests/unit/test_link_and_tree.py",
    ),
    Control(
        "7 a source cannot change silently: the condition",
        "transfer/http/file.py",
        'return {"If-Match": self.strong_etag}',
        "return {}",
        "tests/e2e/test_fetch.py -k every_range_carries",
    ),
    Control(
        "7 a source cannot change silently: the answer's validator",
        "transfer/http/answers.py",
        "    if not same:",
        "    if False:",
        "tests/e2e/test_bad_input.py -k changed_meanwhile",
    ),
    Control(
        "7 a source cannot change silently: weak validators do not tie ranges together",
        "transfer/http/file.py",
        "return bool(self.immutable or self.strong_etag or (self.etag is None and self.settled))",
        "return True",
        "tests/e2e/test_fetch.py -k mixture",
    ),
    Control(
        "7 a source cannot change silently: what was first seen",
        "fetching.py",
        "            raise self._changed() from error",
        "            raise",
        "tests/unit/test_store.py -k taken_for_what_was_lost",
    ),
    Control(
        "7 a source cannot change silently: not even after its manifest was lost",
        "fetching.py",
        "if remembered and not pin and manifest.digest != remembered:",
        "if False:",
        "tests/unit/test_maintenance.py -k lost_manifest",
    ),
    Control(
        "nothing stored is lost: what a named manifest needs",
        "maintenance.py",
        "        for raw in tier.named_manifests():",
        "        for raw in ():",
        "tests/unit/test_maintenance.py -k named_manifest",
    ),
    Control(
        "nothing stored is lost: files of others",
        "maintenance.py",
        "    if record and is_untouched(record):",
        "    if True:",
        "tests/unit/test_maintenance.py -k files_of_others",
    ),
    Control(
        "nothing stored is lost: the good blob in the bad one's place",
        "tiers/directory.py",
        "            if self._condemned.get(digest, os.lstat(aside).st_ino) != os.lstat(aside).st_ino:",
        "            if False:",
        "tests/unit/test_maintenance.py -k good_blob",
    ),
    Control(
        "8 a warm hit asks nobody",
        "store.py",
        "if found is None or stale or place is None or not self._is_ready(found, place):",
        "if True:",
        "tests/e2e/test_offline_and_warm.py",
    ),
    Control(
        "9 bounded: the declared size",
        "transfer/reading.py",
        "        if position > stop:",
        "        if False:",
        "tests/unit/test_download.py",
    ),
    Control(
        "9 bounded: redirects",
        "transfer/http/client.py",
        "for hop in range(limits.MAX_REDIRECTS + 1):",
        "for hop in iter(int, 1):",
        "tests/e2e/test_bad_input.py -k endless",
    ),
    Control(
        "10 credentials: never in the key's text",
        "source_url.py",
        '    if at and (":" in userinfo or match.group(1).lower() in _WEB):',
        "    if False:",
        "tests/unit/test_source_url.py",
    ),
    Control(
        "10 credentials: to their own host only",
        "transfer/http/client.py",
        "own = access.headers if origin_of(url) == origin_of(access.url) else {}",
        "own = access.headers",
        "tests/e2e/test_secrets.py",
    ),
    Control(
        "11 nothing outside the root: paths",
        "manifest.py",
        '    if _BAD_IN_PATH.search(path) or _DRIVE.match(path) or any(name in ("", ".", "..") for name in names):',
        "    if False:",
        "tests/unit/test_manifest.py",
    ),
    Control(
        "11 nothing outside the root: links of a source directory",
        "sources/filesystem.py",
        'if entry.is_symlink() and not file.startswith(f"{root}/"):',
        "if False:",
        "tests/e2e/test_bad_input.py -k link",
    ),
    Control(
        "12 failures have names: disk full",
        "transfer/tier_files.py",
        "        if is_no_space(error):",
        "        if False:",
        "tests/unit/test_staging.py",
    ),
    Control(
        "format: a newer version is refused",
        "tiers/directory.py",
        "if type(version) is not int or version > FORMAT_VERSION:",
        "if False:",
        "tests/e2e/test_bad_input.py -k newer_format",
    ),
    Control(
        "layout: what vLLM would not load",
        "layouts/vllm.py",
        "        if problem:",
        "        if False:",
        "tests/e2e/test_fetch.py -k vllm",
    ),
    Control(
        "link: a copy that came out wrong",
        "transfer/link.py",
        "            if not (sums or hash_file(blob)[1]).match(read_pieces(copy)):",
        "            if False:",
        "tests/unit/test_link_and_tree.py -k copy",
    ),
    Control(
        "3 resume: a journalled chunk is hashed before it is used",
        "transfer/staging.py",
        "        if position < stop or hasher.hexdigest() != promised:",
        "        if False:",
        "tests/unit/test_resuming.py",
    ),
    Control(
        "3 resume: a staged file that somebody holds is not taken over",
        "transfer/leftovers.py",
        "        if not ours or found.st_size > size or not _lock(reader):",
        "        if not ours or found.st_size > size:",
        "tests/unit/test_leftovers.py",
    ),
    Control(
        "3 resume: what was published as a whole is not read again",
        "transfer/staging.py",
        "            self._journal.done(digest)  # killed before a ref says so, nobody would know",
        "            pass",
        "tests/crash/test_failpoints.py -k complete_file",
    ),
    Control(
        "4 durable on return: an error that was told once",
        "transfer/files.py",
        "            raise OSError(number, os.strerror(number))",
        "            pass",
        "tests/unit/test_page_cache.py",
    ),
    Control(
        "1 verified before visible: known chunk sums",
        "transfer/reading.py",
        "            if self._sums is None or actual == self._sums[chunk.index]:",
        "            if True:",
        "tests/unit/test_known_sums.py",
    ),
    Control(
        "7 a source cannot change silently: the range that was asked for",
        "transfer/http/client.py",
        "            if first != start or last >= stop:",
        "            if False:",
        "tests/faults/test_matrix.py",
    ),
    Control(
        "9 bounded: the header's deadline",
        "transfer/http/pool.py",
        "        if time.monotonic() > self._header_by:",
        "        if False:",
        "tests/unit/test_http_wire.py",
    ),
    Control(
        "9 bounded: a slow server",
        "transfer/http/pool.py",
        "            if self._came < limits.SLOW_BYTES:",
        "            if False:",
        "tests/unit/test_http_wire.py",
    ),
    Control(
        "9 bounded: nobody waits for work that was given up",
        "transfer/lanes.py",
        "        future.set_running_or_notify_cancel()  # or whoever waits for it does so for ever",
        "        pass",
        "tests/unit/test_lanes.py",
    ),
    Control(
        "9 bounded: the space there is",
        "transfer/download.py",
        "    if (free := tier.free_bytes()) < needed:",
        "    if (free := tier.free_bytes()) < 0:",
        "tests/unit/test_reserve.py",
    ),
    Control(
        "10 credentials: a redirect to the machine's own services",
        "transfer/http/addresses.py",
        "    if any(map(is_metadata, targets)):",
        "    if False:",
        "tests/faults/test_redirects.py",
    ),
    Control(
        "11 nothing outside: a staged file with another name",
        "transfer/leftovers.py",
        "found.st_uid == os.geteuid() and found.st_nlink == 1",
        "found.st_uid == os.geteuid()",
        "tests/unit/test_leftovers.py",
    ),
]
