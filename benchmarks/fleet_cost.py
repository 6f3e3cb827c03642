"""Six real tasks in one fleet, and by six single runs of the same settings; writes benchmarks/results/fleet_cost.md.

    OMP_NUM_THREADS=1 python benchmarks/fleet_cost.py [--file examples/fleet.yaml] [--runs runs/fleet_cost]

Seconds are of the processor, which depend less on what else the machine does. The folder of the runs must be new.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

from reporting import publish, where

from muscle_hf.errors import MuscleError
from muscle_hf.fleet.settings import load_fleet
from muscle_hf.fleet.task import RUN_FILE, outcome_of
from muscle_hf.pipeline.table import COMPAT, NEW, OLD
from muscle_hf.record import file_sha256


def seconds_of(*words: str) -> float:
    """Processor seconds of one command of muscle-hf, which may end with the verdict of a gate."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run([sys.executable, "-m", "muscle_hf", *words], check=False).returncode
    if code not in (0, 1, 3):
        raise SystemExit(f"muscle-hf {' '.join(words)} ended with {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="examples/fleet.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/fleet_cost"))
    args = parser.parse_args()
    if args.runs.exists():
        raise MuscleError(f"{args.runs} is there already, so steps would be done before; name another folder")
    words = ["--output_dir", str(args.runs / "fleet")]
    together = seconds_of("fleet", args.file, *words)
    fleet = load_fleet(args.file, words)
    alone = {}
    for task in fleet.tasks:
        words = ["--config", str(task.folder / RUN_FILE), "--output_dir", str(args.runs / "alone" / task.name)]
        alone[task.name] = seconds_of("train", *words)
    lines = [
        "# A fleet beside single runs",
        "",
        f"`python benchmarks/fleet_cost.py --file {args.file}`, {where()}, "
        f"{os.environ.get('OMP_NUM_THREADS', '?')} thread. The fleet took {together:.0f} processor seconds, the "
        f"single runs {sum(alone.values()):.0f}.",
        "",
        "| task | accuracy v1 / plain / compatible | NFR plain / compatible | verdict | alone, s | the same adapter |",
        "| --- | ---: | ---: | --- | ---: | --- |",
    ]
    for task in fleet.tasks:
        outcome = outcome_of(task)
        files = [
            place / "muscle" / "adapter_model.safetensors" for place in (task.folder, args.runs / "alone" / task.name)
        ]
        same = "yes" if len({file_sha256(file) for file in files}) == 1 else "no"
        if outcome is None:
            lines.append(f"| {task.name} | failed | | | {alone[task.name]:.0f} | |")
            continue
        quality = " / ".join(f"{100 * outcome.quality[name].value:.1f}" for name in (OLD, NEW, COMPAT))
        nfr = " / ".join(f"{100 * outcome.now.nfr[name].value:.1f}" for name in (NEW, COMPAT))
        lines.append(f"| {task.name} | {quality} | {nfr} | {outcome.verdict} | {alone[task.name]:.0f} | {same} |")
    publish("fleet_cost", lines)


if __name__ == "__main__":
    main()
