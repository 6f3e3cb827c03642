"""Both adapters on one base in memory: any point between them answers, and any can be saved."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from muscle_hf.compat.peft import active_adapter
from muscle_hf.dial.lora import LoraAdapter, interpolate
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.loading import load_for_evaluation
from muscle_hf.evaluation.predictions import item_hash
from muscle_hf.evaluation.tasks import Item, Task
from muscle_hf.files import write_json
from muscle_hf.hub.state import CARD_STATE_FILE, CardState
from muscle_hf.record import PROVENANCE_FILE, file_sha256, public_name, read_provenance
from muscle_hf.teachers.adapter_files import read_adapter
from muscle_hf.teachers.adapters import adapter_parameters, frozen_view
from muscle_hf.teachers.checks import check_recorded_base
from muscle_hf.teachers.copies import add_adapter
from muscle_hf.teachers.loading import FETCH_KEYS, AdapterFolder, find_adapter
from muscle_hf.teachers.weights import base_weights, content_hash
from muscle_hf.training.checkpoints import staged

logger = logging.get_logger(__name__)

# What the points between the ends are called in the model.
POINT_ADAPTER = "muscle_dial"
_COMPAT = "muscle_compat"
DIAL_FILE = "muscle_dial.json"
FORMAT = 1


class Dial:
    """The points between v2's task adapter and a compatibility adapter on one base.

    Both adapters stay in the model as they are. A point between them is a third one, whose weights are written anew
    for each ``t``: what answers in memory is bit for bit what :meth:`save` writes.

    Args:
        model: Holds both adapters. After a training run ``trainer.model`` does: ``new="muscle_new"`` and
            ``compat="default"``.
        tokenizer: Is saved with a point, if there is one.
        new: Name of v2's adapter in the model; None where v2 is the model without any adapter.
        compat: Name of the compatibility adapter in the model.

    Raises:
        MuscleError: There is nothing exact between the two (:func:`~muscle_hf.dial.interpolate`).
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        new: str | None = "muscle_new",
        compat: str = "default",
    ):
        self.model, self.tokenizer = model, tokenizer
        self.names = (new, compat)
        self._ends = (None if new is None else LoraAdapter.of(model, new), LoraAdapter.of(model, compat))
        self._folders: tuple[AdapterFolder | None, AdapterFolder | None] = (None, None)
        for end, owner in zip(self._ends, ("v2's adapter", "the compatibility adapter"), strict=True):
            if end is not None and end.config.bias != "none":
                raise MuscleError(
                    f"{owner} trains the base's biases (bias={end.config.bias!r}), of which a base in memory holds "
                    "one set; mix the saved adapters with muscle_hf.dial.interpolate, or train with bias='none'"
                )
        interpolate(*self._ends, 0.5)

    @classmethod
    def load(
        cls,
        new: str | os.PathLike,
        compat: str | os.PathLike,
        task: Task,
        *,
        base_model: str | os.PathLike | None = None,
        new_revision: str | None = None,
        compat_revision: str | None = None,
        **arguments: Any,
    ) -> Dial:
        """Load the new base once, with both adapters on it.

        Args:
            new: Folder or Hub id of v2's task adapter, or of v2 as a whole model (merged or fully fine-tuned).
            compat: Folder or Hub id of the compatibility adapter.
            task: Decides the kind of model: a language model or a classification head.
            base_model: Folder or Hub id of the new base, if it is no longer where v2's adapter records it.
            new_revision: Branch, tag or commit of ``new`` on the Hub.
            compat_revision: The same for ``compat``.
            **arguments: ``device``, ``dtype``, ``device_map``, ``quantization_config``, ``token``, ...

        Raises:
            MuscleError: One of them is missing or no adapter, they are of different bases, or there is nothing exact
                between them.
        """
        folders = find_ends(new, compat, new_revision=new_revision, compat_revision=compat_revision, **arguments)
        if folders[0] is None:
            if new_revision is not None:
                raise MuscleError(f"{new} is a whole model: to choose a revision, fetch it and name its folder")
            where = {"adapter": compat, "revision": compat_revision}
            loaded, tokenizer = load_for_evaluation(new, task, **where, **arguments)
            model = cast("PeftModel", loaded)
            names = (None, active_adapter(model))
        else:
            where = {"adapter": new} if base_model is not None else {}
            loaded, tokenizer = load_for_evaluation(
                base_model or new, task, revision=new_revision, **where, **arguments
            )
            model = cast("PeftModel", loaded)
            names = (active_adapter(model), _COMPAT)
            try:
                model.load_adapter(str(folders[1].folder), _COMPAT, is_trainable=False)
            except RuntimeError as error:
                raise MuscleError(f"the adapter {compat} was trained for another base: {error}") from error
            read_adapter(model, _COMPAT, folders[1].folder)
        if base_model is None:
            check_recorded_base(model, names[1])
        dial = cls(model.eval(), tokenizer, new=names[0], compat=names[1])
        # As they lie in their files: in memory PEFT holds half-precision adapters in float32.
        dial._folders, before = folders, folders[0]
        dial._ends = before and LoraAdapter.read(before.folder), LoraAdapter.read(folders[1].folder)
        dial._check_lineage()
        return dial

    def point(self, t: float) -> LoraAdapter:
        """The adapter at ``t``, as :meth:`save` writes it; a MuscleError at t = 0, where v2 is a whole model."""
        return interpolate(*self._ends, t)

    def rank(self, t: float) -> int:
        """The rank of the adapter at ``t``: at the ends their own, between them the sum of both; 0 for no adapter."""
        return 0 if t == 0 and self._ends[0] is None else self.point(t).rank

    @contextlib.contextmanager
    def at(self, t: float) -> Iterator[PeftModel]:
        """Within the block the model answers as the point at ``t`` does, frozen and in eval mode; afterwards the
        active adapter, all modes and gradients are as before. Beyond 0 and 1 it extrapolates."""
        name = self._put(t)
        with frozen_view(self.model, name):
            yield self.model

    def _put(self, t: float) -> str | None:
        """Makes the point at ``t`` ready in the model; its name there, None for the model without an adapter."""
        if t in (0, 1):
            return self.names[int(t)]
        point = self.point(t)
        if POINT_ADAPTER not in self.model.peft_config:
            flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
            add_adapter(self.model, POINT_ADAPTER, point.config, autocast_dtype=True)
            for parameter, flag in flags:
                parameter.requires_grad = flag
        with torch.no_grad():
            result = set_peft_model_state_dict(self.model, dict(point.weights), adapter_name=POINT_ADAPTER)
        if result.unexpected_keys:
            raise MuscleError(
                f"the point at t = {t:g} does not fit the model: {result.unexpected_keys[0]} has no place"
            )
        for parameter in adapter_parameters(self.model, POINT_ADAPTER).values():
            parameter.requires_grad = False
        return POINT_ADAPTER

    @cached_property
    def base_hash(self) -> str:
        """Of the base's weights, as they are in memory."""
        return content_hash(base_weights(self.model, self.names[0]).items())

    # ---- Saving ----

    def save(self, folder: str | os.PathLike, t: float, *, choice: Mapping[str, Any] | None = None) -> Path:
        """Save the point at ``t`` as an ordinary LoRA: safetensors, configuration, tokenizer, where it comes from.

        Args:
            folder: Is created. Files of an earlier adapter in it are replaced.
            t: Which point.
            choice: How it was chosen; stands in ``muscle_dial.json`` and in the provenance.

        Returns:
            The folder. ``muscle_dial.json`` in it tells ``t`` and the hashes of both parents. Where the compatibility
            adapter has a provenance, so has the point, and can be published.

        Raises:
            SaveError: It could not be written; what was there is whole.
            MuscleError: At t = 0, where v2 is a whole model.
        """
        point, lineage = self.point(t), self.lineage(t)
        provenance = self._provenance()
        with staged(folder) as stage:
            _write_adapter(stage, point)
            hashes = {
                "adapter_sha256": content_hash(adapter_parameters(self.model, cast("str", self._put(t))).items()),
                "adapter_file_sha256": file_sha256(stage / SAFETENSORS_WEIGHTS_NAME),
            }
            record = {"format": FORMAT, **lineage, **hashes, "choice": None if choice is None else dict(choice)}
            write_json(stage / DIAL_FILE, record)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(stage)
            if provenance is not None:
                now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
                # The figures and times of training are those of the compatibility adapter, not of the point.
                provenance |= {"metrics": {}, "created": now, "dial": {**lineage, "choice": record["choice"]}}
                provenance |= hashes
                write_json(stage / PROVENANCE_FILE, provenance)
                self._copy_card_state(stage)
        return Path(folder)

    def lineage(self, t: float) -> dict[str, Any]:
        """What the point at ``t`` is made of: ``t``, its rank, and names and hashes of both parents."""
        return {"t": t, "rank": self.rank(t), "new": self._describe(0), "compat": self._describe(1)}

    def _describe(self, end: int) -> dict[str, Any] | None:
        name, adapter, folder = self.names[end], self._ends[end], self._folders[end]
        if name is None or adapter is None:
            return None
        return {
            "name": None if folder is None else public_name(folder.name),
            "revision": None if folder is None else folder.commit,
            "rank": adapter.rank,
            "sha256": content_hash(adapter_parameters(self.model, name).items()),
            "file_sha256": None if folder is None else file_sha256(folder.folder / SAFETENSORS_WEIGHTS_NAME),
        }

    def _provenance(self) -> dict[str, Any] | None:
        folder = self._folders[1]
        if folder is None or not (folder.folder / PROVENANCE_FILE).is_file():
            return None
        return read_provenance(folder.folder)

    def _check_lineage(self) -> None:
        """Warn where the compatibility adapter was trained from another adapter than the one given as v2's."""
        provenance = self._provenance()
        if provenance is None:
            return
        recorded = (provenance["new"].get("adapter") or {}).get("sha256")
        given = self._describe(0)
        found = None if given is None else given["sha256"]
        if recorded != found:
            trained, now = ("no adapter" if each is None else f"one of {each[:16]}…" for each in (recorded, found))
            logger.warning(
                f"The compatibility adapter was trained from another v2: its provenance records {trained} (content "
                f"hash of v2's adapter), given is {now}. The points between the two are exact all the same."
            )

    def _copy_card_state(self, stage: Path) -> None:
        """What people and training told of the compatibility adapter, but for what holds of its weights alone."""
        folder = cast("AdapterFolder", self._folders[1]).folder
        if (folder / CARD_STATE_FILE).is_file():
            dataclasses.replace(CardState.load(folder), examples=[], made_by=None).save(stage)


def find_ends(
    new: str | os.PathLike,
    compat: str | os.PathLike,
    *,
    new_revision: str | None = None,
    compat_revision: str | None = None,
    **arguments: Any,
) -> tuple[AdapterFolder | None, AdapterFolder]:
    """Fetch both adapters and make sure, before any base is loaded, that there is something exact between them. Takes
    what :meth:`Dial.load` takes, and gives None for v2 where it is a whole model."""
    fetch = {key: arguments[key] for key in FETCH_KEYS if arguments.get(key) is not None}
    first, second = find_adapter(new, new_revision, fetch), find_adapter(compat, compat_revision, fetch)
    if second is None:
        raise MuscleError(f"{compat} is a whole model: a compatibility adapter is what the dial leads to")
    before = None if first is None else LoraAdapter.read(first.folder)
    interpolate(before, LoraAdapter.read(second.folder), 0.5)
    return first, second


def identity_of(items: Sequence[Item]) -> str:
    """SHA-256 over the ids and contents of items, in their order."""
    text = "\n".join(f"{item.id} {item_hash(item)}" for item in items)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _write_adapter(folder: Path, adapter: LoraAdapter) -> None:
    config = copy.deepcopy(adapter.config)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.weights.items()}
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
