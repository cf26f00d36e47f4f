"""Put LLM weights where a serving engine can read them: once, verified, from the nearest place that has them.

>>> from modelstore import Store
>>> store = Store(tiers=["/var/lib/llm-models"])                                    # doctest: +SKIP
>>> model = store.fetch("https://example.com/model.gguf", progress=print)           # doctest: +SKIP
>>> model.files["model.gguf"].path                                                  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from modelstore import errors
from modelstore.errors import *  # noqa: F403  the error tree is public as a whole

if TYPE_CHECKING:
    from modelstore.digest import Digest
    from modelstore.model import Model
    from modelstore.source_url import cache_key
    from modelstore.store import Store, fetch

__all__ = ["Digest", "Model", "Store", "cache_key", "errors", "fetch", *errors.__all__]
__version__ = "0.1.0"

_HOME = {
    "Digest": "modelstore.digest",
    "Model": "modelstore.model",
    "Store": "modelstore.store",
    "cache_key": "modelstore.source_url",
    "fetch": "modelstore.store",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for: the command must not pay for all of them at every start."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
