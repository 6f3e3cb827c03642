"""Speed of the teacher cache's store: writing, opening and reading rows, and making their keys.

    python benchmarks/cache_store.py

Rows of random hidden states are written to a temporary folder, then read in random order in batches: once cold for the
store (every row's checksum is verified at its first reading) and once more. The files are in the system's page cache,
so this is what the store itself costs, not the disk; processor time is measured, since it depends less on what else
the machine does.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import tempfile
import time
from pathlib import Path

import torch
from reporting import publish, where
from safetensors.torch import save_file

from muscle_hf.cache import Fingerprint, HiddenStore, KeyRules, row_keys
from muscle_hf.teachers.kinds import CAUSAL_LM

TEACHER = Fingerprint({}, {})
SHAPES = ((100_000, 8, 64), (20_000, 32, 512), (2_000, 128, 4096))
BATCH = 32


def measure(folder: Path, rows: int, tokens: int, width: int) -> list[str]:
    """A row of the table."""
    keys = [hashlib.sha256(str(number).encode()).digest() for number in range(rows)]
    block = torch.randn(64, tokens, width).to(torch.bfloat16)

    start = time.process_time()
    with HiddenStore(folder, TEACHER) as store:
        for number in range(0, rows, BATCH):
            batch = keys[number : number + BATCH]
            store.put(batch, list(block[: len(batch)]))
    written = time.process_time() - start

    start = time.process_time()
    store = HiddenStore(folder, TEACHER)
    opened = time.process_time() - start
    order = random.Random(0).sample(range(rows), rows)
    reading = []
    for _ in range(2):
        start = time.process_time()
        for number in range(0, rows, BATCH):
            found = store.get([keys[index] for index in order[number : number + BATCH]])
            assert all(row is not None for row in found)
        reading.append(time.process_time() - start)
    size = rows * tokens * width * 2
    return [
        f"{rows:,} x {tokens} x {width}",
        f"{size / 1e6:,.0f}",
        f"{rows / written:,.0f} ({size / written / 1e6:,.0f})",
        f"{opened:.2f}",
        f"{rows / reading[0]:,.0f} ({size / reading[0] / 1e6:,.0f})",
        f"{rows / reading[1]:,.0f}",
    ]


def one_tensor_per_row(folder: Path, rows: int, tokens: int, width: int) -> float:
    """Processor seconds to open a safetensors file that holds every row as a tensor of its own."""
    from safetensors import safe_open

    file = folder / "plain.safetensors"
    block = torch.zeros(tokens, width, dtype=torch.bfloat16)
    save_file({f"{number:064x}": block.clone() for number in range(rows)}, file)
    start = time.process_time()
    with safe_open(file, framework="pt") as handle:
        assert len(handle.keys()) == rows
    return time.process_time() - start


def keys_per_second(length: int, count: int = 2000) -> float:
    """Rows a processor second of :func:`row_keys`, for padded batches of a causal LM."""
    rules = KeyRules(inputs=None, looks_back=True, relative=True, separates=True)
    ids = torch.randint(3, 30000, (BATCH, length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    labels = CAUSAL_LM.trained_labels(ids)
    start = time.process_time()
    for _ in range(count // BATCH):
        row_keys(batch, labels, rules)
    return count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table = [measure(Path(folder, str(index)), *shape) for index, shape in enumerate(SHAPES)]
        plain = one_tensor_per_row(Path(folder), *SHAPES[0])
    lines = [
        "# Speed of the teacher cache's store",
        "",
        "    python benchmarks/cache_store.py",
        "",
        f"bfloat16 rows; processor seconds of one thread; {where()},",
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. Files in the page cache, read in random order in",
        f"batches of {BATCH}.",
        "",
        "| rows x tokens x width | MB | written, rows/s (MB/s) | opening, s | first reading, rows/s (MB/s) | "
        "again, rows/s |",
        "|---|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in table),
        "",
        "The first reading verifies each row's checksum; later ones give views of the mapped files. For comparison, a",
        f"file that holds the {SHAPES[0][0]:,} rows as one tensor each takes {plain:.2f} s to open.",
        "",
        f"Keys: {keys_per_second(128):,.0f} rows/s at 128 tokens a row, {keys_per_second(2048):,.0f} at 2,048.",
    ]
    publish("cache_store", lines)


if __name__ == "__main__":
    main()
