"""Metrics of a model update: plain functions of arrays, no torch, no models, no files.

Right or wrong (:mod:`muscle_hf.metrics.flips`; section 3.1 of the paper):
    ``is_correct(predictions, targets) -> bool array``; a target may be a list of several right answers.
    ``quadrants(old_correct, new_correct) -> Quadrants`` with ``.nfr``, ``.pfr``, ``.btc``, ``.bec``, ``.nfi``, ...
    ``flip_metrics(old_predictions, new_predictions, targets, compat_predictions=None, multiple_choice=True) -> dict``
    ``flip_metrics_from_correct(old_correct, new_correct, compat_correct=None) -> dict``, the same from booleans.

One model against an older one (:mod:`muscle_hf.metrics.update`):
    ``Update(before, after, kind=...)``: every number of both kinds of tasks, with intervals, tests and ``numbers()``
    for logs. ``nfr`` is always of the model named against the older one. What a negative flip is stands in
    ``fell(before, after, epsilon=0.0)``, and nowhere else.

Similarity scores (:mod:`muscle_hf.metrics.smooth`; section 3.2):
    ``smooth_flip_metrics(old_scores, new_scores, compat_scores=None, epsilon=0.0) -> dict``

Errors that come back (:mod:`muscle_hf.metrics.inheritance`):
    ``inherited_errors(old_correct, new_correct, compat_correct, old_predictions=None, compat_predictions=None)`` and
    ``inherited_scores(old_scores, new_scores, compat_scores, epsilon=0.0)``: which items, counts and rates.

Scoring text (:mod:`muscle_hf.metrics.similarity`):
    ``score_texts(predictions, references, similarity="rouge1") -> float array``;
    ``get_similarity(name_or_callable, **options)``; ``SIMILARITIES`` are the names.
    ``extract_gsm8k(text)``, ``extract_last_number(text)``, ``exact_match(prediction, references)``

How sure (:mod:`muscle_hf.metrics.intervals`, :mod:`muscle_hf.metrics.significance`):
    Intervals, all :class:`Estimate` objects: ``wilson_interval``, ``paired_difference``, ``nfr_change``,
    ``bootstrap``, ``pooled_rate``, ``mean_estimate``. Tests: ``mcnemar``, ``compat_test``,
    ``stratified_mcnemar``, ``cluster_sign_test``, ``run_permutation_test``, ``holm``. How many items a limit needs
    (:mod:`muscle_hf.metrics.power`): ``items_for_rate``, ``items_for_change``.

The keys of the dictionaries are ``items``, ``both_right``, ``positive_flips``, ``both_wrong``, ``negative_flips``
(counts); ``acc_old``, ``acc_new``, ``nfr``, ``pfr``, ``nfr_mc``, ``btc``, ``bec``, ``nfi``, ``relative_nfr``,
``agreement`` (fractions in [0, 1], not percent). With a compatibility model the same keys follow with the suffix
``_c`` (``acc_c``, ``nfr_c``, ``both_right_c``, ...), and ``delta_<rate>_c`` = c minus plain;
``delta_nfr_c_percent`` and ``delta_pfr_c_percent`` are relative to the plain rate, in percent.
An empty denominator gives nan, never 0.
"""

from muscle_hf.lazy import lazy_exports
from muscle_hf.metrics.flips import (
    Quadrants,
    fell,
    flip_metrics,
    flip_metrics_from_correct,
    is_correct,
    negative_flips,
    negative_flips_mc,
    positive_flips,
    quadrants,
)
from muscle_hf.metrics.inheritance import InheritedErrors, inherited_errors, inherited_scores
from muscle_hf.metrics.intervals import (
    Estimate,
    bootstrap,
    mean_estimate,
    nfr_change,
    paired_difference,
    pooled_rate,
    wilson_interval,
)
from muscle_hf.metrics.power import items_for_change, items_for_rate
from muscle_hf.metrics.significance import (
    cluster_sign_test,
    compat_test,
    holm,
    mcnemar,
    run_permutation_test,
    stratified_mcnemar,
)
from muscle_hf.metrics.similarity import (
    SIMILARITIES,
    exact_match,
    extract_gsm8k,
    extract_last_number,
    get_similarity,
    score_texts,
)
from muscle_hf.metrics.smooth import score_changes, smooth_flip_metrics
from muscle_hf.metrics.update import Update

__all__ = [
    "SIMILARITIES",
    "Estimate",
    "InheritedErrors",
    "Quadrants",
    "Update",
    "bootstrap",
    "cluster_sign_test",
    "compat_test",
    "exact_match",
    "extract_gsm8k",
    "extract_last_number",
    "fell",
    "flip_metrics",
    "flip_metrics_from_correct",
    "get_similarity",
    "holm",
    "inherited_errors",
    "inherited_scores",
    "is_correct",
    "items_for_change",
    "items_for_rate",
    "mcnemar",
    "mean_estimate",
    "negative_flips",
    "negative_flips_mc",
    "nfr_change",
    "paired_difference",
    "pooled_rate",
    "positive_flips",
    "quadrants",
    "run_permutation_test",
    "score_changes",
    "score_texts",
    "smooth_flip_metrics",
    "stratified_mcnemar",
    "wilson_interval",
]

# Of the submodules that are not imported above.
__getattr__, _, _ = lazy_exports(__name__, {})
