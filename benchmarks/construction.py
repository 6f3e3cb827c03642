"""Processor time to make a trainer, beside Trainer: Llamas of random weights, adapters on all linear layers.

The best of ten rounds, since whatever else runs on the machine only adds.

python benchmarks/construction.py [--layers 24] [--width 256] [--profile]
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import os
import pstats
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

from muscle_hf import MuscleConfig, MuscleTrainer

ROUNDS = 10


def base(layers: int, width: int, seed: int) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config)


def task_model(on: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    lora = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False}
    return get_peft_model(on, LoraConfig(task_type="CAUSAL_LM", **lora))


def arguments(folder: str) -> dict[str, Any]:
    return {"output_dir": folder, "report_to": "none", "use_cpu": True, "save_strategy": "no"}


def rows() -> list[dict[str, list[int]]]:
    return [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}] * 8


def least(make: Callable[[], tuple[Any, ...]], then: Callable[..., Any], profile: bool = False) -> float:
    """Seconds that ``then`` takes on what ``make`` makes."""
    taken = []
    for _ in range(1 if profile else ROUNDS):
        made = make()
        watch = cProfile.Profile() if profile else contextlib.nullcontext()
        start = time.process_time()
        with watch:
            then(*made)
        taken.append(time.process_time() - start)
        if isinstance(watch, cProfile.Profile):
            said = io.StringIO()
            pstats.Stats(watch, stream=said).sort_stats("cumulative").print_stats(45)
            print(said.getvalue())
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--profile", action="store_true", help="print where the time goes, one construction each")
    settings = parser.parse_args()
    warnings.simplefilter("ignore")
    size = settings.layers, settings.width

    with tempfile.TemporaryDirectory() as folder:

        def trainer(model: nn.Module) -> None:
            args = transformers.TrainingArguments(**arguments(folder))
            transformers.Trainer(model, args, train_dataset=rows())

        def muscle(model: nn.Module, old: nn.Module) -> None:
            MuscleTrainer(model, MuscleConfig(**arguments(folder)), old_model=old, train_dataset=rows())

        print("| seconds | made |\n| --- | ---: |")
        print(f"| Trainer | {least(lambda: (task_model(base(*size, 2), 20),), trainer):.3f} |")
        for name, seed in (("v1 on a base of its own", 1), ("v1 on v2's base", 2)):
            seconds = least(
                lambda seed=seed: (task_model(base(*size, 2), 20), task_model(base(*size, seed), 10)),
                muscle,
                settings.profile,
            )
            print(f"| MuscleTrainer, {name} | {seconds:.3f} |", flush=True)


if __name__ == "__main__":
    main()
