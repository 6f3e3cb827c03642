"""The teacher cache: what a frozen teacher says about each row, computed once and kept on disk.

``docs/howto/cache.md`` says how it is used; the parts, from below: ``shards`` (a file), ``store`` (a folder of them),
``fingerprint`` (whose rows they are), ``keys`` (which row), ``compact`` (less than exact), ``source`` (in front of a
teacher).
"""

from muscle_hf.cache.compact import CompactStream, TopTokens
from muscle_hf.cache.fingerprint import Fingerprint, teacher_fingerprint
from muscle_hf.cache.keys import KeyRules, SequenceKey, row_keys
from muscle_hf.cache.room import predicted_bytes, require_space
from muscle_hf.cache.shards import Column
from muscle_hf.cache.source import CachedTargets
from muscle_hf.cache.store import HiddenStore, RowStore

__all__ = [
    "CachedTargets",
    "Column",
    "CompactStream",
    "Fingerprint",
    "HiddenStore",
    "KeyRules",
    "RowStore",
    "SequenceKey",
    "TopTokens",
    "predicted_bytes",
    "require_space",
    "row_keys",
    "teacher_fingerprint",
]
