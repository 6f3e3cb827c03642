"""Does a server answer as the adapter that it is said to serve? The same token ids to the adapter, its base and it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor

from muscle_hf.encoding import encode_texts
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.loading import tokenizer_of
from muscle_hf.files import StrPath
from muscle_hf.served.logprobs import LogProbs, NoLogProbs, ServedModel
from muscle_hf.served.server import Server
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.teachers.loading import find_adapter, load_task_model

# Any text tells an adapter from its base, if a little; that of its task tells it better.
PROMPTS = (
    "Question: Where does the river that flows through the capital begin?\nAnswer:",
    "The customer writes that the parcel came late and asks for the money back. The reply is",
    "Write a function that adds two numbers and returns the sum.\n\ndef add(a, b):",
    "Once upon a time there was a little girl who lived near a wood. One day she",
)
BASE = "the plain base"
# Tokens at a place that are looked at, and tokens of a greedy answer.
_TOP, _NEW = 5, 16
# How many times nearer the server has to be to one model than to another to be that one.
_NEARER = 3


@dataclass(frozen=True)
class Served:
    """How far a served model is from each of those that it may be, by name: mean absolute difference of
    log-probabilities, nats, up to ``tolerance`` for the same model; or the share of greedy answers that differ where
    the server gives no log-probabilities (not ``in_nats``). ``same_greedy`` of ``prompts`` greedy answers are the
    adapter's own."""

    name: str
    adapter: str
    distances: Mapping[str, float]
    same_greedy: int
    prompts: int
    in_nats: bool
    tolerance: float

    @property
    def answers_as(self) -> str | None:
        """The name of the model that the server answers as; empty if it is none of them, None if it cannot be told."""
        (nearest, distance), *others = sorted(self.distances.items(), key=lambda pair: pair[1])
        if distance > (self.tolerance if self.in_nats else 0.5):
            return ""
        return nearest if others[0][1] > _NEARER * distance else None

    @property
    def as_adapter(self) -> bool | None:
        """Whether it is served; None if that cannot be told, since the adapter changes too little on the prompts."""
        return None if self.answers_as is None else self.answers_as == self.adapter


@torch.no_grad()
def check_served(
    server: Server,
    adapters: Mapping[str, StrPath],
    *,
    base: StrPath | None = None,
    prompts: Sequence[str] = PROMPTS,
    tolerance: float = 0.05,
    **loading: Any,
) -> list[Served]:
    """Ask a server for the log-probabilities of prompts (two tokens at least) and for greedy answers, and the local
    models for the same, which ``loading`` (``dtype``, ``device_map``, ...) is of.

    Of the server, ``model`` is not looked at, and requests go out one at a time. ``adapters``: folder or Hub id of the
    adapter that each served name should be, on ``base`` if not where they record it. ``tolerance`` as of
    :class:`Served`: servers in half precision differ by some 0.02 from a model in float32.
    """
    if not prompts:
        raise MuscleError("there are no prompts to ask the server and the adapter")
    local: dict[str, list[tuple[Tensor, str]]] = {}
    asked: dict[str, tuple[list[LogProbs] | None, list[str]]] = {}
    for name, adapter in adapters.items():
        found = find_adapter(adapter, None, {})
        if found is None:
            raise MuscleError(f"{adapter} is a model, not an adapter: there is no plain base to tell it from")
        where = (str(base), None) if base is not None else (found.base, found.base_revision)
        tokenizer = tokenizer_of(found.folder, *where, {})
        texts = encode_texts(tokenizer, prompts)
        if short := [text for text, ids in zip(prompts, texts, strict=True) if len(ids) < 2]:
            raise MuscleError(
                f"the prompt {short[0]!r} has fewer than two tokens, along which nothing can be compared"
            )
        served = replace(server, model=name, tokenizer=tokenizer, concurrency=1)
        # The server first: what it lacks is known before a model is loaded.
        asked[name] = _ask(ServedModel(served, _TOP, len(tokenizer)), texts)
        model = cast("PeftModel", load_task_model(adapter, CAUSAL_LM, base_model=base, **loading)).eval()
        local[str(adapter)] = [_said(model, tokenizer, ids) for ids in texts]
        if BASE not in local:
            with model.disable_adapter():
                local[BASE] = [_said(model, tokenizer, ids) for ids in texts]
    return [
        Served(
            name,
            str(adapter),
            {other: _distance(*asked[name], said) for other, said in local.items()},
            sum(mine == theirs for mine, (_, theirs) in zip(asked[name][1], local[str(adapter)], strict=True)),
            len(prompts),
            asked[name][0] is not None,
            tolerance,
        )
        for name, adapter in adapters.items()
    ]


def _ask(served: ServedModel, texts: Sequence[Sequence[int]]) -> tuple[list[LogProbs] | None, list[str]]:
    try:
        values = [served.along(ids) for ids in texts]
    except NoLogProbs:
        values = None
    return values, [_plain(served.continued(ids, _NEW)) for ids in texts]


def _said(model: PeftModel, tokenizer: Any, ids: Sequence[int]) -> tuple[Tensor, str]:
    """A model's log-probabilities along a text, (L, V) float32, and its greedy answer."""
    rows = torch.tensor([list(ids)], device=model.device)
    scores = model(input_ids=rows).logits[0].float().log_softmax(-1).cpu()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    greedy = model.generate(
        input_ids=rows, attention_mask=torch.ones_like(rows), do_sample=False, max_new_tokens=_NEW, **ends
    )
    return scores, _plain(str(tokenizer.decode(greedy[0, len(ids) :], skip_special_tokens=True)))


def _plain(text: str) -> str:
    # Of a character that is cut off servers show as much as they like.
    return text.rstrip("\ufffd").strip()


def _distance(values: list[LogProbs] | None, texts: Sequence[str], said: Sequence[tuple[Tensor, str]]) -> float:
    if values is None:
        return sum(text != own for text, (_, own) in zip(texts, said, strict=True)) / len(texts)
    gaps = [
        (scores[:-1].gather(-1, each.ids) - each.top).abs().flatten()
        for each, (scores, _) in zip(values, said, strict=True)
    ]
    return float(torch.cat(gaps).mean())
