"""A whole run: task adapters on both bases, the compatibility adapter, and what they answer."""

from muscle_hf.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {})
