"""How sure a teacher may be: its temperature, fitted on held-out rows (Guo et al., 2017, "On Calibration of Modern
Neural Networks", section 4.2).

A task adapter that has memorised its rows is surer of its answers than it is right, and one model more so than the
other. Where a token follows both teachers, or the surer of them, that alone decides whose answer counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import TrainerCallback
from transformers.utils import logging

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.forward import require_finite

logger = logging.get_logger(__name__)

# 0.25 to 16, twelve steps to a doubling: between two of them the curve is as good as a parabola.
LOG_TEMPERATURES = torch.linspace(-2, 4, 73, dtype=torch.float64) * torch.log(torch.tensor(2.0, dtype=torch.float64))


def negative_log_likelihoods(logits: Tensor, labels: Tensor) -> Tensor:
    """What each token's label costs at every temperature of the grid: (N, 73), float32 at least, nats, of logits (N,
    V)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    columns = [
        functional.cross_entropy(logits / value, labels, reduction="none") for value in LOG_TEMPERATURES.exp().tolist()
    ]
    return torch.stack(columns, dim=-1)


def fitted_temperature(costs: Tensor) -> float:
    """The temperature at which labels cost least, of their summed costs (73,): the vertex of the parabola through the
    least cost and its neighbours; an end of the grid if it lies there."""
    least = int(costs.argmin())
    if least in (0, len(costs) - 1):
        return float(LOG_TEMPERATURES[least].exp())
    before, here, after = costs[least - 1 : least + 2].tolist()
    curve = before - 2 * here + after
    shift = 0.5 * (before - after) / curve if curve > 0 else 0.0
    step = float(LOG_TEMPERATURES[1] - LOG_TEMPERATURES[0])
    return float((LOG_TEMPERATURES[least] + shift * step).exp())


class CalibrateTeachers(TrainerCallback):
    """Sets and logs ``teacher_temperatures`` of a trainer when its training starts; refused without rows to fit on, or
    with a cache that keeps probabilities of another temperature."""

    def __init__(self, trainer: Any):
        if not trainer.eval_dataset:
            raise MuscleError(
                "calibrate_teachers fits the teachers' temperatures on rows that neither task adapter was trained on; "
                "pass them as eval_dataset"
            )
        if trainer.settings.teacher_cache_top_k:
            raise MuscleError(
                "a cache with teacher_cache_top_k keeps probabilities, which calibrate_teachers would have to change; "
                "leave one of the two out"
            )
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = calibrated(self._trainer)
        self._trainer.teacher_temperatures.update(found)
        self._trainer.log({f"{role}_teacher_temperature": value for role, value in found.items()})


def calibrated(trainer: Any) -> dict[str, float]:
    """What each teacher's logits are to be divided by, by role, from the labels of ``eval_dataset``, or of several."""
    several = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else [None]
    inputs = (inputs for name in several for inputs in trainer.get_eval_dataloader(name))
    roles = list(trainer.teachers)
    costs = torch.zeros(len(roles), len(LOG_TEMPERATURES), dtype=torch.float64)
    for batch in (trainer.batch_of(trainer._prepare_inputs(batch)) for batch in inputs):
        rows, count = trainer.data_rows(batch)
        of_rows = torch.zeros(count, len(roles), len(LOG_TEMPERATURES), device=batch.labels.device)
        for index, role in enumerate(roles):
            start = 0
            for logits in trainer._step.teacher_logits(role, batch):
                here = slice(start, start + len(logits))
                require_finite(role, logits, batch.rows[here], "the calibration on eval_dataset")
                found = negative_log_likelihoods(logits, batch.targets[here])
                of_rows[:, index].index_add_(0, rows[here], found.float())
                start += len(logits)
        # The gathering that drops rows repeated to fill the last batch.
        costs += trainer.accelerator.gather_for_metrics(of_rows).cpu().double().sum(dim=0)
    if not costs.any():
        raise MuscleError("eval_dataset has no trained token, so calibrate_teachers has nothing to fit on")
    temperatures = {role: fitted_temperature(cost) for role, cost in zip(roles, costs, strict=True)}
    ends = LOG_TEMPERATURES[[0, -1]].exp().tolist()
    for role in [role for role, value in temperatures.items() if value in ends]:
        logger.warning(
            f"The best temperature of the {role} model on eval_dataset lies at an end of what was tried, "
            f"{temperatures[role]:g}; are these rows held out, and are their labels right?"
        )
    return temperatures
