"""Answers of an evaluation that is not done: kept as they come, so that it goes on from there after it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError, SaveError
from muscle_hf.evaluation.predictions import item_hash
from muscle_hf.evaluation.tasks import Item, Task
from muscle_hf.files import StrPath, json_rows, write_text
from muscle_hf.record import json_sha256


class PartialAnswers:
    """A file with a line for the run (``who``: plain data on what answers, and its settings), then one per answer."""

    def __init__(self, path: StrPath, who: Any, task: Task, chat: bool):
        settings = [who, task.name, task.kind, chat, task.max_new_tokens, list(task.stop), task.no_repeat_ngram_size]
        self.path = Path(path)
        self.identity = json_sha256(settings)[:16]
        self._kept: set[str] = set()

    def read(self, items: Sequence[Item]) -> dict[str, Any]:
        """Answers to those of the items that have one, by their ids; starts the file if there is none."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        # The last line may have been cut off when the run broke.
        whole = content[: content.rfind(b"\n") + 1].decode("utf-8", errors="replace")
        rows = [row for _, row in json_rows(whole.splitlines(), self.path)]
        if rows and rows[0] != {"run": self.identity}:
            raise MuscleError(
                f"{self.path} holds answers of another run (another model, task or setting); delete it to start anew"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, whole or json.dumps({"run": self.identity}) + "\n")
        wanted = {(item.id, item_hash(item)) for item in items}
        if any({"id", "hash", "answer"} - row.keys() for row in rows[1:]):
            raise MuscleError(f"{self.path} is damaged; delete it to start anew")
        answers = {row["id"]: row["answer"] for row in rows[1:] if (row["id"], row["hash"]) in wanted}
        self._kept.update(answers)
        return answers

    def add(self, item: Item, answer: Any) -> None:
        """Keep one more answer; one that is kept already is passed over."""
        if item.id in self._kept:
            return
        self._kept.add(item.id)
        row = json.dumps({"id": item.id, "hash": item_hash(item), "answer": answer})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(row + "\n")
        except OSError as error:
            raise SaveError(
                f"{self.path} cannot be written: {error.strerror or error}. Make room; the same command goes on after "
                "the answers that it holds"
            ) from error


def all_answers(
    kept: PartialAnswers | None, items: Sequence[Item], ask: Callable[[Sequence[Item]], Iterable[tuple[Item, Any]]]
) -> dict[str, Any]:
    """By id, the answers that are kept, and those that ``ask`` gives for the other items, kept as they come."""
    answers = {} if kept is None else kept.read(items)
    if missing := [item for item in items if item.id not in answers]:
        for item, answer in ask(missing):
            answers[item.id] = answer
            if kept is not None:
                kept.add(item, answer)
    return answers
