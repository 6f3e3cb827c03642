"""Rows without labels beside the training rows."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Subset

from muscle_hf.teachers.batch import Batch
from muscle_hf.training.base import TrainerParts
from muscle_hf.training.row_checks import require_trained


class MixesTransferRows(TrainerParts):
    """The data sets of a trainer of the objective."""

    def mix_in_transfer_rows(self, transfer: Any) -> None:
        """Train on transfer rows beside ``train_dataset``; called by the constructor."""
        self._transfer, self._answered = transfer, False
        if transfer is None:
            return
        from muscle_hf.training.transfer_rows import (
            AnsweredRows,
            MarkingCollator,
            MixedRows,
            TransferEpochs,
            check_columns,
            refuse_unmixable,
        )

        self._answered = isinstance(transfer, AnsweredRows)
        refuse_unmixable(self, answered=self._answered)
        if self._answered:
            # The rows themselves are made when training starts.
            transfer = range(len(self._transfer))
        else:
            self._set_signature_columns_if_needed()
            check_columns(self.train_dataset, self._transfer, self._signature_columns or ())
        labelled: Any = self.train_dataset
        seed = self.args.data_seed or self.args.seed
        self.train_dataset = MixedRows(labelled, transfer, self.settings.transfer_ratio, seed)
        self.data_collator = MarkingCollator(self.data_collator)
        self._signature_columns = None
        self.add_callback(TransferEpochs(self))
        if not self._answered:
            self._check_transfer_rows()

    def _check_transfer_rows(self) -> None:
        rows = Subset(self.train_dataset, range(len(self.train_dataset.labelled), len(self.train_dataset)))
        require_trained(self, rows, "transfer rows")
        self._require_known(rows, "transfer rows")

    def answer_transfer_prompts(self, epoch: int = 0, *, resumes: bool = False) -> None:
        """Have the models answer the transfer prompts, if there are any, for an epoch, from 0; where training resumes,
        answers that were made before are taken again."""
        if not self._answered:
            return
        from muscle_hf.training.transfer_rows import Models

        if not resumes:
            if self.args.should_save:
                self._transfer.forget(self.args.output_dir)
            self.accelerator.wait_for_everyone()
        models = Models(
            self.student,
            self.teachers,
            self.tokenizer,
            self.run_folder,
            self.settings.teacher_cache,
            self.args.seed,
            not self.args.disable_tqdm,
        )
        rows = self._transfer.rows(models, epoch)
        # A student's answers may be empty, but epochs are as long as they were planned.
        count = len(self._transfer) if self._transfer.renewed else None
        self.train_dataset.replace_transfer(rows, count)
        self._check_transfer_rows()

    def datasets(self) -> dict[str, Any]:
        """What is trained and evaluated on: ``train`` and ``eval``, and with transfer rows ``transfer``."""
        found = {"train": self.train_dataset, "eval": self.eval_dataset}
        if self._transfer is not None:
            found["train"] = self.train_dataset.labelled
            found["transfer"] = self._transfer
        return found

    def _require_known(self, rows: Any, name: str) -> None:
        """Refuse a data set, or a batch, that the logs of recorded teachers do not know."""
        if any(teacher.recorded is not None for teacher in self.teachers.values()):
            from muscle_hf.training.answer_targets import batches_of, require_known_rows

            require_known_rows(self, [rows] if isinstance(rows, Batch) else batches_of(self, rows), name)
