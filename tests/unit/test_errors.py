"""The error tree: bases, exit codes, and that nothing is lost on the way to another process."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

from modelstore import errors
from modelstore.errors import ModelStoreError

# (parent, builtin base, exit code, retryable) as in the design; Cancelled is how the caller's own event ends a call.
TREE: dict[str, tuple[str, type[Exception], int, bool]] = {
    "ConfigError": ("ModelStoreError", ValueError, 2, False),
    "SourceError": ("ModelStoreError", Exception, 1, False),
    "SourceNotFound": ("SourceError", FileNotFoundError, 3, False),
    "SourceUnauthorized": ("SourceError", PermissionError, 4, False),
    "SourceUnavailable": ("SourceError", Exception, 5, True),
    "SourceChanged": ("SourceError", Exception, 6, False),
    "SourceCorrupt": ("SourceError", Exception, 7, False),
    "StoreError": ("ModelStoreError", Exception, 1, False),
    "BlobNotFound": ("StoreError", FileNotFoundError, 9, False),
    "BlobCorrupt": ("StoreError", Exception, 7, False),
    "BlobArchived": ("StoreError", Exception, 8, False),
    "TierUnavailable": ("StoreError", Exception, 9, True),
    "NoSpace": ("StoreError", OSError, 10, False),
    "NotCached": ("ModelStoreError", Exception, 11, False),
    "LockTimeout": ("ModelStoreError", TimeoutError, 12, True),
    "LayoutError": ("ModelStoreError", Exception, 13, False),
    "Cancelled": ("ModelStoreError", Exception, 130, False),
}
FIELDS = {"tier": "nvme", "op": "stage", "hint": "free some space", "retryable": True}
EVERY = [ModelStoreError, *(getattr(errors, name) for name in TREE)]


@pytest.mark.parametrize("name", TREE)
def test_place_in_the_tree(name: str) -> None:
    parent, builtin, exit_code, retryable = TREE[name]
    cls = getattr(errors, name)
    assert cls.__bases__[0] is getattr(errors, parent)
    assert issubclass(cls, builtin)
    assert cls.exit_code == exit_code
    assert cls("it failed").retryable is retryable


@pytest.mark.parametrize("name", TREE)
def test_no_error_is_taken_for_a_builtin_that_it_is_not(name: str) -> None:
    builtin = TREE[name][1]
    for other in (ValueError, OSError, FileNotFoundError, PermissionError, TimeoutError):
        assert issubclass(getattr(errors, name), other) is issubclass(builtin, other)


def test_the_tree_is_public_as_a_whole() -> None:
    assert set(errors.__all__) == {"ModelStoreError", *TREE}
    found = {cls.__name__ for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)}
    assert found == set(errors.__all__)


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("fields", [{}, FIELDS])
def test_pickle_and_copy_keep_every_field(cls: type[ModelStoreError], fields: dict[str, object]) -> None:
    error = cls("it failed", **fields)  # type: ignore[arg-type]
    for twin in (*(pickle.loads(pickle.dumps(error, protocol)) for protocol in range(6)), copy.copy(error)):
        assert type(twin) is cls
        assert str(twin) == str(error)
        assert (twin.message, twin.args) == ("it failed", ("it failed",))
        for field in ("tier", "op", "hint", "retryable", "errno"):
            assert getattr(twin, field, None) == getattr(error, field, None)


def test_fields_set_later_are_pickled_too() -> None:
    error = errors.SourceUnavailable("it failed")
    assert error.retry_after is None
    error.retry_after = 7.0
    assert pickle.loads(pickle.dumps(error)).retry_after == 7.0


def test_no_space_says_so_as_an_os_error_does() -> None:
    assert errors.NoSpace("full").errno == errno.ENOSPC
    assert pickle.loads(pickle.dumps(errors.NoSpace("full"))).errno == errno.ENOSPC


def test_the_message_names_the_side_and_what_to_do() -> None:
    assert str(errors.TierUnavailable("it failed", tier="nvme", hint="mount it")) == "tier nvme: it failed; mount it"
    assert str(errors.SourceNotFound("it failed")) == "it failed"


def test_what_is_said_about_retrying_counts() -> None:
    assert errors.SourceUnavailable("it failed", retryable=False).retryable is False
    assert errors.LayoutError("it failed", retryable=True).retryable is True
