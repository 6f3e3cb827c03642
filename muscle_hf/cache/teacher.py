"""A teacher of which only the output head is loaded: what its body would say of each row is on disk already."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from torch import Tensor, nn
from transformers.utils import logging

from muscle_hf.cache import Fingerprint, TeacherFiles, file_fingerprint, load_head
from muscle_hf.cache.store import MANIFEST, folder_name
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.head import Head
from muscle_hf.teachers.kinds import ModelKind
from muscle_hf.teachers.loading import FETCH_KEYS
from muscle_hf.teachers.teacher import Teacher
from muscle_hf.teachers.tokenizers import own_tokenizer
from muscle_hf.teachers.weights import base_of, base_weights, same_as_files

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.get_logger(__name__)


class CachedTeacher(Teacher):
    """A frozen task model whose body is loaded when something is asked that the cache does not hold, if ever.

    Args:
        role: ``old`` or ``new``.
        head: Its output head; the rest of its model has no weights.
        fingerprint: Whose rows are in the cache.
        load: Loads the whole teacher.
    """

    def __init__(self, role: str, head: Head, fingerprint: Fingerprint, load: Callable[[], Teacher]):
        super().__init__(role)
        self.head = self._own_head = head
        self.fingerprint = fingerprint
        self._load = load
        self._where: tuple[Accelerator, Any] | None = None
        self._loaded: Teacher | None = None

    @property
    def model(self) -> nn.Module:
        """The model without its body's weights; the whole one, once it was loaded."""
        return self._own_head.base if self._loaded is None else self._loaded.model

    @property
    def adapter(self) -> str | None:
        return self.whole().adapter

    def place(self, accelerator: Accelerator, tokenizer: Any) -> None:
        self._where = accelerator, tokenizer
        self._own_head.module.to(accelerator.device)
        self._own_head.autocast = accelerator.autocast

    def answering(self) -> contextlib.AbstractContextManager[nn.Module]:
        return self.loaded().answering()

    def loaded(self) -> Teacher:
        """The whole teacher; loaded at the first call."""
        if self._loaded is None:
            logger.warning(
                f"The body of the {self.role} model is loaded, which takes its memory. It is needed for rows that the "
                "teacher cache lacks (`muscle-hf cache` computes all rows ahead of training), for answers to prompts "
                "and tasks, and, beside a cache with teacher_cache_top_k, for compute_metrics."
            )
            self._loaded = self._load()
            if self._where is not None:
                self._loaded.place(*self._where)
            # One layer, so that what listens at the head hears the whole model's forward as well.
            base_of(self._loaded.model).set_output_embeddings(self._own_head.module)
        return self._loaded

    def whole(self) -> Teacher:
        """The whole teacher, to look at its weights: not placed and not kept where it was not loaded before."""
        return self._load() if self._loaded is None else self._loaded

    def adapter_weights(self) -> dict[str, Tensor]:
        return self.loaded().adapter_weights()

    def base_weights(self) -> dict[str, Tensor]:
        return self.loaded().base_weights()

    def hashes(self, known: dict[Any, str]) -> tuple[str, str | None]:
        adapter = self.fingerprint.content["adapter"]
        return self.fingerprint.content["base_sha256"], adapter and adapter["sha256"]


def cached_teacher(
    role: str,
    source: str | os.PathLike,
    student: PeftModel,
    kind: ModelKind,
    arguments: Mapping[str, Any] | None,
    *,
    folder: str | os.PathLike,
    tokenizers: tuple[Any, Any],
    precision: str | None,
    load: Callable[[], Teacher],
) -> CachedTeacher | None:
    """A teacher on the hidden states that a cache holds of it.

    Args:
        role: ``old`` or ``new``.
        source: A folder or Hub id of an adapter or a model.
        student: A teacher on the student's own base needs no second body, cached or not.
        kind: The student's.
        arguments: As for ``make_teacher``.
        folder: Of the cache.
        tokenizers: The teacher's, by default the one that is saved with it; and that of the rows, which it has
            otherwise.
        precision: Accelerate's ``mixed_precision``.
        load: Loads the whole teacher.

    Returns:
        None where the cache holds nothing of this teacher, or where it takes the loaded model to know that.
    """
    base = base_of(student)
    how = {"dtype": getattr(base, "dtype", None), **(arguments or {})}
    known = {"base_model", "base_revision", "revision", "dtype", "attn_implementation", *FETCH_KEYS}
    if how.keys() - known:
        return None  # quantization and the like decide what the model computes, and are not in its files
    attention, dtype, revision = (how.pop(name, None) for name in ("attn_implementation", "dtype", "revision"))
    moved = how.pop("base_model", None), how.pop("base_revision", None)
    if not any(Path(folder).glob(f"*/{MANIFEST}")):
        return None
    try:
        files = TeacherFiles.find(source, revision, *moved, **how)
        if same_as_files(base_weights(student), files.base, base):
            return None
        tokenizer = own_tokenizer(tokenizers[0], files.folders) or tokenizers[1]
        fingerprint = file_fingerprint(
            files, kind, tokenizer, role=role, dtype=dtype, autocast=precision, attn_implementation=attention
        )
        if not any(Path(folder).glob(f"{folder_name(fingerprint)}*/{MANIFEST}")):
            return None
        head = load_head(files, kind, dtype=dtype)
    except MuscleError as error:
        logger.info(f"The {role} model is loaded as a whole: {error}")
        return None
    teacher = CachedTeacher(role, head, fingerprint, load)
    teacher.source, teacher.revision = os.fspath(source), revision
    return teacher
