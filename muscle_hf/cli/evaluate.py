"""``muscle-hf evaluate``: run a model on a task and keep its answers in a prediction file."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from muscle_hf.cli.compare import pairs
from muscle_hf.console import command, is_first_process
from muscle_hf.errors import MuscleError
from muscle_hf.files import alone, check_outputs, is_stdout, is_stream
from muscle_hf.user_code import add_no_code_argument

DTYPES = ("auto", "float32", "bfloat16", "float16")

if TYPE_CHECKING:
    from muscle_hf.evaluation import Item, Prediction, Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, what it is asked, and what runs it."""
    parser.add_argument("model", help="folder or Hub id of an adapter or a model; with --server, the name it serves")
    parser.add_argument("--adapter", help="folder or Hub id of an adapter to put on MODEL")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub, of the adapter if there is one")
    parser.add_argument("--output", required=True, type=Path, help="file of predictions (.jsonl), or - for the screen")
    parser.add_argument("--overwrite", action="store_true", help="replace the prediction file if it exists")
    add_item_arguments(parser, "test")
    add_machine_arguments(parser)
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers", help="what runs it here")
    parser.add_argument(
        "--engine-option", action="append", default=[], metavar="NAME=VALUE", help="further argument of vllm.LLM"
    )
    server = parser.add_argument_group("a model behind an OpenAI-compatible server")
    server.add_argument("--server", metavar="URL", help="for example http://localhost:8000/v1")
    server.add_argument("--api-key-env", default="OPENAI_API_KEY", help="variable with the key (default: %(default)s)")
    server.add_argument(
        "--server-option", action="append", default=[], metavar="NAME=VALUE", help="further field of each request"
    )
    server.add_argument("--server-tokenizer", help="folder or Hub id; counts the tokens of choices exactly")
    server.add_argument("--concurrency", type=int, default=8, help="requests at a time (default: %(default)s)")


def add_item_arguments(parser: argparse.ArgumentParser, split: str) -> None:
    """Arguments about what is asked, by default the rows of a split; shared with ``muscle-hf dial``."""
    items = parser.add_argument_group("what is asked")
    items.add_argument("--task", required=True, help="name of a built-in task, a .yaml file, or file.py:variable")
    items.add_argument("--data", help="file, folder with a file per split, or dataset id (default: the task's own)")
    items.add_argument("--split", default=split, help="split to read (default: %(default)s)")
    items.add_argument("--start", type=int, default=0, help="first row to take")
    items.add_argument("--limit", type=int, help="most rows to take")
    items.add_argument("--num-fewshot", type=int, default=0, help="solved training items before each prompt")
    items.add_argument("--metric", help="in place of the task's: acc_norm, acc_bytes, rouge2, rougeL, chrf, ...")
    items.add_argument("--max-new-tokens", type=int, help="in place of the task's")
    items.add_argument("--no-repeat-ngram-size", type=int, help="in place of the task's")
    add_no_code_argument(items)
    items.add_argument("--chat", action="store_true", help="put prompts into the tokenizer's chat template")


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about how a model is loaded and run, shared with ``muscle-hf dial``."""
    machine = parser.add_argument_group("how it runs")
    machine.add_argument("--batch-size", type=int, help="most sequences in a forward pass (default: what fits)")
    machine.add_argument("--dtype", default="auto", choices=DTYPES, help="of the weights (default: %(default)s)")
    machine.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the accelerator if there is one)")
    machine.add_argument("--device-map", help="spread a large model over devices, e.g. auto")
    bits = machine.add_mutually_exclusive_group()
    bits.add_argument("--load-in-4bit", action="store_true", help="quantize with bitsandbytes")
    bits.add_argument("--load-in-8bit", action="store_true", help="quantize with bitsandbytes")
    machine.add_argument("--quiet", action="store_true", help="no progress bar")


def asked(args: argparse.Namespace) -> tuple[Task, list[Item]]:
    """The task and its items, as the arguments of :func:`add_item_arguments` say."""
    from dataclasses import replace

    from muscle_hf.evaluation.registry import load_items, load_task

    task = load_task(args.task)
    changed = {name: getattr(args, name) for name in ("metric", "max_new_tokens", "no_repeat_ngram_size")}
    task = replace(task, **{name: value for name, value in changed.items() if value is not None})
    items = load_items(task, args.data, args.split, start=args.start, limit=args.limit, num_fewshot=args.num_fewshot)
    return task, items


def loading_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What ``load_for_evaluation`` takes, as the arguments of :func:`add_machine_arguments` say."""
    from transformers import BitsAndBytesConfig
    from transformers.utils import logging

    if args.quiet:
        logging.disable_progress_bar()
    quantized = args.load_in_4bit or args.load_in_8bit
    settings = (
        BitsAndBytesConfig(load_in_4bit=args.load_in_4bit, load_in_8bit=args.load_in_8bit) if quantized else None
    )
    return {
        "device": args.device,
        "dtype": args.dtype,
        "device_map": args.device_map,
        "quantization_config": settings,
    }


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the predictions, and print the summary."""
    if args.output.exists() and not args.overwrite and not is_stream(args.output):
        raise MuscleError(f"{args.output} exists; choose another --output, or pass --overwrite")
    task, items = asked(args)
    if is_stream(args.output):
        return _evaluate(args, task, items, None)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    check_outputs([args.output], [args.data, args.task])
    with alone(args.output) if is_first_process() else contextlib.nullcontext():
        return _evaluate(args, task, items, args.output.with_name(f"{args.output.name}.partial"))


def _evaluate(args: argparse.Namespace, task: Task, items: list[Item], partial: Path | None) -> int:
    """Evaluate; ``partial`` is where answers are kept until there are all of them."""
    from muscle_hf.evaluation.predictions import write_predictions

    ask = _ask_server if args.server else _ask_vllm if args.engine == "vllm" else _ask_model
    predictions = ask(args, task, items, partial)
    if not is_first_process():
        return 0
    if args.output.exists() and not args.overwrite and partial is not None:
        raise MuscleError(f"{args.output} was written meanwhile; the answers are kept: pass another --output")
    write_predictions(args.output, predictions)
    if partial is not None:
        partial.unlink(missing_ok=True)
    print(_summary(predictions), file=_messages(args))
    following = command("compare", "OLD.jsonl", args.output)
    print(f"{args.output}: {len(predictions)} predictions. Next: {following}", file=_messages(args))
    return 0


def _messages(args: argparse.Namespace) -> TextIO:
    """Where to speak: the standard output may be the prediction file."""
    return sys.stderr if is_stdout(args.output) else sys.stdout


def _say_first(args: argparse.Namespace, task: Task, items: list[Item], prompt: str | None = None) -> None:
    from muscle_hf.evaluation.tasks import describe_item
    from muscle_hf.report.text import visible

    if not args.quiet and is_first_process():
        shown = visible(describe_item(task, items[0], prompt))
        print(f"First of {len(items)} items. {shown}", file=_messages(args), flush=True)


def _ask_model(args: argparse.Namespace, task: Task, items: list[Item], partial: Path | None) -> list[Prediction]:
    from accelerate import PartialState

    from muscle_hf.evaluation.engine import chat_prompts, evaluate_task
    from muscle_hf.evaluation.loading import load_described
    from muscle_hf.evaluation.partial import PartialAnswers
    from muscle_hf.evaluation.predictions import signed
    from muscle_hf.evaluation.registry import describe_data

    # Under `accelerate launch` this joins the processes; alone it does nothing.
    state = PartialState()
    arguments = loading_arguments(args)
    if state.num_processes > 1:
        arguments["device"] = args.device or state.device
    model, tokenizer, describe = load_described(
        args.model, task, adapter=args.adapter, revision=args.revision, **arguments
    )
    _say_first(args, task, items, chat_prompts(tokenizer, items[:1])[0] if args.chat else None)
    who = describe()
    settings = [who, args.dtype, args.load_in_4bit, args.load_in_8bit]
    kept = None if partial is None else PartialAnswers(partial, settings, task, args.chat)
    predictions = evaluate_task(
        model, tokenizer, task, items, batch_size=args.batch_size, progress=not args.quiet, chat=args.chat, kept=kept
    )
    data = describe_data(task, args.data, args.split)
    return signed(predictions, {**who, "data": data})


def _ask_server(args: argparse.Namespace, task: Task, items: list[Item], partial: Path | None) -> list[Prediction]:
    from muscle_hf.evaluation.server import Server, evaluate_task_on_server

    tokenizer = None
    if args.server_tokenizer:
        from muscle_hf.evaluation.loading import tokenizer_of

        tokenizer = tokenizer_of(None, args.server_tokenizer, None, {})
    server = Server(
        args.server,
        args.model,
        api_key=os.environ.get(args.api_key_env),
        concurrency=args.concurrency,
        options=_options("--server-option", args.server_option),
        tokenizer=tokenizer,
    )
    _say_first(args, task, items)
    return evaluate_task_on_server(server, task, items, chat=args.chat, partial=partial, progress=not args.quiet)


def _ask_vllm(args: argparse.Namespace, task: Task, items: list[Item], partial: Path | None) -> list[Prediction]:
    from muscle_hf.evaluation.in_vllm import Vllm
    from muscle_hf.hub.serving import adapter_problems
    from muscle_hf.teachers.loading import find_adapter

    if args.revision or args.device or args.device_map or args.load_in_4bit or args.load_in_8bit or args.batch_size:
        raise MuscleError("with --engine vllm a model's revision, device and batches are vLLM's: --engine-option")
    options = {"dtype": args.dtype, **_options("--engine-option", args.engine_option)}
    model, base = (args.adapter, args.model) if args.adapter else (args.model, None)
    if (found := find_adapter(model, None, {})) and (problems := adapter_problems(found.folder)):
        raise MuscleError(f"vLLM does not take {model} as it is: {'; '.join(problems)}. Leave --engine out")
    _say_first(args, task, items)
    return Vllm(model, base, options).evaluate(task, items, chat=args.chat, partial=partial)


def _options(option: str, entries: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {**pairs(option, entries, "top_k=1")}
    for name, value in found.items():
        with contextlib.suppress(json.JSONDecodeError):
            found[name] = json.loads(value)
    return found


def _summary(predictions: list[Prediction]) -> str:
    first = predictions[0]
    values = [p.score if p.correct is None else p.correct for p in predictions]
    return f"{first.task}: {first.metric} {sum(values) / len(values):.4f} on {len(values)} items"
