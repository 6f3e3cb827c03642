"""One base update and every adapter on it: a file that names the tasks, and for each of them ship or hold."""

from muscle_hf.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {})
