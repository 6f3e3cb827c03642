"""Look at a model without leaving a trace: mode, random state and caches are afterwards as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Evaluate ``model`` in eval mode and without gradients, then restore all modes and random states."""
    modes: list[tuple[Any, bool]] = [(module, module.training) for module in model.modules()]
    # One forward in eval mode makes bitsandbytes repack 4-bit weights for good on CPUs with AVX512-BF16; training
    # would then silently get no gradients.
    repacking = [module for module, _ in modes if getattr(module, "support_avx512bf16_for_cpu", False)]
    for module in repacking:
        module.support_avx512bf16_for_cpu = False
    model.eval()
    try:
        # Not inference_mode: buffers that a model refreshes in forward (dynamic RoPE) must stay usable in autograd.
        with random_state_kept(), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module in repacking:
            module.support_avx512bf16_for_cpu = True


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random states of Python, NumPy, torch and its accelerator on exit."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = None if accelerator is None else accelerator.type
    backend = getattr(torch, devices) if devices in ("cuda", "xpu", "mps") else None
    if backend is not None:
        device_state = backend.get_rng_state() if devices == "mps" else backend.get_rng_state_all()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if backend is not None:
            (backend.set_rng_state if devices == "mps" else backend.set_rng_state_all)(device_state)
