"""Benchmarks that need what is seldom at hand still run."""

from __future__ import annotations

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
