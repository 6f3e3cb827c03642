"""v1 behind a real vLLM: what is lost where only k of its likeliest tokens are known, and how fast it answers.

    python benchmarks/served_v1.py --vllm VENV --shared ../shared --runs runs

The update of recipe stories260k/trec. v1 with its task adapter merged is served with heads of 32, since vLLM's
attention on a CPU knows none of 8: the added dimensions are zero and the frequencies are kept, so that it computes the
same. The compatibility adapter is trained against v1 in memory and against the server, with k = 1, 5, 20 and 64, from
the same adapters and in the same order; what the objective in full says of each on the rows held out, and what the
server's k tokens show of the divergence before training. Then the same test items, answered by transformers and by
the server.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from reporting import publish, where
from transformers import AutoTokenizer, LlamaForCausalLM

from muscle_hf import MuscleTrainer
from muscle_hf.evaluation import Server, evaluate_task, evaluate_task_on_server
from muscle_hf.pipeline.config import load_settings
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.steps import hush, load_task_adapter
from muscle_hf.teachers.adapters import STUDENT_ADAPTER, adapter_parameters

ROOT = Path(__file__).parents[1]
SIZES = (1, 5, 20, 64)
HEAD = 32


def widened(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model with heads of 32: zeros beside the old dimensions, which keep their rotary frequencies."""
    old = model.config.head_dim
    config = transformers.LlamaConfig(**{**model.config.to_dict(), "head_dim": HEAD})
    wide = LlamaForCausalLM(config).eval()
    # Frequency i of d is theta ** (-2 i / d): dimension i of the old ones is dimension i * 32 / d of the new ones.
    places = torch.arange(old // 2) * (HEAD // old)
    places = torch.cat([places, places + HEAD // 2])
    weights = {}
    for name, weight in model.state_dict().items():
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            heads = weight.view(-1, old, weight.size(1))
            spread = heads.new_zeros(len(heads), HEAD, weight.size(1)).index_copy_(1, places, heads)
            # Scores are divided by the root of the head's size.
            weights[name] = spread.flatten(0, 1) * ((HEAD / old) ** 0.5 if kind == "q_proj" else 1)
        elif kind == "o_proj":
            heads = weight.view(weight.size(0), -1, old)
            spread = heads.new_zeros(weight.size(0), heads.size(1), HEAD).index_copy_(2, places, heads)
            weights[name] = spread.flatten(1)
        else:
            weights[name] = weight
    wide.load_state_dict(weights)
    return wide


def serve_folder(run: Run, folder: Path) -> Path:
    """v1 with its adapter, as a model that vLLM takes."""
    side = run.side("old")
    merged = load_task_adapter(side, {"dtype": "float32"}, trainable=False).merge_and_unload().eval()
    wide = widened(merged)
    ids = torch.randint(3, 500, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(wide(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
    wide.save_pretrained(folder)
    AutoTokenizer.from_pretrained(side.base, trust_remote_code=False).save_pretrained(folder)
    return folder


def trained(run: Run, url: str, folder: Path, epochs: int) -> list[str]:
    """What training against the server does to the full objective, on the recipe's held-out rows."""
    how = {"num_train_epochs": epochs, "load_best_model_at_end": False, "save_strategy": "no", "eval_strategy": "no"}
    how |= {"logging_strategy": "no", "disable_tqdm": True}
    reference = run.compatibility_trainer(folder / "local", teacher_cache=str(folder / "cache"), **how)
    lines = [
        "| v1 | texts asked | KL to v1 at first, as seen | L_comp, nats | KL to v1 | KL to v2 | right tokens |",
        "|---|---|---|---|---|---|---|",
        f"| (before training) | | {reference.evaluate()['eval_kl_old']:.4f} | {figures(reference)} |",
    ]
    exact = reference.evaluate()["eval_kl_old"]
    start = {
        name: weight.detach().clone()
        for name, weight in adapter_parameters(reference.student, STUDENT_ADAPTER).items()
    }
    reference.train()
    lines.append(f"| in memory | | {exact:.4f} | {figures(reference)} |")
    for k in SIZES:
        kwargs = {"model": "v1", "top_k": k}
        trainer = served_trainer(run, url, kwargs, folder / f"top-{k}", teacher_cache=str(folder / "cache"), **how)
        own = adapter_parameters(trainer.student, STUDENT_ADAPTER)
        assert all(torch.equal(own[name], weight) for name, weight in start.items())
        seen = trainer.evaluate()["eval_kl_old"]
        trainer.train()
        asked = len(trainer.teachers["old"].store)
        for name, weight in adapter_parameters(reference.student, STUDENT_ADAPTER).items():
            weight.data.copy_(adapter_parameters(trainer.student, STUDENT_ADAPTER)[name])
        lines.append(
            f"| served, k = {k} | {asked} | {seen:.4f} ({1 - seen / exact:.1%} left out) | {figures(reference)} |"
        )
        print(lines[-1], flush=True)
    return lines


def served_trainer(run: Run, url: str, kwargs: dict[str, Any], folder: Path, **changed: Any) -> MuscleTrainer:
    from muscle_hf.pipeline import steps

    arguments = steps.training_arguments(run.settings.config_class, {**run.training, **changed}, folder)
    return MuscleTrainer(
        run._student(), arguments, old_model=url, old_model_kwargs=kwargs, **run.data.for_trainer(arguments)
    )


def figures(trainer: MuscleTrainer) -> str:
    found = trainer.evaluate()
    shown = [f"{found[f'eval_{name}']:.4f}" for name in ("loss", "kl_old", "kl_new")]
    return " | ".join([*shown, f"{found['eval_token_accuracy']:.1%}"])


def timed(answer: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = answer()
    return found, time.perf_counter() - start


def answered(run: Run, url: str, model: Path, limit: int) -> list[str]:
    """Seconds for the same items, by transformers and by the server; turn about, the better of two each."""
    from dataclasses import replace

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    local = LlamaForCausalLM.from_pretrained(model, trust_remote_code=False).eval()
    choices = run.splits.test[:limit]
    texts = [replace(item, choices=(), answers=(), references=("",)) for item in choices]
    generation = replace(run.task, kind="generation", metric="exact_match", max_new_tokens=64)
    lines = ["| items | by | seconds | items a second | the same answers |", "|---|---|---|---|---|"]
    for task, items in ((run.task, choices), (generation, texts)):
        server = Server(url, "v1", concurrency=64, tokenizer=tokenizer)
        here = partial(evaluate_task, local, tokenizer, task, items, progress=False)
        there = partial(evaluate_task_on_server, server, task, items, progress=False)
        turns = [(timed(here), timed(there)) for _ in range(2)]
        best = [min((turn[i] for turn in turns), key=lambda pair: pair[1]) for i in (0, 1)]
        same = sum(a.prediction == b.prediction for a, b in zip(best[0][0], best[1][0], strict=True))
        what = f"{len(items)} x {len(choices[0].choices)} choices" if task is run.task else f"{len(items)} x 64 tokens"
        for who, (_, seconds) in zip(("transformers", "vLLM"), best, strict=True):
            lines.append(f"| {what} | {who} | {seconds:.1f} | {len(items) / seconds:.1f} | {same} of {len(items)} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, help="environment with vLLM in it")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and models/")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--task-epochs", type=int, default=4, help="of the task adapters")
    parser.add_argument("--epochs", type=int, default=2, help="of the compatibility adapters")
    parser.add_argument("--items", type=int, default=100, help="that are answered")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from vllm_server import vllm_server

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    hush()
    folder = args.runs / "served-trec"
    changed = [
        "--task_training.num_train_epochs",
        str(args.task_epochs),
        "--output_dir",
        str(folder),
        "--control",
        "false",
        "--data.source",
        str(args.shared / "data" / "trec"),
    ]
    for side, name in (("old", "stories260k"), ("new", "stories260k_update")):
        changed += [f"--{side}.base", str(args.shared / "models" / name)]
    run = Run.of(load_settings(ROOT / "recipes" / "stories260k" / "trec.yaml", [*changed, "--mask", "mean"]), print)
    for name in ("old", "new"):
        run.adapter(name)
    model = serve_folder(run, folder / "served")
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    arguments = ["--served-model-name", "v1", "--max-logprobs", "64", "--max-model-len", "512"]
    with vllm_server(args.vllm, model, *arguments, log=folder / "vllm.log") as url:
        lines = [
            "# v1 behind a server",
            "",
            f"    python benchmarks/served_v1.py --vllm VENV --task-epochs {args.task_epochs} --epochs {args.epochs}",
            "",
            f"{where()}; vLLM on the same processor, {threads} thread(s) each, float32.",
            "",
            f"## What k tokens leave out: trec, stories260k and its update, mask mean, {args.epochs} epochs",
            "",
            *trained(run, url, folder, args.epochs),
            "",
            "The same rows are asked once for each k; within the rest v1 follows the student.",
            "",
            "## The same test items answered",
            "",
            *answered(run, url, model, args.items),
            "",
            "The better of two turns, taken in alternation; wall time, on a machine with other work on it. The",
            "server's requests go out 64 at a time, by token ids.",
        ]
    publish("served_v1", lines)


if __name__ == "__main__":
    main()
