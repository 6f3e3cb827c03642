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
