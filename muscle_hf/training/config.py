"""MuscleConfig: the method's settings beside everything that ``TrainingArguments`` has."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from muscle_hf.errors import MuscleError
from muscle_hf.objective import Objective, resolve_mask
from muscle_hf.objective.masks import MaskFunction

TrainedTokens = Literal["labels", "completion", "assistant"]
StartFrom = Literal["new", "old"]
OldTargets = Literal["auto", "answer", "choices", "tokens"]
OldReference = Literal["student", "new"]
_CHOSEN = {
    "trained_tokens": TrainedTokens,
    "start_from": StartFrom,
    "old_targets": OldTargets,
    "old_reference": OldReference,
}

# What each preset sets where nothing else was. The fields themselves are None until then: a value that is given counts
# also where it is the one that a run without presets has.
_PAPER = {"mask": "student_wrong", "transfer_mask": "mean", "calibrate_teachers": False}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "consensus": {**_PAPER, "mask": "mean"},
    "calibrated_consensus": {**_PAPER, "mask": "mean", "calibrate_teachers": True},
}


def documented_fields(docstring: str) -> Callable[..., Any]:
    """A maker of dataclass fields, of a name, a default and metadata for ``HfArgumentParser``, whose help text is what
    the section ``Args:`` of a docstring says of them, so that it is written once."""
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", docstring, re.MULTILINE)
    helps = {name: re.sub(r"\s+", " ", text).replace("``", "") for name, text in entries}
    return lambda name, default=None, **more: field(default=default, metadata={"help": helps[name], **more})


# `repr=False` keeps TrainingArguments' own repr, which hides tokens; the one that `dataclass` writes shows them.
@dataclass(repr=False)
class MuscleConfig(TrainingArguments):
    """Settings of :class:`~muscle_hf.MuscleTrainer`; every argument of ``transformers.TrainingArguments``, and:

    Args:
        preset: Settings by one name: ``paper`` (every default), ``consensus``: follow the mean of both models, on rows
            with and without labels, or ``calibrated_consensus``: the same with ``calibrate_teachers``, for a v1 that
            is much weaker than v2 (docs/explanation/study.md). What is set beside it counts, a value that ``paper``
            has as well (``dataclasses.replace`` sets every field of its copy).
        temperature: T of equation (1), > 0.
        mask: Which tokens follow the old model: a name in ``muscle_hf.objective.MASKS`` (their equations:
            docs/explanation/objective.md) or ``"package.module:function"``; by default the preset's, ``student_wrong``
            without one.
        compatibility_weight: lambda of equation (5), in (0, 1]; 1 leaves the cross-entropy out.
        scale_by_temperature_squared: Multiply the compatibility loss by T^2, as other distillation losses do.
        trained_tokens: ``labels``: every token whose label is not -100 (the paper trains on context and answer);
            ``completion`` or ``assistant``: of these, only where the row's ``completion_mask`` or
            ``assistant_masks`` is 1.
        check_base: Refuse adapters that record another base model than the one they sit on.
        loss_chunk_size: Trained tokens whose logits are held at a time; by default as many as fit into 2 MiB on a CPU
            and 512 MiB elsewhere, but 256 at least, where the output layer can be called apart, else all of them. 0:
            all of them.
        skip_unneeded_teachers: Run a teacher's body only on rows with a token that follows it, where that pays.
        transfer_mask: What rows of ``transfer_dataset`` follow, which have no labels: ``mean`` of both teachers'
            probabilities (``mean(0.65)``: 0.65 of v1's), ``more_confident``, ``more_confident_sequence``,
            ``always_old``, ``always_new``, or a function of your own; by default ``mean``.
        transfer_ratio: Rows of ``transfer_dataset`` for each labelled row in an epoch; all of them by default.
        divergence: From a teacher: ``kl``, or ``logit_difference`` on its likeliest tokens.
        blend: What tokens follow that follow both teachers: the mean of their ``probabilities`` or ``logits``.
        calibrate_teachers: Before training, divide each teacher's logits by the temperature at which they fit the
            labels of ``eval_dataset`` best, so that a model that is surer than it is right does not outvote the other.
            By default the preset's, off without one.
        start_from: Whose task adapter the compatibility adapter starts from: ``new``, as in the paper, or ``old``:
            v1's weights on v2's base, which takes bases of one size and adapters of one configuration. The teachers
            stay the two task models (docs/explanation/study.md).
        old_targets: What of v1 is followed: its distributions over ``tokens``, one number for each ``answer``, its
            log-likelihood, or the distribution over an item's ``choices`` (of a ``ChoiceLog``).
            ``auto``: tokens where v1 is a model with v2's tokenizer, else answers if none has more than 16 tokens
            (docs/howto/answers-alone.md).
        old_reference: Who decides between tokens that a v1 with another tokenizer cannot tell apart: the ``student``,
            so that v1 stays silent there, or ``new``.
        teacher_cache: A folder that keeps the teachers' hidden states, so that each row is seen by a teacher once;
            shared by epochs, runs and processes (docs/howto/cache.md).
        teacher_cache_top_k: Keep so many of a teacher's likeliest tokens there, and the rest as one, in place of its
            hidden states: smaller, but not exact.

    Raises:
        MuscleError: A value is out of range, the mask is unknown, or ``label_smoothing_factor`` is set where there is
            no cross-entropy to smooth.
    """

    _field = documented_fields(__doc__ or "")

    preset: str = _field("preset", "paper")
    temperature: float = _field("temperature", 2.0)
    mask: str | None = _field("mask")
    compatibility_weight: float = _field("compatibility_weight", 1.0)
    scale_by_temperature_squared: bool = _field("scale_by_temperature_squared", False)
    trained_tokens: TrainedTokens = _field("trained_tokens", "labels")  # noqa: RUF009
    transfer_mask: str | None = _field("transfer_mask")
    transfer_ratio: float | None = _field("transfer_ratio")
    divergence: str = _field("divergence", "kl")
    blend: str = _field("blend", "probabilities")
    # HfArgumentParser lets a flag stand alone only where its default is a boolean.
    calibrate_teachers: bool | None = _field("calibrate_teachers", nargs="?", const=True)
    check_base: bool = _field("check_base", True)
    loss_chunk_size: int | None = _field("loss_chunk_size")
    skip_unneeded_teachers: bool = _field("skip_unneeded_teachers", True)
    start_from: StartFrom = _field("start_from", "new")  # noqa: RUF009
    old_targets: OldTargets = _field("old_targets", "auto")  # noqa: RUF009
    old_reference: OldReference = _field("old_reference", "student")  # noqa: RUF009
    teacher_cache: str | None = _field("teacher_cache")
    teacher_cache_top_k: int | None = _field("teacher_cache_top_k")

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise MuscleError(f"preset is {self.preset!r}; choose one of {', '.join(PRESETS)}")
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, known in _CHOSEN.items():
            if (value := getattr(self, name)) not in get_args(known):
                raise MuscleError(f"{name} is {value!r}; choose one of {', '.join(get_args(known))}")
        for name in ("mask", "transfer_mask"):
            if not isinstance(value := getattr(self, name), str):
                raise MuscleError(
                    f"{name} is a {type(value).__name__}, which cannot be saved with the settings; name it as "
                    "'package.module:function' here, or pass the function as MuscleTrainer(mask=...)"
                )
        if self.transfer_ratio is not None and not 0 < self.transfer_ratio < float("inf"):
            raise MuscleError(f"transfer_ratio is {self.transfer_ratio}; it must be > 0 (rows per labelled row)")
        if self.teacher_cache_top_k is not None and self.teacher_cache_top_k < 1:
            raise MuscleError(f"teacher_cache_top_k is {self.teacher_cache_top_k}; it must be >= 1")
        if self.loss_chunk_size is not None and self.loss_chunk_size < 0:
            raise MuscleError(f"loss_chunk_size is {self.loss_chunk_size}; it must be >= 1, or 0 for whole logits")
        self.objective()
        super().__post_init__()

    @classmethod
    def of(cls, args: TrainingArguments) -> MuscleConfig:
        """The settings in a trainer's arguments: these themselves, or the method's defaults beside plain ones."""
        if isinstance(args, MuscleConfig):
            return args
        settings = cls.__new__(cls)
        own = {entry.name: entry.default for entry in fields(MuscleConfig) if not hasattr(args, entry.name)}
        vars(settings).update(vars(args) | own | PRESETS["paper"])
        return settings

    def objective(self, mask: MaskFunction | None = None) -> Objective:
        """The objective that the settings describe; a ``mask`` stands in for :attr:`mask`."""
        own, transfer_mask = self.mask if mask is None else mask, self.transfer_mask
        assert own is not None and transfer_mask is not None  # the preset's, if no others
        return Objective(
            temperature=self.temperature,
            mask=resolve_mask(own),
            compatibility_weight=self.compatibility_weight,
            scale_by_temperature_squared=self.scale_by_temperature_squared,
            label_smoothing=self.label_smoothing_factor,
            transfer_mask=resolve_mask(transfer_mask),
            divergence=self.divergence,
            blend=self.blend,
        )
