"""What is compiled on CUDA gives the figures of what is written; here the compiler is asked for the CPU."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from muscle_hf.objective import fused
from muscle_hf.objective.fused import Fused

WIDTH = 300
ROWS = (5, 12, 1, 33, 2)

compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")


def logits(rows, dtype, seed, width=WIDTH):
    random = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(rows, width, generator=random, dtype=torch.float64)).to(dtype)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_divergence_is_the_plain_one(dtype):
    """As the chunks call it: logits that a model in half precision made, in float32; teachers of another width too."""
    torch._dynamo.reset()
    counters.clear()
    for rows in ROWS:
        teacher, student = (logits(rows, dtype, seed).float() for seed in (1, 2))
        for wanted in (True, False):
            expected = fused.kl_and_slope.plain(teacher, student, 2.0, wanted)
            found = fused.kl_and_slope.compiled(teacher, student, 2.0, wanted)
            for one, other in zip(expected, found, strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
        again = fused.kl_and_slope.compiled(teacher, teacher.clone(), 2.0, True)
        assert not again[0].any() and not again[1].any(), "an equal teacher is at no distance"
    # With a gradient and without, for one row and for several.
    assert counters["stats"]["unique_graphs"] <= 4


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda")


def test_elsewhere_nothing_is_compiled_and_what_cannot_be_compiled_runs_as_it_is(monkeypatch, caplog):
    calls = []

    def twice(tensor):
        calls.append(type(tensor))
        return 2 * tensor

    monkeypatch.setattr(fused, "_LEAST_ELEMENTS", 2)
    function = Fused(twice)
    assert function(torch.ones(2)).tolist() == [2, 2]
    assert "compiled" not in vars(function)

    def broken(function):
        raise torch._dynamo.exc.TorchDynamoException("no Triton here")

    function.compiled = broken
    with caplog.at_level(logging.WARNING, "muscle_hf.objective.fused"):
        for _ in range(2):
            assert function(torch.ones(2).as_subclass(OnCuda)).tolist() == [2, 2]
    assert caplog.text.count("no Triton here") == 1
    assert calls == [torch.Tensor, OnCuda, OnCuda]
    function = Fused(twice)
    function.compiled = lambda tensor: torch.zeros(1)
    assert function(torch.ones(1).as_subclass(OnCuda)).tolist() == [2], "too little to compile for"
    assert function(torch.ones(2).as_subclass(OnCuda)).tolist() == [0]
