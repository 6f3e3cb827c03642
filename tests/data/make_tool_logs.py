"""Writes the logs in ``tests/data/tools`` that other tools make themselves, on four sums and made-up answers, offline.

    pip install inspect_ai==0.3.285 deepeval && npm install promptfoo
    python tests/data/make_tool_logs.py inspect|deepeval|promptfoo

Both sides have three sums of four right: the new one breaks the second and mends the third. Each sum was asked twice
where the tool has epochs; the new model's second answer to the fourth is wrong. In promptfoo's, the new model's
provider fails at the fourth.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
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


if __name__ == "__main__":
    for side in ("old", "new"):
        with tempfile.TemporaryDirectory() as scratch:
            {"inspect": inspect, "deepeval": deepeval, "promptfoo": promptfoo}[sys.argv[1]](Path(scratch), side)
