"""Frozen teachers: a model that gives logits and never changes."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.utils import logging

from muscle_hf.compat.peft import active_adapter
from muscle_hf.errors import MuscleError
from muscle_hf.objective.chunked import Stream
from muscle_hf.teachers.adapters import adapter_parameters, frozen_view, keep_quantized_trainable
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.forward import logits_of
from muscle_hf.teachers.head import Head, HeadNotApart, count_parameters
from muscle_hf.teachers.sharding import is_sharded
from muscle_hf.teachers.weights import base_of, base_weights, content_hash, is_quantized, own_modules

if TYPE_CHECKING:
    from accelerate import Accelerator

    from muscle_hf.teachers.reading import Reader

logger = logging.get_logger(__name__)


class TargetSource(ABC):
    """What says something of the trained tokens of a batch: a teacher, or a cache in front of one.

    Attributes:
        head: The teacher's output head, where that is called apart from its body, on a few tokens at a time.
    """

    head: Head | None = None

    @abstractmethod
    def targets(self, batch: Batch, needed: Tensor | None = None) -> Stream:
        """What it says of the N trained tokens of a batch.

        Args:
            batch: On the device.
            needed: (B,), boolean: the rows with a token that follows this teacher; by default all. Of the others the
                stream holds anything.
        """

    @abstractmethod
    def silent(self, batch: Batch) -> Tensor | None:
        """Trained tokens of which it says nothing, (N,), boolean; None if there are none. Runs no model."""

    @abstractmethod
    def work(self, batch: Batch) -> float:
        """What :meth:`targets` of all rows would compute: the body's parameters times positions."""

    def prepare(self, batch: Batch) -> Any:  # noqa: B027
        """Begin with what can be done for a batch while the device computes."""

    def flush(self) -> None:  # noqa: B027
        """Write to the disk what is to be kept and is only in memory."""


class Teacher(TargetSource):
    """A frozen task model, old (v1) or new (v2), wherever its weights are.

    Args:
        role: ``old`` or ``new``.

    Attributes:
        source: What its adapter was loaded from, a folder or Hub id; None if it was given in memory.
        revision: The revision of ``source``.
        on_students_base: Whether it is another adapter of the student's own model.
        reader: How it reads rows that are in another tokenizer's ids; None where they are in its own.
        tokenizer: Its own, to ask it with; None where that of the rows is meant.
        where: What is known of a model that is not here, for messages.
    """

    where = "is not here"
    on_students_base = False
    # Itself, where it is known by a log of its answers alone, and where it is behind a server.
    recorded: Any = None
    served: Any = None
    # Of one whose weights are not here.
    fingerprint: Any = None

    def __init__(self, role: str):
        self.role = role
        self.source: str | None = None
        self.revision: str | None = None
        self.reader: Reader | None = None
        self.tokenizer: Any = None

    # ---- What it says of a batch ----

    def targets(self, batch: Batch, needed: Tensor | None = None) -> Stream:
        return self.stream(batch, self.states(self.reading(batch), needed))

    def reading(self, batch: Batch) -> Batch:
        """A batch as this teacher reads it: its own ids, and labels at the M places that it is needed at."""
        return batch if self.reader is None else self.reader.reading(batch)

    def spelling(self, batch: Batch) -> Batch:
        """A batch as this teacher reads it, whose labels are its own tokens of what is trained: none in rows of which
        it cannot spell all."""
        return batch if self.reader is None else self.reader.spelling(batch)

    def stream(self, batch: Batch, states: Tensor) -> Stream:
        """What :meth:`states` of a batch's :meth:`reading`, (M, d), say of its N trained tokens."""
        return Stream(states, self.head) if self.reader is None else self.reader.stream(batch, states, self.head)

    @property
    def foreign(self) -> bool:
        """Whether it cuts texts into other tokens than those of the rows."""
        return self.reader is not None and self.reader.foreign

    def silent(self, batch: Batch) -> Tensor | None:
        return None if self.reader is None else self.reader.silent(batch)

    def states(self, batch: Batch, needed: Tensor | None = None) -> Tensor:
        """Its last hidden states at the trained tokens of a batch of its own ids, (M, d), or logits (M, V) where its
        head is not apart; zeros in rows that are not needed. Arguments as :meth:`targets`."""
        raise MuscleError(f"the {self.role} model {self.where}")

    def work(self, batch: Batch) -> float:
        return 0.0

    def begin(self, *, answers_alone: bool) -> None:
        """Make sure, before training, that it can be asked, if ``answers_alone`` only for :meth:`log_likelihoods`."""

    # ---- Its model ----

    def place(self, accelerator: Accelerator, tokenizer: Any) -> None:
        """Put a base of its own on the student's device and in its precision, and name in its configuration the id
        that its rows are padded with, where the student's are with ``tokenizer``'s: again after another ``reader``."""

    def shard(self, accelerator: Accelerator) -> None:
        """Shard a base of its own over the processes, where the student is (FSDP, ZeRO-3)."""

    def answering(self) -> contextlib.AbstractContextManager[nn.Module]:
        """Within the block, the model as the teacher: to generate with, or to score."""
        return contextlib.nullcontext(self.model)

    @property
    def adapter(self) -> str | None:
        """The teacher's adapter in its model; None if that has none."""
        raise MuscleError(f"the {self.role} model {self.where}")

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """Logits for a batch: (B, L, V), or (B, C) for sequence classification; no gradient."""
        with self.answering() as model:
            return logits_of(model, inputs)

    @property
    def model(self) -> nn.Module:
        """The module that computes the logits; for a teacher on the student's base, the student's model."""
        raise MuscleError(f"the {self.role} model {self.where}")

    @property
    def scores_answers(self) -> bool:
        """Whether it can be asked how likely it finds any answer."""
        return bool(self.models)

    def log_likelihoods(self, batch: Batch, needed: Tensor) -> Tensor:
        """How likely it finds the labels of a batch, as :meth:`spelling` gives it, together, where its weights are not
        here: (B,), float32, on the CPU, nats; anything in rows that are not needed.

        Raises:
            MuscleError: That cannot be known.
        """
        raise MuscleError(f"how likely the {self.role} model finds other answers than those that are recorded")

    @property
    def models(self) -> list[nn.Module]:
        """:attr:`model`, or nothing where that is not here."""
        return []

    def open_head(self, student: Head, autocast: Callable[..., contextlib.AbstractContextManager]) -> None:
        """Have its output head called apart from its body; a teacher on the student's base has the student's."""

    def describe(self, hashes: dict[Any, str]) -> dict[str, Any]:
        """Its base and its adapter, for the provenance of what is trained; ``hashes`` are of the bases whose weights
        were read."""
        from muscle_hf.record import public_name
        from muscle_hf.teachers.identity import describe_base

        base = base_of(self.model)
        base_hash, adapter_hash = self.hashes(hashes)
        adapter = {"name": public_name(self.source), "revision": self.revision, "sha256": adapter_hash}
        read = {} if self.reader is None else {"reading": self.reader.share}
        return {"base": describe_base(base, base_hash), "adapter": adapter if adapter_hash else None, **read}

    def hashes(self, known: dict[Any, str]) -> tuple[str, str | None]:
        """Content hashes of base and adapter, None without one; ``known`` as :meth:`describe` takes it."""
        weights, adapter = self.base_weights(), self.adapter_weights()
        content = id(base_of(self.model)), frozenset(weights)
        if content not in known:
            known[content] = content_hash(weights.items())
        return known[content], content_hash(adapter.items()) if adapter else None

    def adapter_weights(self) -> dict[str, Tensor]:
        """The weights of the teacher's adapter by name; empty if it has none."""
        return {} if self.adapter is None else dict(adapter_parameters(self.model, self.adapter))

    def base_weights(self) -> dict[str, Tensor]:
        """The weights of the teacher's base model by name, without what its adapter replaces as a whole."""
        return base_weights(self.model, self.adapter)


class LoadedTeacher(Teacher):
    """A teacher whose model is here."""

    def __init__(self, role: str, model: nn.Module):
        super().__init__(role)
        self._model = model

    @property
    def model(self) -> nn.Module:
        return self._model

    @property
    def models(self) -> list[nn.Module]:
        return [self._model]

    def states(self, batch: Batch, needed: Tensor | None = None) -> Tensor:
        if needed is not None and not bool(needed.any()):
            return torch.zeros(len(batch.rows), 1, device=batch.labels.device)
        if needed is None or bool(needed.all()) or not batch.has_rows:
            return batch.of_trained(self._outputs(batch.inputs))
        few = batch.only(needed)
        found = few.of_trained(self._outputs(few.inputs))
        here = needed.to(batch.rows.device)[batch.rows].nonzero().squeeze(-1)
        return found.new_zeros(len(batch.rows), found.size(-1)).index_put_((here,), found)

    def _outputs(self, inputs: Mapping[str, Any]) -> Tensor:
        if self.head is not None:
            try:
                return self.head.hidden_of(lambda: self.logits(inputs))
            except HeadNotApart as error:
                logger.warning(str(error))
                self.head = None
        return self.logits(inputs)

    def work(self, batch: Batch) -> float:
        return self._body_size * self.reading(batch).labels.numel()

    @cached_property
    def _body_size(self) -> int:
        head = 0 if self.head is None else count_parameters(self.head.module)
        return count_parameters(base_of(self.model)) - head

    def open_head(self, student: Head, autocast: Callable[..., contextlib.AbstractContextManager]) -> None:
        own = self.head or Head(self.model, autocast)
        self.head = student if base_of(self.model) is student.base else own


class AdapterTeacher(LoadedTeacher):
    """A teacher on the student's own base: another adapter of the same model, or, without one, the base with adapters
    off."""

    on_students_base = True

    def __init__(self, role: str, model: PeftModel, adapter: str | None):
        super().__init__(role, model)
        self._adapter = adapter
        # What is packed, sharded or parametrized changes its tensors without changing what they say. Some adapters
        # change themselves where they are used (OFT with coft), which is no matter of the base.
        modules, adapters = own_modules(base_of(model)), set(model.peft_config)
        own = [m for name, m in modules if adapters.isdisjoint(name.split("."))]
        self._shared = [p for m in own for p in m._parameters.values() if type(p) is nn.Parameter]
        if any(getattr(config, "target_parameters", None) for config in model.peft_config.values()):
            self._shared = []

    def shard(self, accelerator: Accelerator) -> None:
        self._shared = []  # whole tensors, which would stay beside their shards

    @contextlib.contextmanager
    def answering(self) -> Iterator[nn.Module]:
        before = [tensor._version for tensor in self._shared]
        with frozen_view(cast("PeftModel", self._model), self._adapter):
            yield self._model
        if before != [tensor._version for tensor in self._shared]:
            raise MuscleError(
                f"{type(base_of(self._model)).__name__} changes its own weights when it goes from training to "
                "evaluation or back, and the student shares them with its teacher. Switch that off where the model is "
                "loaded (RWKV: config.rescale_every = 0)"
            )

    @property
    def adapter(self) -> str | None:
        return self._adapter


class ModelTeacher(LoadedTeacher):
    """A teacher with a base of its own: a ``PeftModel`` whose active adapter is the teacher's, or a plain model. It is
    frozen for good.

    It stays where it was loaded until it is asked first: of one whose states are in a cache the head alone is needed.
    """

    # Makes the context in which its forward runs: the student's, so that both compute in the same precision.
    autocast: Callable[..., contextlib.AbstractContextManager] = contextlib.nullcontext
    _device: torch.device | None = None

    def __init__(self, role: str, model: nn.Module):
        # Layers that repacked themselves would round, and hash to another model than the one that was given.
        keep_quantized_trainable(model)
        super().__init__(role, model.eval().requires_grad_(False))

    @contextlib.contextmanager
    def answering(self) -> Iterator[nn.Module]:
        if self._device is not None:
            self._model.to(self._device)
            self._device = None
        with torch.no_grad(), self.autocast():
            yield self._model

    def open_head(self, student: Head, autocast: Callable[..., contextlib.AbstractContextManager]) -> None:
        super().open_head(student, autocast)
        if self.head is not None and self._device is not None:
            self.head.module.to(self._device)

    def place(self, accelerator: Accelerator, tokenizer: Any) -> None:
        placed = is_quantized(self._model) or getattr(self._model, "hf_device_map", None) is not None
        self._device = None if placed or is_sharded(accelerator) else accelerator.device
        padding = getattr(tokenizer, "pad_token_id", None)
        padding = padding if self.reader is None else self.reader.padding(padding)
        if padding is not None:
            # As Trainer does for the student; decoders with a classifier find the last token by it.
            base_of(self._model).config.get_text_config().pad_token_id = padding
        self.autocast = accelerator.autocast

    def shard(self, accelerator: Accelerator) -> None:
        from muscle_hf.teachers.sharded import shard

        self._model = shard(self._model, accelerator)

    @property
    def adapter(self) -> str | None:
        return active_adapter(self._model) if isinstance(self._model, PeftModel) else None
