"""Speed and memory of ``muscle-hf compare`` on large logs.

    python benchmarks/compare_speed.py                          # all, as in benchmarks/results/compare_speed.md
    python benchmarks/compare_speed.py --items 100000 --rows 10000

Writes made-up logs (our own prediction format, and lm-evaluation-harness's with HellaSwag-sized rows), then runs the
command on them in a process of its own, on two cores, and reports wall time and the peak of resident memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHOICES = ["the first of the endings, which goes on for a while", "a second one", "the third", "and the last of them"]


def write_own(path: Path, items: int, seed: str) -> None:
    """Rows of our own prediction format, with prompt, choices, log-likelihoods and a column."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for i in range(items):
            target = i % 4
            answer = target if rng.random() < 0.7 else rng.randrange(4)
            row = {
                "task": "endings",
                "id": f"item-{i}",
                "prediction": answer,
                "target": target,
                "correct": answer == target,
                "score": None,
                "metric": "acc",
                "hash": hashlib.sha256(str(i).encode()).hexdigest()[:16],
                "prompt": f"Question {i}: which of the four endings fits?",
                "choices": ["a", "b", "c", "d"],
                "log_likelihoods": [-rng.random() - (c != answer) for c in range(4)],
                "columns": {"topic": f"topic {i % 7}"},
            }
            file.write(json.dumps(row) + "\n")


def write_harness(folder: Path, rows: int, seed: str) -> None:
    """Rows as lm-evaluation-harness logs HellaSwag: the prompt once in the document and once for every choice."""
    rng = random.Random(seed)
    folder.mkdir()
    with (folder / "samples_hellaswag_2026-01-01T00-00-00.000001.jsonl").open("w", encoding="utf-8") as file:
        for i in range(rows):
            target, prompt = i % 4, f"Activity {i}: " + "a man does one thing after the other and goes on. " * 5
            scores = [-20.0 - 10 * rng.random() - 5 * (c != target) * rng.random() for c in range(4)]
            answers = [[str(score), "False"] for score in scores]
            best = max(range(4), key=scores.__getitem__)
            row = {
                "doc_id": i,
                "doc": {"ind": i, "ctx": prompt, "endings": CHOICES, "label": str(target), "split_type": "indomain"},
                "target": str(target),
                "arguments": {f"gen_args_{c}": {"arg_0": prompt, "arg_1": f" {CHOICES[c]}"} for c in range(4)},
                "resps": [[answer] for answer in answers],
                "filtered_resps": answers,
                "filter": "none",
                "metrics": ["acc", "acc_norm"],
                "doc_hash": hashlib.sha256(f"doc {i}".encode()).hexdigest(),
                "prompt_hash": hashlib.sha256(prompt.encode()).hexdigest(),
                "target_hash": hashlib.sha256(str(target).encode()).hexdigest(),
                "acc": float(best == target),
                "acc_norm": float(best == target),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def measure(old: Path, new: Path, *options: str) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak resident memory (GB) of the command in a fresh process on two cores."""
    command = [sys.executable, "-m", "muscle_hf.cli.main", "compare", str(old), str(new), "--quiet", *options]
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else None
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if cores:
        os.sched_setaffinity(process.pid, cores)
    code = process.wait()
    seconds = time.perf_counter() - start
    if code:
        raise SystemExit(f"the command ended with {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, processor, after.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    """Writes the logs, runs the command, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000, help="items of our own format")
    parser.add_argument("--rows", type=int, default=100_000, help="rows a side of the harness's logs")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    print("| log | a side | MB a side | seconds | processor seconds | peak GB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        # The smaller job first: the peak that the system reports is that of the largest child so far.
        for seed in ("old", "new"):
            write_harness(home / f"harness-{seed}", args.rows, seed)
            write_own(home / f"{seed}.jsonl", args.items, seed)
        result = str(home / "result.json")
        jobs = [
            ("lm-eval", args.rows, home / "harness-old", home / "harness-new"),
            ("muscle-hf", args.items, home / "old.jsonl", home / "new.jsonl"),
        ]
        for name, count, old, new in jobs:
            size = sum(file.stat().st_size for file in ([old] if old.is_file() else old.iterdir())) / 1e6
            for _ in range(args.repeats):
                seconds, processor, peak = measure(old, new, "--json", result)
                print(
                    f"| {name} | {count:,} | {size:.0f} | {seconds:.1f} | {processor:.1f} | {peak:.2f} |", flush=True
                )


if __name__ == "__main__":
    main()
