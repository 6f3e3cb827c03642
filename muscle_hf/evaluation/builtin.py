"""The tasks that are ready to use. Prompts and rules are those of the paper (appendix A.2) and lm-evaluation-harness.

Every ``to_item`` takes a row as the Hub's dataset has it and as the original files have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.tasks import Item, Source, Task
from muscle_hf.files import read_json

Row = Mapping[str, Any]


def _value(row: Row, *names: str) -> Any:
    """The first of the columns that the row has."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise MuscleError(f"a row has none of the columns {', '.join(names)}; it has: {', '.join(row)}")


def _id(row: Row, index: int, *names: str) -> str:
    return str(next((row[name] for name in names if row.get(name) is not None), index))


def _label(row: Row, count: int, *names: str, first: int = 0) -> int:
    """A class number counted from 0; test splits whose labels are kept back have -1."""
    value = int(_value(row, *names)) - first
    if not 0 <= value < count:
        raise MuscleError(f"label {value + first} is not one of {count} classes; is this a split without labels?")
    return value


def _choice(id: str, prompt: str, texts: Iterable[str], answer: int, **columns: Any) -> Item:
    return Item(id, prompt, tuple(f" {text}" for text in texts), (answer,), columns=columns)


def _piqa(row: Row, index: int) -> Item:
    return _choice(
        str(index), f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]), _label(row, 2, "label")
    )


def _clean_hellaswag(text: str) -> str:
    """Drop the marks that the WikiHow part carries, in the order the harness does it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _hellaswag(row: Row, index: int) -> Item:
    if "ctx_a" in row:
        context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    else:
        # Only the joined context is there: a last sentence without an end is ctx_b, which the harness capitalises.
        context = re.sub(r"([.!?]['\")]*\s+)([a-z])([^.!?]*)$", lambda m: m[1] + m[2].upper() + m[3], row["ctx"])
    prompt, endings = _clean_hellaswag(f"{row['activity_label']}: {context}"), map(_clean_hellaswag, row["endings"])
    answer = _label(row, len(row["endings"]), "label")
    return _choice(str(index), prompt, endings, answer, activity_label=row["activity_label"])


def _gsm8k(row: Row, index: int) -> Item:
    return Item(id=str(index), prompt=f"Question: {row['question']}\nAnswer:", references=(f" {row['answer']}",))


def _samsum(row: Row, index: int) -> Item:
    # The corpus has Windows line ends in some copies and Unix ones in others.
    dialogue = row["dialogue"].replace("\r\n", "\n")
    return Item(
        id=_id(row, index, "id"), prompt=f"Dialogue: {dialogue}\nSummary:", references=(f" {row['summary'].strip()}",)
    )


def _dialogsum(row: Row, index: int) -> Item:
    summaries = [row[name] for name in ("summary", "summary1", "summary2", "summary3") if row.get(name)]
    return Item(
        id=_id(row, index, "fname", "id"),
        prompt=f"Dialogue: {row['dialogue']}\nSummary:",
        references=tuple(f" {summary.strip()}" for summary in summaries),
        columns={"topic": row["topic"]} if row.get("topic") else {},
    )


def _sst2(row: Row, index: int) -> Item:
    prompt = f"{_value(row, 'text', 'sentence')}\nQuestion: Is this sentence positive or negative?\nAnswer:"
    return _choice(_id(row, index, "idx"), prompt, ("negative", "positive"), _label(row, 2, "label"))


# Code -> the word that a language model would say; the order is that of the Hub's class labels.
_TREC = {
    "ABBR": "abbreviation",
    "ENTY": "entity",
    "DESC": "description",
    "HUM": "person",
    "LOC": "location",
    "NUM": "number",
}


def _trec(row: Row, index: int) -> Item:
    value = _value(row, "coarse_label", "label")
    codes = list(_TREC)
    answer = codes.index(value) if value in codes else _label(row, len(codes), "coarse_label", "label")
    fine = {"fine": row["fine"]} if "fine" in row else {}
    return _choice(str(index), f"Question: {row['text']}\nType of answer:", _TREC.values(), answer, **fine)


def _ag_news(row: Row, index: int) -> Item:
    original = "title" in row
    text = f"{row['title']} {row['description']}" if original else row["text"]
    answer = _label(row, 4, "label", first=1 if original else 0)
    topics = ("World", "Sports", "Business", "Technology")
    return _choice(str(index), f"Article: {text}\nTopic:", topics, answer)


def _labelled_choices(row: Row) -> tuple[Sequence[str], int]:
    """Texts of the choices and the index of the right one, whether labels are letters or numbers."""
    choices = row["choices"]
    texts, labels = (
        (choices["text"], choices["label"]) if isinstance(choices, Mapping) else (choices, row["choice_labels"])
    )
    answer = str(_value(row, "answerKey", "answer")).strip()
    if answer not in labels:
        raise MuscleError(
            f"the answer {answer!r} is not one of the labels {list(labels)}; is this a split without them?"
        )
    return texts, list(labels).index(answer)


def _arc(row: Row, index: int) -> Item:
    return _choice(_id(row, index, "id"), f"Question: {row['question']}\nAnswer:", *_labelled_choices(row))


def _openbookqa(row: Row, index: int) -> Item:
    return _choice(_id(row, index, "id"), _value(row, "question_stem", "question"), *_labelled_choices(row))


_SUMMARY: dict[str, Any] = {
    "metric": "rouge1",
    "max_new_tokens": 128,
    "stop": ("Dialogue:", "Summary:", "</s>", "\n\n"),
    "no_repeat_ngram_size": 2,
}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # Public test labels do not exist for PIQA and HellaSwag; results everywhere are on the validation split.
        Task("piqa", "choice", _piqa, source=Source("baber/piqa", splits={"test": "validation"})),
        Task("hellaswag", "choice", _hellaswag, source=Source("Rowan/hellaswag", splits={"test": "validation"})),
        Task(
            "gsm8k",
            "generation",
            _gsm8k,
            metric="exact_match",
            extract="gsm8k",
            max_new_tokens=256,
            stop=("Question:", "</s>", "<|im_end|>"),
            source=Source("openai/gsm8k", "main"),
        ),
        Task("samsum", "generation", _samsum, source=Source("knkarthick/samsum"), **_SUMMARY),
        Task("dialogsum", "generation", _dialogsum, source=Source("knkarthick/dialogsum"), **_SUMMARY),
        Task("sst2", "choice", _sst2, source=Source("stanfordnlp/sst2", splits={"test": "validation"})),
        Task("trec", "choice", _trec, source=Source("CogComp/trec", revision="refs/convert/parquet")),
        Task("ag_news", "choice", _ag_news, source=Source("fancyzhx/ag_news")),
        Task("arc_easy", "choice", _arc, source=Source("allenai/ai2_arc", "ARC-Easy")),
        Task("openbookqa", "choice", _openbookqa, source=Source("allenai/openbookqa", "main")),
    )
}


def examples() -> dict[str, Row]:
    """A made-up row of each, in the form of its data set on the Hub: what prompts look like, without fetching it."""
    return read_json(Path(__file__).with_name("examples.json"))
