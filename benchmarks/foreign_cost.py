"""What a step costs whose v1 has another tokenizer, against the same step with one tokenizer and bodies of one size.

    python benchmarks/foreign_cost.py [--parts small wide usual] [--rounds 3]

Whole steps of the trainer on the same rows of running text, v1 and v2 with adapters, both asked about every row; the
ways take turns in one process; processor time. In the first epoch every step meets rows it has not seen, so v1's view
of them is made in it too, from what was found when the caches were filled; the second meets them again. ``small``: the
0.3M-parameter models with other tokenizers (``../shared``), where v1 reads more tokens than v2 for the same text.
``wide``: random weights, two byte-level BPEs of 32,768 tokens, of other words and other texts. ``usual``: the same in
front of bodies of 85M parameters, since what the tokenizers cost does not grow with these. Writes
benchmarks/results/foreign_cost.md.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from reporting import publish, where
from step_models import Shape, StepTimes, adapted, base
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from muscle_hf import MuscleConfig, MuscleTrainer
from muscle_hf.pipeline.caching import cache_teachers
from muscle_hf.training.data import PaddingCollator

SHARED = Path(__file__).parents[2] / "shared"
SAME, FOREIGN, NUMBERS = "v1 with v2's tokenizer", "v1 with another", "v1 with another, one number an answer"
CACHED = ", both cached"
TO_REACH = {FOREIGN: 1.2, FOREIGN + CACHED: 1.1, NUMBERS: 1.2}
STEPS = 5  # of an epoch
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Side:
    """A model with an adapter, and its tokenizer."""

    model: Any
    tokenizer: Any


@dataclass(frozen=True)
class Pairing:
    """What is measured.

    Args:
        says: Of the models, for the table.
        new: v2, and the student.
        same: A v1 with its tokenizer, and a body of the size of the other's.
        foreign: A v1 with another.
        batch: Rows of a step.
        length: Tokens of a row.
        answers: Of how many tokens at the end of a row training is measured; None: of all.
    """

    says: str
    new: Side
    same: Side
    foreign: Side
    batch: int
    length: int
    answers: tuple[int | None, ...] = (None, 4)


def novels() -> list[str]:
    """Running text: the novels, from their beginnings."""
    with gzip.open(SHARED / "data" / "text" / "novels.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def stories(name: str, seed: int) -> Side:
    folder = str(SHARED / "models" / name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    return Side(adapted(model, seed).eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def small() -> Pairing:
    old, new = "stories260k", "stories290k_bpe"
    return Pairing("0.3M parameters, 512 x 1,024 tokens", stories(new, 2), stories(new, 1), stories(old, 1), 16, 96)


def byte_bpe(texts: list[str], size: int, pattern: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on some texts."""
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    made.pre_tokenizer = (
        level
        if pattern is None
        else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])
    )
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>"]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=special[0], eos_token=special[1])


def wide(hidden: int = 256, layers: int = 8) -> Pairing:
    body = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    body["num_attention_heads"] = hidden // 64
    shape = Shape(body, vocabulary=32_768, length=256, batch=4, rows=0)
    texts = novels()
    half = len(texts) // 2
    new, old = (
        byte_bpe([text[:400_000] for text in part], shape.vocabulary, pattern)
        for part, pattern in ((texts[:half], WORDS), (texts[half:], None))
    )
    sides = [Side(adapted(base(seed, shape), 10 + seed).eval(), own) for seed, own in ((2, new), (1, new), (1, old))]
    says = f"hidden {hidden}, {layers} layers, {len(old):,} x {len(new):,} tokens"
    return Pairing(says, *sides, batch=2, length=96)


def usual() -> Pairing:
    return replace(wide(768, 12), answers=(None,))


PARTS = {"small": small, "wide": wide, "usual": usual}


def rows_of(pairing: Pairing, answer: int | None) -> list[dict[str, list[int]]]:
    """Rows of running text, of which all tokens are trained on, or the last ``answer``."""
    tokenizer, rows = pairing.new.tokenizer, []
    for text in novels():
        ids = tokenizer(text[5_000:20_000], add_special_tokens=False)["input_ids"]
        cut = [ids[start : start + pairing.length] for start in range(0, len(ids), pairing.length)]
        rows += [row for row in cut if len(row) == pairing.length][:6]
        if len(rows) >= STEPS * pairing.batch:
            break
    rows = rows[: STEPS * pairing.batch]
    trained = pairing.length - 1 if answer is None else answer
    return [{"input_ids": row, "labels": [-100] * (len(row) - trained) + row[-trained:]} for row in rows]


def ways_of(pairing: Pairing, answer: int | None, folder: str) -> dict[str, Callable[[], MuscleTrainer]]:
    rows = rows_of(pairing, answer)

    def trainer(old: Side, **changed: Any) -> MuscleTrainer:
        settings = {
            "output_dir": f"{folder}/out",
            "num_train_epochs": 2,
            "per_device_train_batch_size": pairing.batch,
            "learning_rate": 1e-7,
            "mask": "mean",
            "old_targets": "tokens",
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            **changed,
        }
        return MuscleTrainer(
            copy.deepcopy(pairing.new.model).train(),
            MuscleConfig(**settings),
            old_model=old.model,
            train_dataset=rows,
            data_collator=PaddingCollator(),
            processing_class=pairing.new.tokenizer,
            old_processing_class=old.tokenizer,
        )

    ways: dict[str, Callable[[], MuscleTrainer]] = {}
    for name, old in ((SAME, pairing.same), (FOREIGN, pairing.foreign)):
        cache = f"{folder}/{answer}-{name}"
        cache_teachers(trainer(old, teacher_cache=cache), cache, batch_size=pairing.batch)
        ways[name] = lambda old=old: trainer(old)
        ways[name + CACHED] = lambda old=old, cache=cache: trainer(old, teacher_cache=cache)
    if answer is not None:  # of so long a text as a row the likelihood says nothing
        ways[NUMBERS] = lambda: trainer(pairing.foreign, old_targets="answer")
    return ways


def epoch_steps(ways: dict[str, Callable[[], MuscleTrainer]], rounds: int) -> dict[str, tuple[float, float]]:
    """Processor seconds of a step of the first and the second epoch, without the first step; the better round."""
    found: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, make in ways.items():
            times = StepTimes()
            with contextlib.redirect_stdout(io.StringIO()):
                trainer = make()
                trainer.add_callback(times)
                trainer.train()
            del trainer  # not to be in memory beside the next one
            first, second = (sum(part) / len(part) for part in (times.seconds[1:STEPS], times.seconds[STEPS:]))
            before = found.get(name, (first, second))
            found[name] = min(before[0], first), min(before[1], second)
            print(f"{name}: {first:.2f} s, {second:.2f} s", flush=True)
    return found


def measured(pairing: Pairing, rounds: int) -> list[str]:
    lines = []
    for answer in pairing.answers:
        says = "all tokens" if answer is None else f"the last {answer} tokens"
        with tempfile.TemporaryDirectory() as folder:
            found = epoch_steps(ways_of(pairing, answer, folder), rounds)
        for name in (name for name in found if not name.startswith(SAME)):
            reference = SAME + CACHED if name.endswith(CACHED) else SAME
            pairs = list(zip(found[name], found[reference], strict=True))
            shown = " | ".join(f"{1000 * own:.0f} / {1000 * same:.0f} = {own / same:.2f}" for own, same in pairs)
            lines.append(f"| {pairing.says} | {says} | {name} | {shown} | {TO_REACH[name]:.1f} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = [PARTS[part]() for part in args.parts]
    found = [line for pairing in made for line in measured(pairing, args.rounds)]
    command = f"python benchmarks/foreign_cost.py --parts {' '.join(args.parts)} --rounds {args.rounds}"
    publish(
        "foreign_cost",
        [
            "# What another tokenizer costs a step",
            "",
            f"`{command}`, {where()}, one thread. Milliseconds of the processor for a step, over those of the step "
            f"with one tokenizer: means over {STEPS} steps an epoch, the better of {args.rounds} rounds, all in one "
            "run, in turns. The bodies of both v1 are of one size. The rows are running text, the hardest there is; "
            "in the first epoch all are new, and v1's view of them is made in the step (from what was found of single "
            "steps when the caches were filled). One number an answer is kept without a cache too, so that v1's body "
            "runs in the first epoch alone.",
            "",
            "| models | trained on | way | first epoch | second epoch | to reach |",
            "| --- | --- | --- | ---: | ---: | ---: |",
            *found,
        ],
    )


if __name__ == "__main__":
    main()
