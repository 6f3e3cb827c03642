"""The tasks that are ready to use. Prompts and rules are those of the paper (appendix A.2) and lm-evaluation-harness.

Every ``to_item`` takes a row as the Hub's dataset has it and as the original files have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.tasks import Item, Source, Task

Row = Mapping[str, Any]


def _value(row: Row, *names: str) -> Any:
    """The first of the columns that the row has.

    Raises:
        MuscleError: It has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise MuscleError(f"a row has none of the columns {', '.join(names)}; it has: {', '.join(row)}")


def _id(row: Row, index: int, *names: str) -> str:
    return str(next((row[name] for name in names if row.get(name) is not None), index))


def _label(row: Row, count: int, *names: str, first: int = 0) -> int:
    """A class number counted from 0.

    Raises:
        MuscleError: It is out of range, as in test splits whose labels are kept back (-1).
    """
    value = int(_value(row, *names)) - first
    if not 0 <= value < count:
        raise MuscleError(f"label {value + first} is not one of {count} classes; is this a split without labels?")
    return value


def _piqa(row: Row, index: int) -> Item:
    return Item(
        id=str(index),
        prompt=f"Question: {row['goal']}\nAnswer:",
        choices=(f" {row['sol1']}", f" {row['sol2']}"),
        answers=(_label(row, 2, "label"),),
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
    return Item(
        id=str(index),
        prompt=_clean_hellaswag(f"{row['activity_label']}: {context}"),
        choices=tuple(f" {_clean_hellaswag(ending)}" for ending in row["endings"]),
        answers=(_label(row, len(row["endings"]), "label"),),
        columns={"activity_label": row["activity_label"]},
    )


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
    return Item(
        id=_id(row, index, "idx"),
        prompt=f"{_value(row, 'text', 'sentence')}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        choices=(" negative", " positive"),
        answers=(_label(row, 2, "label"),),
    )


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
    return Item(
        id=str(index),
        prompt=f"Question: {row['text']}\nType of answer:",
        choices=tuple(f" {word}" for word in _TREC.values()),
        answers=(codes.index(value) if value in codes else _label(row, len(codes), "coarse_label", "label"),),
        columns={"fine": row["fine"]} if "fine" in row else {},
    )


def _ag_news(row: Row, index: int) -> Item:
    original = "title" in row
    text = f"{row['title']} {row['description']}" if original else row["text"]
    return Item(
        id=str(index),
        prompt=f"Article: {text}\nTopic:",
        choices=(" World", " Sports", " Business", " Technology"),
        answers=(_label(row, 4, "label", first=1 if original else 0),),
    )


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
    texts, answer = _labelled_choices(row)
    return Item(
        id=_id(row, index, "id"),
        prompt=f"Question: {row['question']}\nAnswer:",
        choices=tuple(f" {text}" for text in texts),
        answers=(answer,),
    )


def _openbookqa(row: Row, index: int) -> Item:
    texts, answer = _labelled_choices(row)
    return Item(
        id=_id(row, index, "id"),
        prompt=_value(row, "question_stem", "question"),
        choices=tuple(f" {text}" for text in texts),
        answers=(answer,),
    )


_SUMMARY_STOPS = ("Dialogue:", "Summary:", "</s>", "\n\n")

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
        Task(
            "samsum",
            "generation",
            _samsum,
            metric="rouge1",
            max_new_tokens=128,
            stop=_SUMMARY_STOPS,
            no_repeat_ngram_size=2,
            source=Source("knkarthick/samsum"),
        ),
        Task(
            "dialogsum",
            "generation",
            _dialogsum,
            metric="rouge1",
            max_new_tokens=128,
            stop=_SUMMARY_STOPS,
            no_repeat_ngram_size=2,
            source=Source("knkarthick/dialogsum"),
        ),
        Task("sst2", "choice", _sst2, source=Source("stanfordnlp/sst2", splits={"test": "validation"})),
        Task("trec", "choice", _trec, source=Source("CogComp/trec", revision="refs/convert/parquet")),
        Task("ag_news", "choice", _ag_news, source=Source("fancyzhx/ag_news")),
        Task("arc_easy", "choice", _arc, source=Source("allenai/ai2_arc", "ARC-Easy")),
        Task("openbookqa", "choice", _openbookqa, source=Source("allenai/openbookqa", "main")),
    )
}

# A made-up row of each, in the form of its data set on the Hub: what prompts look like, without fetching it.
EXAMPLES: dict[str, Row] = {
    "piqa": {
        "goal": "Keep cut apples from turning brown.",
        "sol1": "Sprinkle them with lemon juice.",
        "sol2": "Leave them in the sun.",
        "label": 0,
    },
    "hellaswag": {
        "activity_label": "Washing a car",
        "ctx_a": "A man fills a bucket with soapy water.",
        "ctx_b": "he",
        "endings": ["dips a sponge into it.", "paints the fence.", "reads a letter.", "closes the piano."],
        "label": "0",
    },
    "gsm8k": {
        "question": "A box holds 6 pens. How many pens are in 4 boxes?",
        "answer": "Each box holds 6 pens, so 4 boxes hold 4*6=<<4*6=24>>24 pens.\n#### 24",
    },
    "samsum": {
        "id": "example",
        "dialogue": "Ana: Are you coming at six?\nBen: Half past, the train is late.",
        "summary": "Ben comes at half past six, because his train is late.",
    },
    "dialogsum": {
        "id": "example",
        "dialogue": "#Person1#: Is this seat free?\n#Person2#: Yes, please sit down.",
        "summary": "#Person1# takes a free seat beside #Person2#.",
        "topic": "taking a seat",
    },
    "sst2": {"idx": 0, "sentence": "a warm and funny film", "label": 1},
    "trec": {"text": "Who wrote the first dictionary ?", "coarse_label": 3},
    "ag_news": {"text": "Rowers win two medals on the first day of the regatta.", "label": 1},
    "arc_easy": {
        "id": "example",
        "question": "Which of these gives off its own light?",
        "choices": {"text": ["the Moon", "the Sun", "a mirror", "a window"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    "openbookqa": {
        "id": "example",
        "question_stem": "A plant in a dark cupboard will soon",
        "choices": {"text": ["bloom", "wither", "bear fruit", "sing"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
}
