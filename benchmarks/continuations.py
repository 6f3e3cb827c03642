"""What is lost where a token of v1 may go on as more of the student's tokens than are looked at.

    python benchmarks/continuations.py FOLDER llama2:llama3 qwen3:gemma3

Writes benchmarks/results/continuations.md. FOLDER has a folder for each tokenizer. v1 and the student are their
unigram frequencies on the text (wikitext and novels of the shared data sets), with a hundredth of all mass shared
equally; targets with the bound are compared to those without one, place by place. Real models know their context, and
give unfit continuations less.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from reporting import publish, timed, tokenizer_pairs, where
from transformers import AutoTokenizer

from muscle_hf.tokens import Aligner, ByteVocabulary, ForeignTargets
from muscle_hf.tokens import steps as steps_of

SHARED = Path(os.environ.get("MUSCLE_HF_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "text"
CHARACTERS, ROWS, SMOOTHED = 300, 12, 0.01
# The bound in use is the second.
BOUNDS = (512, steps_of._EXTENDING)


def texts() -> list[str]:
    """Lines of wikitext, and pieces of the novels, in turns."""
    with gzip.open(SHARED / "wikitext2_valid.txt.gz", "rt", encoding="utf-8") as file:
        lines = [line.strip().replace("<unk>", "Smith") for line in file if len(line) > 600]
    with gzip.open(SHARED / "novels.jsonl.gz", "rt", encoding="utf-8") as file:
        novels = [" ".join(json.loads(line)["text"][10_000:40_000].split()) for line in file]
    return [text for pair in zip(lines, novels, strict=False) for text in pair]


def unigram(tokenizer, size: int, rows: list[str]) -> torch.Tensor:
    """(size,) log-frequencies of tokens in the texts."""
    counts = np.bincount(np.concatenate([tokenizer(text)["input_ids"] for text in rows]), minlength=size)[:size]
    return torch.from_numpy((1 - SMOOTHED) * counts / counts.sum() + SMOOTHED / size).float().log()


def measure(old_folder: Path, new_folder: Path) -> list[str]:
    """A line of the table for each bound."""
    tokenizers = [
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False) for folder in (old_folder, new_folder)
    ]
    old, new = (ByteVocabulary.of(tokenizer) for tokenizer in tokenizers)
    rows = texts()
    logits, reference = unigram(tokenizers[0], old.size, rows), unigram(tokenizers[1], new.size, rows)
    short = {string[:end] for string in new.strings if string for end in range(1, min(len(string), 5))}
    many = np.array([len(new.extending(head)) for head in short])
    bounds = [*BOUNDS, new.size]
    seconds, distances, of_labels = [0.0] * len(bounds), [[] for _ in bounds], [0.0] * len(bounds)
    with tempfile.TemporaryDirectory() as folder:
        # Several folders, that none has what another found.
        made = [ForeignTargets(Aligner(*tokenizers), Path(folder, str(bound))) for bound in bounds]
        for text in rows[:ROWS]:
            row = tokenizers[1](text[:CHARACTERS])["input_ids"]
            view = made[0].aligner.view(row, range(1, len(row)))
            given = [place for place in view.places if place is not None]
            student, said = reference.expand(len(given), -1), logits.expand(max(len(one.steps) for one in given), -1)
            labels, found = torch.tensor([place.label for place in given])[:, None], []
            for number, (targets, bound) in enumerate(zip(made, bounds, strict=True)):
                with mock.patch.object(steps_of, "_EXTENDING", bound):
                    steps, taken = timed(lambda targets=targets, given=given: targets.steps(given))
                seconds[number] += taken
                steps.places["first"] = 0  # v1 says the same everywhere
                found.append(targets.target(said, steps, student, least=0.0).log_q)
            for number, one in enumerate(found):
                distances[number].append((one.exp() - found[-1].exp()).abs().sum(-1) / 2)
                of_labels[number] += (one.gather(1, labels) - found[-1].gather(1, labels)).abs().sum().item()
    lines, places = [], sum(map(len, distances[0]))
    for bound, taken, distance, label in zip(bounds, seconds, distances, of_labels, strict=True):
        moved = torch.cat(distance)
        cells = [f"{old_folder.name} ({old.size:,})", f"{new_folder.name} ({new.size:,})"]
        cells += [f"{bound:,}" if bound < new.size else "none", f"{(many > bound).sum():,}", f"{places:,}"]
        cells += [f"{moved.mean():.2%}", f"{(moved > 0.01).float().mean():.1%}", f"{moved.max():.0%}"]
        lines.append(f"| {' | '.join([*cells, f'{label / places:.4f}', f'{1000 * taken / places:.2f}'])} |")
    return lines


def main() -> None:
    """Print the table, and keep it."""
    pairs = tokenizer_pairs(__doc__)
    torch.set_num_threads(1)
    lines = [line for pair in pairs for line in measure(*pair)]
    header = [
        "| v1 | student | bound | beginnings with more continuations | places | mass that the bound moves | places "
        "where over 1 % | at most | label, nats a place | first time, ms a place |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    note = f"{ROWS} texts of {CHARACTERS} characters, half of wikitext, half of novels. Processor seconds of one core."
    title = [
        "# Continuations that are not looked at",
        "",
        "    python benchmarks/continuations.py FOLDER OLD:NEW ...",
        "",
    ]
    publish("continuations", [*title, f"{note} {where()}.", "", *header, *lines])


if __name__ == "__main__":
    main()
