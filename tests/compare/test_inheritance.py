"""Errors of the old model that come back: counted by hand, and shown in every report and on the card."""

from __future__ import annotations

import dataclasses
import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium, find_chromium
from compare_files import choice_predictions
from example_document import example_document
from report_documents import full_document, hostile_document
from rich.console import Console

from muscle_hf import MuscleError
from muscle_hf.compare import AnalysisOptions, Document, compare, source_of
from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.hub import render_card
from muscle_hf.hub.completing import complete_card
from muscle_hf.hub.state import trimmed_comparison
from muscle_hf.metrics import inherited_errors, inherited_scores, wilson_interval
from muscle_hf.report import html, inheritance, junit, markdown, terminal

# Of twelve items with the target 0: what each model answers.
OLD = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
NEW = [0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 3]
COMPAT = [0, 1, 1, 2, 0, 1, 0, 1, 0, 3, 0, 0]
#      shed: 0 1 2 3 4; wrong again: 1 2 3; with the old answer: 1 2; settled: 8 9 10; fresh: 9
CONTROL = [0, 0, 2, 0, 0, 1, 1, 1, 0, 0, 0, 0]


def correct(answers: list[int]) -> list[bool]:
    return [answer == 0 for answer in answers]


def predictions(
    answers: list[int], columns: dict[str, list[str]] | None = None, **changes: object
) -> list[Prediction]:
    return [
        dataclasses.replace(
            row,
            prediction=answer,
            target=0,
            correct=answer == 0,
            columns={name: values[i] for name, values in (columns or {}).items()},
            **changes,
        )
        for i, (row, answer) in enumerate(zip(choice_predictions(len(answers), 0.5, 0), answers, strict=True))
    ]


def compared(
    *sides: list[Prediction], labels: tuple[str, ...] = ("old", "new", "muscle", "control"), **options: object
) -> Document:
    return compare(
        *(source_of(side, name) for side, name in zip(sides, labels, strict=False)),
        labels=labels[: len(sides)],
        analysis=AnalysisOptions(**options),
    )


# ---- Counting ----


def test_errors_are_counted_as_by_hand():
    found = inherited_errors(
        correct(OLD), correct(NEW), correct(COMPAT), old_predictions=OLD, compat_predictions=COMPAT
    )
    assert np.flatnonzero(found.shed).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(found.returned).tolist() == [1, 2, 3]
    assert np.flatnonzero(found.inherited).tolist() == [1, 2]
    assert np.flatnonzero(found.fresh).tolist() == [9]
    assert found.to_dict() == {
        "shed": 5,
        "returned": 3,
        "inherited": 2,
        "settled": 3,
        "fresh": 1,
        "return_rate": 0.6,
        "inheritance_rate": 0.4,
        "fresh_rate": 1 / 3,
    }


def test_without_answers_it_is_not_told_which_wrong_answer_it_was():
    found = inherited_errors(correct(OLD), correct(NEW), correct(COMPAT))
    assert found.inherited is None and found.to_dict()["returned"] == 3 and "inherited" not in found.to_dict()
    with pytest.raises(MuscleError, match="of both models"):
        inherited_errors(correct(OLD), correct(NEW), correct(COMPAT), old_predictions=OLD)
    with pytest.raises(MuscleError, match="unequal lengths"):
        inherited_errors(correct(OLD), correct(NEW)[1:], correct(COMPAT))


def test_the_new_model_itself_makes_none_of_them_again():
    found = inherited_errors(correct(OLD), correct(NEW), correct(NEW), old_predictions=OLD, compat_predictions=NEW)
    assert not found.returned.any() and not found.fresh.any() and found.shed.sum() == 5


def test_nothing_shed_gives_nan_and_not_zero():
    nothing = inherited_errors([True, False], [True, False], [True, False]).to_dict()
    assert nothing["shed"] == 0 and np.isnan(nothing["return_rate"])


def test_scores_are_counted_as_by_hand():
    old = [0.2, 0.2, 0.2, 0.2, 0.5, 0.5, 0.5]
    new = [0.6, 0.6, 0.6, 0.25, 0.5, 0.5, 0.1]
    compat = [0.6, 0.25, 0.0, 0.2, 0.5, 0.3, 0.5]
    found = inherited_scores(old, new, compat, epsilon=0.1)
    assert np.flatnonzero(found.shed).tolist() == [0, 1, 2]
    assert np.flatnonzero(found.returned).tolist() == [1, 2]
    assert np.flatnonzero(found.inherited).tolist() == [1]
    assert np.flatnonzero(found.settled).tolist() == [3, 4, 5] and np.flatnonzero(found.fresh).tolist() == [5]
    assert inherited_scores(old, new, compat).inherited.tolist() == [False] * 3 + [True] + [False] * 3
    with pytest.raises(MuscleError, match="epsilon"):
        inherited_scores(old, new, compat, epsilon=-1)


# ---- In a comparison ----


def test_a_comparison_audits_every_candidate_on_the_same_items():
    columns = {"tone": ["calm"] * 3 + ["angry"] * 9}
    document = compared(*(predictions(answers, columns) for answers in (OLD, NEW, COMPAT, CONTROL)), slices=["tone"])
    new, muscle, control = document.tasks[0].updates
    assert new.inheritance is None
    audit = muscle.inheritance
    assert audit.shed == control.inheritance.shed == 5
    assert audit.returned == wilson_interval(3, 5) and audit.inherited == wilson_interval(2, 5)
    # Old and new are both wrong on the items 5, 6 and 7, twice with the same answer.
    assert audit.usual == wilson_interval(2, 3) and audit.fresh == wilson_interval(1, 3)
    assert control.inheritance.returned == wilson_interval(1, 5)
    assert control.inheritance.inherited == wilson_interval(0, 5)
    assert [(s.value, s.returned.count, s.returned.total, s.inherited.count) for s in audit.slices] == [
        ("calm", 2, 3, 2),
        ("angry", 1, 2, 0),
    ]
    assert [(item.id, item.answer) for item in audit.items] == [
        ("item-1", "same"),
        ("item-2", "same"),
        ("item-3", "other"),
    ]
    flips = {flip.id: flip.inherited for flip in document.tasks[0].flips}
    assert flips["item-1"] == {"muscle": "same"} and flips["item-2"] == {"muscle": "same", "control": "other"}
    assert flips["item-3"] == {"muscle": "other"} and flips["item-0"] == {}


def test_slices_of_enough_errors_come_first():
    answers = [1] * 13, [0] * 13, [1] * 2 + [0] * 9 + [1] * 2
    columns = {"size": ["small"] * 2 + ["large"] * 11}
    document = compared(*(predictions(list(side), columns) for side in answers), slices=["size"])
    pieces = document.tasks[0].updates[1].inheritance.slices
    # Two of two weighs less than two of eleven, though its interval begins higher.
    assert [(piece.value, piece.inherited.count, piece.inherited.total) for piece in pieces] == [
        ("large", 2, 11),
        ("small", 2, 2),
    ]
    assert [row[0] for row in inheritance.slice_rows(document.tasks[0], 5)] == ["size = large"]


def test_clusters_widen_the_intervals():
    old, new, compat = [1] * 40, [0] * 40, [1] * 10 + [0] * 30
    columns = {"source": [f"s{i // 10}" for i in range(40)]}
    sides = [predictions(side, columns) for side in (old, new, compat)]
    plain, clustered = (
        compared(*sides, slices=(), **more).tasks[0].updates[1].inheritance.returned
        for more in ({}, {"cluster": "source"})
    )
    assert plain == wilson_interval(10, 40) and clustered.value == plain.value
    assert clustered.low < plain.low and clustered.high > plain.high


def test_scores_fall_back_within_epsilon():
    scores = [0.2, 0.2, 0.2, 0.2], [0.6, 0.6, 0.6, 0.2], [0.25, 0.0, 0.6, 0.2]
    sides = [
        [
            dataclasses.replace(p, correct=None, score=score, metric="rouge1")
            for p, score in zip(rows, row, strict=True)
        ]
        for rows, row in ((predictions([0] * 4), row) for row in scores)
    ]
    audit = compared(*sides, epsilon=0.1, slices=()).tasks[0].updates[1].inheritance
    assert (audit.shed, audit.returned.count, audit.inherited.count, audit.usual) == (3, 2, 1, None)
    assert [(item.id, item.answer) for item in audit.items] == [("item-0", "same"), ("item-1", "other")]


def test_the_items_are_cut_like_the_flips():
    document = compared(*(predictions(answers) for answers in (OLD, NEW, COMPAT)), max_flips=1)
    audit = document.tasks[0].updates[1].inheritance
    assert [item.id for item in audit.items] == ["item-1"] and audit.returned.count == 3


def test_answers_that_a_log_does_not_tell_are_unknown(tmp_path: Path):
    for name, answers in {"old": OLD, "new": NEW, "compat": COMPAT}.items():
        rows = [{"id": i, "task": "t", "correct": answer == 0} for i, answer in enumerate(answers)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = compare(*(str(tmp_path / f"{name}.jsonl") for name in ("old", "new", "compat")))
    audit = document.tasks[0].updates[1].inheritance
    assert audit.inherited is None and audit.usual is None and audit.returned.count == 3
    assert {item.answer for item in audit.items} == {"unknown"}
    assert "–" in inheritance.rows(document.tasks[0])[0]


# ---- In the reports ----


@pytest.fixture(scope="module")
def document() -> Document:
    columns = {"tone": ["calm"] * 3 + ["angry"] * 9}
    return compared(*(predictions(answers, columns) for answers in (OLD, NEW, COMPAT, CONTROL)), slices=["tone"])


def on_screen(document: Document) -> str:
    console = Console(file=io.StringIO(), width=200)
    terminal.render(document, console, full=True)
    return console.file.getvalue()


def test_the_terminal_and_markdown_tell_the_same(document: Document):
    screen, comment = on_screen(document), markdown.render(document)
    for text in (screen, comment):
        assert "Errors of old that come back" in text and "the 5 items that old has wrong and new right" in text
        assert "3 of 5: 60.0%" in text and "2 of 5: 40.0%" in text and "1 of 3: 33.3%" in text
        assert "item-1" in text[text.rindex("come back in" if text is screen else "errors of old that come back") :]
    assert "they say the same in 66.7%" in screen and "of 3 items" in screen


def test_two_choices_are_said_to_leave_one_wrong_answer():
    answers = [1, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 0]
    task = compared(*(predictions(list(side)) for side in answers)).tasks[0]
    assert "Here all wrong answers are old's, as with two choices." in inheritance.explanation(task)


def test_nothing_shed_is_said():
    answers = [1, 0, 1], [1, 0, 1], [1, 0, 0]
    found = compared(*(predictions(list(side)) for side in answers))
    assert "nothing can come back" in on_screen(found) and "nothing can come back" in html.render(found)
    assert "There is no item that old has wrong and new right" in markdown.render(found)


def test_without_a_compatibility_model_there_is_no_audit():
    found = compared(predictions(OLD), predictions(NEW))
    for text in (on_screen(found), markdown.render(found), html.render(found)):
        assert "come back" not in text


def test_junit_has_the_counts(document: Document):
    root = ElementTree.fromstring(junit.render(document).partition("\n")[2])
    values = {entry.get("name"): entry.get("value") for entry in root.iter("property")}
    assert [values[f"muscle.{key}"] for key in ("shed", "returned", "inherited", "fresh")] == ["5", "3", "2", "1"]
    assert values["control.inherited"] == "0" and "new.shed" not in values


def test_json_has_it_all(document: Document):
    data = json.loads(document.to_json())
    audit = data["tasks"][0]["updates"][1]["inheritance"]
    assert audit["inherited"]["count"] == 2 and audit["items"][0] == {"id": "item-1", "answer": "same"}
    assert json.loads(json.dumps(document.to_dict()))["tasks"][0]["updates"][1]["inheritance"] == audit


def test_the_page_lists_the_items(document: Document, tmp_path: Path):
    if find_chromium() is None:
        pytest.skip("no Chromium on the path; install it (Debian: apt-get install chromium)")
    with Chromium() as browser:
        for number, shown in enumerate((document, full_document(), hostile_document())):
            page = tmp_path / f"{number}.html"
            page.write_text(html.render(shown), encoding="utf-8")
            browser.resize(420, 900)
            browser.open(page)
            assert browser.evaluate("window.hacked") is None
            assert number == 2 or browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert "that come back" in browser.evaluate("document.body.textContent")
            if number:
                continue
            select = "document.getElementById('filter')"
            for text, expected in (("old's errors made again by muscle", 3), ("… with old's answer, by muscle", 2)):
                value = browser.evaluate(
                    f"[...{select}.options].find(o => o.textContent === {json.dumps(text)}).value"
                )
                browser.evaluate(f"{select}.value = '{value}'; {select}.dispatchEvent(new Event('change'))")
                assert browser.evaluate("document.querySelectorAll('#list > li').length") == expected


# ---- On the card ----


def test_the_card_tells_the_audit_and_its_baseline(adapter: Path, document: Document):
    complete_card(adapter, comparison=document, label="muscle")
    text = render_card(adapter).text
    assert "Errors of the old model that come back. Shares of the 5 items" in text
    assert "| this adapter | 3 of 5: 60.0%" in text and "| control | 1 of 5: 20.0%" in text
    assert "How many of its errors came back on the items above" in text
    stored = json.loads((adapter / "muscle_metrics.json").read_text())["comparison"]["tasks"][0]
    assert [entry["label"] for entry in stored["baselines"]] == ["control"]
    assert "item-1" not in (adapter / "muscle_metrics.json").read_text()  # no items in a published file


def test_the_card_of_a_task_with_scores(adapter: Path):
    complete_card(adapter, comparison=full_document(), label="muscle")
    text = render_card(adapter).text
    assert "Gains over the old model that are lost again. Shares of the 160 items" in text
    assert "| slice | not better than old | back at old's score |" in text


def test_nothing_from_data_acts_on_the_card(adapter: Path):
    # A lone surrogate cannot be written to a file at all.
    content = json.loads(json.dumps(hostile_document().to_dict()).replace("\\ud800", ""))
    complete_card(adapter, comparison=content, label=content["models"][2]["label"])
    body = render_card(adapter).text.partition("\n---\n")[2]
    assert "come back" in body and "<script>" not in body and "<img" not in body


def test_a_comparison_of_an_earlier_version_still_makes_a_card(adapter: Path):
    content = trimmed_comparison(example_document().to_dict(), "muscle")
    for task in content["tasks"]:
        del task["baselines"]
        for update in task["updates"]:
            del update["inheritance"]
    complete_card(adapter, comparison={**content, "tasks": [{**t, "flips": []} for t in content["tasks"]]})
    text = render_card(adapter).text
    assert "come back" not in text and "NFR" in text
