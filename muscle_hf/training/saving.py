"""What is saved, whole or not at all, and gone on from: the compatibility adapter alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.adapters import STUDENT_ADAPTER, adapter_parameters
from muscle_hf.teachers.sharding import is_sharded
from muscle_hf.training.base import TrainerParts

_TIMING = re.compile(r"runtime|per_second|total_flos|preparation_time|memory|mem_")


class SavesAdapter(TrainerParts):
    """The checkpoints of a trainer of the objective."""

    _best_loaded_at = 0

    def checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        """The folder of the checkpoint that training goes on from, if ``resume_from_checkpoint`` asks for it; refused
        if it is missing, was cut off, or its teachers were others."""
        from muscle_hf.training.checkpoints import is_whole, last_whole_checkpoint

        found = last_whole_checkpoint(self.run_folder) if wanted is True else wanted
        if wanted and found is None:
            raise MuscleError(f"there is no checkpoint to resume from in {self.run_folder}")
        if not found:
            return None
        if not is_whole(Path(found)):
            raise MuscleError(
                f"{os.fspath(found)} is not a checkpoint that was written to its end; resume_from_checkpoint=True "
                "takes the last whole one"
            )
        if self.provenance is not None:
            self.provenance.check_same_models(Path(found))
        return os.fspath(found)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        from muscle_hf.training.checkpoints import saving_checkpoint

        with saving_checkpoint(self, trial):
            self._step.flush()  # a run that goes on has what was known until here
            self.accelerator.wait_for_everyone()  # the others write their random states into the same folder
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the compatibility adapter alone, with the tokenizer and its provenance; no teachers, no pickles."""
        if not self.args.should_save:
            return
        from muscle_hf.training.checkpoints import staged

        with staged(output_dir or self.run_folder) as folder:
            self.student.save_pretrained(str(folder), selected_adapters=[STUDENT_ADAPTER], state_dict=state_dict)
            # PEFT's card names a base by its place on this disk.
            (folder / "README.md").unlink(missing_ok=True)
            if (processing := self.processing_class or self.tokenizer) is not None:
                processing.save_pretrained(folder)
            weights = adapter_parameters(self.student, STUDENT_ADAPTER)
            if is_sharded(self.accelerator):
                # A process has no more than its own shards, but what was saved is whole.
                weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
            assert self.provenance is not None  # in processes that save
            self.provenance.save(folder, weights, self)

    def final_metrics(self) -> dict[str, float]:
        """The last value of every figure that was logged for the present weights, but for those of time and speed."""
        metrics: dict[str, float] = {}
        for index, entry in enumerate(self.state.log_history):
            overtaken = index < self._best_loaded_at and entry["step"] > (self.state.best_global_step or 0)
            if not overtaken:
                metrics.update({key: value for key, value in entry.items() if not _TIMING.search(key)})
        return metrics

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._read_student(resume_from_checkpoint)

    def _read_student(self, folder: str) -> None:
        from muscle_hf.teachers.adapter_files import read_adapter

        read_adapter(self.student, STUDENT_ADAPTER, Path(folder))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._read_student(cast("str", self.state.best_model_checkpoint))
        # What was logged after the best step is not about the weights that are now in the model.
        self._best_loaded_at = len(self.state.log_history)
