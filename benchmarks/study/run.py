"""The whole study: train every method, ask it, write tables and pictures; what is done is not repeated.

    python benchmarks/study/run.py [--runs runs/study] [--cells level-trec ...] [--seeds 0 1 ...] [--methods ce ...]

The plan is benchmarks/study/plan.yaml; learning rates and epochs of the methods are those that `tune.py` chose
(benchmarks/study/tuned.yaml). What the models answered is recorded in benchmarks/study/records; `report.py`, which
this calls at its end, reads nothing else.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from records import goes_on, missing_methods, write_record
from report import write_report
from study import Cell, load_plan
from together import answers_together

from muscle_hf.pipeline.steps import hush


def main() -> None:
    plan = load_plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--cells", nargs="+", choices=plan["cells"], default=list(plan["cells"]))
    parser.add_argument("--seeds", nargs="+", type=int, default=plan["seeds"])
    parser.add_argument("--methods", nargs="+", choices=plan["methods"], help="default: those of each cell")
    parser.add_argument("--again", action="store_true", help="also train what is recorded, where its run is missing")
    parser.add_argument("--no-report", action="store_true", help="write no tables, where several of these run at once")
    args = parser.parse_args()
    hush()
    for seed in args.seeds:
        for name in args.cells:
            cell = Cell(name, seed, plan, args.runs)
            methods = args.methods or plan["cells"][name]["methods"]
            if untuned := [method for method in methods if method not in cell.chosen]:
                print(f"{name} seed {seed}: tuning chose no settings for {', '.join(untuned)}")
                methods = [method for method in methods if method not in untuned]
            wanted = methods if args.again else missing_methods(cell, methods)
            if not wanted:
                continue
            sides = [cell.answers(cell.version(side), "test") for side in ("old", "new")]
            if sides[0][0].log_likelihoods is None and cell.same_tokens:
                answers_together(cell)
            if not args.again and not goes_on(cell):
                print(f"{name} seed {seed}: recorded with other task adapters; --again trains all of its methods anew")
                continue
            for method in wanted:
                start = time.perf_counter()
                cell.answers(cell.method(method), "test")
                write_record(cell)
                print(f"{name} seed {seed} {method}: {time.perf_counter() - start:.0f} s", flush=True)
    if not args.no_report:
        write_report(plan)


if __name__ == "__main__":
    main()
