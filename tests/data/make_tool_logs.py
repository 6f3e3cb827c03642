"""Writes the logs in ``tests/data/tools`` by running the tools themselves on four sums and made-up answers, offline.

    python -m venv TOOL && TOOL/bin/pip install PACKAGE && TOOL/bin/python tests/data/make_tool_logs.py TOOL

Each in an environment of its own; ``tests/data/README.md`` has the packages and their versions. Both sides have three
sums of four right: the new one breaks the second and mends the third. Each sum was asked twice where the tool has
epochs; the new model's second answer to the fourth is wrong. Where a tool notes failures, the new model fails at the
fourth. Judges are stand-ins behind the API of OpenAI.
"""

from __future__ import annotations

import datetime
import gzip
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOME = Path(__file__).parent / "tools"
ANSWERS = {"old": ["2", "4", "7", "8"], "new": ["2", "5", "6", "8"]}
PROVIDER = """\
const answers = %s;
module.exports = class {
  id() { return "mock"; }
  async callApi(prompt, context) {
    const answer = answers[context.vars.a - 1];
    return answer === null ? { error: "timeout" } : { output: answer };
  }
};
"""


def inspect(scratch: Path, side: str) -> None:
    """A log of inspect_ai in both forms."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import includes, match
    from inspect_ai.solver import Generate, TaskState, solver

    @solver
    def answer():
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            number = int(str(state.sample_id).split("-")[1])
            flaky = side == "new" and number == 4 and state.epoch == 2
            state.output = ModelOutput.from_content("mock", "9" if flaky else ANSWERS[side][number - 1])
            return state

        return solve

    samples = [
        Sample(id=f"sum-{i}", input=f"What is {i}+{i}?", target=str(2 * i), metadata={"topic": ["even", "odd"][i % 2]})
        for i in range(1, 5)
    ]
    task = Task(dataset=samples, solver=answer(), scorer=[match(), includes()], name="sums", epochs=2)
    for form in ("json", "eval"):
        eval(task, model="mockllm/model", log_dir=f"{scratch}/{form}", log_format=form, display="none")
        (log,) = Path(scratch, form).glob(f"*.{form}")
        data = log.read_bytes()
        name = f"inspect-{side}.{form}"
        if form == "json":
            data, name = gzip.compress(data, mtime=0), name + ".gz"
        (HOME / name).write_bytes(data)


def deepeval(scratch: Path, side: str) -> None:
    """A test run of DeepEval."""
    os.environ |= {"DEEPEVAL_TELEMETRY_OPT_OUT": "YES", "DEEPEVAL_RESULTS_FOLDER": str(scratch)}
    from deepeval import evaluate
    from deepeval.metrics import BaseMetric
    from deepeval.test_case import LLMTestCase

    class Exact(BaseMetric):
        threshold = 0.5

        def measure(self, test_case, *args, **kwargs):
            self.score = float(test_case.actual_output == test_case.expected_output)
            self.success, self.reason = self.score > 0.5, "compared"
            return self.score

        async def a_measure(self, test_case, *args, **kwargs):
            return self.measure(test_case)

        def is_successful(self):
            return self.success

        @property
        def __name__(self):
            return "Exact Match"

    cases = [
        LLMTestCase(name=f"sum-{i}", input=f"What is {i}+{i}?", actual_output=answer, expected_output=str(2 * i))
        for i, answer in enumerate(ANSWERS[side], start=1)
    ]
    evaluate(cases, [Exact()])
    (log,) = scratch.glob("*.json")
    shutil.copy(log, HOME / f"deepeval-{side}.json")


def promptfoo(scratch: Path, side: str) -> None:
    """The results of promptfoo."""
    answers = [*ANSWERS[side][:3], None] if side == "new" else ANSWERS[side]
    (scratch / "provider.js").write_text(PROVIDER % json.dumps(answers))
    config = {
        "description": "sums",
        "prompts": ["What is {{a}}+{{a}}?"],
        "providers": ["file://provider.js"],
        "tests": [
            {"vars": {"a": i, "topic": ["even", "odd"][i % 2]}, "assert": [{"type": "equals", "value": str(2 * i)}]}
            for i in range(1, 5)
        ],
    }
    (scratch / "config.json").write_text(json.dumps(config))
    settings = {
        "PROMPTFOO_DISABLE_TELEMETRY": "1",
        "PROMPTFOO_DISABLE_UPDATE": "1",
        "PROMPTFOO_CONFIG_DIR": str(scratch),
    }
    output = HOME / f"promptfoo-{side}.json"
    command = [
        "npx",
        "promptfoo",
        "eval",
        "-c",
        f"{scratch}/config.json",
        "-o",
        str(output),
        "--no-cache",
        "--no-table",
    ]
    subprocess.run(command, env={**os.environ, **settings}, check=False)  # 100 for failed tests
    output.write_text(output.read_text().replace(str(scratch), "."))


def sums(side: str) -> list[tuple[int, str, str, str]]:
    """Number, question, answer and right answer of each."""
    return [(i, f"What is {i}+{i}?", answer, str(2 * i)) for i, answer in enumerate(ANSWERS[side], start=1)]


def answer_to(side: str, prompt: str) -> str:
    """The answer to the last sum in a prompt."""
    return ANSWERS[side][int(re.findall(r"(\d)\+\d", prompt)[-1]) - 1]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def serve(reply: Callable[[str], str]) -> str:
    """Answers chats as OpenAI's API does; the base of its addresses."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = reply("\n".join(message["content"] for message in asked["messages"]))
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
            told = {"id": "1", "object": "chat.completion", "created": 1, "model": asked["model"]}
            data = json.dumps(told | {"choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


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


def langsmith(scratch: Path, side: str) -> None:
    """The table of an experiment that is not uploaded."""
    os.environ |= {"LANGSMITH_TRACING": "false", "LANGSMITH_ENDPOINT": "http://127.0.0.1:9", "LANGSMITH_API_KEY": "-"}
    from langsmith import evaluate
    from langsmith.schemas import Example

    def target(inputs: dict) -> dict:
        if side == "new" and "4+4" in inputs["question"]:
            raise TimeoutError("no answer in time")
        return {"answer": answer_to(side, inputs["question"])}

    def correctness(outputs: dict, reference_outputs: dict) -> bool:
        return outputs.get("answer") == reference_outputs["answer"]

    examples = [
        Example(
            id=uuid.UUID(int=i),
            dataset_id=uuid.UUID(int=0),
            inputs={"question": question},
            outputs={"answer": right},
            created_at=datetime.datetime(2026, 1, 1),
        )
        for i, question, _, right in sums(side)
    ]
    done = evaluate(target, data=examples, evaluators=[correctness], upload_results=False, max_concurrency=1)
    table = done.to_pandas().replace({str(Path(__file__).parent): "."}, regex=True)
    table.to_csv(HOME / f"langsmith-{side}.csv")


def mlflow(scratch: Path, side: str) -> None:
    """The table that ``mlflow.evaluate`` logs, and the one of ``mlflow.genai.evaluate``."""
    import mlflow
    import pandas
    from mlflow.genai.scorers import scorer
    from mlflow.metrics import MetricValue, make_metric

    mlflow.set_tracking_uri(f"sqlite:///{scratch}/mlflow.db")
    mlflow.create_experiment("sums", artifact_location=str(scratch / "artifacts"))
    mlflow.set_experiment("sums")

    def same(predictions, targets):
        return MetricValue(scores=[float(a == b) for a, b in zip(predictions, targets, strict=True)])

    columns = zip(*((question, right, answer) for _, question, answer, right in sums(side)), strict=True)
    table = pandas.DataFrame(dict(zip(("inputs", "ground_truth", "outputs"), columns, strict=True)))
    with mlflow.start_run():
        metric = make_metric(eval_fn=same, greater_is_better=True, name="same")
        mlflow.models.evaluate(data=table, predictions="outputs", targets="ground_truth", extra_metrics=[metric])
    (log,) = (scratch / "artifacts").rglob("eval_results_table.json")
    shutil.copy(log, HOME / f"mlflow-{side}.json")

    @scorer
    def correctness(outputs, expectations):
        return outputs == expectations["answer"]

    @mlflow.trace
    def predict(question: str) -> str:
        if side == "new" and "4+4" in question:
            raise TimeoutError("no answer in time")
        return answer_to(side, question)

    rows = [{"inputs": {"question": q}, "expectations": {"answer": right}} for _, q, _, right in sums(side)]
    done = mlflow.genai.evaluate(data=rows, predict_fn=predict, scorers=[correctness])
    # The whole trace of a row has as many columns and more in it.
    found = done.tables["eval_results"].drop(columns=["trace", "spans", "trace_metadata", "tags"])
    found.to_json(HOME / f"mlflow-genai-{side}.json", orient="records", indent=1)


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


LM_EVAL_TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
num_fewshot: 0
generation_kwargs: {until: ["."]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def lm_eval(scratch: Path, side: str) -> None:
    """A task of our own by an old version of the harness, whose rows do not list metrics and filters."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(scratch / "cache")}
    os.chdir(scratch)
    (scratch / "sums.yaml").write_text(LM_EVAL_TASK)
    write_lines(scratch / "sums.jsonl", [{"question": q, "answer": right} for _, q, _, right in sums(side)])
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

    @register_model("mock")
    class Mock(LM):
        @classmethod
        def create_from_arg_string(cls, *_):
            return cls()

        def generate_until(self, requests):
            return [answer_to(side, request.args[0]) for request in requests]

        loglikelihood = loglikelihood_rolling = generate_until

    sys.argv = ["lm_eval", "--model", "mock", "--tasks", "sums", "--include_path", "."]
    sys.argv += ["--log_samples", "--output_path", "out"]
    cli_evaluate()
    (log,) = (scratch / "out").rglob("samples_sums_*.jsonl")
    shutil.copy(log, HOME / f"lm-eval-{side}.jsonl")


HELM_PLUGIN = """\
import os, sys
from helm.benchmark.adaptation.common_adapter_specs import get_generation_adapter_spec
from helm.benchmark.metrics.common_metric_specs import get_exact_match_metric_specs
from helm.benchmark.run_spec import RunSpec, run_spec_function
from helm.benchmark.scenarios import scenario as s
from helm.clients.simple_client import SimpleClient
from make_tool_logs import answer_to, sums

class Sums(s.Scenario):
    name, description, tags = "sums", "sums", []

    def get_instances(self, output_path):
        return [
            s.Instance(s.Input(text=question), [s.Reference(s.Output(right), [s.CORRECT_TAG])], s.TEST_SPLIT)
            for _, question, _, right in sums("old")
        ]

@run_spec_function("sums")
def run_spec():
    adapter = get_generation_adapter_spec(input_noun="Q", output_noun="A", max_train_instances=0)
    # The group has a metric in HELM's schema, which the summary shows.
    specs = {"metric_specs": get_exact_match_metric_specs(), "groups": ["boolq"]}
    return RunSpec("sums", s.ScenarioSpec("sums_plugin.Sums"), adapter, **specs)

SimpleClient.invoke_model = lambda self, asked: {"completions": [answer_to(os.environ["SIDE"], asked["prompt"])]}
"""


def helm(scratch: Path, side: str) -> None:
    """``helm-run`` on a scenario and a model of our own, and what ``helm-summarize`` makes of it."""
    (scratch / "sums_plugin.py").write_text(HELM_PLUGIN)
    os.chdir(scratch)
    paths = {"PYTHONPATH": f"{scratch}:{Path(__file__).parent}", "SIDE": side, "HF_HUB_OFFLINE": "1"}
    import helm.benchmark

    schema = Path(helm.benchmark.__path__[0], "static", "schema_classic.yaml")
    for line in (
        "helm-run --plugins sums_plugin -r sums:model=simple/model1 -m 9 -n 1 --disable-cache --local-path cache",
        f"helm-summarize --schema-path {schema}",
    ):
        program, *arguments = line.split()
        command = [str(Path(sys.executable).with_name(program)), *arguments, "--suite", "s", "-o", "out"]
        subprocess.run(command, env={**os.environ, **paths}, check=True)
    for name in ("per_instance_stats", "display_predictions"):
        (log,) = (scratch / "out").rglob(f"{name}.json")
        data = json.dumps(json.loads(log.read_text())).encode()
        (HOME / f"helm-{name}-{side}.json.gz").write_bytes(gzip.compress(data, mtime=0))


LIGHTEVAL_MODEL = """\
import os
from lighteval.models.abstract_model import LightevalModel
from lighteval.models.model_output import ModelResponse
from lighteval.utils.cache_management import SampleCache
from make_tool_logs import answer_to

class Mock(LightevalModel):
    tokenizer, add_special_tokens, max_length = None, False, 2048

    def __init__(self, config):
        self.config, self._cache = config, SampleCache(config)

    def greedy_until(self, docs):
        return [ModelResponse(input=doc.query, text=[answer_to(os.environ["SIDE"], doc.query)]) for doc in docs]

    def loglikelihood(self, docs):
        found = []
        for doc in docs:
            said = [choice == answer_to(os.environ["SIDE"], doc.query) for choice in doc.choices]
            scores = [-0.5 if one else -2.0 - place for place, one in enumerate(said)]
            found.append(ModelResponse(input=doc.query, logprobs=scores, argmax_logits_eq_gold=said))
        return found

    def loglikelihood_rolling(self, docs):
        raise NotImplementedError
"""
LIGHTEVAL_TASKS = """\
from pathlib import Path
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

CHOICES = ["2", "4", "5", "6", "7", "8"]

def generated(line, task_name=None):
    return Doc(task_name=task_name, query=line["question"], choices=[line["answer"]], gold_index=0)

def chosen(line, task_name=None):
    gold = CHOICES.index(line["answer"])
    return Doc(task_name=task_name, query=line["question"], choices=CHOICES, gold_index=gold)

data = {"hf_repo": str(Path(__file__).parent / "data"), "hf_subset": "default"}
data |= {"evaluation_splits": ["test"], "hf_avail_splits": ["test"]}
TASKS_TABLE = [
    LightevalTaskConfig("sums", generated, metrics=[Metrics.exact_match], generation_size=5, **data),
    LightevalTaskConfig("sums_of_six", chosen, metrics=[Metrics.loglikelihood_acc], **data),
]
"""


def lighteval(scratch: Path, side: str) -> None:
    """``lighteval custom`` on two tasks of our own: answers that are generated, and among choices."""
    os.environ |= {"SIDE": side, "HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "cache")}
    os.chdir(scratch)
    (scratch / "model.py").write_text(LIGHTEVAL_MODEL)
    (scratch / "tasks.py").write_text(LIGHTEVAL_TASKS)
    write_lines(scratch / "data" / "test.jsonl", [{"question": q, "answer": right} for _, q, _, right in sums(side)])
    from lighteval.tasks.registry import Registry

    # The tasks that come with it ask the Hub when they are imported.
    Registry._load_from_files = Registry._load_from_subdirs = staticmethod(lambda *_: {})
    from lighteval.__main__ import app

    sys.argv = ["lighteval", "custom", side, "model.py", "sums|0,sums_of_six|0", "--custom-tasks", "tasks.py"]
    sys.argv += ["--output-dir", "out", "--save-details"]
    app(standalone_mode=False)
    target = HOME / "lighteval" / side
    shutil.rmtree(target, ignore_errors=True)
    for log in (scratch / "out" / "details").rglob("*.parquet"):
        home = target / log.parent.relative_to(scratch / "out" / "details")
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(log, home / log.name.replace("|", "-"))  # which Windows takes in no name


OPENCOMPASS_CONFIG = """\
import opencompass.datasets.gsm8k as gsm
from opencompass.datasets import CustomDataset
from opencompass.models.base import BaseModel
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_inferencer import GenInferencer, PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever
from sums_model import Mock

def task(name, inferencer, template, evaluator, **rest):
    prompt = dict(type=PromptTemplate, template=template)
    return dict(
        abbr=name, type=CustomDataset, path="sums.jsonl", local_mode=True,
        reader_cfg=dict(input_columns=["question"], output_column="answer"),
        infer_cfg=dict(prompt_template=prompt, retriever=dict(type=ZeroRetriever), inferencer=dict(type=inferencer)),
        eval_cfg=dict(evaluator=dict(type=evaluator), **rest),
    )

asked = dict(round=[dict(role="HUMAN", prompt="{question}")])
number = dict(pred_postprocessor=dict(type=gsm.gsm8k_postprocess))
datasets = [
    task("gsm", GenInferencer, asked, gsm.Gsm8kEvaluator, **number),
    task("acc", GenInferencer, asked, AccEvaluator, **number),
    task("ppl", PPLInferencer, {str(i): "{question} %d" % i for i in (2, 4, 5, 6, 7, 8)}, AccEvaluator),
]
side = __import__("os").environ["SIDE"]
models = [dict(type=Mock, abbr=side, path=side, max_out_len=5, batch_size=4, run_cfg=dict(num_gpus=0))]
del task, gsm, BaseModel
"""
OPENCOMPASS_MODEL = """\
import numpy
from make_tool_logs import answer_to
from opencompass.models.base import BaseModel

class Mock(BaseModel):
    def __init__(self, path, **_):
        super().__init__(path=path, max_seq_len=2048)

    def generate(self, inputs, max_out_len=5, **_):
        return [f"The answer is {answer_to(self.path, str(text))}" for text in inputs]

    def get_ppl(self, inputs, mask_length=None):
        said = [str(text).rstrip().endswith(answer_to(self.path, str(text))) for text in inputs]
        return numpy.array([1.0 if one else 3.0 for one in said])

    def get_token_len(self, prompt):
        return len(str(prompt))
"""


def opencompass(scratch: Path, side: str) -> None:
    """Details by an evaluator of its own, by plain accuracy, and of choices by perplexity."""
    os.chdir(scratch)
    (scratch / "sums_model.py").write_text(OPENCOMPASS_MODEL)
    (scratch / "config.py").write_text(OPENCOMPASS_CONFIG)
    write_lines(scratch / "sums.jsonl", [{"question": q, "answer": right} for _, q, _, right in sums(side)])
    paths = {"PYTHONPATH": f"{scratch}:{Path(__file__).parent}", "SIDE": side, "HF_HUB_OFFLINE": "1"}
    command = [str(Path(sys.executable).with_name("opencompass")), "config.py", "--debug", "-w", "out"]
    subprocess.run(command, env={**os.environ, **paths}, check=True)
    for log in (scratch / "out").glob("*/results/*/*.json"):
        target = HOME / "opencompass" / side / log.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(json.loads(log.read_text())) + "\n")


TOOLS = {
    "lm-eval": lm_eval,
    "lighteval": lighteval,
    "helm": helm,
    "opencompass": opencompass,
    "inspect": inspect,
    "deepeval": deepeval,
    "promptfoo": promptfoo,
    "openai-evals": openai_evals,
    "langsmith": langsmith,
    "mlflow": mlflow,
    "alpaca-eval": alpaca_eval,
    "mt-bench": mt_bench,
    "evalplus": evalplus,
    "swe-bench": swe_bench,
}

if __name__ == "__main__":
    if len(sys.argv) < 3:  # a process of its own for each side: tools keep what they have read
        for side in ("old", "new"):
            subprocess.run([sys.executable, __file__, sys.argv[1], side], check=True)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            TOOLS[sys.argv[1]](Path(scratch), sys.argv[2])
