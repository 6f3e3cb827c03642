"""Items that a model answered several times: what of its answers counts."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb

from muscle_hf.compare.join import Joined
from muscle_hf.errors import MuscleError

# Ways to count repeated answers.
WAYS = re.compile(r"mean|majority|pass@[1-9]\d*")


def count_repeats(joined: Joined, how: str) -> Joined:
    """A task whose items have the value that is asked for.

    Args:
        joined: The items; their value is the mean of their answers.
        how: ``mean``: the rate of right answers. ``majority``: right if more than half of the answers are, an item as
            any other. ``pass@K``: how likely one of K answers is right, by the unbiased estimator of Chen et al. 2021
            (arXiv 2107.03374, equation 1).

    Raises:
        MuscleError: A model has fewer than K answers to an item, or its answers have scores.
    """
    if not joined.runs or how == "mean":
        return joined
    if joined.kind == "score":
        raise MuscleError(f"task {joined.task!r} has scores, which only their mean counts; leave out --repeats {how}")
    if how == "majority":
        return replace(joined, values={label: (value > 0.5) * 1.0 for label, value in joined.values.items()}, runs={})
    k = int(how.removeprefix("pass@"))
    values = {label: _pass_at(runs, k) for label, runs in joined.runs.items()}
    short = [label for label, runs in joined.runs.items() if (~np.isnan(runs)).sum(1).min() < k]
    if short or len(values) < len(joined.values):
        raise MuscleError(f"task {joined.task!r}: {how} needs {k} answers to every item from every model")
    return replace(joined, values=values)


def _pass_at(runs: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    n, right = (~np.isnan(runs)).sum(1), np.nansum(runs, 1)
    return 1 - comb(n - right, k) / np.maximum(comb(n, k), 1)
