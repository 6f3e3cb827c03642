"""Callbacks for a ``Trainer``: flip metrics of the model in training, at every evaluation."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from muscle_hf.choice_log import ChoiceLog
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.engine import evaluate_task
from muscle_hf.evaluation.loading import load_for_evaluation
from muscle_hf.evaluation.predictions import Prediction, predictions_of, read_predictions, update_between
from muscle_hf.evaluation.scoring import check_items
from muscle_hf.evaluation.state import random_state_kept
from muscle_hf.evaluation.tasks import Item, Task
from muscle_hf.teachers.checks import text_tokenizer
from muscle_hf.teachers.teacher import Teacher

logger = logging.getLogger(__name__)

# What one side of the comparison may be given as.
Side = Sequence[Prediction] | str | os.PathLike[str] | torch.nn.Module | Teacher


class FlipMetricsCallback(TrainerCallback):
    """Flips of the model in training against the old model, and against the new one, at every evaluation.

    For a ``MuscleTrainer`` or any other ``Trainer``. The two models' predictions are computed once and kept. The
    metrics are in the evaluation's ``metrics`` before the best model is chosen, so that
    ``metric_for_best_model="eval_nfr"`` works, in the logs, and so in the provenance that a ``MuscleTrainer`` saves.
    Training is bit for bit what it is without it.

    The keys, after ``eval_`` and ``prefix``: ``acc``, ``nfr``, ``pfr``, ``nfr_mc`` (choice and classification),
    ``btc``, ``relative_nfr`` of the model in training against the old one, and ``acc_old``; with a new model also
    ``acc_new``, ``nfr_new`` and ``pfr_new`` (the update without compatibility), ``delta_nfr``, ``delta_nfr_percent``
    (the paper's Delta and Delta%), and ``nfr_against_new``, ``pfr_against_new``. Tasks with a similarity have
    ``score``, ``nfr``, ``pfr``, ``m_g``, ``m_r`` instead.

    Args:
        task: What is asked.
        items: Items to ask at every evaluation; a few hundred make a useful signal.
        old: The old model (v1): predictions, a prediction file (``.jsonl``), a model in memory, or a folder or Hub id
            of an adapter or model. None with a ``MuscleTrainer``: its teacher.
        new: The new model (v2), in the same forms, or None: none, or the teacher of a ``MuscleTrainer``.
        trainer: The trainer it is added to. A ``MuscleTrainer`` makes itself known; a plain ``Trainer`` has to be
            named here for trackers (W&B, TensorBoard, ...) to get the metrics, and for those to be there in time for
            ``EarlyStoppingCallback``, if that was added first.
        tokenizer: The tokenizer of the model in training; the trainer's ``processing_class`` by default.
        old_tokenizer: The old model's tokenizer, if ``old`` is a model in memory with another one.
        old_items: ``items`` in the words that the old model is asked in, where these are others: the same ids, right
            answers and number of choices.
        old_task: How it is asked in them; ``task`` by default. ``task`` says what is right.
        batch_size: See :func:`~muscle_hf.evaluation.evaluate_task`.
        chat: See :func:`~muscle_hf.evaluation.evaluate_task`.
        prefix: Put before the metrics' names, to tell several callbacks apart.
        epsilon: Similarity tasks: changes of at most this size are no flips.
        progress: Show a progress bar for each evaluation.

    Raises:
        MuscleError: The predictions given are not those of ``items``; or ``old`` is missing, or is trained in other
            words without ``old_items``, which shows at the start of training or evaluation.

    Examples:
        ``MuscleTrainer(..., callbacks=[FlipMetricsCallback(task, items)])``

        ``trainer.add_callback(FlipMetricsCallback(task, items, old="v1.jsonl", trainer=trainer))``
    """

    def __init__(
        self,
        task: Task,
        items: Sequence[Item],
        old: Side | None = None,
        new: Side | None = None,
        *,
        trainer: Trainer | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        old_tokenizer: PreTrainedTokenizerBase | None = None,
        old_items: Sequence[Item] | None = None,
        old_task: Task | None = None,
        batch_size: int | None = None,
        chat: bool = False,
        prefix: str = "",
        epsilon: float = 0.0,
        progress: bool = False,
    ):
        check_items(task, items)
        self.task, self.items = task, list(items)
        self._own_words = old_items is not None
        same = {"name": task.name, "metric": task.metric, "similarity": task.similarity, "extract": task.extract}
        asked = task if old_task is None else replace(old_task, **same)
        self._asked = {"new": (task, self.items), "old": (asked, list(old_items or self.items))}
        check_items(*self._asked["old"])
        mine, theirs = ([(i.id, len(i.choices), i.answers) for i in asked] for _, asked in self._asked.values())
        if mine != theirs:
            raise MuscleError(
                "old_items are not the items in other words: they need the same ids, numbers of choices and right "
                "answers in the same order"
            )
        self.trainer: Trainer | None = None
        self.tokenizer = tokenizer
        self.prefix = prefix
        self.epsilon = epsilon
        self.history: list[dict[str, float]] = []
        self._settings = {"batch_size": batch_size, "chat": chat, "progress": progress}
        # Predictions that are there already are checked now rather than at the first evaluation.
        self._sides: dict[str, Any] = {
            role: self._given(role, side) if _is_predictions(side) else side
            for role, side in (("old", old), ("new", new))
        }
        self._tokenizers = {"old": old_tokenizer, "new": None}
        self._training = False
        self._measured: dict[int, dict[str, float]] = {}  # by step
        if trainer is not None:
            self.bind_trainer(trainer)
            self._require_old()

    def bind_trainer(self, trainer: Trainer) -> None:
        """Get to know the trainer, unless one was named before; a ``MuscleTrainer`` calls this by itself."""
        if self.trainer is not None:
            return
        self.trainer = trainer
        for role, teacher in getattr(trainer, "teachers", {}).items():
            if self._sides[role] is None:
                self._sides[role] = teacher

    def _require_old(self) -> None:
        if self._sides["old"] is None:
            raise MuscleError(
                "no old model: pass old= (predictions, a prediction file or a model) to FlipMetricsCallback, or use a "
                "MuscleTrainer, whose teacher is taken"
            )

    # ---- Events ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the old (and the new) model, unless their predictions are there."""
        self._training, self._measured = True, {}
        self._require_old()
        self._come_first()
        for role, side in self._sides.items():
            if side is not None:
                self.predictions(role, kwargs.get("processing_class"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on each evaluation is measured by itself."""
        self._training = False

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Measure the flips of the model in training and put them into ``metrics``, the history and the trackers."""
        self._require_old()
        # Several evaluation sets at one step of a training: the answers cannot have changed between them.
        known = self._measured.get(state.global_step) if self._training else None
        found = known or self._measure(kwargs["model"], kwargs.get("processing_class"))
        self._measured = {state.global_step: found}
        named = {f"{_prefix_of(metrics)}{self.prefix}{name}": value for name, value in found.items()}
        metrics.update(named)
        if not known:
            self.history.append({"step": state.global_step, **found})
            self._log(named, args, state)

    # ---- Measuring ----

    def predictions(self, role: str, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Prediction]:
        """The predictions of the ``old`` or ``new`` model, computed at the first call."""
        side = self._sides[role]
        if not isinstance(side, list):
            tokenizer = self._tokenizers[role] or getattr(side, "tokenizer", None) or self.tokenizer or tokenizer
            with random_state_kept():
                # The model's memory is needed for training.
                self._sides[role] = self._computed(role, side, tokenizer)
        return self._sides[role]

    def _measure(self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, float]:
        old = self.predictions("old", tokenizer)
        new = self.predictions("new", tokenizer) if self._sides["new"] is not None else None
        current = self._run("new", model, self.tokenizer or tokenizer)
        return training_flips(old, current, new, epsilon=self.epsilon)

    def _run(self, role: str, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> list[Prediction]:
        if tokenizer is None:
            raise MuscleError("flip metrics need the tokenizer; pass tokenizer=, or processing_class= to the trainer")
        return evaluate_task(model, text_tokenizer(tokenizer), *self._asked[role], **self._settings)

    def _computed(self, role: str, side: Any, tokenizer: PreTrainedTokenizerBase | None) -> list[Prediction]:
        if isinstance(side, ChoiceLog):
            return self._given(role, side.predictions)
        if isinstance(side, Teacher):
            self._require_words(side)
            with side.answering() as model:
                return self._run(role, model, tokenizer)
        if isinstance(side, torch.nn.Module):
            return self._run(role, side, tokenizer)
        device = self.trainer.args.device if self.trainer is not None else None
        model, own_tokenizer = load_for_evaluation(side, self.task, device=device, dtype="auto")
        return self._run(role, model, own_tokenizer)

    def _require_words(self, teacher: Teacher) -> None:
        words = None if teacher.reader is None else teacher.reader.words
        if words is None or self._own_words or (words == "chat template" and self._settings["chat"]):
            return
        raise MuscleError(
            f"v1 has words of its own ({words}), but FlipMetricsCallback would ask it in v2's; pass the items in v1's "
            "words as old_items=, or its answers as old= (with chats, chat=True puts the items' prompts into each "
            "model's own template)"
        )

    def _given(self, role: str, side: Any) -> list[Prediction]:
        """Predictions from a file or a list, in the order of the items."""
        given = side if not isinstance(side, (str, os.PathLike)) else read_predictions(side)
        task, items = self._asked[role]
        return predictions_of(items, given, task.name, role)

    # ---- Logs ----

    def _come_first(self) -> None:
        """Move in front of callbacks that read metrics (early stopping)."""
        if self.trainer is not None:
            callbacks = self.trainer.callback_handler.callbacks
            if self in callbacks:
                callbacks.remove(self)
                callbacks.insert(0, self)

    def _log(self, named: Mapping[str, float], args: Any, state: Any) -> None:
        if self.trainer is not None:
            self.trainer.log(dict(named))
            return
        # Trainer.evaluate has logged before it calls us, and only a trainer can reach its trackers.
        state.log_history.append({**named, "epoch": state.epoch, "step": state.global_step})
        if args.report_to and not getattr(self, "_warned", False):
            self._warned = True
            logger.warning("flip metrics do not reach %s; pass trainer= to FlipMetricsCallback", args.report_to)


def training_flips(
    old: Sequence[Prediction],
    current: Sequence[Prediction],
    new: Sequence[Prediction] | None = None,
    *,
    epsilon: float = 0.0,
) -> dict[str, float]:
    """Flip metrics of the ``current`` model in training, by the names that :class:`FlipMetricsCallback` lists; all
    predictions are of the same items in the same order."""
    found = update_between(old, current, epsilon).numbers()
    if new is not None:
        value = "score" if "score" in found else "acc"
        update, against = (update_between(*pair, epsilon).numbers() for pair in ((old, new), (new, current)))
        found |= {f"{name}_new": update[name] for name in (value, "nfr", "pfr")}
        found |= {f"{name}_against_new": against[name] for name in ("nfr", "pfr")}
        found["delta_nfr"] = found["nfr"] - update["nfr"]
        found["delta_nfr_percent"] = 100 * found["delta_nfr"] / update["nfr"] if update["nfr"] else math.nan
    # A rate over no item at all is left out of the logs: nan is no JSON.
    return {name: float(number) for name, number in found.items() if not math.isnan(number)}


def _is_predictions(side: Any) -> bool:
    if isinstance(side, (str, os.PathLike)):
        return os.fspath(side).endswith(".jsonl")
    return isinstance(side, Sequence)


def _prefix_of(metrics: Mapping[str, float]) -> str:
    """``eval_`` at evaluations, also of one of several sets; else the prefix that ``evaluate`` was called with."""
    timed = next((name for name in metrics if name.endswith("_runtime")), "eval_runtime")
    prefix = timed.removesuffix("runtime")
    return "eval_" if prefix.startswith("eval_") else prefix
