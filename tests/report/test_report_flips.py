"""The list of flips in the HTML report, in a headless Chromium: searched, filtered, sorted, opened."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
from chromium import Chromium
from compare_files import score_predictions, sources
from example_document import example_document
from report_documents import full_document, hostile_document, large_document

from muscle_hf.compare import compare

PAGE = 25


def choose(browser: Chromium, control: str, value: str) -> None:
    """Set a control of the list as a user would, and wait for the list."""
    set_value = f"document.getElementById({control!r}).value = {json.dumps(value)}"
    kind = "input" if control == "search" else "change"
    browser.evaluate(f"{set_value}; document.getElementById({control!r}).dispatchEvent(new Event({kind!r}))")
    if control == "search":
        browser.evaluate("new Promise((done) => setTimeout(done, 250))")


def option(browser: Chromium, control: str, text: str) -> str:
    """Value of the option with this text."""
    options = f"[...document.getElementById({control!r}).options]"
    return browser.evaluate(f"{options}.find((option) => option.textContent === {json.dumps(text)}).value")


def ids(browser: Chromium) -> list[str]:
    """Ids of the flips on the page, without the tasks' names."""
    return [
        text.split(" · ")[-1]
        for text in browser.evaluate("[...document.querySelectorAll('.id')].map(e => e.textContent)")
    ]


def shown_count(browser: Chromium) -> int:
    return int(browser.evaluate("document.getElementById('count').textContent").split()[0].replace(",", ""))


def test_search_finds_words_in_any_text(show):
    document = full_document()
    browser = show(document)
    total = sum(len(task.flips) for task in document.tasks)
    assert shown_count(browser) == total
    choose(browser, "search", "CINEMA theatre dialogue-7")
    assert ids(browser) == ["dialogue-7"]
    choose(browser, "search", "no such words")
    assert shown_count(browser) == 0 and ids(browser) == []
    choose(browser, "search", "")
    assert shown_count(browser) == total


def test_filters_and_slices_keep_just_their_flips(show):
    document = full_document()
    browser = show(document)
    routing = document.tasks[0]
    choose(browser, "task", "0")
    choose(browser, "filter", option(browser, "filter", "Broken by new, not by muscle"))
    expected = [
        flip for flip in routing.flips if flip.outcomes["new"] == "negative" and flip.outcomes["muscle"] != "negative"
    ]
    assert shown_count(browser) == len(expected) > 0
    assert set(ids(browser)) <= {flip.id for flip in expected}
    choose(browser, "filter", option(browser, "filter", "All flips"))
    browser.evaluate("document.querySelector('button[data-value=calm]').click()")
    expected = [flip for flip in routing.flips if flip.columns["tone"] == "calm"]
    assert shown_count(browser) == len(expected)
    assert set(ids(browser)) <= {flip.id for flip in expected}


def test_slices_of_numbers_keep_the_flips_within_their_range(show):
    base = example_document(items=200)
    task = base.tasks[0]
    flips = [dataclasses.replace(flip, columns={"length": str(at)}) for at, flip in enumerate(task.flips)]
    names = ("<= 10", "10 to 25.5", "> 25.5")
    first = dataclasses.replace(
        task.updates[0],
        slices=[dataclasses.replace(task.updates[0].slices[0], column="length", value=name) for name in names],
    )
    task = dataclasses.replace(task, flips=flips, updates=[first, *task.updates[1:]])
    browser = show(dataclasses.replace(base, tasks=[task]))
    counts = []
    for name in names:
        browser.evaluate(f"document.querySelector('button[data-value={json.dumps(name)}]').click()")
        counts.append(shown_count(browser))
    assert counts == [11, 15, len(flips) - 26]
    choose(browser, "column", "")
    assert shown_count(browser) == len(flips)


def test_sorting_and_paging_go_through_all_flips(show):
    document = full_document()
    browser = show(document)
    choose(browser, "task", "0")
    flips = document.tasks[0].flips
    assert ids(browser) == [flip.id for flip in sorted(flips, key=lambda flip: -flip.severity)][:PAGE]
    choose(browser, "sort", option(browser, "sort", "Id"))
    seen: list[str] = []
    for _ in range(-(-len(flips) // PAGE)):
        seen += ids(browser)
        browser.evaluate("document.getElementById('next').click()")
    assert seen == sorted((flip.id for flip in flips), key=lambda text: int(text.split("-")[1]))
    assert browser.evaluate("document.getElementById('next').disabled") is True


@pytest.mark.slow
def test_twenty_thousand_flips_stay_fluid(show):
    browser = show(large_document(20_000))
    assert shown_count(browser) == 20_000
    assert "the worst of 20,500" in browser.evaluate("document.getElementById('count').textContent")
    assert browser.evaluate("document.querySelectorAll('*').length") < 2500
    timings = {}
    for control, value in (("search", "needle19999"), ("search", ""), ("sort", "1"), ("sort", "4"), ("filter", "1")):
        event, wait = ("input", 160) if control == "search" else ("change", 0)
        update = f"""(() => {{
          const control = document.getElementById('{control}'), start = performance.now();
          control.value = '{value}';
          control.dispatchEvent(new Event('{event}'));
          return new Promise((done) => setTimeout(() => done(performance.now() - start), {wait}));
        }})()"""
        timings[control, value] = browser.evaluate(update)
        if value == "needle19999":
            assert ids(browser) == ["item-19999"]
    assert max(timings.values()) < 5000, timings  # well under a second on an idle machine
    assert browser.evaluate("document.querySelectorAll('*').length") < 2500
    browser.evaluate("document.getElementById('open-all').click()")
    browser.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert browser.evaluate("document.querySelectorAll('.answer').length") == 4 * PAGE


@pytest.mark.slow
def test_long_answers_are_cut_until_asked_for(show):
    browser = show(hostile_document(answer_length=1_000_000))
    choose(browser, "sort", option(browser, "sort", "Longest answer"))
    browser.evaluate("document.querySelector('.flip').open = true")
    browser.evaluate("new Promise((done) => setTimeout(done, 300))")
    cut = browser.evaluate("document.querySelector('.answer .block').textContent.length")
    assert 4000 <= cut < 6000
    assert "1,000," in browser.evaluate("document.querySelector('.answer .more-text').textContent")
    click = """(() => {
      const start = performance.now();
      document.querySelectorAll('.answer .more-text').forEach((button) => button.click());
      return performance.now() - start;
    })()"""
    assert browser.evaluate(click) < 6000  # four megabytes; a fraction of a second on an idle machine
    lengths = browser.evaluate("[...document.querySelectorAll('.answer .block')].map(e => e.textContent.length)")
    assert len(lengths) == 4 and min(lengths) > 1_000_000
    assert browser.evaluate("document.querySelectorAll('.answer .more-text').length") == 0


def test_an_unknown_target_is_not_shown_as_empty(show):
    rows = [dataclasses.replace(p, target="") for p in score_predictions(40, 0.5, 1)]
    browser = show(compare(*sources(rows, [dataclasses.replace(p, score=p.score / 2) for p in rows])))
    browser.evaluate("document.querySelector('.flip').open = true")
    browser.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert "target" not in browser.evaluate("document.querySelector('.flip').textContent").lower()


def test_opened_flip_shows_the_words_that_changed(show):
    browser = show(full_document())
    choose(browser, "search", "dialogue-7")
    browser.evaluate("document.querySelector('.flip').open = true")
    browser.evaluate("new Promise((done) => setTimeout(done, 100))")
    answer = "document.querySelectorAll('.answer')[1]"
    given = full_document().tasks[1].flips[7].answers
    assert browser.evaluate(f"{answer}.querySelector('.block').textContent") == given["new"]
    assert browser.evaluate("document.querySelectorAll('del, ins').length") == 0
    browser.evaluate("document.getElementById('differences').click()")
    # Two texts that share little are shown as they are.
    assert browser.evaluate(f"{answer}.querySelectorAll('del, ins').length") == 0
    alike = "document.querySelectorAll('.answer')[2]"
    removed, added = (
        browser.evaluate(f"[...{alike}.querySelectorAll('{name}')].map(e => e.textContent).join('')")
        for name in ("del", "ins")
    )
    assert removed.strip() == "but" and added == ","
    assert "score 0.410" in browser.evaluate(f"{answer}.textContent")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("the cat sat", "the dog sat"),
        ("", "new words"),
        ("old words", ""),
        ("a b c d e", "e d c b a"),
        ("東京は雨", "東京は晴れ"),
        ("x " * 3000, "y " * 3000),
        ("same  spaces\n", "same spaces\n\n"),
        ("👩‍👩‍👧 é", "👩 e"),
    ],
)
def test_word_diff_holds_both_texts_exactly(show, browser, old, new):
    if browser.evaluate("typeof wordDiff") != "function":
        show(example_document(items=10))
    pieces = browser.evaluate(f"wordDiff({json.dumps(old)}, {json.dumps(new)})")
    assert "".join(text for kind, text in pieces if kind in "=-") == old
    assert "".join(text for kind, text in pieces if kind in "=+") == new


def longest_common_subsequence(a: str, b: str) -> int:
    """Its length, row by row."""
    row = [0] * (len(b) + 1)
    for x in a:
        previous, row = row, [0]
        for j, y in enumerate(b):
            row.append(previous[j] + 1 if x == y else max(previous[j + 1], row[j]))
    return row[-1]


def test_word_diff_keeps_as_many_words_as_can_be_kept(show):
    browser = show(example_document(items=10))
    pieces = browser.evaluate("wordDiff('the quick brown fox', 'the slow brown dog fox')")
    assert pieces == [["=", "the "], ["-", "quick"], ["+", "slow"], ["=", " brown"], ["+", " dog"], ["=", " fox"]]
    rng = random.Random(0)
    for _ in range(30):
        old, new = ("".join(rng.choices("東京都雨晴", k=rng.randint(0, 25))) for _ in range(2))  # a word a character
        pieces = browser.evaluate(f"wordDiff({json.dumps(old)}, {json.dumps(new)})")
        assert sum(len(text) for kind, text in pieces if kind == "=") == longest_common_subsequence(old, new)
