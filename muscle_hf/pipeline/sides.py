"""How each version of an update is asked: in the words of its own task, its own chat template and tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from muscle_hf.choice_log import require_likelihoods
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.engine import chat_prompts
from muscle_hf.evaluation.predictions import Prediction, item_hash
from muscle_hf.evaluation.registry import load_task
from muscle_hf.evaluation.rows import read_rows
from muscle_hf.evaluation.scoring import chosen_prediction, predictions_from
from muscle_hf.evaluation.tasks import Item, Task
from muscle_hf.pipeline.config import DataSettings, ModelSettings
from muscle_hf.pipeline.data import Splits, TrainingData, load_splits
from muscle_hf.pipeline.steps import load_tokenizer
from muscle_hf.tokens import compare_vocabularies

# Whose rows the compatibility adapter is trained on or selected by.
TRAINED_PARTS = ("train", "validation", "transfer")
_PARTS = tuple(field.name for field in fields(Splits))


@dataclass(frozen=True)
class Side:
    """One version as it is asked: its tokenizer, its task (None: nothing is evaluated) and the rows in its words."""

    tokenizer: PreTrainedTokenizerBase
    task: Task | None
    splits: Splits


def side_of(version: ModelSettings, task: Task | None, splits: Splits) -> Side:
    """A version whose prompts are put into the chat template that its settings name."""
    tokenizer = load_tokenizer(version)
    if version.chat_template is None:
        return Side(tokenizer, task, splits)

    def in_template(rows: Any) -> Any:
        if not isinstance(rows, Sequence):
            return rows  # TRL puts them into the tokenizer's template
        return [replace(item, prompt=p) for item, p in zip(rows, chat_prompts(tokenizer, rows), strict=True)]

    return Side(tokenizer, task, Splits(**{part: in_template(getattr(splits, part)) for part in _PARTS}))


def in_own_words(version: ModelSettings, task: Task, splits: Splits, data: DataSettings) -> tuple[Task, Splits]:
    """The task and the rows of a version that is asked by a task of its own, judged by the metric of the run's; the
    first item that is another one is refused."""
    own = load_task(version.task or task)
    if own.kind != task.kind:
        raise MuscleError(f"old.task: {own.name!r} is a {own.kind} task, but the run's task is a {task.kind} task")
    own = replace(own, name=task.name, metric=task.metric, similarity=task.similarity)
    found = load_splits(own, data)
    for part in _PARTS:
        for item, other in zip(getattr(splits, part), getattr(found, part), strict=True):
            if _question(item) != _question(other):
                raise MuscleError(
                    f"old.task: item {other.id!r} of the {part} rows is another one than under task (its id, number "
                    f"of choices and right answers are {_question(other)}, not {_question(item)}). Both tasks ask the "
                    "same rows: give the second file the same id, the choices in the same order, and the same answer"
                )
    return own, found


def _question(item: Item) -> tuple[str, int, tuple[int, ...], list[str]]:
    """What of an item does not depend on the words it is asked in."""
    return item.id, len(item.choices), item.answers, [text.strip() for text in item.references]


def level_of(old: Side, new: Side) -> str:
    """How far two tokenizers agree; ``foreign`` also where tokens are no byte strings: scores can be followed."""
    try:
        return compare_vocabularies(old.tokenizer, new.tokenizer).level
    except MuscleError:
        return "foreign"


def words_of_old(old: Side, new: Side, data: TrainingData) -> Callable[[Mapping[str, Any]], tuple[str, str]] | None:
    """From a row in v2's words and tokens to prompt and answer in v1's words; None where both have the same."""
    if old.splits == new.splits:
        return None
    parts: Any = ((data.train, old.splits.train), (data.validation, old.splits.validation))
    pairs = [(row, item) for rows, items in parts for row, item in zip(rows, items, strict=True)]
    words = {tuple(row["input_ids"]): (item.prompt, item.target) for row, item in pairs}
    return lambda row: words[tuple(row["input_ids"])]


def recorded_answers(files: Sequence[str], task: Task, items: Sequence[Item]) -> list[Prediction]:
    """v1's answers to items as it was asked them, from logs of its answers; they are told by their prompts."""
    rows: dict[Any, Any] = {}
    for row in (row for file in files for row in read_rows(file, "test")):
        if not isinstance(row.get("prompt"), (str, type(None))):
            raise MuscleError(f"old.answers: a prompt must be a text, not {row['prompt']!r:.200}")
        if rows.setdefault(row.get("prompt"), row).get("prediction") != row.get("prediction"):
            raise MuscleError(
                f"old.answers: two answers to one prompt ({str(row.get('prompt'))[-60:]!r}); a recipe takes one. In a "
                "script muscle_hf.ChoiceLog makes shares of several"
            )
    missing = [item.id for item in items if item.prompt not in rows]
    if missing:
        raise MuscleError(
            f"old.answers: {len(missing)} of {len(items)} items have no answer, for example {missing[:3]}. Ask v1 "
            "about these rows too (muscle-hf evaluate, --split, --start, --limit); if it was asked in other words, "
            "give old.task"
        )
    found = []
    for item in items:
        said, scores = rows[item.prompt].get("prediction"), rows[item.prompt].get("log_likelihoods")
        if task.kind == "choice" and scores is not None:
            require_likelihoods(scores, item.choices, f"old.answers, item {item.id!r}")
        if task.kind == "choice" and scores is None:
            texts = [choice.strip() for choice in item.choices]
            chosen = texts.index(str(said).strip()) if str(said).strip() in texts else said
            if chosen not in range(len(texts)):
                raise MuscleError(f"old.answers: {said!r} to item {item.id!r} is none of the choices {texts}")
            scores = [float(index == chosen) for index in range(len(texts))]
            found.append(replace(chosen_prediction(task, item, scores), log_likelihoods=None))
        else:
            found += predictions_from(task, [item], {item.id: scores if task.kind == "choice" else str(said)})
    return found


def check_answers(old: ModelSettings, side: Side, trains: bool, chooses: bool) -> None:
    """Look for v1's answers to all rows, if it is known by these, also to those that are trained on; and for scores
    with them where they ``chooses`` what is followed. As :func:`recorded_answers`."""
    for part in ("test", *(TRAINED_PARTS if trains else ())) if old.answers else ():
        found = recorded_answers(old.answers or [], cast("Task", side.task), getattr(side.splits, part))
        if chooses and part == "validation" and not all(answer.log_likelihoods for answer in found):
            raise MuscleError(
                "data.transfer.target: chosen needs v1's score of each choice (log_likelihoods), and old.answers has "
                "answers alone; leave it out, and training.mask and training.transfer_mask say what is followed"
            )


def as_asked(answers: Sequence[Prediction], items: Sequence[Item]) -> list[Prediction]:
    """Predictions for items, of which a version was asked in words of its own."""
    return [
        replace(
            answer, hash=item_hash(item), prompt=item.prompt, choices=list(item.choices) or None, columns=item.columns
        )
        for answer, item in zip(answers, items, strict=True)
    ]
