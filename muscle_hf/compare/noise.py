"""The noise floor: how many answers flip when nothing but the run changes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence

import numpy as np

from muscle_hf.compare.document import NoiseFloor, plain
from muscle_hf.compare.join import Joined, Missing, join
from muscle_hf.compare.sources import Source
from muscle_hf.errors import MuscleError
from muscle_hf.files import read_json, readable
from muscle_hf.metrics.flips import fell
from muscle_hf.metrics.intervals import Estimate, mean_change, wilson_interval


def measure_noise(
    runs: Sequence[Source],
    *,
    level: float = 0.95,
    epsilon: float = 0.0,
    missing: Missing = "error",
) -> list[NoiseFloor]:
    """Flips between runs of one model: with another batch size, dtype, number of devices, seed of sampling, ...

    Args:
        runs: Predictions of the same model for the same items, two or more.
        level: Confidence level of the interval.
        epsilon: Changes of a score of at most this size are no flips.
        missing: What becomes of items that a model has no judged answer to (:func:`~muscle_hf.compare.join.join`).

    Raises:
        MuscleError: Fewer than two runs, or runs of different items.
    """
    if len(runs) < 2:
        raise MuscleError("the noise floor needs two or more runs of the same model")
    joined, _ = join({f"run {i}": run for i, run in enumerate(runs, start=1)}, missing=missing)
    return [_floor(task, level, epsilon) for task in joined]


def _floor(joined: Joined, level: float, epsilon: float) -> NoiseFloor:
    items, pairs = len(joined.ids), list(itertools.permutations(joined.labels, 2))
    lost = np.zeros(items)
    rates = []
    for first, second in pairs:
        flips = fell(joined.values[first], joined.values[second], epsilon)
        lost += flips
        rates.append(float(flips.mean()))
    lost /= len(pairs)
    # Resampling no flips gives no flips; Wilson's interval knows how few items could hide some.
    nfr = mean_change(lost, level=level) if lost.any() else wilson_interval(0, items, level=level)
    changed = [
        np.mean(joined.answers[first] != joined.answers[second])
        for first, second in pairs
        if joined.answers[first] is not None and joined.answers[second] is not None
    ]
    answers_changed = float(np.mean(changed)) if len(changed) == len(pairs) else math.nan
    flaky = [joined.ids[item] for item in np.flatnonzero(lost)]
    return NoiseFloor(joined.task, len(joined.labels), items, nfr, max(rates), answers_changed, flaky)


def noise_json(floors: Sequence[NoiseFloor]) -> str:
    """The file that ``muscle-hf compare --noise`` reads."""
    return json.dumps(plain({"noise": floors}), indent=1, allow_nan=False)


def read_noise(path: str) -> list[NoiseFloor]:
    """Reads what :func:`noise_json` wrote."""
    content = read_json(path, "noise file")
    with readable(f"{path}, a noise floor,", "; muscle-hf noise --json writes one"):
        return [
            NoiseFloor(
                **entry
                | {"nfr": Estimate(**entry["nfr"])}
                | ({"answers_changed": math.nan} if entry["answers_changed"] is None else {})
            )
            for entry in content["noise"]
        ]
