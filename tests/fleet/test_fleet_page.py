"""The page of a fleet of forty tasks, in a browser, on a desk and on a phone."""

from __future__ import annotations

import math
import random

import pytest
from chromium import Chromium, find_chromium

from muscle_hf.fleet.page import Line, render
from muscle_hf.fleet.settings import UpdateSettings
from muscle_hf.fleet.task import Generation, Outcome
from muscle_hf.metrics import Estimate

UPDATE = UpdateSettings(old="acme/base-v1", new="acme/base-v2")


def rate(value: float, items: int = 500) -> Estimate:
    spread = 2 * math.sqrt(value * (1 - value) / items)
    return Estimate(value, max(0.0, value - spread), value + spread, count=round(value * items), total=items)


def lines(count: int = 40) -> list[Line]:
    draw = random.Random(0)
    made = []
    for place in range(count):
        plain, kept = draw.uniform(0.02, 0.2), draw.uniform(0.01, 0.06)
        verdict = "ship plain" if plain < 0.05 else "ship compatible" if kept < 0.05 else "hold"
        nfr = {"new": rate(plain), "muscle": rate(kept)}
        now = Generation("v2", nfr, 40, rate(draw.uniform(0, 0.5), 40), rate(draw.uniform(0, 0.2), 40))
        before = [Generation("v1", nfr, 51, rate(0.2, 51), None)] if place % 10 == 0 else []
        quality = {name: rate(draw.uniform(0.5, 0.95)) for name in ("old", "new", "muscle")}
        reason = f"NFR is {kept:.2%}, at most 6.10% with 95% confidence; the limit is 5.00%"
        outcome = Outcome(f"t{place}", "acc", "correct", 500, verdict, reason, 0.05, False, quality, [*before, now])
        name = f"a-task-with-a-rather-long-name-of-its-own-{place}" if place % 7 == 0 else f"task-{place}"
        made.append(Line(name, outcome, ("done", ""), draw.uniform(30, 3000)))
    made[3] = Line("<b>not</b> done", None, ("failed", "new, 1 of 5 steps done: RuntimeError: no memory"), 3.0)
    return made


def test_the_page_is_whole_and_trusts_no_name():
    page = render(UPDATE, lines())
    assert "<b>not</b>" not in page and page.count("<tr>") >= 41
    assert page.count("<svg") == 39
    assert render(UPDATE, [])


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_forty_tasks_fit_the_screen_and_can_be_sorted(width, tmp_path):
    file = tmp_path / "fleet.html"
    file.write_text(render(UPDATE, lines()), encoding="utf-8")
    with Chromium() as browser:
        browser.resize(width, 900, mobile=width < 500)
        browser.open(file)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        names = "[...document.querySelectorAll('#fleet tbody tr')].map(r => r.querySelector('.price').dataset.price)"
        for _ in range(2):
            browser.evaluate("document.querySelector('[data-key=price]').click()")
        prices = [float(price) for price in browser.evaluate(names)]
        assert len(prices) == 40 and prices == sorted(prices, reverse=True)
        browser.evaluate("document.querySelector('[data-key=nfr-new]').click()")
        last = "document.querySelector('#fleet tbody tr:last-child th').dataset.name"
        assert browser.evaluate(last) == "<b>not</b> done"  # what is not known comes last
