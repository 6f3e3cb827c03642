"""How each task of the demo is trained: the settings that ``muscle-hf demo`` uses.

Epochs and learning rate were chosen by plain LoRA runs on v1 and v2, never by a result of MUSCLE: the task adapters
fit their training rows almost entirely, and more epochs do not raise their accuracy on validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskSettings:
    """Settings of one task.

    Args:
        train: Rows that the adapters are trained on.
        validation: Rows for evaluation during training.
        test: Rows of the final table.
        epochs: Passes over the training rows, for a task adapter.
        learning_rate: Peak learning rate (AdamW).
        batch_size: Rows per step.
        lora_rank: Rank of the LoRA on every linear layer of the body.
        lora_alpha: Scaling of the LoRA.
    """

    train: int
    validation: int
    test: int
    epochs: int = 6
    learning_rate: float = 3e-3
    batch_size: int = 16
    lora_rank: int = 16
    lora_alpha: int = 32


SETTINGS: dict[str, TaskSettings] = {
    "routing": TaskSettings(train=400, validation=600, test=1200),
    "refund": TaskSettings(train=600, validation=200, test=400),
    "summary": TaskSettings(train=600, validation=200, test=300),
}
