"""Reports in a headless Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import Chromium, find_chromium

from muscle_hf.compare import document as d
from muscle_hf.report import html


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        pytest.skip("no Chromium on the path; install it (Debian: apt-get install chromium)")
    with Chromium() as opened:
        yield opened


@pytest.fixture
def show(browser: Chromium, tmp_path: Path):
    """Opens a document's report in the browser, at desktop size unless told otherwise."""

    def open_report(document: d.Document, width: int = 1280, **look: bool) -> Chromium:
        path = tmp_path / "report.html"
        path.write_text(html.render(document), encoding="utf-8")
        browser.resize(width, 900, **look)
        browser.open(path)
        return browser

    return open_report
