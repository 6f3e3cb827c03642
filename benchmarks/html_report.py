"""How large and how fast the HTML report is with many flips; prints a Markdown table.

    python benchmarks/html_report.py [--flips 20000] [--words 120] [--output benchmarks/results/html_report.md]

Each flip has a prompt of --words words and four answers of a third of that. Needs Chromium (Debian: chromium).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))  # the documents and the browser are those of the tests

from chromium import Chromium  # noqa: E402
from report_documents import large_document  # noqa: E402

from muscle_hf.report import html  # noqa: E402

# What is timed in the page: control, its new value, milliseconds that the list waits for further typing.
ACTIONS = {
    "first search (one word)": ("search", "needle777", 150),
    "second search (one word)": ("search", "parcel", 150),
    "search cleared": ("search", "", 150),
    "sort by id": ("sort", "1", 0),
    "sort by longest answer": ("sort", "4", 0),
    "filter": ("filter", "1", 0),
}


def timed(browser: Chromium, control: str, value: str, wait: int) -> float:
    """Milliseconds from a control's change to the new list, without the wait for further typing."""
    event = "input" if control == "search" else "change"
    return browser.evaluate(f"""(() => {{
      const control = document.getElementById('{control}'), start = performance.now();
      control.value = '{value}';
      control.dispatchEvent(new Event('{event}'));
      return new Promise((done) => setTimeout(() => done(performance.now() - start - {wait}), {wait + 1}));
    }})()""")


def measure(flips: int, words: int) -> dict[str, str]:
    """All figures, in words."""
    document = large_document(flips, words)
    started = time.perf_counter()
    page = html.render(document)
    figures = {"rendering, Python": f"{time.perf_counter() - started:.2f} s"}
    with tempfile.TemporaryDirectory() as folder, Chromium() as browser:
        path = Path(folder) / "report.html"
        path.write_text(page, encoding="utf-8")
        figures["file size"] = f"{path.stat().st_size / 1e6:.1f} MB"
        browser.resize(1280, 900)
        browser.open(path)
        loaded = browser.evaluate("performance.getEntriesByType('navigation')[0].domComplete")
        figures["opening until the list stands"] = f"{loaded / 1000:.2f} s"
        for name, action in ACTIONS.items():
            figures[name] = f"{timed(browser, *action):.0f} ms"
        turn = "document.getElementById('next').click(); document.body.offsetHeight; performance.now() - start"
        figures["turning the page"] = f"{browser.evaluate(f'const start = performance.now(); {turn}'):.0f} ms"
        figures["elements in the document"] = f"{browser.evaluate('document.querySelectorAll(`*`).length'):,}"
    return figures


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=120)
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()
    figures = measure(args.flips, args.words)
    lines = [
        "# The HTML report with many flips",
        "",
        f"`python benchmarks/html_report.py --flips {args.flips} --words {args.words}`, seed 0, "
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, headless Chromium.",
        "",
        "| what | figure |",
        "| --- | ---: |",
        *(f"| {name} | {value} |" for name, value in figures.items()),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
