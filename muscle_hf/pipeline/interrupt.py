"""Ctrl-C while training: the step is finished, a checkpoint saved, and the run can be gone on with."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from muscle_hf.errors import MuscleError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(MuscleError):
    """Training was stopped from outside, and everything up to there is saved."""


class StopOnInterrupt(TrainerCallback):
    """Within the block, Ctrl-C (or SIGTERM, which launchers and Slurm send) stops training after the present step.

    A second Ctrl-C stops at once. With several processes, all stop at the same step when one is told to.

    Args:
        trainer: That trains in the block.
        name: Of what it trains, for the message.

    Raises:
        Interrupted: At the end of the block, if training was stopped.
    """

    def __init__(self, trainer: Trainer, name: str):
        self._trainer = trainer
        self._name = name
        self._asked = False
        self._stopped_at: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopOnInterrupt:
        self._trainer.add_callback(self)
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._trainer.remove_callback(self)
        if kind is None and self._stopped_at is not None:
            raise Interrupted(
                f"{self._name} was stopped at step {self._stopped_at} of {self._trainer.state.max_steps}; the "
                f"checkpoint is in {self._trainer.args.output_dir}. The same command goes on from there"
            )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("Stopping after this step and saving a checkpoint; once more stops at once.", file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop here, if any process was asked to."""
        if state.global_step < state.max_steps and self._any_asked():
            control.should_save = True
            control.should_training_stop = True
            self._stopped_at = state.global_step

    def _any_asked(self) -> bool:
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            return self._asked
        flag = torch.tensor(int(self._asked), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)
