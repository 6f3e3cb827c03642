"""Model updates that keep right answers right: MUSCLE compatibility adapters for the Hugging Face stack."""

from __future__ import annotations

from muscle_hf.lazy import lazy_exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ChoiceLog": "choice_log",
        "FlipMetricsCallback": "callbacks",
        "MuscleConfig": "training.config",
        "MuscleError": "errors",
        "MuscleMixin": "trainer",
        "MuscleSFTConfig": "sft",
        "MuscleSFTTrainer": "sft",
        "MuscleSeq2SeqConfig": "seq2seq",
        "MuscleSeq2SeqTrainer": "seq2seq",
        "MuscleTrainer": "trainer",
        "TransferPrompts": "prompts",
        "load_compatible": "hub.load",
    },
)
__all__ += ["__version__"]
