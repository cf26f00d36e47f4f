"""Every error modelstore raises, and the exit code the command gives for it.

    ModelStoreError                        .tier .op .hint .retryable            exit 1
    ├─ ConfigError (ValueError)            what you asked for cannot be meant    exit 2
    ├─ SourceError                         upstream's side
    │  ├─ SourceNotFound (FileNotFoundError)                                     exit 3
    │  ├─ SourceUnauthorized (PermissionError)                                   exit 4
    │  ├─ SourceUnavailable                retryable                             exit 5
    │  ├─ SourceChanged                                                          exit 6
    │  └─ SourceCorrupt                    wrong bytes from upstream             exit 7
    ├─ StoreError                          our tiers' side
    │  ├─ BlobNotFound (FileNotFoundError) the only silent fall-through          exit 9
    │  ├─ BlobCorrupt                      quarantined, fetched again            exit 7
    │  ├─ BlobArchived                     needs warming up                      exit 8
    │  ├─ TierUnavailable                                                        exit 9
    │  └─ NoSpace (OSError)                                                      exit 10
    ├─ NotCached                           offline and incomplete                exit 11
    ├─ LockTimeout (TimeoutError)                                                exit 12
    ├─ LayoutError                                                               exit 13
    └─ Cancelled                           the caller's event was set            exit 130

Each message is one sentence that says what failed and on which side; ``hint`` says what to do about it. Causes are
chained. All of them survive ``pickle``, so a worker process can raise them to its parent.
"""

import errno
from typing import Any, ClassVar

__all__ = [
    "BlobArchived",
    "BlobCorrupt",
    "BlobNotFound",
    "Cancelled",
    "ConfigError",
    "LayoutError",
    "LockTimeout",
    "ModelStoreError",
    "NoSpace",
    "NotCached",
    "SourceChanged",
    "SourceCorrupt",
    "SourceError",
    "SourceNotFound",
    "SourceUnauthorized",
    "SourceUnavailable",
    "StoreError",
    "TierUnavailable",
]


class ModelStoreError(Exception):
    """Base of all errors raised on purpose.

    ``tier`` names the tier that failed (None for a source), ``op`` the operation, ``hint`` what to do next,
    ``choices`` what can be chosen from if that is what to do, ``retryable`` whether the same call may succeed later
    without anybody changing anything.
    """

    exit_code: ClassVar[int] = 1
    default_retryable: ClassVar[bool] = False
    choices: tuple[str, ...] = ()

    def __init__(
        self,
        message: str,
        *,
        tier: str | None = None,
        op: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.tier = tier
        self.op = op
        self.hint = hint
        self.retryable = self.default_retryable if retryable is None else retryable

    def __str__(self) -> str:
        side = f"tier {self.tier}: " if self.tier else ""
        hint = f"; {self.hint}" if self.hint else ""
        choices = ": " + ", ".join(self.choices) if self.choices else ""
        return f"{side}{self.message}{hint}{choices}"

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError and friends rebuild from .args alone and would lose the keyword fields.
        return _rebuild, (type(self), self.message, self.__dict__.copy())


def _rebuild(cls: type[ModelStoreError], message: str, state: dict[str, Any]) -> ModelStoreError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class ConfigError(ModelStoreError, ValueError):
    """A URL, an option, a setting or an input file that cannot be meant as written."""

    exit_code = 2


class SourceError(ModelStoreError):
    """The source's side failed."""


class SourceNotFound(SourceError, FileNotFoundError):
    """The source has no such model, revision or file."""

    exit_code = 3


class SourceUnauthorized(SourceError, PermissionError):
    """The source wants other credentials than it was given."""

    exit_code = 4


class SourceUnavailable(SourceError):
    """The source could not be reached, or did not answer as its protocol says.

    ``retry_after`` is how many seconds it asked to be left alone, if it did; ``overloaded`` is whether fewer requests
    at once may help (429, 503, a stall).
    """

    exit_code = 5
    default_retryable = True
    retry_after: float | None = None
    overloaded: bool = False


class SourceChanged(SourceError):
    """The source now holds other bytes than those first seen under this URL."""

    exit_code = 6


class SourceCorrupt(SourceError):
    """The source sent bytes that do not have the promised digest or size."""

    exit_code = 7


class StoreError(ModelStoreError):
    """A tier's side failed."""


class BlobNotFound(StoreError, FileNotFoundError):
    """The tier does not hold the blob. The only failure that silently falls through to the next tier."""

    exit_code = 9


class BlobCorrupt(StoreError):
    """A tier holds bytes under a digest that they do not have."""

    exit_code = 7


class BlobArchived(StoreError):
    """The tier holds the blob in an archive class that must be warmed up first."""

    exit_code = 8


class TierUnavailable(StoreError):
    """The tier cannot be read or written: I/O error, permissions, credentials, or a format of another version."""

    exit_code = 9
    default_retryable = True


class NoSpace(StoreError, OSError):
    """No space, no inodes or no quota left in a tier. ``errno`` is ``ENOSPC``."""

    exit_code = 10

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.errno = errno.ENOSPC


class NotCached(ModelStoreError):
    """The model is not complete in any tier, and the source may not be asked."""

    exit_code = 11


class LockTimeout(ModelStoreError, TimeoutError):
    """Another process held the model's lock for longer than the caller would wait."""

    exit_code = 12
    default_retryable = True


class LayoutError(ModelStoreError):
    """The model cannot be laid out as asked: the target is in the way, or the engine would not load it."""

    exit_code = 13


class Cancelled(ModelStoreError):
    """The caller's cancel event was set."""

    exit_code = 130
