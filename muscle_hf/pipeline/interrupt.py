"""Ctrl-C while training: the step is finished, a checkpoint saved, and the run can be gone on with."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, cast

import torch
from transformers import Trainer, TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Slurm signals every process of a job step, and the launcher among them passes its own on: both count as one.
_AT_ONCE = 1.0


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside, and everything up to there is saved."""


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None], signals: Sequence[int] = SIGNALS) -> Iterator[None]:
    """Handle signals within the block; elsewhere than in the main thread, where Python gets none, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


@contextlib.contextmanager
def stop_on_interrupt(trainer: Trainer, name: str) -> Iterator[None]:
    """Within the block, Ctrl-C (or SIGTERM, which launchers and Slurm send) stops training after the present step.

    A second Ctrl-C, more than a second later, stops at once. With several processes, all stop at the same step when
    one is told to. At its end :class:`Interrupted` is raised, if training was stopped.
    """
    stop = _Stop(trainer)
    trainer.add_callback(stop)
    try:
        with handling(stop.on_signal):
            yield
            if stop.stopped_at is not None:
                # The launcher ends all processes as soon as one has ended: not before the checkpoint is whole.
                trainer.accelerator.wait_for_everyone()
    finally:
        trainer.remove_callback(stop)
    if stop.stopped_at is not None:
        raise Interrupted(
            f"{name} was stopped at step {stop.stopped_at} of {trainer.state.max_steps}; the checkpoint is in "
            f"{trainer.args.output_dir}. The same command goes on from there"
        )


class _Stop(TrainerCallback):
    """Ends training at the end of a step, once a signal has asked for it."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._asked_at: float | None = None
        self.stopped_at: int | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            if self._trainer.is_world_process_zero():
                print("Stopping after this step and saving a checkpoint; once more stops at once.", file=sys.stderr)
        elif now - self._asked_at > _AT_ONCE:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop here, if any process was asked to."""
        if state.global_step < state.max_steps and self._any_asked():
            control.should_save = True
            control.should_training_stop = True
            self.stopped_at = state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Neither evaluate nor save again, where training stops within an epoch: Trainer takes that for its end."""
        if self.stopped_at is not None and not float(state.epoch).is_integer():
            control.should_evaluate = control.should_save = False

    def _any_asked(self) -> bool:
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            return self._asked_at is not None
        flag = torch.tensor(int(self._asked_at is not None), device=accelerator.device)
        return bool(cast("torch.Tensor", accelerator.reduce(flag, reduction="sum")) > 0)
