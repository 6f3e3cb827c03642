"""Hyper-parameter searches of a trainer: each trial has models, teachers and an objective of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.trainer_utils import BestRun, default_compute_objective

from muscle_hf.objective.sums import FIGURES
from muscle_hf.training.base import TrainerParts
from muscle_hf.training.config import MuscleConfig
from muscle_hf.training.refusals import refuse_unsupported
from muscle_hf.training.step import make_step


class SearchMixin(TrainerParts):
    """What ``MuscleMixin`` does anew in each trial of ``hyperparameter_search``."""

    def call_model_init(self, trial: Any = None) -> nn.Module:
        return self._cast(super().call_model_init(trial))

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        if self.model_init is None:
            return
        # The models are new, and a trial's values are in the arguments now: what was made of either is made again.
        self.settings = MuscleConfig.of(self.args)
        self.muscle_objective = self.settings.objective(self._mask)
        refuse_unsupported(self, self.muscle_objective)
        self._place_teachers()
        self._step = make_step(self)

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, float]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """As Trainer's: minimises the loss unless ``compute_metrics`` or ``compute_objective`` says otherwise."""
        return super().hyperparameter_search(hp_space, compute_objective or _search_objective, *args, **kwargs)


def _search_objective(metrics: dict[str, float]) -> float:
    # Trainer's default adds up whatever is there beside the loss: the user's metrics, but not the objective's parts.
    return default_compute_objective({k: v for k, v in metrics.items() if k.removeprefix("eval_") not in FIGURES})
