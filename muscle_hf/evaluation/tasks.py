"""What a task is: items to answer, and the rule that says when an answer is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from muscle_hf.errors import MuscleError

TaskKind = Literal["choice", "generation", "classification"]


@dataclass(frozen=True)
class Item:
    """One question of a task.

    Args:
        id: Unique within the task and stable between runs; old and new predictions are joined on it.
        prompt: The text the model is given.
        choices: Choice tasks: the continuations of ``prompt``, each with its leading space if it needs one.
        answers: Choice and classification tasks: indices of the right choices or classes (usually one).
        references: Generation tasks: right answers, with the leading space that follows the prompt if there is one
            (outer blanks never count when answers are scored); a task adapter is trained on the first.
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
class Source:
    """Where the rows of a task are on the Hub.

    Args:
        path: Dataset id.
        name: Configuration of the dataset, None for its default.
        revision: Branch, tag or commit of the dataset.
        splits: The task's split -> the dataset's split, where they differ.
    """

    path: str
    name: str | None = None
    revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """How rows become items, and how answers are scored.

    Args:
        name: Name of the task in tables, logs and file names.
        kind: ``choice`` (highest log-likelihood), ``generation`` (free text) or ``classification`` (a head).
        to_item: Turns row ``i`` of a split into an :class:`Item`.
        metric: ``acc``, ``acc_norm`` (log-likelihood per character) or ``acc_bytes`` (per UTF-8 byte) for choices,
            ``acc`` for classification, ``exact_match`` or the name of a similarity (``rouge1``, ...) for generation.
            A name that is not known, or whose package is missing, is refused when the task is made.
        max_new_tokens: Generation: the most tokens an answer may have.
        stop: Generation: the answer ends before the first of these strings.
        no_repeat_ngram_size: Generation: 0 for none (the paper uses 2 on SAMSum).
        extract: Exact match: what of the answer is compared, ``gsm8k`` or ``last_number`` or a function of the text;
            None for all of it.
        similarity: Generation: a callable ``(prediction, references) -> float`` to use in place of the one that
            ``metric`` names; ``metric`` is then just its name, by default that of the function.
        source: Where the rows are on the Hub, if they are.
    """

    name: str
    kind: TaskKind
    to_item: Callable[[Mapping[str, Any], int], Item]
    metric: str = "acc"
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    no_repeat_ngram_size: int = 0
    extract: str | Callable[[str], str | None] | None = None
    similarity: Callable[[str, Sequence[str]], float] | None = None
    source: Source | None = None

    def __post_init__(self) -> None:
        if self.kind == "generation" and self.metric == "acc":  # the default, which is one of choices
            if self.similarity is None:
                raise MuscleError(f"task {self.name!r}: a generation task needs metric='exact_match' or a similarity")
            name = getattr(self.similarity, "__name__", "")
            object.__setattr__(self, "metric", name if name.isidentifier() else "similarity")
        known = METRICS.get(self.kind)
        if known is None:
            raise MuscleError(f"task {self.name!r}: unknown kind {self.kind!r}; use one of {', '.join(METRICS)}")
        if known and self.metric not in known:
            raise MuscleError(
                f"task {self.name!r}: a {self.kind} task is scored by {' or '.join(known)}, not {self.metric!r}"
            )
        if self.kind == "generation":
            self._check_scoring()

    def _check_scoring(self) -> None:
        """Answers are scored after all are generated, often after a training: too late for a mistyped name."""
        from muscle_hf.metrics.similarity import check_similarity, get_extractor

        if self.extract is not None:
            get_extractor(self.extract)
        if self.similarity is None:
            check_similarity(self.metric)
        if self.similarity is None and self.metric == "bertscore":
            raise MuscleError(
                f"task {self.name!r}: the name bertscore says no encoder; write the task in Python, with "
                'metric="bertscore" and similarity=BertScore(model="folder or Hub id") of muscle_hf.metrics.bertscore'
            )

    @property
    def exact(self) -> bool:
        """Whether answers are right or wrong, rather than more or less similar to the references."""
        return self.kind != "generation" or (self.metric == "exact_match" and self.similarity is None)

    def rules(self) -> dict[str, Any]:
        """How answers are made and scored, without functions, whose text differs from process to process."""
        return {key: value for key, value in vars(self).items() if not callable(value)}


def describe_item(task: Task, item: Item, prompt: str | None = None) -> str:
    """An item as the model sees it, and what counts as right; ``prompt`` where it is in a chat template."""
    if task.kind == "choice":
        how = "Choices, of which the likeliest is the answer (* is right):"
        shown = [f"{'*' if at in item.answers else ' '} {text!r}" for at, text in enumerate(item.choices)]
    elif task.kind == "classification":
        how, shown = "Right classes:", [f"* {answer}" for answer in item.answers]
    else:
        stops = f" or before {', '.join(map(repr, task.stop))}" if task.stop else ""
        how = f"References, with which the answer is compared (it ends after {task.max_new_tokens} tokens{stops}):"
        shown = [f"* {text!r}" for text in item.references]
    lines = "\n".join(f"  | {line}" for line in (item.prompt if prompt is None else prompt).split("\n"))
    return f"Item {item.id} of {task.name}. Prompt:\n{lines}\n{how}\n" + "\n".join(f"  {line}" for line in shown)


# Task kind -> the metrics it may have; empty: exact_match or any similarity.
METRICS: dict[str, tuple[str, ...]] = {
    "choice": ("acc", "acc_norm", "acc_bytes"),
    "generation": (),
    "classification": ("acc",),
}
