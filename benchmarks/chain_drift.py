"""Does following the follower drift? A chain of updates on the embedded world.

Writes benchmarks/results/chain_drift.md and chain_drift.svg, and the table in docs/explanation/chains.md.

    OMP_NUM_THREADS=1 python benchmarks/chain_drift.py [--bases 3] [--seeds 0 1 2 3 4] [--runs runs/chain_drift]

Every base after v2 is the one before it, trained on a crawl of its own as v2 was. In each generation there is v_n's
task adapter, trained plainly, and the same trained to be compatible in two ways: with what users see of the generation
before (the follower), and with v1 (the first). The settings are the demo's. What is done is not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from reporting import RESULTS, publish, put_between, where

from muscle_hf.demo import TASKS, base
from muscle_hf.demo.run import demo_settings, demo_splits
from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.metrics import inherited_errors
from muscle_hf.pipeline import steps
from muscle_hf.pipeline.config import ModelSettings
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.table import COMPAT, NEW, OLD
from muscle_hf.report import charts, wording
from muscle_hf.report.charts import fit
from muscle_hf.report.markup import Markup
from muscle_hf.teachers.pool import BasePool, keeping

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "embedded_world"))
MARK = "<!-- chain table: written by benchmarks/chain_drift.py -->"
TASK = "routing"
PLAIN, FOLLOWER, FIRST = "plain", "the version before", "the first version"
STYLES = {PLAIN: "worse", FOLLOWER: "better", FIRST: "plain"}
FIGURES = ("accuracy", "NFR against the first", "NFR against the version before", "errors of v1 that return")
Answers = Sequence[Prediction]


def bases(count: int, folder: Path) -> list[Path]:
    """The folders of v1, v2, ...; those that do not travel with the package are pretrained."""
    import torch
    from pretrain import RECIPES, pretrain
    from transformers import AutoTokenizer, LlamaForCausalLM

    found = [base("v1"), base("v2")]
    for number in range(3, count + 1):
        place = folder / f"v{number}"
        if not (place / "model.safetensors").is_file():
            tokenizer = AutoTokenizer.from_pretrained(found[-1], trust_remote_code=False)
            model = LlamaForCausalLM.from_pretrained(found[-1], dtype=torch.float32, trust_remote_code=False)
            recipe = dataclasses.replace(RECIPES["v2"], name=f"v{number}")
            pretrain(model, recipe, tokenizer).save_pretrained(place)
            tokenizer.save_pretrained(place)
        found.append(place)
    return found


def chain(seed: int, versions: Sequence[Path], folder: Path) -> list[dict[str, Answers]]:
    """What every model of every generation answers to the test items."""
    splits = demo_splits(TASK, seed)

    def run(name: str, old: ModelSettings, new: ModelSettings) -> Run:
        settings = demo_settings(TASK, seed, folder / name)
        training = {**settings.training, "disable_tqdm": True, "teacher_cache": str(folder / "cache")}
        settings = dataclasses.replace(settings, old=old, new=new, control=False, training=training)
        return Run(settings, TASKS[TASK], splits, lambda text: print(f"seed {seed}, {name}: {text}", flush=True))

    first = now = ModelSettings(str(versions[0]))
    generations: list[dict[str, Answers]] = []
    for number, place in enumerate(versions[1:], start=2):
        following = run(f"v{number}", now, ModelSettings(str(place)))
        found = {PLAIN: following.answers(NEW), FOLLOWER: following.answers(COMPAT)}
        if number == 2:
            first = following.side(OLD)
            generations.append(dict.fromkeys((PLAIN, FOLLOWER, FIRST), following.answers(OLD)))
            found[FIRST] = found[FOLLOWER]
        else:
            found[FIRST] = run(f"v{number}-first", first, following.side(NEW)).answers(COMPAT)
        generations.append(found)
        now = following.side(COMPAT)
    return generations


def figures(generations: Sequence[Mapping[str, Answers]]) -> dict[tuple[int, str], list[float]]:
    """Of each generation and way the :data:`FIGURES`, fractions."""
    right = [{way: np.array([p.correct for p in answers]) for way, answers in one.items()} for one in generations]
    found = {}
    for number in range(1, len(generations)):
        for way, ours in right[number].items():
            said = [[p.prediction for p in answers] for answers in (generations[0][way], generations[number][way])]
            errors = inherited_errors(
                right[0][way], right[number][PLAIN], ours, old_predictions=said[0], compat_predictions=said[1]
            ).to_dict()
            # Users of the plain chain saw the plain version before, those of either other one that of theirs.
            lost = [float((before[way] & ~ours).mean()) for before in (right[0], right[number - 1])]
            found[number + 1, way] = [float(ours.mean()), *lost, errors["return_rate"]]
    return found


def picture(by_seed: Mapping[tuple[int, str], np.ndarray]) -> str:
    """NFR against the first version by generation: mean and range of the seeds."""
    numbers = sorted({number for number, _ in by_seed})
    panels, pen = [], charts.elements()
    for index in (1, 2):
        values = [value for found in by_seed.values() for value in found[:, index]]
        x_scale, y_scale = fit(numbers, 58, 366, pad=0.2), fit(values, 252, 26, zero=True)
        parts = [pen.frame(x_scale, y_scale, lambda n: f"v{n:.0f}", wording.percent, x_ticks=numbers)]
        for shift, way in zip((-7, 0, 7), STYLES, strict=True):
            places = [(x_scale(n) + shift, y_scale(by_seed[n, way][:, index].mean())) for n in numbers]
            parts.append(pen.polyline(places, f"path {'other' if way == PLAIN else ''}"))
            for (x, y), number in zip(places, numbers, strict=True):
                low, high = (y_scale(end(by_seed[number, way][:, index])) for end in (np.min, np.max))
                parts.append(pen.line(x, low, x, high, f"whisker {STYLES[way]}"))
                parts.append(pen.dot(x, y, STYLES[way]))
        for place, way in enumerate(STYLES):
            named = {PLAIN: "plain", FOLLOWER: "follows before", FIRST: "follows first"}[way]
            parts.append(pen.dot(64 + 100 * place, 288, STYLES[way]))
            parts.append(pen.text(74 + 100 * place, 292, named, "tiny"))
        panels.append((FIGURES[index], pen.svg(FIGURES[index], 302, Markup().join(parts))))
    return charts.standalone("Negative flips along a chain of updates", panels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/chain_drift"), help="folder of bases and runs")
    args = parser.parse_args()
    steps.hush()
    versions = bases(args.bases, args.runs / "bases")
    with keeping(BasePool(size=args.bases)):
        found = [figures(chain(seed, versions, args.runs / f"seed{seed}")) for seed in args.seeds]
    by_seed = {key: np.array([one[key] for one in found]) for key in found[0]}
    seeds = " ".join(map(str, args.seeds))
    lines = [
        "# Following the follower along a chain of updates",
        "",
        f"`python benchmarks/chain_drift.py --bases {args.bases} --seeds {seeds}`, {where()}, one thread. Routing of "
        "the embedded world with the demo's settings; percent, means over the seeds with their range.",
        "",
        f"| version | compatible with | {' | '.join(FIGURES)} |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    head = len(lines) - 2
    for (number, way), values in by_seed.items():
        cells = [f"{100 * v.mean():.2f} ({100 * v.min():.1f} to {100 * v.max():.1f})" for v in values.T]
        lines.append(f"| v{number} | {'nothing: plain' if way == PLAIN else way} | {' | '.join(cells)} |")
    put_between(ROOT / "docs" / "explanation" / "chains.md", MARK, "\n".join(lines[head:]))
    lines += [
        "",
        "Change of the NFR against the first version where v_n follows that instead of the version before, by seed:",
    ]
    for number in range(3, args.bases + 1):
        change = by_seed[number, FIRST][:, 1] - by_seed[number, FOLLOWER][:, 1]
        lines.append(f"v{number}: {', '.join(f'{100 * value:+.2f}' for value in change)} points.")
    publish("chain_drift", lines)
    (RESULTS / "chain_drift.svg").write_text(picture(by_seed), encoding="utf-8")


if __name__ == "__main__":
    main()
