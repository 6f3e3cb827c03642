"""A teacher of which only the output head is loaded: what its body would say of each row is on disk already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.utils import logging

from muscle_hf.cache import Fingerprint
from muscle_hf.teachers.head import Head
from muscle_hf.teachers.teacher import LoadedTeacher, Teacher
from muscle_hf.teachers.weights import base_of

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.get_logger(__name__)


class CachedTeacher(LoadedTeacher):
    """A frozen task model whose body is loaded when something is asked that the cache does not hold, if ever.

    Until then its model has no weights but its head's; ``fingerprint`` says whose rows are in the cache.
    """

    def __init__(self, role: str, head: Head, fingerprint: Fingerprint, load: Callable[[], Teacher]):
        super().__init__(role, head.base)
        self.head = self._own_head = head
        self.fingerprint = fingerprint
        self._load = load
        self._where: tuple[Accelerator, Any] | None = None
        self._loaded: Teacher | None = None

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
            self._model = self._loaded.model
        return self._loaded

    def whole(self) -> Teacher:
        """The whole teacher, to look at its weights: not placed and not kept where it was not loaded before."""
        return self._load() if self._loaded is None else self._loaded

    def hashes(self, known: dict[Any, str]) -> tuple[str, str | None]:
        adapter = self.fingerprint.content["adapter"]
        return self.fingerprint.content["base_sha256"], adapter and adapter["sha256"]
