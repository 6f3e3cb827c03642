"""What a task is: items to answer, and the rule that says when an answer is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TaskKind = Literal["choice", "generation", "classification"]


@dataclass(frozen=True)
class Item:
    """One question of a task.

    Args:
        id: Unique within the task and stable between runs; old and new predictions are joined on it.
        prompt: The text the model is given.
        choices: Choice tasks: the continuations of ``prompt``, each with its leading space if it needs one.
        answers: Choice and classification tasks: indices of the right choices or classes (usually one).
        references: Generation tasks: right answers; the first one is what a task adapter is trained on.
        columns: Further properties of the row, for slices and clusters.
    """

    id: str
    prompt: str
    choices: tuple[str, ...] = ()
    answers: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The right continuation of ``prompt``: what training appends to it."""
        return self.references[0] if self.references else self.choices[self.answers[0]]


@dataclass(frozen=True)
class Task:
    """How rows become items, and how answers are scored.

    Args:
        name: Name of the task in tables, logs and file names.
        kind: ``choice`` (highest log-likelihood), ``generation`` (free text) or ``classification`` (a head).
        to_item: Turns row ``i`` of a split into an :class:`Item`.
        metric: ``acc`` or ``acc_norm`` for choices, ``acc`` for classification, ``exact_match`` or the name of a
            similarity (``rouge1``, ...) for generation.
        max_new_tokens: Generation: the most tokens an answer may have.
        stop: Generation: the answer ends before the first of these strings.
        no_repeat_ngram_size: Generation: 0 for none (the paper uses 2 on SAMSum).
    """

    name: str
    kind: TaskKind
    to_item: Callable[[Mapping[str, Any], int], Item]
    metric: str = "acc"
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    no_repeat_ngram_size: int = 0
