"""The callback that collects, while a model is being trained, what its card will say."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from muscle_hf.hub.state import CardState, curve_points


class MuscleCardCallback(TrainerCallback):
    """Fills a :class:`~muscle_hf.hub.CardState` (a fresh one by default): curves, hardware, time and, if codecarbon
    tracks them, emissions.

    ``MuscleTrainer`` adds one by itself; its state is ``trainer.card_state``, to be completed by what only people know
    (``trainer.card_state.license = "apache-2.0"``).
    """

    def __init__(self, state: CardState | None = None):
        self.state = CardState() if state is None else state
        self._started: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the time and the hardware; of a run that goes on, the time before is not known, so no time is."""
        self._started = None if state.global_step else time.monotonic()
        self.state.hardware = describe_hardware(args.world_size)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note how long it took, and keep the points of the curves."""
        self.state.history = curve_points(state.log_history)
        if self._started is not None:
            self.state.train_seconds = round(time.monotonic() - self._started, 1)


def measured_emissions(handler: CallbackHandler) -> float | None:
    """kg CO2eq that a ``CodeCarbonCallback`` beside this one has measured; None if there is none."""
    for callback in handler.callbacks:
        tracker = getattr(callback, "tracker", None)
        emissions = getattr(tracker, "final_emissions", None)
        if isinstance(emissions, (int, float)):
            return float(emissions)
    return None


def describe_hardware(processes: int) -> str:
    """The kind and number of accelerators or processors, without the machine's name."""
    import torch

    if torch.cuda.is_available():
        return f"{processes} x {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return "Apple GPU (MPS)"
    return f"CPU ({platform.machine()}), {processes} x {torch.get_num_threads()} threads"


def license_in(folder: Path | None) -> str | None:
    """The licence that the card in a base's folder names; None if there is no card or it names none."""
    card = None if folder is None else folder / "README.md"
    if card is None or not card.is_file():
        return None
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        license_ = (metadata_load(card) or {}).get("license")
    except (ValueError, YAMLError):
        return None  # front matter that is no YAML names no licence
    return license_ if isinstance(license_, str) else None
