"""The page of the HTML report in a headless Chromium: safe, readable and inside the screen, whatever is in it."""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise

import pytest
from chromium import Chromium
from compare_files import choice_predictions, sources
from report_documents import full_document, hostile_document

from muscle_hf.compare import Budget, compare
from muscle_hf.compare import document as d


def complaints(browser: Chromium) -> list[dict]:
    """Errors and refusals that the browser logged."""
    return [event for event in browser.events if event["method"] in {"Log.entryAdded", "Runtime.exceptionThrown"}]


def test_hostile_data_run_nothing_and_load_nothing(show):
    browser = show(hostile_document())
    browser.evaluate("for (const flip of document.querySelectorAll('.flip')) flip.open = true")
    browser.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.title") != "hacked"
    assert browser.evaluate("document.querySelectorAll('img, iframe, object, embed, link, base').length") == 0
    handlers = (
        "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    )
    assert browser.evaluate(handlers) == []
    sent = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert sent and all(url.startswith("file:") for url in sent)
    assert complaints(browser) == []


def test_hostile_texts_are_shown_whole_with_their_control_characters_spelled_out(show):
    browser = show(hostile_document())
    browser.evaluate("document.querySelector('.flip').open = true")
    browser.evaluate("new Promise((done) => setTimeout(done, 100))")
    prompt = browser.evaluate("document.querySelector('.flip .block').textContent")
    assert '</script><script>window.hacked=1;document.title="hacked"</script>' in prompt
    for name in ("U+202E", "U+2066", "U+001B", "U+0000", "U+D800", "U+2028"):
        assert name in prompt
    assert "U+202E" in browser.evaluate("document.querySelector('.control').textContent")
    acting = r"/[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]/u.test(document.body.innerText)"
    assert browser.evaluate(acting) is False
    isolation = "getComputedStyle(document.querySelector('.flip .block')).unicodeBidi"
    assert browser.evaluate(isolation) in {"isolate", "plaintext"}


def test_policy_refuses_scripts_that_a_page_would_otherwise_run(show):
    browser = show(full_document())
    with pytest.raises(RuntimeError, match="TrustedScript"):
        browser.evaluate("document.body.setAttribute('onclick', 'window.hacked = 1')")
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        browser.evaluate("document.body.innerHTML = '<img src=x onerror=window.hacked=1>'")
    browser.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:1/'}))")
    browser.evaluate("new Promise((done) => setTimeout(done, 100))")
    refused = [event["params"]["entry"]["text"] for event in complaints(browser)]
    assert any("Content Security Policy" in text for text in refused)
    assert browser.evaluate("window.hacked") is None


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_page_never_scrolls_sideways(show, width):
    document = full_document()
    long = [dataclasses.replace(f, answers=dict.fromkeys(f.answers, "Donau" * 30)) for f in document.tasks[0].flips]
    tasks = [dataclasses.replace(document.tasks[0], flips=long), *document.tasks[1:]]
    browser = show(dataclasses.replace(document, tasks=tasks), width, mobile=width < 700)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)"
        ".filter(height => height))"
    )
    assert smallest >= (9 if width > 320 else 7)


@pytest.mark.parametrize("dark", [False, True])
def test_texts_have_contrast_in_both_schemes(show, dark):
    browser = show(full_document(), dark=dark)
    ratio = """(names) => {
      const root = getComputedStyle(document.documentElement);
      const light = (name) => {
        const hex = root.getPropertyValue(name).trim().slice(1);
        const channels = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
          .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2];
      };
      const [a, b] = names.map(light).sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    }"""
    inks = ("--ink", "--soft", "--worse-ink", "--better-ink", "--accent")
    for ink in inks:
        for paper in ("--paper", "--surface", "--field"):
            assert browser.evaluate(f"({ratio})(['{ink}', '{paper}'])") >= 4.5, (ink, paper)
    for ink, tint in (("--worse-ink", "--worse-tint"), ("--better-ink", "--better-tint"), ("--ink", "--unsure-tint")):
        assert browser.evaluate(f"({ratio})(['{ink}', '{tint}'])") >= 4.5, (ink, tint)
    for shape in ("--worse", "--better"):
        assert browser.evaluate(f"({ratio})(['{shape}', '--surface'])") >= 3, shape
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 60) == dark


def test_page_can_be_read_without_eyes_and_used_without_a_mouse(show):
    browser = show(full_document())
    levels = browser.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => Number(e.tagName[1]))")
    assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    assert browser.evaluate("[...document.querySelectorAll('svg')].every(e => e.getAttribute('aria-label'))")
    assert browser.evaluate("[...document.querySelectorAll('input, select')].every(e => e.labels.length === 1)")
    assert browser.evaluate("[...document.querySelectorAll('th')].every(e => e.scope)")
    browser.evaluate("document.querySelector('.flip summary').focus()")
    browser.send(
        "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
    )
    browser.send("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    assert browser.evaluate("document.querySelector('.flip').open") is True


def test_page_prints(show):
    browser = show(full_document())
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.querySelector('.controls')).display") == "none"
    browser.send("Emulation.setEmulatedMedia", media="")
    assert len(browser.send("Page.printToPDF", printBackground=True)["data"]) > 10_000


LONG_TASK = "mmlu_high_school_government_and_politics_0_shot"
NAMES = ["Llama-3.1-8B-Instruct", *(f"Llama-3.1-8B-Instruct-{kind}" for kind in ("sft", "dpo", "kto"))]


def long_names() -> d.Document:
    old, new = choice_predictions(300, 0.7, 1), choice_predictions(300, 0.75, 2)
    sides = [old, new, choice_predictions(300, 0.72, 3), choice_predictions(300, 0.74, 4)]
    own = [
        [
            dataclasses.replace(
                p, task=LONG_TASK, columns={**p.columns, "reasoning": f"{name} thinks", "tokens": place}
            )
            for p in side
        ]
        for place, (name, side) in enumerate(zip(NAMES, sides, strict=True), start=40)
    ]
    return compare(*sources(*own), labels=NAMES, budget=Budget(limits={"max_nfr": {"*": 0.1}}))


@pytest.mark.parametrize("width", [390, 1280])
def test_long_names_stay_apart_and_inside(show, width):
    browser = show(long_names(), width, mobile=width < 700)
    assert all(name in browser.evaluate("document.title") for name in NAMES)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    texts = "[...document.querySelectorAll('.badge, .title, svg text, th, option')].map(e => e.textContent)"
    cut = [text for text in browser.evaluate(texts) if "Llama" in text and not any(name in text for name in NAMES)]
    assert len(set(cut)) in (0, len(NAMES))  # above the flows only, where all of them stay different
    overlaps = """(() => {
      let found = 0;
      for (const picture of document.querySelectorAll('figure svg')) {
        const frame = picture.getBoundingClientRect();
        const boxes = [...picture.querySelectorAll('text')].map(e => e.getBoundingClientRect()).filter(b => b.width);
        boxes.forEach((a, i) => {
          if (a.left < frame.left - 1 || a.right > frame.right + 1) found++;
          boxes.slice(i + 1).forEach(b => {
            const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (across > 2 && down > 4) found++;
          });
        });
      }
      return found;
    })()"""
    assert browser.evaluate(overlaps) == 0


def test_what_a_model_wrote_stands_under_its_own_answer(show):
    browser = show(long_names())
    browser.evaluate("document.querySelector('.flip').open = true")
    browser.evaluate("new Promise((done) => setTimeout(done, 100))")
    told = browser.evaluate("[...document.querySelectorAll('.answer .own')].map(e => e.textContent)")
    assert len(told) == 4 and all(f"{name} thinks" in text for name, text in zip(NAMES, told, strict=True))
