"""What the demo tells at its end: a table, the same in words, and what to do next."""

from __future__ import annotations

import json
import shlex
import sys

from muscle_hf.console import command
from muscle_hf.demo import SETTINGS, TASKS, rows
from muscle_hf.demo.run import BOTH, PAPER, Demo
from muscle_hf.evaluation.predictions import update_between
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD, PREDICTIONS, columns

NAMES = {
    OLD: "v1",
    NEW: "v2",
    CONTROL: "plain training for as long",
    PAPER: "the paper's objective",
    COMPAT: "recommended: with unlabelled rows",
    BOTH: "both models at inference (bound)",
}


def kept(demo: Demo, model: str) -> tuple[int, int, int]:
    """How many items the update breaks, how many of them a model keeps, and how many others it breaks."""
    of_v2 = update_between(demo.predictions[OLD], demo.predictions[NEW]).loss > 0
    of_model = update_between(demo.predictions[OLD], demo.predictions[model]).loss > 0
    return int(of_v2.sum()), int((of_v2 & ~of_model).sum()), int((of_model & ~of_v2).sum())


def words(demo: Demo) -> str:
    """The table in words."""
    chosen, worse = SETTINGS[demo.result.task], columns(demo.result.metric)[2]
    broken, keeps, others = kept(demo, COMPAT)
    _, control_keeps, control_others = kept(demo, CONTROL)
    flip = "v1 answers rightly and the new model wrongly" if worse == "NFR" else "the new model answers worse than v1"
    return (
        f"Of {broken} items that the update breaks, the recommended adapter keeps {keeps} and breaks {others} others; "
        f"plain training keeps {control_keeps} and breaks {control_others}.\n\n"
        f"{worse}, negative flips: the share of items that {flip}. Changes are against v2, in points, with the 95 % "
        f"interval of a paired bootstrap over the items.\nAll three are v2's adapter, trained on for {chosen.steps} "
        f"steps; the recommended one follows the mean of both models on {chosen.train} labelled and {chosen.transfer} "
        "unlabelled rows. Settings were chosen on validation rows of another task. This is one seed of a small world."
    )


def next_steps(demo: Demo) -> list[tuple[str, str]]:
    """What to do next, and commands for it that can be pasted as they are."""
    files = [demo.folder / PREDICTIONS / f"{name}.jsonl" for name in (OLD, NEW, COMPAT)]
    prompt = TASKS[demo.result.task].to_item(rows(demo.result.task, "test", count=1)[0], 0).prompt
    adapter, asked = json.dumps(str(demo.folder / COMPAT)), json.dumps(prompt)
    script = (
        "from muscle_hf import demo, load_compatible; "
        f'model, tokenizer = load_compatible({adapter}, base_model=demo.base("v2")); '
        f'ids = tokenizer({asked}, return_tensors="pt"); '
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=48)[0], skip_special_tokens=True))"
    )
    mine = f"Try your own update (put your models and rows into {demo.own})"
    return [
        ("Look at the flips", command("compare", *files, "--full")),
        (mine, command("train", "--config", demo.own, "--dry-run")),
        ("Load the adapter, an ordinary LoRA on v2", shlex.join([sys.executable, "-c", script])),
    ]
