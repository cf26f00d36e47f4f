"""Put LLM weights where a serving engine can read them: once, verified, from the nearest place that has them.

>>> from modelstore import Store
>>> store = Store(tiers=["/var/lib/llm-models"])                                    # doctest: +SKIP
>>> model = store.fetch("https://example.com/model.gguf", progress=print)           # doctest: +SKIP
>>> model.files["model.gguf"].path                                                  # doctest: +SKIP
"""

from modelstore import errors
from modelstore.digest import Digest
from modelstore.errors import *  # noqa: F403  the error tree is public as a whole
from modelstore.model import Model
from modelstore.source_url import cache_key
from modelstore.store import Store, fetch

__all__ = ["Digest", "Model", "Store", "cache_key", "errors", "fetch", *errors.__all__]
__version__ = "0.1.0"
