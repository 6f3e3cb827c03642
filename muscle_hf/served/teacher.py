"""A teacher behind a server: what it says of each row is asked for once and kept, so that training needs no server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers.utils import logging

from muscle_hf.cache.compact import NOTHING, CompactStream, TopTokens, require_kl_alone
from muscle_hf.cache.fingerprint import Fingerprint
from muscle_hf.cache.keys import TEXT_RULES, SequenceKey, row_keys
from muscle_hf.cache.shards import Column, Row
from muscle_hf.cache.store import RowStore
from muscle_hf.errors import MuscleError
from muscle_hf.objective import Objective
from muscle_hf.objective.chunked import Stream
from muscle_hf.record import json_sha256
from muscle_hf.served.logprobs import LogProbs, ServedModel
from muscle_hf.served.server import Server
from muscle_hf.teachers.batch import Batch, sequences_of
from muscle_hf.teachers.forward import MEDIA_INPUTS
from muscle_hf.teachers.kinds import CAUSAL_LM, ModelKind
from muscle_hf.teachers.teacher import Teacher
from muscle_hf.teachers.tokenizers import vocabulary_hash

if TYPE_CHECKING:
    from muscle_hf.teachers.reading import ForeignReader

logger = logging.get_logger(__name__)

TOP_K = 20
# Of a text that is the same in every run with one vocabulary.
_PROBE_TOKENS = 24
# By how many nats a model may differ from itself, on other hardware or in another batch.
_ITSELF = 0.1
# A process that is killed loses at most so many rows that were answered.
_UNWRITTEN = 256


class ServedTeacher(Teacher):
    """A frozen task model (``old`` or ``new``) that is known by the ``top_k`` likeliest of ``vocabulary`` tokens that
    a server gives at each place, and the rest as one, within which it follows the student. ``folder`` is of the cache
    that keeps what it said.

    Its identity is the model's name at the server and ``options``; not the address.
    """

    where = "is behind a server: its weights are not here"

    def __init__(self, role: str, server: Server, top_k: int, folder: str | os.PathLike, vocabulary: int):
        super().__init__(role)
        self.served = self
        self.server, self.folder = server, Path(folder)
        # Of the model's own probabilities, whatever temperature a run compares them at.
        self.form = TopTokens(top_k, 1.0, vocabulary)
        self._rows_tokenizer: Any = None

    # ---- What it says of a batch ----

    def states(self, batch: Batch, needed: Tensor | None = None) -> Tensor:
        """What is kept of it at the trained tokens, (M, 2 k + 1), see :class:`TopTokens`; asks for what is not there.
        Of a model with other tokens, (M, 2 k + 3): its row's own next token is one more beside the likeliest."""
        rows = self._rows(batch, needed)
        none = torch.zeros(0, self.form.width)
        found = torch.cat([none, *(row["hidden"] for _, row in rows)]).to(batch.labels.device)
        if self.reader is None:
            return found
        own = torch.cat([none[:, 0], *(row["own"] for _, row in rows)])
        return self.form.beside(found, batch.targets, own.to(found))

    @property
    def scores_answers(self) -> bool:
        return True

    def log_likelihoods(self, batch: Batch, needed: Tensor) -> Tensor:
        found = torch.zeros(len(batch))
        for part, row in self._rows(batch, needed):
            if bool((row["own"] <= NOTHING).any()):
                raise MuscleError(
                    f"{self.server} tells the {self.form.k} likeliest tokens alone, not how likely it finds one with "
                    "others: follow its tokens (old_targets='tokens'), or serve it with vLLM"
                )
            found[part.row] += row["own"].sum()
        return found

    def _rows(self, batch: Batch, needed: Tensor | None) -> list[tuple[SequenceKey, Row]]:
        """The sequences of a batch with what is kept of them, asked for where it is not there; zeros where it is not
        needed."""
        whole = batch.whole or batch
        parts = row_keys(whole.inputs, whole.labels, TEXT_RULES)
        rows = self.store.get_rows([part.key for part in parts])
        wanted = [part.row for part in parts] if needed is None else needed.cpu().nonzero().squeeze(-1).tolist()
        missing = [i for i, part in enumerate(parts) if rows[i] is None and part.row in set(wanted)]
        if missing:
            texts = texts_of(whole)
            self._unwritten += len(missing)
            try:
                for i, found in self.server.side_by_side(self.model_there.along, {i: texts[i] for i in missing}):
                    rows[i] = row = kept(found)
                    self.store.put_rows([parts[i].key], [row])
            except BaseException:
                self.flush()
                raise
            if self._unwritten >= _UNWRITTEN:
                self.flush()

        def zeros(count: int) -> Row:
            return {"hidden": torch.zeros(count, self.form.width), "own": torch.zeros(count)}

        return [(part, row or zeros(part.count)) for part, row in zip(parts, rows, strict=True)]

    def stream(self, batch: Batch, states: Tensor) -> Stream:
        if self.reader is None:
            return CompactStream(states, None, self.form)
        return cast("ForeignReader", self.reader).stream(batch, states, self.form.dense, top=True)

    def flush(self) -> None:
        self.store.flush()
        self._unwritten = 0

    def require_enough(self, objective: Objective, calibrated: bool | None) -> None:
        """Refuse an objective that needs more than is known of it."""
        what = f"of the {self.role} model behind the server the {self.form.k} likeliest tokens are known"
        require_kl_alone(objective, objective.reads & {self.role}, what, "leave these out")
        if calibrated:
            raise MuscleError(f"{what}, of which no temperature can be fitted; leave calibrate_teachers out")

    # ---- Where it is kept, and where it is asked ----

    def place(self, accelerator: Any, tokenizer: Any) -> None:
        self._rows_tokenizer = tokenizer

    @property
    def _own_tokenizer(self) -> Any:
        found = self.tokenizer or self._rows_tokenizer
        if found is None:
            raise MuscleError("a model behind a server reads token ids; pass the tokenizer as processing_class")
        return found

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Who it is: the name of the model, its vocabulary, and the options of each request by their hash."""
        options = json_sha256(dict(self.server.options))
        content = {"format": 1, "served": self.server.model, "options_sha256": options}
        content["vocabulary_sha256"] = vocabulary_hash(self._own_tokenizer)
        return Fingerprint(content, {"role": self.role})

    @cached_property
    def store(self) -> RowStore:
        self._unwritten = 0
        columns = {"hidden": Column(torch.float32, (self.form.width,)), "own": Column(torch.float32)}
        return RowStore(self.folder, self.fingerprint, columns, variant=self.form.name)

    def keep_in(self, folder: str | os.PathLike) -> None:
        """Keep what it says in another cache."""
        for name in ("store", "model_there") if Path(folder) != self.folder else ():
            vars(self).pop(name, None)
        self.folder = Path(folder)

    @cached_property
    def model_there(self) -> ServedModel:
        """The model on the server; looked at before it is believed, and held against what it said earlier."""
        tokenizer = self._own_tokenizer
        server = replace(self.server, tokenizer=tokenizer)
        model = ServedModel(server, self.form.k, self.form.vocabulary)
        special = set(tokenizer.all_special_ids)
        ordinary = [token for token in range(min(len(tokenizer), self.form.vocabulary)) if token not in special]
        ids = ordinary[:: max(1, len(ordinary) // _PROBE_TOKENS)][:_PROBE_TOKENS]
        found, key = model.check(ids), hashlib.sha256(f"probe {ids}".encode()).digest()
        (before,) = self.store.get_rows([key])
        if before is not None and float((before["own"] - found.own).abs().mean()) > _ITSELF:
            raise MuscleError(
                f"{server} says something else as {server.model!r} than when the rows in {self.store.folder} were "
                "kept: there is another model under that name now. Serve the one of then, or delete that folder"
            )
        self.store.put_rows([key], [kept(found)])
        return model

    def begin(self, *, answers_alone: bool) -> None:
        """Look at the server before training, unless something is kept already and it may not be needed any more."""
        if self.reader is not None:
            # Its likeliest tokens are of its own vocabulary, even where these are the student's under other ids.
            if not answers_alone and (general := self.reader.general()) is not None:
                general.share, general.reference = self.reader.share, self.reader.reference
                self.reader = general
            self.form = replace(self.form, vocabulary=max(self._own_tokenizer.get_vocab().values()) + 1)
        if not len(self.store):
            _ = self.model_there

    def describe(self, hashes: dict[Any, str]) -> dict[str, Any]:
        unknown = dict.fromkeys(("revision", "architecture", "dtype", "quantization"))
        served = {"name": self.server.model, "on_hub": False, "sha256": self.fingerprint.digest}
        return {"base": {**unknown, **served}, "adapter": None}

    def hashes(self, known: dict[Any, str]) -> tuple[str, str | None]:
        return self.fingerprint.digest, None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(role={self.role!r}, server={self.server!s}, model={self.server.model!r})"


def kept(found: LogProbs) -> dict[str, Tensor]:
    """What a server said at n places as the cache keeps it: ``hidden`` as :class:`TopTokens` makes it, and ``own``."""
    return {"hidden": torch.cat([found.top, found.ids.float(), found.rest.unsqueeze(-1)], dim=-1), "own": found.own}


def texts_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """The sequences of a batch that have trained tokens, in their order: the token ids of each, and the places of it
    that are predicted. Rows of more than text are refused."""
    ids, mask = batch.inputs.get("input_ids"), batch.inputs.get("attention_mask")
    others = [name for name in batch.inputs if name.startswith(MEDIA_INPUTS)]
    if batch.kind is not CAUSAL_LM or ids is None or others:
        what = f"rows with {', '.join(others)}" if others else f"rows of a {batch.kind.name} model"
        raise MuscleError(f"a server is asked about texts by their token ids, not about {what}")
    members = sequences_of(ids, batch.inputs.get("position_ids") if mask is None else None, predicts_next=False)
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    rows, columns = batch.places
    _, counts = torch.unique_consecutive(members[rows, columns], return_counts=True)
    found, labels = [], batch.targets
    for at in torch.arange(len(rows)).split(counts.tolist()):
        row, last = rows[at[0]], columns[at]
        own = (members[row] == members[row, last[0]]) & real[row]
        places = (own.cumsum(0)[last]).tolist()
        # The last one is what is said after the text; any token stands for what follows.
        text = [*ids[row][own].tolist(), int(labels[at[-1]])][: places[-1] + 1]
        found.append((text, places))
    return found


def served_teacher(
    role: str,
    url: str,
    arguments: Mapping[str, Any] | None,
    kind: ModelKind,
    vocabulary: int,
    folder: str | os.PathLike,
) -> ServedTeacher:
    """The teacher that ``old_model="http://..."`` names, for a student with ``vocabulary`` tokens; its cache is in
    ``folder``. ``arguments``: ``model``, its name there; ``top_k`` (20); ``api_key`` (by default ``OPENAI_API_KEY``);
    what else :class:`~muscle_hf.served.server.Server` takes."""
    given = {"api_key": os.environ.get("OPENAI_API_KEY"), **(arguments or {})}
    if kind is not CAUSAL_LM:
        raise MuscleError(f"a server answers for causal LMs, but model is a {kind.name} model")
    if not given.get("model"):
        raise MuscleError(f"{role}_model is a server; name the model there: {role}_model_kwargs={{'model': NAME}}")
    top_k = given.pop("top_k", TOP_K)
    try:
        server = Server(url, **given)
    except TypeError as error:
        raise MuscleError(f"{role}_model_kwargs for a server: {error}") from error
    return ServedTeacher(role, server, top_k, folder, vocabulary)
