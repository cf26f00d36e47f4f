"""Conformance suites for tiers, sources and layouts, for ours and for those of other packages.

Subclass :class:`TierTests`, :class:`SourceTests` or :class:`LayoutTests` in a test module and give it the fixtures
that its docstring names. Needs pytest.
"""

from modelstore.testing.layouts import LayoutTests
from modelstore.testing.sources import SourceCase, SourceTests
from modelstore.testing.tiers import TierTests

__all__ = ["LayoutTests", "SourceCase", "SourceTests", "TierTests"]
