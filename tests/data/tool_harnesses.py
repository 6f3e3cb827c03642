"""Logs of evaluation harnesses, with tasks and models of our own."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tool_sums import HOME, answer_to, sums, write_lines

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
from tool_sums import answer_to, sums

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
from tool_sums import answer_to

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
from tool_sums import answer_to
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
