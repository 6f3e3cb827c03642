"""The notebooks run from top to bottom, offline and with few rows; no output of a run is kept in them."""

from __future__ import annotations

import re

import paths
import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

ROOT = paths.ROOT
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
# What each leaves behind.
LEFT = {
    "train_dial_publish": ("chosen/adapter_model.safetensors", "compat/README.md"),
    "what_does_my_update_break": ("report.html",),
}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    fewer = "TRAIN_ROWS, TEST_ROWS, EPOCHS = 16, 24, 1"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counted = [re.subn(r"TRAIN_ROWS, TEST_ROWS, EPOCHS = .*", fewer, cell.source) for cell in cells]
    assert sum(count for _, count in counted) == 1
    for cell, (source, _) in zip(cells, counted, strict=True):
        cell.source = source
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert all((tmp_path / file).is_file() for file in LEFT[path.stem])


def test_notebooks_are_stripped():
    assert {path.stem for path in NOTEBOOKS} == set(LEFT)
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
