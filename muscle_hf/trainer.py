"""MuscleTrainer: ``transformers.Trainer`` with the MUSCLE objective, put together from its parts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from muscle_hf.hub.trainer import PublishesCard
from muscle_hf.training.trainer import ObjectiveMixin

if TYPE_CHECKING:
    from muscle_hf.teachers import Teacher

_ANSWERS = (".jsonl", ".json", ".csv", ".parquet")


class MuscleMixin(PublishesCard, ObjectiveMixin):
    """The MUSCLE objective, and publishing of nothing but the adapter, for trainers derived from ``Trainer``.

    Comes before the trainer among the bases: ``class MyTrainer(MuscleMixin, Seq2SeqTrainer)``. What it takes is
    documented at :class:`MuscleTrainer`.
    """

    def _teacher(self, role: str, source: Any, arguments: Mapping[str, Any] | None) -> Teacher:
        named = isinstance(source, (str, os.PathLike)) and not str(source).startswith(("http://", "https://"))
        if named and (os.path.isfile(source) or os.path.splitext(source)[1] in _ANSWERS):
            from muscle_hf.choice_log import ChoiceLog

            source = ChoiceLog(source)
        return super()._teacher(role, source, arguments)


class MuscleTrainer(MuscleMixin, Trainer):
    """Trains a compatibility adapter: a LoRA on v2 that keeps what v1 got right (MUSCLE, section 4).

    A drop-in replacement for ``transformers.Trainer``: every argument of it works as there, and:

    Args:
        model: v2's task model. A ``PeftModel``: its active adapter is copied to become the student, named
            ``default``, and the original stays as v2's frozen teacher on the same base. Or a merged or fully
            fine-tuned model, with ``peft_config``: the student is a fresh LoRA, the teacher is the model with
            adapters off.
        args: A :class:`~muscle_hf.MuscleConfig`; with plain ``TrainingArguments`` the method's defaults hold.
        old_model: v1's task model: a ``PeftModel``, a plain model, a folder or Hub id of an adapter or model, the
            address of a server (``http://...``, docs/howto/served-v1.md), or its answers alone: a file of them or a
            :class:`~muscle_hf.ChoiceLog` (docs/howto/answers-alone.md). If it sits on the same base as ``model``, by
            identity or content, one base serves all three.
        new_model: Another teacher for v2 than the task model in ``model``; the same forms as ``old_model``.
        peft_config: The adapter to train where ``model`` has none.
        old_model_kwargs: For a folder or Hub id: ``revision``, ``base_model`` (if the recorded base has moved) and
            loading arguments (``dtype``, ``quantization_config``, ``token``, ...). For a ``PeftModel``: ``adapter``,
            if not the active one. For a server: ``model``, ``top_k``, ``api_key``, ...
        new_model_kwargs: The same for ``new_model``.
        old_processing_class: v1's tokenizer, or its folder or Hub id, where it is not saved with v1's adapter or base.
            Where it is another than v2's, v1 reads the same text in its own tokens.
        old_formatting_func: From a row of ``train_dataset`` or ``eval_dataset`` to what v1 is given in its place:
            ``(prompt, answer)``, a text, or messages for its chat template. The answer is that of the row. By default
            v1 is given the row's text, or, of a row of messages, its own chat template around them.
        transfer_dataset: Rows without labels that are trained on beside ``train_dataset`` and follow the teachers by
            ``args.transfer_mask``: rows whose labels say, by any id but -100, where something is trained (for
            classifiers none are needed), or :class:`~muscle_hf.TransferPrompts`, which the models answer.
        mask: A mask function of your own (see ``muscle_hf.objective.masks``) instead of ``args.mask``.

    Raises:
        MuscleError: Something does not fit, before anything is trained; the message says what to do.
    """
