"""Four sums that evaluation tools are run on, the answers of both sides, and a stand-in for the API of OpenAI."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOME = Path(__file__).parent / "tools"
ANSWERS = {"old": ["2", "4", "7", "8"], "new": ["2", "5", "6", "8"]}


def sums(side: str) -> list[tuple[int, str, str, str]]:
    """Number, question, answer and right answer of each."""
    return [(i, f"What is {i}+{i}?", answer, str(2 * i)) for i, answer in enumerate(ANSWERS[side], start=1)]


def answer_to(side: str, prompt: str) -> str:
    """The answer to the last sum in a prompt."""
    return ANSWERS[side][int(re.findall(r"(\d)\+\d", prompt)[-1]) - 1]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def serve(reply: Callable[[str], str]) -> str:
    """Answers chats as OpenAI's API does; the base of its addresses."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = reply("\n".join(message["content"] for message in asked["messages"]))
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
            told = {"id": "1", "object": "chat.completion", "created": 1, "model": asked["model"]}
            data = json.dumps(told | {"choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/v1"
