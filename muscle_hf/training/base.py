"""What the parts of the trainer know of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from muscle_hf.teachers.checks import text_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer as TrainerBase

    from muscle_hf.objective import Objective
    from muscle_hf.teachers import ModelKind, Teacher
    from muscle_hf.training.config import MuscleConfig
    from muscle_hf.training.provenance import Provenance
    from muscle_hf.training.step import Step
else:
    TrainerBase = object


class TrainerParts(TrainerBase):
    """A part of a trainer: mixed into ``transformers.Trainer``, or a class derived from it, beside the others.

    Attributes:
        student: v2 with the compatibility adapter active.
        kind: Of all three models.
        teachers: ``old`` and ``new``.
        settings: The method's.
        muscle_objective: What is trained.
        provenance: What the adapter comes from; None in processes that save nothing.
    """

    student: PeftModel
    kind: ModelKind
    teachers: dict[str, Teacher]
    settings: MuscleConfig
    muscle_objective: Objective
    provenance: Provenance | None
    _step: Step
    train_dataset: Any
    eval_dataset: Any
    _signature_columns: list[str] | None

    @property
    def run_folder(self) -> str:
        """Where checkpoints go."""
        return cast("str", self.args.output_dir)

    @property
    def tokenizer(self) -> Any:
        """v2's tokenizer: the processing class, its part for text, or the collator's."""
        return text_tokenizer(self.processing_class, self.data_collator)
