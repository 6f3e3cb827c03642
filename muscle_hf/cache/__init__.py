"""The teacher cache: what a frozen teacher says about each row, computed once and kept on disk.

``docs/howto/cache.md`` says how it is used; the parts, from below: ``shards`` (a file), ``store`` (a folder of them),
``fingerprint`` (whose rows they are), ``keys`` (which row), ``head_files`` (logits without the body), ``compact``
(less than exact), ``build`` (ahead of training).
"""

from muscle_hf.cache.build import CachePlan, build_cache, plan_cache, predicted_bytes, require_space
from muscle_hf.cache.compact import CompactStream, TopTokens
from muscle_hf.cache.fingerprint import Fingerprint, TeacherFiles, file_fingerprint, teacher_fingerprint
from muscle_hf.cache.head_files import load_head
from muscle_hf.cache.keys import KeyRules, SequenceKey, row_keys
from muscle_hf.cache.shards import Column
from muscle_hf.cache.store import HiddenStore, RowStore

__all__ = [
    "CachePlan",
    "Column",
    "CompactStream",
    "Fingerprint",
    "HiddenStore",
    "KeyRules",
    "RowStore",
    "SequenceKey",
    "TeacherFiles",
    "TopTokens",
    "build_cache",
    "file_fingerprint",
    "load_head",
    "plan_cache",
    "predicted_bytes",
    "require_space",
    "row_keys",
    "teacher_fingerprint",
]
