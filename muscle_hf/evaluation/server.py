"""A model behind an OpenAI-compatible server (vLLM, TGI, ``transformers serve``) as the one that answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from muscle_hf.encoding import encode_pair, encode_texts
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.partial import PartialAnswers, all_answers
from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.evaluation.scoring import check_items, cut_at, predictions_from
from muscle_hf.evaluation.tasks import Item, Task
from muscle_hf.files import StrPath
from muscle_hf.served.server import Server, first_choice

if TYPE_CHECKING:
    from openai import OpenAI

# OpenAI's limit; more are cut here.
_MOST_STOPS = 4


def evaluate_task_on_server(
    server: Server,
    task: Task,
    items: Sequence[Item],
    *,
    chat: bool = False,
    partial: StrPath | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """Answer every item with a served model, in the order of ``items``: a generation task (with ``chat`` at the chat
    endpoint, which applies the model's template), or a choice task if the server returns the log-probabilities of a
    prompt (``echo`` with ``logprobs`` of the completions endpoint, as vLLM does).

    ``partial`` is a file that keeps each answer as it comes: after an interruption the same call goes on from there;
    one of another run is refused.
    """
    from tqdm.auto import tqdm

    check_items(task, items)
    ask = _question(server, task, chat)
    # Of the processes that `accelerate launch` starts, the first one asks.
    answers: dict[str, Any] = {}
    if PartialState().is_main_process:
        who = [server.url, server.model, dict(server.options)]
        kept = None if partial is None else PartialAnswers(partial, who, task, chat)
        client = server.client()

        def asked(missing: Sequence[Item]) -> Iterator[tuple[Item, Any]]:
            by_id = {item.id: (client, item) for item in missing}
            found = server.side_by_side(ask, by_id)
            for name, answer in tqdm(found, total=len(by_id), desc=server.model, disable=not progress):
                yield by_id[name][1], answer

        answers = all_answers(kept, items, asked)
    return predictions_from(task, items, broadcast_object_list([answers])[0])


def _question(server: Server, task: Task, chat: bool) -> Callable[[OpenAI, Item], Any]:
    """How one item is asked; refuses at once what cannot be asked."""
    if task.kind == "choice":
        if chat:
            raise MuscleError("choices are scored by the completions endpoint; leave chat off for choice tasks")
        return lambda client, item: [_log_likelihood(client, server, item, choice) for choice in item.choices]
    if task.kind != "generation":
        raise MuscleError(f"a server generates text; {task.kind} tasks need the model itself")
    if task.no_repeat_ngram_size and "no_repeat_ngram_size" not in json.dumps(dict(server.options)):
        raise MuscleError(
            f"task {task.name!r} forbids repeated {task.no_repeat_ngram_size}-grams, for which OpenAI's interface has "
            "no field. Pass the server's own in options (transformers serve: generation_config), or set the task's "
            "no_repeat_ngram_size to 0 for all models that are compared"
        )
    return lambda client, item: _text(client, server, task, item, chat)


def _text(client: OpenAI, server: Server, task: Task, item: Item, chat: bool) -> str:
    how: dict[str, Any] = {"max_tokens": task.max_new_tokens, "temperature": 0.0}
    if task.stop:
        how["stop"] = list(task.stop[:_MOST_STOPS])
    if chat:
        messages: Any = [{"role": "user", "content": item.prompt}]
        with server.answering():
            reply = client.chat.completions.create(
                model=server.model, messages=messages, extra_body=dict(server.options), **how
            )
        text = first_choice(reply).message.content
    else:
        # As the model itself would be asked, whatever the server's tokenizer puts in front.
        prompt = item.prompt if server.tokenizer is None else encode_texts(server.tokenizer, [item.prompt])[0]
        text = server.complete(client, prompt, **how)[0].text
    return cut_at(text or "", task.stop)


def _log_likelihood(client: OpenAI, server: Server, item: Item, choice: str) -> float:
    """Sum over the choice's tokens, which are the last ones of the echoed prompt."""
    prompt, count = item.prompt + choice, None
    if server.tokenizer is not None:
        context, rest = encode_pair(server.tokenizer, item.prompt, choice)
        prompt, count = context + rest, len(rest)
    # Not 0 new tokens: some servers refuse that. The generated one is left out below.
    found, usage = server.complete(client, prompt, echo=True, logprobs=1, max_tokens=1, temperature=0.0)
    found, generated = found.logprobs, usage.completion_tokens if usage else 1
    values, tokens = (
        (getattr(found, name, None) or [])[: -generated or None] for name in ("token_logprobs", "tokens")
    )
    if len(values) < 2:
        raise MuscleError(
            f"{server} does not return the log-probabilities of a prompt (echo with logprobs), so choices cannot "
            "be scored there; serve the model with vLLM, or evaluate it without a server"
        )
    if count is not None and len(values) != len(prompt):
        raise MuscleError(
            f"{server} reads another text than it is given: it answers about {len(values)} tokens where {len(prompt)} "
            "were sent. Serve the model without truncation and without tokens of its own in front"
        )
    if count is None:
        count = _tokens_of(tokens, (item.prompt + choice)[len(item.prompt.rstrip()) :], server)
    return float(sum(values[-count:]))


def _tokens_of(tokens: Sequence[str], ending: str, server: Server) -> int:
    """How many of the last tokens make up the ending of the prompt."""
    text = ""
    for count, token in enumerate(reversed(tokens), start=1):
        text = token + text
        if len(text) >= len(ending):
            if text.endswith(ending):
                return count
            break
    # Characters that are split over tokens, for example, cannot be found again.
    raise MuscleError(
        f"the tokens that {server} returns do not spell the choice {ending!r}; pass the model's tokenizer, so "
        "that they can be counted"
    )
