"""The HTML report: what is in the file."""

from __future__ import annotations

import dataclasses
import re
from itertools import combinations

from compare_files import choice_predictions, sources
from example_document import example_document
from report_documents import HOSTILE, full_document, hostile_document

from muscle_hf.compare import compare
from muscle_hf.compare import document as d
from muscle_hf.metrics import Estimate
from muscle_hf.report import charts, html, wording


def test_file_is_one_piece_with_a_strict_policy():
    page = html.render(full_document())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert "default-src 'none'" in policy and "unsafe" not in policy and "require-trusted-types-for 'script'" in policy
    assert not re.search(r"\b(src|srcset|action|data|poster)=|@import|url\(|fetch\(|XMLHttp|https?:", page)
    assert not re.search(r"<[^>]*\s(on\w+|style)=", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))
    assert set(re.findall(r'href="([^"]*)"', page)) <= {
        *("#decision", "#tasks", "#task-0", "#task-1", "#task-2", "#flips", "#words")
    }


def test_file_has_every_number_without_a_script():
    document = full_document()
    page = re.sub(r"<script.*?</script>", "", html.render(document), flags=re.DOTALL)
    for task in document.tasks:
        for update in task.updates:
            assert wording.percent(wording.negative_rate(task, update).value) in page
            for key, estimate in update.rates.items():
                assert wording.with_interval(estimate, wording.show_rate(key)) in page
            for piece in update.slices:
                assert wording.points(piece.change.value) in page
    for check in document.gate.checks:
        assert check.message in page
    assert "runs/old.jsonl" in page and "update-budget.yaml" in page


def test_hostile_data_make_no_markup_in_the_file():
    page = html.render(hostile_document())
    page.encode()
    assert len(re.findall("<script", page)) == 2 and len(re.findall("</script", page)) == 2
    assert "<img" not in page and "<!--" not in page and "\u202e" not in page and "\x1b" not in page


def test_hostile_sample_is_as_hostile_as_it_says():
    for attack in ("</script>", "onerror=", "\u202e", "\x1b", "\x00", "\u2028", "\ud800", "<!--"):
        assert attack in HOSTILE


def test_slices_come_worst_first_and_flows_carry_all_items():
    document = full_document()
    page = html.render(document)
    order = re.findall(r'data-value="(\w+)"', page)
    assert order == [piece.value for piece in document.tasks[0].updates[0].slices]
    told = re.search(r"Flow of items over old, new, muscle: ([^\"]*)", page).group(1)
    assert sum(int(part.split()[0]) for part in told.split("; ")) == document.tasks[0].items


def test_many_tasks_are_summed_up_first_and_folded():
    document = full_document()
    tasks = [dataclasses.replace(document.tasks[0], name=f"task {i}", flips=[]) for i in range(12)]
    page = html.render(dataclasses.replace(document, tasks=tasks))
    names = re.findall(r"<h3 class=\"title\">([^<]*)</h3>", page)
    assert names == ["total", *(f"task {i}" for i in range(12))]
    assert re.findall(r'href="#task-(\d+)">([^<]*)<', page)[1] == ("1", "task 0")
    assert "7 more tasks" in page
    assert len(re.findall('<details class="task"[^>]* open>', page)) == 1


def test_limits_that_are_broken_come_first():
    page = html.render(full_document())
    verdicts = re.findall(r'class="chip \w+">\S (fail|too little data|pass)', page)
    assert verdicts == ["fail", "too little data", "pass"]
    banners = re.findall(r'class="banner (\w+)">.*?<strong>(\w+)', page, re.DOTALL)
    assert banners == [("fail", "new"), ("unsure", "muscle")]


def test_undefined_numbers_and_empty_parts_are_no_trouble():
    nan = Estimate(float("nan"), float("nan"), float("nan"))
    base = example_document()
    update = dataclasses.replace(base.tasks[0].updates[0], accuracy=nan, change=nan, slices=[])
    update = dataclasses.replace(
        update, rates=dict.fromkeys(update.rates, nan), counts=dict.fromkeys(update.counts, 0), p_adjusted=float("nan")
    )
    task = dataclasses.replace(base.tasks[0], items=0, updates=[update], flips=[], flips_total=0, accuracy_old=nan)
    page = html.render(d.Document(models=base.models[:2], tasks=[task]))
    assert not re.search(r"\bnan\b|\binf\b", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))


def test_there_is_no_picture_with_one_dot_and_good_news_is_said():
    same = choice_predictions(300, 0.8, 1)
    page = html.render(compare(*sources(same, same)))
    assert "no slice got worse" in page
    pictures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert pictures and not any(picture.count('class="dot') == 1 for picture in pictures)
    assert ">None<" not in page


def drawn_trade_off(places: list[tuple[float, float]]) -> str:
    points = [
        charts.Point(f"model{i}", Estimate(x, x, x), Estimate(y, y, y), leads=True) for i, (x, y) in enumerate(places)
    ]
    old = ("v1", Estimate(0.4, 0.4, 0.4))
    return str(charts.trade_off("title", points, old, ("flips", "accuracy"), (wording.percent,) * 2, None))


def test_labels_of_crowded_points_do_not_hide_each_other_and_say_whose_they_are():
    count = 6
    drawn = drawn_trade_off([(0.1 + 0.001 * i, 0.5) for i in range(count)])
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name halo leads"( text-anchor="end")?', drawn)
    assert len(labels) == count
    width = 7.5 * len("model0")
    boxes = [(float(x) - width * bool(end), float(y)) for x, y, end in labels]
    for (x, y), (other_x, other_y) in combinations(boxes, 2):
        assert abs(x - other_x) >= width or abs(y - other_y) >= 13
    # Four names fit around a point; the others need a line to it.
    assert drawn.count('class="leader"') >= count - 4


def test_a_label_beside_its_point_needs_no_line():
    assert "leader" not in drawn_trade_off([(0.1, 0.1), (0.5, 0.5), (0.9, 0.9)])
