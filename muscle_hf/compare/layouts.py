"""What the logs of the usual tools look like: where rows are, and which fields have which role.

A layout is data. Paths are names of columns or JMESPath; ``{metric}`` in them is the measure that is compared. To read
one more tool, add an entry to :data:`LAYOUTS`; on the command line the same is said with ``--rows`` and ``--columns``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from muscle_hf.compare import lighteval_format, lm_eval_format

# Role -> column names that are tried in a file of no known layout, in this order, in any case and spelling.
SYNONYMS: dict[str, str] = {
    "id": "custom_id id item_id example_id example_abbr doc_id question_id instance_id task_id sample_id problem_id "
    "case_id test_id dataset_item_id qid idx index testcase uid uuid key",
    "prediction": "prediction pred predicted predictions predicted_label pred_label y_pred output response "
    "generated_text completion code_list model_output model_answer model_response actual_output outputs generated "
    "generation predicted_text answer",
    "target": "target true_label gold_label y_true label gold reference references expected "
    "ground_truth groundtruth expected_output gold_answer correct_answer reference_answer ideal answer targets labels",
    "correct": "correct is_correct iscorrect is_right exact_match acc accuracy right passed is_passed pass "
    "success resolved solved hit graded_list",
    "score": "score similarity rougeL rouge1 reward rating f1 value",
    "task": "task task_name subset dataset benchmark",
    "prompt": "prompt question problem input inputs user_input query instruction text",
    "hash": "hash prompt_hash doc_hash",
    "choices": "choices options",
    "error": "error exception",
    "model": "",
    "metric": "",
    "prompt_hash": "",
    "log_likelihoods": "",
    "columns": "",
    "origin": "",
}
ROLES = tuple(SYNONYMS)


@dataclass(frozen=True)
class Layout:
    """A kind of log.

    Args:
        name: Of the tool.
        signs: Fields that tell it: of the document where ``rows`` is given, else of a row. Parts are joined by dots.
        rows: JMESPath from a JSON document to its rows; empty where the rows are the file's.
        task: JMESPath from a JSON document to the name of its task.
        columns: Role -> path in a row, or the pattern of a column's name ("outputs.*"). Of an id, parts joined by "+".
        where: JMESPath that is true for the rows that count.
        metrics: JMESPath to the names of the measures in a row, for ``{metric}`` in paths.
        words: Values of words in place of numbers.
        open: Whether only the values tell if a score is right and wrong (1 and 0).
        prepare: For what cannot be said by paths: makes of each row one whose fields are called by their roles.
    """

    name: str
    signs: Sequence[str] = ()
    rows: str = ""
    task: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    where: str = ""
    metrics: str = ""
    words: Mapping[str, float] = field(default_factory=dict)
    open: bool = False
    prepare: Callable[..., Any] | None = None


_STANDARD = {role: role for role in ROLES}

LAYOUTS = (
    Layout(
        "muscle-hf",
        ("task", "id", "prediction", "target", "hash", "metric"),
        # Roles that it has not would be looked for in every row.
        columns={role: role for role in ROLES if role not in ("error", "model", "prompt_hash")},
    ),
    Layout("lm-eval", ("doc_id", "doc", "filtered_resps"), columns=_STANDARD, prepare=lm_eval_format.Rows, open=True),
    *(
        Layout("lighteval", signs, columns=_STANDARD, prepare=lighteval_format.Rows, open=True)
        for signs in (("doc", "metric", "model_response"), ("__doc__", "__metric__", "__model_response__"))
    ),
    Layout(
        "inspect_ai",
        ("eval", "plan", "samples"),
        rows="samples",
        task="eval.task",
        metrics="keys(scores)",
        columns={
            "id": "id",
            "score": 'scores."{metric}".value',
            "prediction": 'scores."{metric}".answer || output.completion',
            "target": "target",
            "prompt": "input",
            "choices": "choices",
            "error": "error.message",
            "columns": "metadata",
        },
        words={"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0},
        open=True,
    ),
    *(
        Layout(
            "promptfoo",
            signs,
            rows=rows,
            columns={
                # Before version 3, results had no numbers.
                "id": "testIdx == `null` && to_string(vars) || join('/', [to_string(testIdx), to_string(promptIdx)])",
                "correct": "success",
                "prediction": "response.output",
                "target": "testCase.assert[?type == 'equals'].value | [0]",
                "prompt": "prompt.raw",
                "error": "failureReason == `2` && (error || 'error')",
                "model": "provider.label || provider.id",
                "columns": "vars",
            },
        )
        for signs, rows in (
            (("results.results", "results.stats"), "results.results"),
            (("success", "response", "vars", "provider", "prompt.raw"), ""),
        )
    ),
    Layout(
        "openai-evals",  # of its API, whose ids are those of a run
        ("datasource_item_id", "results", "sample", "status"),
        metrics="results[].name",
        columns={
            "id": "datasource_item_id",
            "correct": "status == 'pass' && !contains(results[].passed, `false`)",
            "score": "results[?name=='{metric}'].score | [0]",
            "prediction": "sample.output[-1].content",
            "prompt": "sample.input[-1].content",
            "error": "sample.error.message || (status == 'error' && 'error')",
            "columns": "datasource_item",
        },
    ),
    Layout(
        "openai-evals",
        ("run_id", "event_id", "sample_id", "type", "data"),
        where="contains(['match', 'error'], type) || (type == 'metrics' && data.choice)",
        columns={
            "id": "sample_id",
            "score": "not_null(data.correct, data.score)",
            "prediction": "data.picked || data.sampled || data.choice",
            "target": "data.expected",
            "error": "type == 'error' && not_null(data.message, 'error')",
        },
        open=True,
    ),
    Layout(
        "helm",
        ("instance_id", "train_trial_index", "stats"),
        metrics="type(stats) == 'object' && keys(stats) || stats[].name.name",
        columns={
            "id": "instance_id+perturbation.name",
            "score": "type(stats) == 'object' && stats.\"{metric}\" || (stats[?name.name=='{metric}'].mean | [0])",
            "prediction": "mapped_output || predicted_text",
        },
        open=True,
    ),
    Layout(
        "opencompass",
        ("details", "accuracy"),
        rows="details",
        columns={
            "id": "example_abbr || key",
            # Without an evaluator's own word, OpenCompass counts answers that equal their reference.
            "correct": "not_null(correct, predictions == references)",
            "prediction": "predictions || parsed || pred",
            "target": "references || refr || answer",
            "prompt": "prompt || origin_prediction.origin_prompt",
        },
    ),
    Layout(
        "evalplus",
        ("eval", "date"),
        rows="eval.*[]",
        metrics="plus_status && ['plus', 'base'] || base_status && ['base'] || ['pass']",
        columns={
            "id": "task_id",
            # BigCodeBench has one status.
            "correct": "(base_status || status) == 'pass' && ('{metric}' != 'plus' || plus_status == 'pass')",
            "prediction": "solution",
        },
    ),
    Layout(
        "swe-bench",
        ("resolved_ids", "unresolved_ids"),
        rows="[resolved_ids[].{id: @, correct: `true`}, unresolved_ids[].{id: @, correct: `false`}, "
        "empty_patch_ids[].{id: @, correct: `false`}, error_ids[].{id: @, error: 'error'}][]",
        columns={"id": "id", "correct": "correct", "error": "error"},
    ),
    Layout(
        "deepeval",
        ("testCases",),
        rows="testCases",
        metrics="metricsData[].name",
        columns={
            "id": "name",
            "correct": "success",
            "score": "metricsData[?name=='{metric}'].score | [0]",
            "prediction": "actualOutput",
            "target": "expectedOutput",
            "prompt": "input",
            "error": "metricsData[?error].error | [0]",
            "columns": "additionalMetadata",
        },
    ),
    Layout(
        "langsmith",
        ("example_id", "execution_time"),
        metrics="keys(@)[?starts_with(@, 'feedback.')]",
        columns={
            "id": "example_id",
            "score": "{metric}",
            "prediction": "outputs.*",
            "target": "reference.*",
            "prompt": "inputs.*",
            "error": "error",
        },
        open=True,
    ),
    Layout(
        "mlflow",
        ("trace_id", "request", "response", "state", "assessments"),
        metrics="assessments[?feedback].assessment_name",
        columns={
            "id": "request",
            "score": "assessments[?assessment_name=='{metric}'].feedback.value | [0]",
            "prediction": "response",
            "target": "assessments[?expectation].expectation.value | [0]",
            "prompt": "request",
            "error": "state == 'ERROR' && 'error'",
        },
        words={"yes": 1.0, "no": 0.0},
        open=True,
    ),
    Layout(
        "alpaca_eval",
        ("instruction", "output_1", "output_2", "preference"),
        columns={
            "id": "instruction",
            "score": "preference == `0` && `1.5` || preference",
            "prediction": "output_2",
            "prompt": "instruction",
            "model": "generator_2",
        },
    ),
    Layout(
        "mt-bench",
        ("question_id", "judge", "score", "turn"),
        columns={
            "id": "question_id+turn",
            "score": "score",
            "error": "score == `-1` && 'the judge gave no score'",
            "model": "model",
        },
    ),
)
PLAIN = Layout("")


def find_layout(value: Any, document: bool) -> Layout:
    """The layout whose signs a document or a row has; :data:`PLAIN` if there is none."""
    for layout in LAYOUTS:
        if bool(layout.rows) == document and layout.signs and all(_has(value, sign) for sign in layout.signs):
            return layout
    return PLAIN


def _has(value: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def plain_name(name: str) -> str:
    """A column's name without case and spelling: ``testIdx``, ``Test-Idx`` and ``test idx`` are one."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name)).lower()).strip("_")


def find_roles(present: Iterable[str]) -> dict[str, str]:
    """Role -> column, for columns that go by a usual name."""
    by_name = {plain_name(name): name for name in reversed(list(present))}
    roles = {}
    for role, names in SYNONYMS.items():
        found = [by_name[plain_name(name)] for name in names.split() if plain_name(name) in by_name]
        if found:
            roles[role] = found[0]
    if roles.get("prediction") == roles.get("target"):
        roles.pop("prediction", None)
    return roles
