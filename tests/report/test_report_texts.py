"""The reports that are text: terminal, Markdown, JUnit; what they say, and that data cannot act in them."""

from __future__ import annotations

import dataclasses
import io
import re
import unicodedata
from html import unescape
from xml.etree import ElementTree as ET

import pytest
from compare_files import choice_predictions, sources
from example_document import example_document
from report_documents import HOSTILE, RLO, full_document, hostile_document
from rich.console import Console

from muscle_hf.compare import Budget, compare
from muscle_hf.metrics import Estimate
from muscle_hf.report import charts, junit, markdown, terminal, wording
from muscle_hf.report.markup import Markup
from muscle_hf.report.text import one_line, visible


def printed(document, width: int = 120, color: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, color_system="standard" if color else None
    )
    terminal.render(document, console, full=True)
    return console.file.getvalue()


def acting_characters(text: str) -> set[str]:
    """Control, format and unencodable characters; joiners and line feeds are harmless."""
    harmless = {"\n", "\u200c", "\u200d"}
    return {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and c not in harmless}


def test_visible_spells_out_what_acts_and_keeps_what_is_seen():
    assert visible("a\x1b[31mb") == "a⟨U+001B⟩[31mb"
    assert visible(f"x{RLO}y") == "x⟨U+202E⟩y"
    assert visible("\U000e0041") == "⟨U+E0041⟩"
    kept = "tab\tand\nline, ا ب ج, 日本語, 👩\u200d👩\u200d👧, e\u0301"
    assert visible(kept) == kept
    visible(HOSTILE).encode()  # no lone surrogates


def test_visible_leaves_no_character_that_unicode_calls_a_control():
    every = "".join(map(chr, range(0x110000)))
    left = acting_characters(visible(every)) - {"\t"}
    # What is left are visible signs that Unicode files under "format", such as Arabic number signs.
    assert all(unicodedata.category(c) == "Cf" for c in left)
    assert not any(unicodedata.bidirectional(c) in {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI"} for c in left)


def test_one_line_cuts_and_marks_line_breaks():
    assert one_line(" a\n\n  b\r\nc ") == "a ⏎ b ⏎ c"
    assert one_line("x" * 1000, 10) == "x" * 9 + "…"
    assert len(one_line("\x1b" * 1000, 10)) == 10


def test_terminal_shows_every_number_of_the_document():
    document = full_document()
    text = printed(document, width=200)
    for task in document.tasks:
        assert task.name in text
        for update in task.updates:
            assert update.label in text
            assert wording.with_interval(update.accuracy, wording.show_quality(task)) in text
            rate = wording.negative_rate(task, update)
            assert wording.with_interval(rate) in text
            for number in update.counts.values():
                assert wording.count(number) in text
    for check in document.gate.checks:
        assert check.verdict in text
    assert "✗ fail" in text and "update-budget.yaml" in text
    assert "3 items were left out" in text
    assert document.tasks[0].flips[0].id in text


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("color", [False, True])
def test_terminal_lets_no_control_sequence_through(width, color):
    text = printed(hostile_document(), width, color)
    own = re.sub(r"\x1b\[[0-9;]*m", "", text)  # the colours that the table itself uses
    assert not acting_characters(own)
    assert "[bold red]rich[/]" in re.sub(r"\s", "", own).replace("boldred", "bold red")
    if not color:
        assert "\x1b" not in text


def test_terminal_copes_with_undefined_numbers():
    nan = Estimate(float("nan"), float("nan"), float("nan"))
    base = example_document()
    update = dataclasses.replace(base.tasks[0].updates[0], accuracy=nan, change=nan, p_adjusted=float("nan"))
    update = dataclasses.replace(update, rates=dict.fromkeys(update.rates, nan))
    task = dataclasses.replace(base.tasks[0], updates=[update], flips=[])
    text = printed(dataclasses.replace(base, tasks=[task], models=base.models[:2]))
    assert wording.ABSENT in text and "nan" not in text


def parsed_markdown(text: str) -> str:
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_markdown_has_a_table_row_for_each_model():
    document = full_document()
    html = parsed_markdown(markdown.render(document))
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    for task in document.tasks:
        for update in task.updates:
            cell = wording.with_interval(update.accuracy, wording.show_quality(task))
            assert any(update.label in row and cell in row for row in rows)
    assert "❌ Model update: fail" in html
    cells = {len(re.findall("<t[dh]", row)) for row in rows if "Model" in row or "new" in row}
    assert len(cells) <= 5  # one width for each kind of table: nothing in data added a column


def test_slices_that_regress_most_come_first_in_the_terminal_and_in_markdown():
    document = full_document()
    task = document.tasks[0]
    worst = [f"{piece.column} = {piece.value}" for piece in task.updates[0].slices[:3]]
    screen, comment = printed(document, width=160), parsed_markdown(markdown.render(document))
    for text in (screen, comment):
        places = [text.index(name) for name in worst]
        assert places == sorted(places)
        assert f"regress most (5 of {len(task.updates[0].slices)})" in screen
    assert len(comment) > len(parsed_markdown(markdown.render(document, slices=1)))


def test_markdown_from_hostile_data_has_only_our_elements():
    text = markdown.render(hostile_document())
    assert not acting_characters(text)
    elements = set(re.findall(r"</?([a-z0-9]+)", parsed_markdown(text)))
    ours = {
        "h2",
        "h3",
        "h4",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "ul",
        "li",
        "code",
        "details",
        "summary",
    }
    assert elements <= ours | {"sub", "blockquote"}
    outside_code = unescape(re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text))
    # GitHub itself would turn these into mentions, references and links.
    assert not re.search(r"@\w|#\d|https?://|www\.", outside_code)


def test_markdown_tables_keep_their_columns_whatever_the_labels():
    html = parsed_markdown(markdown.render(hostile_document()))
    for table in re.findall(r"<table>(.*?)</table>", html, re.DOTALL):
        widths = {len(re.findall("<t[dh]", row)) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)}
        assert len(widths) == 1


def test_markdown_leaves_flips_out_before_it_grows_too_long_for_a_comment():
    document = full_document()
    long = [dataclasses.replace(flip, prompt="word " * 500) for flip in document.tasks[0].flips]
    tasks = [dataclasses.replace(document.tasks[0], name=f"task {i}", flips=long) for i in range(40)]
    text = markdown.render(dataclasses.replace(document, tasks=tasks))
    assert len(text) <= markdown.MAX_LENGTH
    assert all(f"task {i}" in text for i in range(40))
    assert 0 < text.count("<details>") < 40


def test_markdown_code_spans_survive_backticks():
    flip = dataclasses.replace(full_document().tasks[0].flips[0], prompt="a ``` b ` c")
    document = example_document()
    task = dataclasses.replace(document.tasks[0], flips=[flip])
    html = parsed_markdown(markdown.render(dataclasses.replace(document, tasks=[task])))
    assert "<code>a ``` b ` c</code>" in html


def test_junit_fails_where_the_gate_fails_and_errs_where_data_are_few():
    root = ET.fromstring(junit.render(full_document()).encode())
    assert root.attrib["tests"] == "3" and root.attrib["failures"] == "1" and root.attrib["errors"] == "1"
    suite = root.find("testsuite[@name='routing']")
    cases = suite.findall("testcase")
    assert [len(case.findall("failure")) for case in cases] == [1, 0, 0]
    assert cases[0].find("failure").attrib["message"] == "new breaks 14.8%, more than 10%."
    assert cases[2].find("error").attrib["type"] == "too little data"
    properties = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    update = full_document().tasks[0].updates[0]
    assert float(properties["new.nfr"]) == update.rates["nfr"].value
    assert properties["new.negative_flips"] == str(update.counts["negative_flips"])


def test_junit_without_a_gate_passes_and_tells_the_numbers():
    root = ET.fromstring(junit.render(dataclasses.replace(full_document(), gate=None)).encode())
    assert root.attrib == {"name": "muscle-hf compare", "tests": "9", "failures": "0", "errors": "0"}
    assert "breaks" in root.find("testsuite/testcase/system-out").text


def test_junit_is_well_formed_whatever_the_data():
    text = junit.render(hostile_document())
    root = ET.fromstring(text.encode())
    assert {element.tag for element in root.iter()} <= {
        *("testsuites", "testsuite", "testcase", "properties", "property", "failure", "error", "system-out")
    }
    assert "</script>" in root.find("testsuite").attrib["name"]
    assert not acting_characters("".join(root.itertext()))


def test_elements_escape_what_is_data():
    built = charts.elements().text(1.5, 2, '<b x="1">&\x1b', '"><script>')
    assert built == ('<text x="1.5" y="2" class="&#34;&gt;&lt;script&gt;">&lt;b x=&#34;1&#34;&gt;&amp;⟨U+001B⟩</text>')
    assert isinstance(built, Markup) and charts.elements().text(0, 0, Markup("<br>")).count("<br>") == 1


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (wording.percent(0.145), "14.5%"),
        (wording.percent(0.0012), "0.12%"),
        (wording.percent(0.0), "0.0%"),
        (wording.percent(float("nan")), "–"),
        (wording.points(-0.0397), "−4.0 pts"),
        (wording.p_equals(0.0001), "p\u00a0<\u00a00.001"),
        (wording.interval(Estimate(0.1, 0.05, 0.2)), "[5.0,\u00a020.0]"),
        (wording.interval(Estimate(0.1, float("-inf"), 0.2)), "≤ 20.0%"),
        (wording.tick("10.0%"), "10%"),
        (wording.tick("0.50%"), "0.5%"),
        (wording.tick("+0.0 pts"), "0 pts"),
        (wording.tick("−2.0 pts"), "−2 pts"),
        (wording.tick("0.300"), "0.3"),
        (wording.tick("100.0%"), "100%"),
    ],
)
def test_numbers_in_words(shown, expected):
    assert shown == expected


def test_a_plan_says_limits_as_the_gate_does():
    console = Console(file=io.StringIO(), width=100)
    console.print(
        terminal.plan_table([("max_regression", "*", 0.01, 0.005, 7), ("max_nfr", "a", 0.02, 0.0, None)], 0.95)
    )
    said = console.file.getvalue()
    assert "at most 1.0 pts" in said and "+0.50 pts" in said and "at most 2.0%" in said


def test_what_is_worse_than_old_is_not_recommended():
    """Near chance, as a report that once said in bold that new leads on both."""
    old, worse, level = (choice_predictions(2000, right, seed) for right, seed in ((0.45, 1), (0.3, 2), (0.455, 3)))
    task = (both := compare(*sources(old, worse, level))).tasks[0]
    assert wording.eligible(task) == [task.updates[1]] and task.chance == 0.25
    assert wording.advice(both, task).startswith("compat ") and "25.0%" in wording.advice(both, task)
    alone = compare(*sources(old, worse))
    assert wording.eligible(alone.tasks[0]) == [] and "keep old" in wording.advice(alone, alone.tasks[0])


def test_one_screen_of_many_tasks():
    sides = [
        [row for t in range(57) for row in choice_predictions(20, a, s + t, task=f"t{t}")]
        for a, s in ((0.9, 1), (0.8, 100))
    ]
    document = compare(*sources(*sides), budget=Budget(limits={"max_nfr": {"*": 0.05}}))
    console = Console(file=io.StringIO(), width=100)
    terminal.render(document, console)
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 40 and "Gate" in lines[-2] and any("total" in line for line in lines)
    assert len(printed(document)) > 10 * len("\n".join(lines))


def test_a_document_says_what_it_is():
    document = hostile_document()
    assert len(repr(full_document())) < 200 and "gate: fail" in repr(full_document())
    assert repr(document).isprintable()
    assert "<script" not in document._repr_html_() and "<td>routing</td>" in full_document()._repr_html_()


def test_many_tasks_with_long_names_fit_into_a_comment_and_stay_apart():
    def rows(seed: int) -> list[dict]:
        stem = "leaderboard_mmlu_pro_economics_and_business_administration"
        return [
            {"id": i, "task": f"{stem}_{t}", "correct": (i * seed + t) % 3 > 0} for t in range(250) for i in range(4)
        ]

    labels = [f"Llama-3.1-8B-Instruct-sft-2026-10-01-lr1e-5-bs128{end}" for end in ("", "-dpo", "-kto")]
    document = compare(rows(1), rows(2), rows(3), labels=labels)
    assert len(document.warnings) == 1
    tasks = [dataclasses.replace(task, doubt="Two scales. " * 20) for task in document.tasks[:100]]
    warned = dataclasses.replace(document, tasks=tasks, warnings=["Ten items differ. " * 20] * 250)
    assert len(markdown.render(warned)) <= markdown.MAX_LENGTH
    text = unescape(markdown.render(document))
    assert len(markdown.render(document)) <= markdown.MAX_LENGTH
    overview = text[: text.index("more tasks")]
    shown = [line.split(" | ")[0] for line in overview.splitlines() if "_administration_" in line and "-dpo" in line]
    assert len(set(shown)) == len(shown) > 50
    assert all(label in printed(document, width=250).replace("\n", "") for label in labels)
