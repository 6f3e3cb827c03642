"""Metrics of a model update: plain functions of arrays, no torch, no models, no files.

Right or wrong (section 3.1 of the paper): :mod:`muscle_hf.metrics.flips`, where ``fell`` says what a negative flip is;
scores (section 3.2): :mod:`~muscle_hf.metrics.smooth`; every number of one model against an older one, with intervals
and tests: :mod:`~muscle_hf.metrics.update`; errors that come back: :mod:`~muscle_hf.metrics.inheritance`; texts:
:mod:`~muscle_hf.metrics.similarity`; how sure: :mod:`~muscle_hf.metrics.intervals`,
:mod:`~muscle_hf.metrics.significance`; how many items a limit needs: :mod:`~muscle_hf.metrics.power`.

The keys of the dictionaries are ``items``, ``both_right``, ``positive_flips``, ``both_wrong``, ``negative_flips``
(counts); ``acc_old``, ``acc_new``, ``nfr``, ``pfr``, ``nfr_mc``, ``btc``, ``bec``, ``nfi``, ``relative_nfr``,
``agreement`` (fractions in [0, 1], not percent). With a compatibility model the same keys follow with the suffix
``_c`` (``acc_c``, ``nfr_c``, ``both_right_c``, ...), and ``delta_<rate>_c`` = c minus plain;
``delta_nfr_c_percent`` and ``delta_pfr_c_percent`` are relative to the plain rate, in percent.
An empty denominator gives nan, never 0.
"""

from muscle_hf.lazy import lazy_exports

_HOMES = {
    "flips": "Quadrants fell flip_metrics flip_metrics_from_correct is_correct negative_flips "
    "negative_flips_mc positive_flips quadrants",
    "smooth": "score_changes smooth_flip_metrics",
    "update": "Update",
    "inheritance": "InheritedErrors inherited_errors inherited_scores",
    "similarity": "SIMILARITIES exact_match extract_gsm8k extract_last_number get_similarity score_texts",
    "intervals": "Estimate bootstrap mean_estimate nfr_change paired_difference pooled_rate wilson_interval",
    "significance": "cluster_sign_test compat_test holm mcnemar run_permutation_test stratified_mcnemar",
    "power": "items_for_change items_for_rate",
}
__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {name: home for home, names in _HOMES.items() for name in names.split()}
)
