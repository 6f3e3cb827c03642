"""How benchmarks end: their lines are printed and become the file of their name in ``results/``."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")


def publish(name: str, lines: Iterable[str]) -> None:
    """Print a result and write it to ``results/NAME.md``.

    Args:
        name: Of the benchmark.
        lines: Markdown.
    """
    text = "\n".join(lines).rstrip("\n") + "\n"
    print(text)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def tokenizer_pairs(described: str | None) -> list[tuple[Path, Path]]:
    """The folders of pairs of tokenizers that the command line names: ``FOLDER OLD:NEW ...``.

    Args:
        described: What ``--help`` says of the benchmark.
    """
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", nargs="+", metavar="OLD:NEW")
    asked = parser.parse_args()
    named = (pair.split(":") for pair in asked.pairs)
    return [(asked.folder / old, asked.folder / new) for old, new in named]


def put_between(document: Path, mark: str, text: str) -> None:
    """Write what a benchmark found into a document, between two lines that are its mark.

    Args:
        document: Has the mark twice.
        mark: A Markdown comment.
        text: What stands between afterwards.
    """
    before, _, after = document.read_text(encoding="utf-8").split(mark)
    document.write_text(f"{before}{mark}\n\n{text.strip()}\n\n{mark}{after}", encoding="utf-8")


def where() -> str:
    """The machine and the packages: ``CPU (x86_64), torch 2.13.0, transformers 5.23.0``."""
    import torch
    import transformers

    return f"CPU ({platform.machine()}), torch {torch.__version__}, transformers {transformers.__version__}"


def timed(compute: Callable[[], T]) -> tuple[T, float]:
    """A function's result, and its processor seconds: they depend less on what else the machine does."""
    start = time.process_time()
    result = compute()
    return result, time.process_time() - start
