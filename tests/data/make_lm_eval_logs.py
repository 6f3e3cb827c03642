"""Writes the lm-evaluation-harness logs in ``tests/data/lm_eval``: two real models, two small tasks, no network.

    python tests/data/make_lm_eval_logs.py OLD_MODEL NEW_MODEL

The logs that are kept come from lm_eval 0.4.13 with the models ``stories260k`` and ``stories260k_update``. One task is
multiple choice; the other is generated text with two filters, as GSM8K has it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ANIMALS = ["cat", "dog", "bird", "fish", "frog", "bear", "duck", "mouse", "rabbit", "horse"]
ENDINGS = {
    "One day, the {} went to the": ["park.", "house.", "tree.", "garden."],
    "The {} was very": ["happy.", "sad.", "scared.", "tired."],
    "The {} saw a big": ["tree.", "ball.", "box.", "bird."],
    "The {} wanted to": ["play.", "eat.", "sleep.", "help."],
}

CHOICE_TASK = """\
task: endings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}/endings.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
num_fewshot: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""

TEXT_TASK = """\
task: names
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}/names.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 0
generation_kwargs: {{until: ["."], do_sample: false, max_gen_toks: 12}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}
filter_list:
  - name: first-word
    filter:
      - {{function: regex, regex_pattern: "([A-Za-z]+)"}}
      - {{function: take_first}}
  - name: last-word
    filter:
      - {{function: regex, regex_pattern: "([A-Za-z]+)", group_select: -1}}
      - {{function: take_first}}
"""


def write_tasks(folder: Path) -> None:
    """The tasks' YAML files and their items."""
    endings, names = [], []
    for i, animal in enumerate(ANIMALS):
        for j, (start, choices) in enumerate(ENDINGS.items()):
            question = f"Once upon a time, there was a little {animal}. " + start.format(animal)
            endings.append({"question": question, "choices": choices, "answer": (i + j) % 2, "animal": animal})
            if j < 2:
                place = choices[j].strip(".")
                names.append({"question": f"The {animal} lived in a {place}. It was a", "answer": ["big", "very"][j]})
    for name, rows in (("endings", endings), ("names", names)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "endings.yaml").write_text(CHOICE_TASK.format(data=folder), encoding="utf-8")
    (folder / "names.yaml").write_text(TEXT_TASK.format(data=folder), encoding="utf-8")


def main(old_model: str, new_model: str) -> None:
    """Runs the harness on both models and keeps its sample logs."""
    home = Path(__file__).parent / "lm_eval"
    with tempfile.TemporaryDirectory() as scratch:
        write_tasks(Path(scratch))
        for side, model in (("old", old_model), ("new", new_model)):
            output = Path(scratch) / side
            arguments = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
            arguments += ["--tasks", "endings,names", "--include_path", scratch, "--batch_size", "8"]
            arguments += ["--log_samples", "--output_path", str(output)]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{scratch}/cache"}
            subprocess.run([sys.executable, "-m", "lm_eval", *arguments], check=True, env=environment)
            shutil.rmtree(home / side, ignore_errors=True)
            (home / side).mkdir(parents=True)
            for log in sorted(output.rglob("samples_*.jsonl")):
                shutil.copy(log, home / side / log.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
