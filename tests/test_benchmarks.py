"""Benchmarks that need what is seldom at hand still run."""

from __future__ import annotations

import importlib
import re

import paths
import pytest
from launching import launched

BENCHMARKS = paths.ROOT / "benchmarks"


@pytest.mark.slow
def test_the_gpu_benchmark_runs_through_at_toy_size():
    script = str(BENCHMARKS / "gpu_cost.py")
    said = launched([script, "--device", "cpu", "--shapes", "toy", "--rounds", "1"], processes=1)
    for way in ("chunked, without compiled kernels", "MUSCLE, both cached", "TRL GKDTrainer"):
        assert f"| toy | {way}" in said or f"| toy | 64 | {way}" in said
    refused = launched([script], {"CUDA_VISIBLE_DEVICES": ""}, processes=1, code=2)
    assert "--device cpu --shapes toy" in refused


@pytest.fixture
def architectures(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # importing it sets them for good
    return importlib.import_module("architectures")


def test_the_table_of_architectures_is_of_those_versions_and_rows(architectures):
    page = architectures.PAGE.read_text(encoding="utf-8")
    _, table, _ = page.split(architectures.MARK)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == list(architectures.COLUMNS) and [name for name, *_ in rows[2:]] == list(
        architectures.ARCHITECTURES
    )
    notes = re.findall(r"^(\d+)\. .+", table, re.MULTILINE)
    cells = [re.fullmatch(r"(?:yes|no|untested)(?: \((\d+)\))?|–", cell) for _, *row in rows[2:] for cell in row]
    assert all(cells) and {cell[1] for cell in cells if cell[1]} == set(notes)
    pinned = (paths.ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name, version in re.findall(r"(\w+) ([\d.]+\d)", table.strip().splitlines()[0]):
        assert f"\n{name}=={version}" in pinned, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen 3.5 (hybrid)", "BERT, classifier"])
def test_a_row_of_architectures_still_holds(architectures, name):
    found = architectures.check(name)
    assert {said.partition(",")[0] for column, said in found.items() if column != "vLLM"} <= {"yes", "–"}, found
