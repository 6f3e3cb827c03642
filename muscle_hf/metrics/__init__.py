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

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "SIMILARITIES": "similarity",
        "Estimate": "intervals",
        "InheritedErrors": "inheritance",
        "Quadrants": "flips",
        "Update": "update",
        "bootstrap": "intervals",
        "cluster_sign_test": "significance",
        "compat_test": "significance",
        "exact_match": "similarity",
        "extract_gsm8k": "similarity",
        "extract_last_number": "similarity",
        "fell": "flips",
        "flip_metrics": "flips",
        "flip_metrics_from_correct": "flips",
        "get_similarity": "similarity",
        "holm": "significance",
        "inherited_errors": "inheritance",
        "inherited_scores": "inheritance",
        "is_correct": "flips",
        "items_for_change": "power",
        "items_for_rate": "power",
        "mcnemar": "significance",
        "mean_estimate": "intervals",
        "negative_flips": "flips",
        "negative_flips_mc": "flips",
        "nfr_change": "intervals",
        "paired_difference": "intervals",
        "pooled_rate": "intervals",
        "positive_flips": "flips",
        "quadrants": "flips",
        "run_permutation_test": "significance",
        "score_changes": "smooth",
        "score_texts": "similarity",
        "smooth_flip_metrics": "smooth",
        "stratified_mcnemar": "significance",
        "wilson_interval": "intervals",
    },
)
