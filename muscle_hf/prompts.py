"""Transfer rows: inputs without labels, such as a product's own prompts, whose targets come from the teachers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from muscle_hf.encoding import continuation
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import (
    Item,
    Prediction,
    Task,
    evaluate_task,
    evaluate_task_on_server,
    read_predictions,
    write_predictions,
)
from muscle_hf.evaluation.in_vllm import Vllm
from muscle_hf.served.server import Server
from muscle_hf.teachers import Teacher
from muscle_hf.teachers.recorded import RecordedTeacher, require_known
from muscle_hf.training.data import encode_answers
from muscle_hf.training.transfer_rows import AnsweredRows, Models

ANSWERS = ("old", "new", "both", "student", "choices")
FOLDER = "transfer_answers"

Checker = Callable[[Item, str], bool]


@dataclass
class TransferPrompts(AnsweredRows):
    """Prompts whose answers are made by the models, before training or, by the student, before each epoch.

    Only where something is trained comes from the answers; what is trained there comes from the teachers, by
    ``MuscleConfig.transfer_mask``.

    Args:
        prompts: Texts, or items of a task (their right answers are not looked at).
        answers: Whose answers: ``old``, ``new``, ``both`` (two rows where they differ), ``student`` (those of the
            model being trained, anew before each epoch: on-policy), or ``choices``: every choice of an item.
        task: How items are answered; greedy text of up to ``max_new_tokens`` for prompts that are texts.
        max_new_tokens: Where no task says it.
        checker: ``(item, answer) -> bool``: whether an answer, a text without blanks around it, is right. Where the
            answer of one teacher is wrong and that of the other right, the right one is taken.
        end_answers: Train on an EOS after each answer.
        batch_size: Of the answering; chosen automatically by default.
        old_prompts: The prompts in the words that the old model is asked in, one for each of ``prompts``, where these
            are others; items have the same ids and as many choices.
        old_task: How it is asked in them; ``task`` by default.
        servers: Of ``old`` and ``new``, where the answers come from a server that has the same model, such as vLLM,
            which generates faster, or from :class:`~muscle_hf.evaluation.Vllm` in this process.

    Raises:
        MuscleError: No prompts, other ones in the old model's words, an unknown source of answers, choices where there
            are none, or a checker of answers that are not the teachers'.
    """

    prompts: Sequence[str | Item]
    answers: str = "both"
    task: Task | None = None
    max_new_tokens: int = 64
    checker: Checker | None = None
    end_answers: bool = True
    batch_size: int | None = None
    old_prompts: Sequence[str | Item] | None = None
    old_task: Task | None = None
    servers: Mapping[str, Server | Vllm] = field(default_factory=dict)
    items: list[Item] = field(init=False, repr=False)
    old_items: list[Item] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not len(self.prompts):
            raise MuscleError("there are no transfer prompts")
        if self.answers not in ANSWERS:
            raise MuscleError(f"transfer answers are {self.answers!r}; choose one of {', '.join(ANSWERS)}")
        if self.checker is not None and self.answers in ("student", "choices"):
            raise MuscleError(
                f"a checker chooses among the teachers' answers, but answers={self.answers!r} takes none of them; "
                "leave it out, or take old, new or both"
            )
        self.items, self.old_items = (
            [Item(str(place), given) if isinstance(given, str) else given for place, given in enumerate(prompts)]
            for prompts in (self.prompts, self.prompts if self.old_prompts is None else self.old_prompts)
        )
        asked, of_old = ([(item.id, len(item.choices)) for item in items] for items in (self.items, self.old_items))
        if asked != of_old:
            raise MuscleError("old_prompts are not prompts in other words: give one for each, with its id and choices")
        task = self.task
        if task is None:
            if any(item.choices for item in self.items):
                raise MuscleError("these transfer prompts have choices; pass the task= that says how to choose")
            as_item = cast("Any", lambda row, index: row)
            self.task = task = Task("transfer", "generation", as_item, "exact_match", self.max_new_tokens)
        if task.kind == "classification":
            raise MuscleError("a classification head needs no answers: pass its rows without labels instead")
        if self.answers == "choices" and task.kind != "choice":
            raise MuscleError(f"the task {task.name!r} has no choices to train on; take the models' answers")

    @property
    def renewed(self) -> bool:
        """Whether the answers change from epoch to epoch."""
        return self.answers == "student"

    def identity(self) -> str:
        """A hash of the prompts, of whose answers are taken, and of the checker's name."""
        checked = "" if self.checker is None else f" {_checker_name(self.checker)}"
        words = "" if self.old_prompts is None else f" {self._questions('old')}"
        return hashlib.sha256(f"{self._questions()} {self.answers}{checked}{words}".encode()).hexdigest()

    def _asked(self, role: str) -> tuple[Task, list[Item]]:
        if role == "old" and self.old_prompts is not None:
            return self.old_task or cast("Task", self.task), self.old_items
        return cast("Task", self.task), self.items

    def _questions(self, role: str = "new") -> str:
        """What a model is asked."""
        task, items = self._asked(role)
        asked = [(item.id, item.prompt, item.choices) for item in items]
        return hashlib.sha256(repr((asked, task.rules())).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """For the provenance of what is trained on them."""
        rows = len(self.items)
        checker = {} if self.checker is None else {"checker": _checker_name(self.checker)}
        content = {"class": type(self).__name__, "rows": rows, "rows_hashed": rows, "answers": self.answers}
        return {**content, **checker, "sha256": self.identity()}

    def __len__(self) -> int:
        return len(self.items)

    def answered(self, models: Models, epoch: int = 0) -> list[tuple[int, str]]:
        """Numbers of prompts, each with an answer.

        Each model is asked once, and its answers are kept: the teachers' in ``teacher_cache``, else in ``output_dir``.
        """
        if self.answers == "choices":
            return [(index, choice) for index, item in enumerate(self.items) for choice in item.choices]
        if self.answers == "student":
            return list(enumerate(self._ask(models, models.student, f"student-{epoch}")))
        roles = ("old", "new") if self.answers == "both" or self.checker else (self.answers,)
        by_role = {role: self._ask(models, models.teachers[role], role) for role in roles}
        found = []
        for index, item in enumerate(self.items):
            texts = list(dict.fromkeys(by_role[role][index] for role in roles))
            if self.checker is not None:
                right = [text for text in texts if self.checker(item, text.strip())]
                kept = texts if self.answers == "both" else [by_role[self.answers][index]]
                texts = right or kept
            found += [(index, text) for text in (texts if self.answers == "both" else texts[:1])]
        return found

    def _ask(self, models: Models, who: Teacher | nn.Module, name: str) -> list[str]:
        teacher = models.teachers.get(name)
        if teacher is not None and teacher.recorded is not None:
            return self._recorded(teacher.recorded)
        state = PartialState()
        served = None if teacher is None else teacher.served
        server = self.servers.get(name) if served is None else served.server
        # The student's are of the run; what an earlier run left behind is removed when training starts.
        whose = [models.seed] if teacher is None else [*teacher.hashes({})]
        whose += [] if server is None else [server.model]
        key = hashlib.sha256(" ".join(map(str, [self._questions(name), *whose])).encode()).hexdigest()[:16]
        # The teachers' answers serve every run that shares the cache of their hidden states.
        shared = None if who is models.student else models.shared
        file = Path(shared or models.folder, FOLDER, f"{name}-{key}.jsonl")
        known = [read_predictions(file) if state.is_main_process and file.is_file() else None]
        found, (task, items) = broadcast_object_list(known)[0], self._asked(name)
        if found is None:
            asked = [_without_answer(item, task) for item in items]
            if task.kind != "choice":
                task = dataclasses.replace(task, metric="exact_match", similarity=None, extract=None)
            tokenizer, shown = models.tokenizer_of(name), {"progress": models.progress}
            if server is None:
                with contextlib.nullcontext(who) if isinstance(who, nn.Module) else who.answering() as model:
                    found = evaluate_task(model, tokenizer, task, asked, batch_size=self.batch_size, **shown)
            elif isinstance(server, Vllm):
                found = server.evaluate(task, asked, partial=file.with_suffix(".partial"))
            else:
                there = dataclasses.replace(server, tokenizer=tokenizer)
                found = evaluate_task_on_server(there, task, asked, partial=file.with_suffix(".partial"), **shown)
            if state.is_main_process:
                write_predictions(file, found)
                file.with_suffix(".partial").unlink(missing_ok=True)
        return [_text(item, prediction) for item, prediction in zip(self.items, found, strict=True)]

    def _recorded(self, who: RecordedTeacher) -> list[str]:
        found = [who.said(item.prompt) for item in self.items]
        unknown = [item.prompt for item, said in zip(self.items, found, strict=True) if said is None]
        require_known(unknown, len(found), who, "transfer prompts")
        return [said or "" for said in found]

    def rows(self, models: Models, epoch: int = 0) -> list[dict[str, list[int]]]:
        """Tokenized rows with ``labels`` on the answers alone; refused without a tokenizer, or where no answer has a
        token to train on."""
        found = [(index, text) for index, text in self.answered(models, epoch) if text.strip()]
        if not found:
            raise MuscleError(f"every answer of {self.answers!r} to the {len(self.items)} transfer prompts is empty")
        pairs = [(self.items[index].prompt, text) for index, text in found]
        rows = encode_answers(models.tokenizer, pairs, answers_only=True, end_answers=self.end_answers)
        if self.old_prompts is not None and models.teachers["old"].reader is not None:
            from muscle_hf.training.reading import tell_old_words

            words = [
                (self.old_items[index].prompt, _in_other_words(text, self.items[index], self.old_items[index]))
                for index, text in found
            ]
            told = zip((row["input_ids"] for row in rows), words, strict=True)
            tell_old_words(models.teachers["old"], models.tokenizer, told)
        return rows

    def forget(self, folder: str | os.PathLike) -> None:
        """Remove the student's answers of an earlier run in a folder."""
        for file in Path(folder, FOLDER).glob("student-*.jsonl"):
            file.unlink()


def _checker_name(checker: Checker) -> str:
    return getattr(checker, "__qualname__", type(checker).__qualname__)


def _without_answer(item: Item, task: Task) -> Item:
    # The engine scores what it answers; of these items nothing right is known, or nobody is to know it.
    kept = {"answers": (0,)} if task.kind == "choice" else {"references": ("",)}
    return Item(id=item.id, prompt=item.prompt, choices=item.choices, **kept)


def _text(item: Item, prediction: Prediction) -> str:
    if item.choices:
        return item.choices[prediction.prediction]
    return continuation(item.prompt, str(prediction.prediction))


def _in_other_words(text: str, item: Item, other: Item) -> str:
    """An answer as it goes on behind the same item's prompt in other words."""
    if item.choices:
        return other.choices[item.choices.index(text)]
    lead = other.references[0] if other.references else text
    return lead[: len(lead) - len(lead.lstrip())] + text.lstrip()
