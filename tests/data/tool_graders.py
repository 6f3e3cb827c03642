"""Logs in which programs or models judge the answers: tests of code, judges behind the API of OpenAI."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

from tool_sums import ANSWERS, HOME, answer_to, serve, sums, write_lines


def openai_evals(scratch: Path, side: str) -> None:
    """The events of ``oaieval``: answers held against the right one, and answers that a model grades."""
    os.environ |= {"OPENAI_API_KEY": "none", "EVALS_SEQUENTIAL": "1", "EVALS_SHOW_EVAL_PROGRESS": ""}
    from evals.cli import oaieval
    from evals.record import record_sampling

    class Mock:
        def __init__(self, **_: object) -> None:
            pass

        def __call__(self, prompt, **_: object):
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            said = re.search(r"\[Submission\]: (\d)", text)
            (i,) = map(int, re.findall(r"(\d)\+\d", text))
            self.text = ("Y" if said[1] == str(2 * i) else "N") if said else answer_to(side, text)
            record_sampling(prompt=prompt, sampled=[self.text])
            return self

        def get_completions(self) -> list[str]:
            return [self.text]

    sys.modules["mock_model"] = sys.modules[__name__]
    globals()["Mock"] = Mock
    questions = [
        {"input": [{"role": "user", "content": question}], "ideal": target, "criteria": "right"}
        for _, question, _, target in sums(side)
    ]
    write_lines(scratch / "data" / "sums" / "samples.jsonl", questions)
    kinds = {
        "match": ("basic.match:Match", {}),
        "graded": (
            "modelgraded.classify:ModelBasedClassify",
            {"eval_type": "classify", "modelgraded_spec": "closedqa"},
        ),
    }
    for folder, content in {
        "completion_fns": {"mock": {"class": "mock_model:Mock"}},
        "evals": {
            f"{kind}{part}": {"id": f"{kind}.dev.v0", "metrics": ["accuracy"]}
            if not part
            else {"class": f"evals.elsuite.{name}", "args": {"samples_jsonl": "sums/samples.jsonl", **args}}
            for kind, (name, args) in kinds.items()
            for part in ("", ".dev.v0")
        },
    }.items():
        (scratch / folder).mkdir()
        (scratch / folder / "sums.yaml").write_text(json.dumps(content))
    for kind in kinds:
        record = HOME / f"openai-evals-{kind}-{side}.jsonl"
        record.unlink(missing_ok=True)
        paths = ["--registry_path", str(scratch), "--record_path", str(record)]
        oaieval.run(oaieval.get_parser().parse_args(["mock", kind, *paths]))
        lines = record.read_text().replace(str(scratch), ".").replace(str(record), record.name)
        record.write_text(lines.replace(sys.argv[0], "oaieval"))


def alpaca_eval(scratch: Path, side: str) -> None:
    """How a model fares against a baseline that is always wrong."""

    def judge(prompt: str) -> str:
        first, second = re.findall(r"\(.\): (\d+)", prompt)
        (i,) = map(int, re.findall(r"(\d)\+\d", prompt))
        return (
            f"Output ({'a' if first == str(2 * i) else 'b' if second == str(2 * i) else 'a' if first == '0' else 'b'})"
        )

    os.environ |= {"HF_HUB_OFFLINE": "1", "OPENAI_BASE_URL": serve(judge), "OPENAI_API_KEY": "none"}
    from alpaca_eval.main import evaluate

    home = scratch / "judge"
    home.mkdir()
    chat = "<|im_start|>user\n{instruction}\n(a): {output_1}\n(b): {output_2}\n<|im_end|>\n"
    (home / "prompt.txt").write_text(chat)
    (home / "configs.yaml").write_text(
        "judge:\n  prompt_template: judge/prompt.txt\n  fn_completions: openai_completions\n  batch_size: 1\n"
        "  completions_kwargs: {model_name: gpt-4, max_tokens: 10, price_per_token: 0}\n"
        "  completion_parser_kwargs: {outputs_to_match: {1: 'Output \\(a\\)', 2: 'Output \\(b\\)'}}\n"
    )

    def rows(name: str, answers: list[str]) -> list[dict]:
        asked = zip(sums(side), answers, strict=True)
        return [{"dataset": "sums", "instruction": s[1], "output": answer, "generator": name} for s, answer in asked]

    evaluate(
        model_outputs=rows(side, ANSWERS[side]),
        reference_outputs=rows("baseline", ["0"] * 4),
        annotators_config=str(home),
        name=side,
        output_path=str(scratch / side),
        precomputed_leaderboard=None,
        fn_metric="get_winrate",
        sort_by="win_rate",
        is_return_instead_of_print=True,
        is_cache_leaderboard=False,
        caching_path=None,
    )
    shutil.copy(scratch / side / "annotations.json", HOME / f"alpaca-eval-{side}.json")


def mt_bench(scratch: Path, side: str) -> None:
    """FastChat's judgements of single answers, two turns each."""

    def judge(prompt: str) -> str:
        (i,) = map(int, re.findall(r"(\d)\+\d", prompt))
        return f"Rating: [[{9 if set(re.findall(r'Answer: (.*)', prompt)) == {str(2 * i)} else 4}]]"

    os.environ |= {"OPENAI_API_BASE": serve(judge), "OPENAI_API_KEY": "none"}
    os.chdir(scratch)
    data = scratch / "data" / "mt_bench"
    questions = [
        {"question_id": 80 + i, "category": "writing", "turns": [q, "And again?"]} for i, q, _, _ in sums(side)
    ]
    write_lines(data / "question.jsonl", questions)
    answers = [
        {"question_id": 80 + i, "answer_id": str(i), "model_id": side, "choices": [{"index": 0, "turns": [said] * 2}]}
        for i, _, said, _ in sums(side)
    ]
    write_lines(data / "model_answer" / f"{side}.jsonl", answers)
    (data / "reference_answer").mkdir()
    one, two = "{question}\nAnswer: {answer}\n", "{question_1}\nAnswer: {answer_1}\n{question_2}\nAnswer: {answer_2}\n"
    prompts = [
        {
            "name": name,
            "type": "single",
            "system_prompt": "You judge.",
            "prompt_template": two if "turn" in name else one,
            "output_format": "[[rating]]",
        }
        for name in ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
    ]
    write_lines(scratch / "data" / "judge_prompts.jsonl", prompts)
    sys.argv, sys.stdin = ["gen_judgment", "--judge-model", "gpt-4"], io.StringIO("\n")
    runpy.run_module("fastchat.llm_judge.gen_judgment", run_name="__main__")
    shutil.copy(data / "model_judgment" / "gpt-4_single.jsonl", HOME / f"mt-bench-{side}.jsonl")


def evalplus(scratch: Path, side: str) -> None:
    """EvalPlus on four problems of its own form."""
    problems = [
        {
            "task_id": f"HumanEval/{i}",
            "entry_point": "add",
            "prompt": f'def add(x):\n    """What is {i}+x?"""\n',
            "canonical_solution": f"    return {i} + x\n",
            "base_input": [[i]],
            "plus_input": [[i], [-i]],
            "atol": 0,
            "contract": "",
            "test": "",
        }
        for i, *_ in sums(side)
    ]
    write_lines(scratch / "problems.jsonl", problems)
    os.environ |= {"HUMANEVAL_OVERRIDE_PATH": str(scratch / "problems.jsonl"), "XDG_CACHE_HOME": str(scratch)}
    from evalplus.evaluate import evaluate

    samples = [
        {"task_id": f"HumanEval/{i}", "solution": f"def add(x):\n    return {said} - {i} + x\n"}
        for i, _, said, _ in sums(side)
    ]
    # The base tests do not see what is wrong with the new model's second program.
    if side == "new":
        samples[1]["solution"] = "def add(x):\n    return 2 + abs(x)\n"
    write_lines(scratch / "samples.jsonl", samples)
    evaluate("humaneval", samples=str(scratch / "samples.jsonl"), parallel=1)
    shutil.copy(scratch / "samples_eval_results.json", HOME / f"evalplus-{side}.json")


def swe_bench(scratch: Path, side: str) -> None:
    """SWE-bench's report on four instances of five; how their tests went, which takes Docker, is made up."""
    os.chdir(scratch)
    from swebench.harness import reporting

    predictions = {}
    for i, _, said, right in sums(side):
        name, patch = f"django__django-{i}", "" if side == "new" and said != right else "diff"
        predictions[name] = {"instance_id": name, "model_name_or_path": side, "model_patch": patch}
        folder = reporting.RUN_EVALUATION_LOG_DIR / "run" / side / name
        folder.mkdir(parents=True)
        (folder / reporting.LOG_REPORT).write_text(json.dumps({name: {"resolved": said == right}}))
    instances = [{"instance_id": f"django__django-{i}"} for i in range(1, 6)]
    shutil.copy(reporting.make_run_report(predictions, instances, "run"), HOME / f"swe-bench-{side}.json")
