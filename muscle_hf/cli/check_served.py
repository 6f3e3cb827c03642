"""``muscle-hf check-served``: does a server answer as the adapter that it is said to serve?"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from muscle_hf.cli.compare import pairs
from muscle_hf.errors import MuscleError
from muscle_hf.files import read_text

if TYPE_CHECKING:
    from muscle_hf.evaluation.served import Served


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The server, the adapters it should serve, and what it is asked."""
    parser.add_argument("url", help="of an OpenAI-compatible server, for example http://localhost:8000/v1")
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME[=ADAPTER]",
        help="name under which an adapter is served, and its folder or Hub id; may be given several times",
    )
    parser.add_argument("--adapter", help="folder or Hub id of the adapter, where --model names none")
    parser.add_argument("--base", help="where the base is, if not where the adapters record it")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="texts to ask, one a line (default: a few)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        metavar="NATS",
        help="mean difference of log-probabilities up to which the two are one model (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="float32", help="of the local weights (default: %(default)s)")
    parser.add_argument("--api-key-env", default="OPENAI_API_KEY", help="variable with the key (default: %(default)s)")
    parser.epilog = (
        "Exit code 0: each name answers as its adapter; 1: one does not (as the plain base, as another adapter, or as "
        "none of them); 3: the adapters change too little on these prompts to be told from the base."
    )


def run(args: argparse.Namespace) -> int:
    """Ask, and say how far each served model is from its adapter and from the plain base."""
    named = [text if "=" in text or not args.adapter else f"{text}={args.adapter}" for text in args.model]
    adapters = pairs("--model", named, "task-v2=adapters/task-v2")
    if len(adapters) < len(args.model):
        raise MuscleError("--model names one served model twice")
    prompts = args.prompts and read_text(args.prompts, "file of prompts").splitlines()
    from muscle_hf.evaluation.served import PROMPTS, check_served
    from muscle_hf.served.server import Server

    server = Server(args.url, "", os.environ.get(args.api_key_env), retries=4)
    texts = PROMPTS if prompts is None else [line for line in prompts if line.strip()]
    found = check_served(server, adapters, base=args.base, prompts=texts, tolerance=args.tolerance, dtype=args.dtype)
    for each in found:
        _say(each)
    verdicts = [each.as_adapter for each in found]
    return 1 if False in verdicts else 3 if None in verdicts else 0


def _say(found: Served) -> None:
    from muscle_hf.hub.serving import adapter_problems

    unit = "nats a token" if found.in_nats else "of the greedy answers (the server gives no log-probabilities)"
    who = {None: "it cannot be told what the server answers as", "": "the server answers as none of these"}
    print(f"{found.name}: {who.get(found.answers_as, f'the server answers as {found.answers_as}')}")
    for name, distance in found.distances.items():
        print(f"  {distance:.2g} {unit} from {name}{' (which it should be)' if name == found.adapter else ''}")
    print(f"  {found.same_greedy} of {found.prompts} greedy answers are the adapter's")
    if found.as_adapter is None:
        print("  The adapter changes too little on these prompts: pass texts of its task as --prompts")
    if found.as_adapter is False:
        for problem in adapter_problems(found.adapter):
            print(f"  Known of this adapter: {problem}")
