"""What it takes to start: imports, by package, and the way from a fresh process to the end of the first step.

    python benchmarks/startup.py [--rounds 3] [--layers 24]

Every figure is of fresh processes, one thread, in processor seconds, the best of the rounds. Imports are those that
`python -X importtime` lists, summed by package. The first step is Trainer's and MuscleTrainer's, on the demo's base
and on a Llama of random weights (25M parameters in its body, seed 0), the models read from disk by both.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from reporting import publish, where

import muscle_hf

DEMO_BASE = Path(muscle_hf.__file__).parent / "demo" / "bases" / "v2"
LIBRARIES = "import peft; from transformers import Trainer, TrainingArguments"
IMPORTS = {
    "`import muscle_hf`": ["-c", "import muscle_hf"],
    "`muscle-hf --help`": ["-m", "muscle_hf.cli.main", "--help"],
    "`from transformers import Trainer` and `import peft`": ["-c", LIBRARIES],
    "`from muscle_hf import MuscleTrainer`": ["-c", f"{LIBRARIES}; from muscle_hf import MuscleTrainer"],
}
SHOWN = 8

FIRST_STEP = """
import sys, time
marks = []
def mark():
    marks.append(time.process_time())
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
torch.set_num_threads(1)
way, folder = sys.argv[1:3]
if way != "Trainer":
    from muscle_hf import MuscleConfig, MuscleTrainer
mark()
base = AutoModelForCausalLM.from_pretrained(f"{folder}/base-new", trust_remote_code=False)
model = PeftModel.from_pretrained(base, f"{folder}/new", is_trainable=True)
mark()
class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        mark()
        control.should_training_stop = True
ids = [3 + i % 60 for i in range(64)]
rows = [{"input_ids": ids, "labels": ids}] * 16
shared = dict(output_dir=f"{folder}/out", report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no")
given = dict(train_dataset=rows, callbacks=[Stop()])
if way == "Trainer":
    trainer = Trainer(model, TrainingArguments(**shared), **given)
else:
    cache = f"{folder}/cache" if "cache" in way else None
    args = MuscleConfig(**shared, teacher_cache=cache, skip_unneeded_teachers=False)
    trainer = MuscleTrainer(model, args, old_model=f"{folder}/old", **given)
mark()
trainer.train()
print("marks", *marks)
"""
WAYS = ("Trainer", "MuscleTrainer", "MuscleTrainer, both teachers in the cache")
PHASES = ("imports", "model", "trainer", "first step")


def fresh(arguments: list[str]) -> subprocess.CompletedProcess:
    """A Python process of its own, with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True, text=True)


def imports(arguments: list[str]) -> dict[str, float]:
    """Seconds of a process's imports by top-level package, without what its modules import in turn."""
    by_package: dict[str, float] = collections.Counter()
    for line in fresh(["-X", "importtime", *arguments]).stderr.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if line.startswith("import time:") and own.strip().isdigit():
            by_package[rest.rpartition("|")[2].strip().partition(".")[0]] += int(own) / 1e6
    return dict(by_package)


def import_lines(rounds: int) -> list[str]:
    lines = ["## Imports", "", "| | seconds | of them muscle_hf | the heaviest |", "| --- | ---: | ---: | --- |"]
    for name, arguments in IMPORTS.items():
        found = min((imports(arguments) for _ in range(rounds)), key=lambda by_package: sum(by_package.values()))
        heaviest = sorted(found.items(), key=lambda item: -item[1])[:SHOWN]
        shown = ", ".join(f"{package} {seconds:.2f}" for package, seconds in heaviest if seconds >= 0.005)
        lines.append(f"| {name} | {sum(found.values()):.2f} | {found.get('muscle_hf', 0):.2f} | {shown} |")
    return [*lines, ""]


def save_models(folder: Path, layers: int) -> None:
    """A base and an adapter per version; the demo's base if ``layers`` is 0."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": layers, "num_attention_heads": 4}
    for seed, side in enumerate(("old", "new")):
        torch.manual_seed(seed)
        if layers:
            base = LlamaForCausalLM(LlamaConfig(vocab_size=8192, tie_word_embeddings=False, **shape))
        else:
            name = DEMO_BASE.parent / ("v1" if side == "old" else "v2")
            base = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False)
        base.save_pretrained(folder / f"base-{side}")
        base.config._name_or_path = str(folder / f"base-{side}")
        lora = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(base, lora)
        model.peft_config["default"].base_model_name_or_path = str(folder / f"base-{side}")
        model.save_pretrained(folder / side)


def first_step_lines(layers: int, rounds: int) -> list[str]:
    lines = []
    for name, depth in (("the demo's base", 0), (f"{layers} layers of width 256, vocabulary 8,192", layers)):
        lines += [
            f"## To the end of the first step: {name}",
            "",
            f"| | {' | '.join(PHASES)} | together |",
            f"| --- |{' ---: |' * (len(PHASES) + 1)}",
        ]
        with tempfile.TemporaryDirectory() as folder:
            save_models(Path(folder), depth)
            for way in WAYS:
                if "cache" in way:
                    fresh(["-c", FIRST_STEP, way, folder])  # fills it
                marks = min((first_step(way, folder) for _ in range(rounds)), key=lambda found: found[-1])
                spans = [after - before for before, after in zip([0.0, *marks], marks, strict=False)]
                cells = " | ".join(f"{seconds:.2f}" for seconds in [*spans, marks[-1]])
                lines.append(f"| {way} | {cells} |")
        lines.append("")
    return lines


def first_step(way: str, folder: str) -> list[float]:
    """Processor seconds of a process at the end of each phase."""
    out = fresh(["-c", FIRST_STEP, way, folder]).stdout
    said = next(line for line in out.splitlines() if line.startswith("marks"))
    return [float(number) for number in said.split()[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24, help="of the larger model")
    args = parser.parse_args()
    publish(
        "startup",
        [
            "# Starting",
            "",
            f"Command: `python benchmarks/startup.py --rounds {args.rounds} --layers {args.layers}`; {where()}. "
            "Processor seconds of fresh processes with one thread, best of the rounds.",
            "",
            *import_lines(args.rounds),
            *first_step_lines(args.layers, args.rounds),
        ],
    )


if __name__ == "__main__":
    main()
