"""Benchmarks that need what is seldom at hand still run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_the_gpu_benchmark_runs_through_at_toy_size():
    command = [sys.executable, str(BENCHMARKS / "gpu_cost.py"), "--device", "cpu", "--shapes", "toy", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for way in ("chunked, without compiled kernels", "MUSCLE, both cached", "TRL GKDTrainer"):
        assert f"| toy | {way}" in done.stdout or f"| toy | 64 | {way}" in done.stdout
    refused = subprocess.run(command[:2], capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert refused.returncode == 2 and "--device cpu --shapes toy" in refused.stderr
