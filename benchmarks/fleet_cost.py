"""Six real tasks in one fleet, and by six single runs of the same settings; writes benchmarks/results/fleet_cost.md.

    OMP_NUM_THREADS=1 python benchmarks/fleet_cost.py [--runs runs/fleet_cost] [--jobs 1] [SETTINGS]

SETTINGS are further words for the fleet, such as --max_steps 10. Seconds are of the processor, which depend less on
what else the machine does, so several commands may run at once. A command that has ended is not repeated; one that was
stopped begins anew.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from reporting import publish, where

from muscle_hf.errors import MuscleError
from muscle_hf.files import read_json, write_json, write_text
from muscle_hf.fleet.settings import load_fleet
from muscle_hf.fleet.task import outcome_of
from muscle_hf.pipeline.table import COMPAT, NEW, OLD
from muscle_hf.record import file_sha256


def seconds_of(folder: Path, *words: str) -> float:
    """Processor seconds of one command of muscle-hf, which may end with the verdict of a gate, and its folder."""
    note = folder.with_suffix(".json")
    asked = [*words, *(file_sha256(word) for word in words if Path(word).is_file())]
    said = read_json(note) if note.is_file() else {}
    if said.get("asked") == asked:
        return said["seconds"]
    shutil.rmtree(folder, ignore_errors=True)
    process = subprocess.Popen([sys.executable, "-m", "muscle_hf", *words])
    _, status, used = os.wait4(process.pid, 0)
    if (code := os.waitstatus_to_exitcode(status)) not in (0, 1, 3):
        raise MuscleError(f"muscle-hf {' '.join(words)} ended with {code}")
    seconds = used.ru_utime + used.ru_stime
    write_json(note, {"asked": asked, "seconds": seconds})
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="examples/fleet.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/fleet_cost"))
    parser.add_argument("--jobs", type=int, default=1, help="commands at once")
    args, settings = parser.parse_known_args()
    words = [*settings, "--output_dir", str(args.runs / "fleet")]
    fleet, alone = load_fleet(args.file, words), args.runs / "alone"
    if fleet.problems:
        raise MuscleError("\n".join(map(": ".join, fleet.problems)))
    alone.mkdir(parents=True, exist_ok=True)
    commands = {fleet.folder: ["fleet", args.file, *words]}
    for task in fleet.tasks:
        content = {**task.settings.to_dict(), "output_dir": str(alone / task.name)}
        file = write_text(alone / f"{task.name}.yaml", yaml.safe_dump(content, sort_keys=False))
        commands[alone / task.name] = ["train", "--config", str(file)]
    with ThreadPoolExecutor(args.jobs) as jobs:
        together, *seconds = jobs.map(lambda folder: seconds_of(folder, *commands[folder]), commands)
    lines = [
        "# A fleet beside single runs",
        "",
        f"`python benchmarks/fleet_cost.py {shlex.join(['--file', args.file, *settings])}`, {where()}, "
        f"{os.environ.get('OMP_NUM_THREADS', '?')} thread. The fleet took {together:.0f} processor seconds, the "
        f"single runs {sum(seconds):.0f}.",
        "",
        "| task | accuracy v1 / plain / compatible | NFR plain / compatible | verdict | alone, s | the same adapter |",
        "| --- | ---: | ---: | --- | ---: | --- |",
    ]
    for task, took in zip(fleet.tasks, seconds, strict=True):
        outcome = outcome_of(task)
        files = [place / "muscle" / "adapter_model.safetensors" for place in (task.folder, alone / task.name)]
        same = "yes" if len({file_sha256(file) for file in files}) == 1 else "no"
        if outcome is None:
            lines.append(f"| {task.name} | failed | | | {took:.0f} | |")
            continue
        quality = " / ".join(f"{100 * outcome.quality[name].value:.1f}" for name in (OLD, NEW, COMPAT))
        nfr = " / ".join(f"{100 * outcome.now.nfr[name].value:.1f}" for name in (NEW, COMPAT))
        lines.append(f"| {task.name} | {quality} | {nfr} | {outcome.verdict} | {took:.0f} | {same} |")
    publish("fleet_cost", lines)


if __name__ == "__main__":
    main()
