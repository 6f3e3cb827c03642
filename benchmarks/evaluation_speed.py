"""Throughput of choice scoring against lm-evaluation-harness's Hugging Face backend, same model, same items.

    python benchmarks/evaluation_speed.py --limit 0  # all items
    python benchmarks/evaluation_speed.py --model ../shared/models/stories260k --data ../shared/data/hellaswag

Both sides start from text (tokenization counts) and end with a log-likelihood per choice. The harness gets the best of
several batch sizes. Processor time is compared, since it depends less on what else the machine does; wall time is
reported too. Items whose chosen answer differs are listed with the gap between the two best choices.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from muscle_hf.evaluation import Item, evaluate_task, load_items, load_task


def timed(compute: Callable[[], object]) -> tuple[object, float, float]:
    """Result, processor seconds (all threads) and wall seconds."""
    processor, wall = time.process_time(), time.perf_counter()
    result = compute()
    return result, time.process_time() - processor, time.perf_counter() - wall


def harness_log_likelihoods(model, tokenizer, items: list[Item], batch_size: int) -> list[list[float]]:
    """Log-likelihoods of every choice by lm_eval."""
    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(item.prompt, choice), idx=index)
        for item in items
        for index, choice in enumerate(item.choices)
    ]
    values = iter(value for value, _ in backend.loglikelihood(requests, disable_tqdm=True))
    return [[next(values) for _ in item.choices] for item in items]


def report(args: argparse.Namespace, items: list[Item], ours, theirs: dict[int, tuple]) -> str:
    """The result as Markdown."""
    predictions, own_processor, own_wall = ours
    best = min(theirs, key=lambda size: theirs[size][1])
    rows = [("muscle-hf", "automatic", own_processor, own_wall)]
    rows += [("lm_eval", str(size), processor, wall) for size, (_, processor, wall) in theirs.items()]
    lines = [
        "# Choice scoring against lm-evaluation-harness",
        "",
        f"Command: `python benchmarks/evaluation_speed.py --task {args.task} --limit {args.limit} "
        f"--threads {args.threads}` (with `--model` {Path(args.model).name})",
        "",
        f"Machine: {processor_name()}, {args.threads} thread(s), torch {torch.__version__}, transformers "
        f"{transformers.__version__}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the end, hence "
        f"processor time. {len(items)} items of {args.task}, "
        + ("evenly spaced over the validation split" if args.limit else "the whole validation split")
        + ". No randomness.",
        "",
        "| scorer | batch size | processor s | items per processor s | wall s |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {n} | {size} | {cpu:.1f} | {len(items) / cpu:.1f} | {wall:.1f} |" for n, size, cpu, wall in rows]
    ratio = theirs[best][1] / own_processor
    walls = min(wall for _, _, wall in theirs.values()) / own_wall
    lines += [
        "",
        f"**{ratio:.2f} x** the harness's best throughput (batch size {best}) by processor time; {walls:.2f} x "
        "its best by wall time.",
        "",
    ]
    return "\n".join(lines + differences(items, predictions, theirs[best][0]))


def differences(items: list[Item], predictions, theirs: list[list[float]]) -> list[str]:
    """What differs between the two, item by item."""
    largest = max(
        abs(a - b)
        for p, row in zip(predictions, theirs, strict=True)
        for a, b in zip(p.log_likelihoods, row, strict=True)
    )
    differing = []
    for item, prediction, row in zip(items, predictions, theirs, strict=True):
        chosen = row.index(max(row))
        if chosen != prediction.prediction:
            first, second = sorted(prediction.log_likelihoods, reverse=True)[:2]
            differing.append(f"| {item.id} | {prediction.prediction} | {chosen} | {first - second:.2e} |")
    lines = [
        f"Largest difference of a log-likelihood: {largest:.1e} nats.",
        f"Items with another chosen answer: {len(differing)} of {len(items)}.",
    ]
    if differing:
        lines += [
            "",
            "The two best choices of these items are closer than the rounding of fp32 sums in another order:",
            "",
            "| item | muscle-hf | lm_eval | gap between the two best (nats) |",
            "| --- | --- | --- | --- |",
            *differing,
        ]
    return [*lines, ""]


def processor_name() -> str:
    """What the machine computes with."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Run the benchmark and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="../shared/models/stories260k")
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--data", default="../shared/data/hellaswag")
    parser.add_argument("--limit", type=int, default=2000, help="items, evenly spaced; 0 for all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64], help="that the harness tries")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "evaluation_speed.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=False)
    task = load_task(args.task)
    items = load_items(task, args.data, "validation")
    if args.limit:
        items = [items[i * len(items) // args.limit] for i in range(min(args.limit, len(items)))]
    evaluate_task(model, tokenizer, task, items[:16], progress=False)
    harness_log_likelihoods(model, tokenizer, items[:16], 8)
    ours = timed(lambda: evaluate_task(model, tokenizer, task, items, progress=False))
    theirs = {
        size: timed(lambda size=size: harness_log_likelihoods(model, tokenizer, items, size))
        for size in args.batch_sizes
    }
    text = report(args, items, ours, theirs)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
