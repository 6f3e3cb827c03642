"""A small OpenAI-compatible server on loopback that answers from models in memory, after the mishaps a test queues."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import torch


class Scripted(BaseHTTPRequestHandler):
    """Completions with log-probabilities as vLLM gives them, and as others do.

    Attributes:
        ways: Of ``prompt_logprobs`` and ``echo``, what it knows; what it does not know it passes over.
        greedy: Whether it generates; otherwise its answers only tell the length of what was asked.
        twist: What it does wrong: ``prefix`` (a system prompt), ``cut`` (to the last five tokens), ``normalised``
            (the tokens it gives share all of the probability), ``logits``, ``biased`` (its greedy token is the least
            likely one).
        most: Tokens at a place; more are refused.
    """

    models: ClassVar[dict[str, torch.nn.Module]] = {}
    tokenizer: Any = None
    mishaps: ClassVar[list] = []
    requests: ClassVar[list] = []
    lock = threading.Lock()
    ways: frozenset[str] = frozenset({"prompt_logprobs", "echo"})
    greedy = False
    twist: str | None = None
    most = 1000

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.requests.append((time.monotonic(), self.path, body, self.headers.get("Authorization")))
            mishap = self.mishaps.pop(0) if self.mishaps else None
        if mishap == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if mishap == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
            return
        if mishap is None and body["model"] not in self.models:
            mishap = (404, {}, f"the model {body['model']} does not exist")
        if mishap is None and max(body.get("prompt_logprobs") or 0, body.get("logprobs") or 0) > self.most:
            mishap = (400, {}, f"more than {self.most} log-probabilities were asked for")
        if mishap:
            status, headers, text = mishap
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())
            return
        with self.lock:  # adapters are switched within one model
            content: dict[str, Any] = {"choices": [self.complete(body)]}
        content["usage"] = {"prompt_tokens": self.read, "completion_tokens": 1, "total_tokens": self.read + 1}
        reply = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    @torch.no_grad()
    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        ids = body["prompt"] if isinstance(body["prompt"], list) else self.tokenizer(body["prompt"])["input_ids"]
        ids = {"prefix": [*ids[:1], *ids], "cut": ids[-5:]}.get(self.twist or "", ids)
        self.read = len(ids)
        answer: dict[str, Any] = {"text": f" answer to {len(body['prompt'])}.", "logprobs": None}
        if self.greedy:
            made = self._generated(body["model"], ids, body["max_tokens"])
            answer["text"] = self.tokenizer.decode(made, skip_special_tokens=True)
        count = body.get("prompt_logprobs")
        if count is not None and "prompt_logprobs" in self.ways:
            shown = [
                {str(i): {"logprob": value, "rank": 1} for i, value in {**top, token: own}.items()}
                for token, own, top in self._along(body["model"], ids, count)
            ]
            answer["prompt_logprobs"] = [None, *shown]
        if body.get("logprobs") and not body.get("echo") and "generated" in self.ways:
            (_, own, top) = self._along(body["model"], [*ids, 0], body["logprobs"])[-1]
            tops = [{self.tokenizer.decode(i): value for i, value in top.items()}]
            answer["logprobs"] = {"tokens": ["?"], "token_logprobs": [own], "top_logprobs": tops}
        if body.get("echo") and "echo" in self.ways:
            found = self._along(body["model"], ids, body["logprobs"])
            tops = [{self.tokenizer.decode(i): value for i, value in top.items()} for _, _, top in found]
            answer["logprobs"] = {
                "tokens": [*(self.tokenizer.decode(token) for token in ids), "?"],
                "token_logprobs": [None, *(own for _, own, _ in found), -0.5],
                "top_logprobs": [None, *tops, {"?": -0.5}],
            }
        return answer

    def _along(self, model: str, ids: list[int], count: int) -> list[tuple[int, float, dict[int, float]]]:
        scores = self.models[model](torch.tensor([ids])).logits[0].double()
        if self.twist != "logits":
            scores = scores.log_softmax(-1)
        found = []
        for place, token in enumerate(ids[1:]):
            top = scores[place].topk(count)
            values = top.values.log_softmax(-1) if self.twist == "normalised" else top.values
            likeliest = dict(zip(top.indices.tolist(), values.tolist(), strict=True))
            found.append((token, likeliest.get(token, scores[place, token].item()), likeliest))
        return found

    def _generated(self, model: str, ids: list[int], count: int) -> list[int]:
        if self.twist == "biased":
            return [int(self.models[model](torch.tensor([ids])).logits[0, -1].argmin())]
        text = torch.tensor([ids])
        answer = self.models[model].generate(
            input_ids=text, attention_mask=torch.ones_like(text), do_sample=False, max_new_tokens=count, pad_token_id=0
        )
        return answer[0, len(ids) :].tolist()

    def log_message(self, *_):
        pass


@contextmanager
def serving(models: Mapping[str, torch.nn.Module], tokenizer: Any, **settings: Any) -> Iterator[str]:
    """The address of a server of models, by name; ``settings`` are attributes of :class:`Scripted`."""
    fresh = {"models": dict(models), "tokenizer": tokenizer, "mishaps": [], "requests": []}
    usual = {name: Scripted.__dict__[name] for name in ("ways", "greedy", "twist", "most")}
    for name, value in {**fresh, **settings}.items():
        setattr(Scripted, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for name, value in usual.items():
            setattr(Scripted, name, value)
