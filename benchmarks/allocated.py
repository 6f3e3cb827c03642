"""The memory of a training step, as PyTorch's allocator counts it; it works on a CPU too."""

from __future__ import annotations

import gc

import torch
from transformers import TrainerCallback


def alive() -> int:
    """Bytes of all storages that tensors on the CPU hold."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


class SecondStep(TrainerCallback):
    """Bytes held at the peak of the second step in ``peak``: the first one makes the optimizer's state."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self._before = alive()
            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ).__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self._profile.__exit__(None, None, None)
            events = self._profile.profiler.kineto_results.events()
            steps = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
            now = added = 0
            for _, change in steps:
                now += change
                added = max(added, now)
            self.peak = self._before + added
