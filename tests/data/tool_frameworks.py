"""Logs of frameworks that evaluate applications."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

from tool_sums import ANSWERS, HOME, answer_to, sums


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
