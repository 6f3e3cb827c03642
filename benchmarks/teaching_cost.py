"""What `muscle-hf train` saves by the way it chooses for its teachers; writes benchmarks/results/teaching_cost.md.

    python benchmarks/teaching_cost.py [--train 400] [--transfer 480] [--epochs 10]

The compatibility adapter of recipes/stories260k/trec_transfer.yaml, from the same two task adapters, with both models
in each step and as chosen. Seconds are those that the processor worked, since other processes may share it.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

from muscle_hf.files import read_json
from muscle_hf.pipeline.config import load_settings
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.steps import hush

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "stories260k" / "trec_transfer.yaml"
WAYS = {
    "both models in each step": ["--teacher_cache", "null"],
    "as chosen: a cache of hidden states": [],
    "scores of the choices (`--old_targets choices`)": ["--old_targets", "choices"],
}

NOTE = (
    "Scores are another target than distributions over tokens, so that the adapter is another one; each model is "
    "asked for them once, about every choice of every row, which pays the more epochs there are. They are followed by "
    "default where v1 has other tokens or words (docs/howto/another-tokenizer.md)."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--transfer", type=int, default=480)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    hush()
    sizes = ["--data.train.limit", str(args.train), "--data.transfer.limit", str(args.transfer)]
    sizes += ["--num_train_epochs", str(args.epochs), "--disable_tqdm", "true", "--use_cpu", "true"]
    lines = [
        "| Teachers | steps | seconds | a step, ms | test answers that differ from the first |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        first = Run.of(load_settings(RECIPE, [*sizes, "--output_dir", f"{folder}/first"]))
        adapters = [f"--{name}.adapter={first.adapter(name)}" for name in ("old", "new")]
        answers: list[list] = []
        for number, (way, words) in enumerate(WAYS.items()):
            run = Run.of(load_settings(RECIPE, [*sizes, *adapters, *words, "--output_dir", f"{folder}/{number}"]))
            _ = run.target  # asks both models about validation rows, which costs the same in all ways
            start = time.process_time()
            place = Path(run.adapter("muscle"))
            seconds = time.process_time() - start
            steps = read_json(place / "muscle_step.json")["steps"]
            answers.append([answer.prediction for answer in run.answers("muscle")])
            differ = sum(one != other for one, other in zip(answers[0], answers[-1], strict=True))
            lines.append(f"| {way} | {steps} | {seconds:.0f} | {1000 * seconds / steps:.0f} | {differ} |")
            print(lines[-1], flush=True)
    options = f"--train {args.train} --transfer {args.transfer} --epochs {args.epochs}"
    command = f"python benchmarks/teaching_cost.py {options}"
    (ROOT / "benchmarks" / "results" / "teaching_cost.md").write_text(
        "# What the way that a run chooses for its teachers saves\n\n"
        f"`{command}`, {platform.machine()}, one thread, seconds of the processor: the compatibility adapter of "
        "recipes/stories260k/trec_transfer.yaml, the teachers' answers to the transfer rows and the validation after "
        f"each epoch included. {len(answers[0])} test items.\n\n" + "\n".join(lines) + "\n\n" + NOTE + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
