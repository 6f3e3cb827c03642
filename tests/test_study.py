"""The study's plan means something: known settings, rows that are apart; and its scripts run."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import paths
import pytest
import scipy.stats
import torch
import yaml
from launching import launched
from transformers import AutoModelForCausalLM, AutoTokenizer

from muscle_hf import MuscleConfig
from muscle_hf.demo import base as demo_base
from muscle_hf.demo import rows as demo_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*unstable without the auxiliary cross-entropy")
ROOT = paths.ROOT
STUDY = ROOT / "benchmarks" / "study"
PLAN = yaml.safe_load((STUDY / "plan.yaml").read_text())
TUNED = yaml.safe_load((STUDY / "tuned.yaml").read_text())


@pytest.mark.parametrize("name", PLAN["methods"])
def test_methods_are_settings(name, tmp_path):
    method = dict(PLAN["methods"][name])
    assert method.pop("rows") in ("labelled", "transfer", "pseudo", "pseudo_old")
    if method.pop("kind") not in ("ce", "muscle"):
        assert method.pop("says") and not method
        return
    assert method.pop("experiment", "jsd") in ("reverse", "jsd", "non_target")
    assert method.pop("answers", "both") in ("both", "student") and 0 < method.pop("share", 1) <= 1
    assert method.pop("says") and method.pop("steps", "transfer") == "transfer"
    assert method.get("transfer") is None or method["transfer"] > 0
    assert method.pop("from", "ce") in PLAN["methods"]
    method.pop("transfer", None)
    assert method.pop("weights", "excess") == "excess" and 0 < method.pop("dropout", 0.5) < 1
    assert method.pop("start_from", "old") == "old"
    MuscleConfig(str(tmp_path), use_cpu=True, **{**PLAN["training"], **method.pop("training", {})})
    assert method.pop("target", "chosen") == "chosen"
    assert TUNED[PLAN["tuning"]["cell"]][method.pop("settings_of", name)] in PLAN["tuning"]["trials"] and not method


def test_what_is_expected_of_the_confirmation_names_what_its_cells_have():
    expected = yaml.safe_load((STUDY / "expected.yaml").read_text())
    for cell, told in expected["cells"].items():
        having = {"v2", *(name for group in PLAN["cells"][cell]["groups"] for name in PLAN["groups"][group])}
        for row in (*told["expected"], expected["primary"]):
            assert {row["method"], row["reference"]} <= having and row["figure"] in ("nfr", "acc_new")
        assert all(row["from"] <= row["expect"] <= row["to"] for row in told["expected"])


def test_urgency_is_the_problem_the_product_and_the_tone_on_tickets_that_the_package_does_not_carry(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))
    from urgency import TASKS, drawn_rows

    rows = drawn_rows("test", 0, 3000)
    found = {(row["issue"], row["line"], row["tone"]): row["urgency"] for row in rows}
    polite = {key[:2]: level for key, level in found.items() if key[2] == "polite"}
    assert polite["setup", "tablet"] == "1" and polite["freeze", "tablet"] == "2"
    assert polite["dead", "kettle"] == "3" and polite["dead", "router"] == "4"
    assert found["freeze", "tablet", "angry"] == "3" and found["dead", "router", "angry"] == "4"
    carried = {row["text"] for seed in range(10) for row in demo_rows("routing", "test", seed=seed)}
    assert not carried & {row["text"] for row in rows} and drawn_rows("test", 1, 5) != rows[:5]
    assert TASKS["urgency"].to_item(rows[0], 0).choices == (" 1", " 2", " 3", " 4")


@pytest.mark.parametrize("name", ["reverse", "jsd", "non_target"])
def test_a_divergence_that_is_tried_is_the_one_that_is_named(name, monkeypatch):
    """Values by hand, of tokens that follow the mean of both models (or v1 alone); the package's afterwards."""
    monkeypatch.syspath_prepend(str(STUDY))
    from experiments import tried

    from muscle_hf.objective import Objective, resolve_mask

    generator = torch.Generator().manual_seed(0)
    student, old, new = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    labels, ids = torch.tensor([0, 1, 2, 3, 4]), torch.zeros(5, dtype=torch.int64)
    of_v1 = name == "non_target"
    objective = Objective(mask=resolve_mask("always_old" if of_v1 else "mean"), blend="logits")
    before = objective(student, old, new, labels, ids).loss
    with tried(name):
        found = objective(student, old, new, labels, ids).loss
    assert torch.equal(objective(student, old, new, labels, ids).loss, before) and not torch.allclose(found, before)
    q, p1, p2 = ((logits / 2).softmax(-1) for logits in (student, old, new))
    p = p1 if of_v1 else (p1 + p2) / 2
    if of_v1:
        others = torch.ones_like(p).scatter(1, labels[:, None], 0)
        p, q = ((of * others) / (of * others).sum(-1, keepdim=True) for of in (p, q))

    def kl(a, b):
        return torch.where(a > 0, a * (a.clamp(min=1e-30) / b.clamp(min=1e-30)).log(), 0.0).sum(-1)

    expected = {"reverse": kl(q, p), "jsd": (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2, "non_target": kl(p, q)}
    torch.testing.assert_close(found, expected[name])


@pytest.mark.parametrize(("right", "near"), [(530, True), (580, False)])
def test_near_chance_is_three_standard_errors_of_guessing(right, near, monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))
    from answers import Answers
    from tables import near_chance

    answers = Answers(right=np.arange(1000) % 2)
    for name, count in (("v1", 700), ("v2", right)):  # three standard errors are 4.7 points
        answers.choose(name, np.where(np.arange(1000) < count, answers.right, 1 - answers.right))
    assert near_chance((answers,)) is near


def test_cells_name_what_there_is():
    grouped = [name for group in PLAN["groups"].values() for name in group]
    assert set(grouped) == set(PLAN["methods"])
    for cell in PLAN["cells"].values():
        update = PLAN["updates"][cell["update"]]
        assert cell["task"] in PLAN["tasks"] and set(update.values()) <= set(PLAN["versions"])
        assert set(cell["groups"]) <= set(PLAN["groups"])
    named = [name for row in PLAN["names"].values() for name in row["methods"]]
    assert sorted(named) == sorted(PLAN["methods"])
    tuned_on = {cell["tuned_on"] for cell in PLAN["cells"].values() if "tuned_on" in cell}
    assert tuned_on | {PLAN["tuning"]["cell"]} == set(TUNED) <= set(PLAN["cells"])
    assert set(PLAN["tuning"]["seeds"]) <= set(PLAN["seeds"])


@pytest.mark.parametrize("name", [name for name, rows in PLAN["tasks"].items() if rows["source"] != "demo"])
def test_no_row_is_in_two_parts(name, shared_dir, monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))
    from study import load_task_rows

    rows, seen = PLAN["tasks"][name], {}
    rows = {**rows, "source": str(shared_dir / "data" / Path(rows["source"]).name)}
    _, _, splits = load_task_rows(rows, seed=0)
    for part in ("train", "validation", "transfer", "test"):
        items = getattr(splits, part)
        assert len(items) == rows[part]["limit"]
        known = seen.setdefault(rows[part]["split"], set())
        assert not known & {item.id for item in items}
        known |= {item.id for item in items}
        longest = max(len(item.prompt) + len(choice) for item in items for choice in item.choices)
        assert longest <= rows.get("longest", longest)


@pytest.mark.slow
def test_a_cell_of_the_embedded_world_end_to_end(tmp_path):
    """Tuning chooses, methods are trained once, the report has their figures."""
    plan = {
        **PLAN,
        "seeds": [0],
        "bases": {},
        "cells": {
            "demo-routing": {"update": "demo", "task": "routing", "groups": ["every"]},
            "own-routing": {"update": "demo", "task": "routing", "groups": ["two"], "tuned_on": "own-routing"},
        },
    }
    plan["tasks"] = {"routing": {"task": "routing", "source": "demo", "train": 32, "validation": 16, "transfer": 32,
                                 "test": 24}}  # fmt: skip
    names, untrained = ("ce", "ce_pseudo", "muscle", "transfer_chosen"), ("port", "mixture")
    plan["methods"] = {name: {**PLAN["methods"][name]} for name in (*names, *untrained)}
    plan["methods"]["muscle"] |= {"dropout": 0.1, "start_from": "old"}
    plan["methods"]["ce_pseudo"]["start_from"] = "old"
    plan["groups"] = {"every": [*names, *untrained], "two": ["ce", "muscle"]}
    plan["task_training"] = {"learning_rate": 1e-3, "epochs": 1}
    plan["tuning"] = {"cell": "demo-routing", "seeds": [0], "trials": [{"learning_rate": 1e-3, "epochs": 1}]}
    study = tmp_path / "benchmarks" / "study"
    study.mkdir(parents=True)
    (tmp_path / "benchmarks" / "results").mkdir()
    (tmp_path / "docs" / "explanation").mkdir(parents=True)
    for file in (
        "benchmarks/reporting.py",
        "benchmarks/study/REPORT.md",
        "docs/explanation/study.md",
    ):
        (tmp_path / file).write_text((ROOT / file).read_text())
    for file in STUDY.glob("*.py"):
        (study / file.name).write_text(file.read_text())
    (study / "plan.yaml").write_text(yaml.safe_dump(plan))

    def script(name, *words):
        return launched([str(study / name), *words], processes=1, folder=tmp_path)

    runs = ("--runs", "runs")
    script("tune.py", *runs)
    chosen = yaml.safe_load((study / "tuned.yaml").read_text())
    assert {cell: list(tuned) for cell, tuned in chosen.items()} == {
        "demo-routing": list(names),
        "own-routing": plan["groups"]["two"],
    }
    assert all(trial == plan["tuning"]["trials"][0] for tuned in chosen.values() for trial in tuned.values())
    adapter = tmp_path / "runs/routing/seed0/demo/muscle/learning_rate=0.001-epochs=1/muscle/adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns
    assert "ce_pseudo" in script("run.py", *runs)
    assert adapter.stat().st_mtime_ns == before
    record, own = (
        json.loads((study / "records" / f"{cell}-routing-seed0.json").read_text()) for cell in ("demo", "own")
    )
    assert {name: own["models"][name]["answers"] for name in chosen["own-routing"]} == {
        name: record["models"][name]["answers"] for name in chosen["own-routing"]
    }
    assert "transfer_chosen" not in own["models"]
    assert record["models"]["muscle"]["adapter_sha256"] == hashlib.sha256(adapter.read_bytes()).hexdigest()
    assert record["models"]["muscle"]["training"]["dropout"] == 0.1
    assert json.loads(adapter.with_name("muscle_provenance.json").read_text())["training"]["start_from"] == "old"
    for name in ("muscle", "ce_pseudo"):
        assert record["models"][name]["training"]["start_from"] == "old"
    ported = record["models"]["port"]
    assert ported["adapter_sha256"] == record["models"]["v1"]["adapter_sha256"]
    assert ported["answers"] != record["models"]["v1"]["answers"]
    assert record["models"]["mixture"]["training"]["share_of_v1"] in (0, 0.25, 0.5, 0.75, 1)
    assert len(list((tmp_path / "runs/routing/seed0/demo/ce_pseudo").glob("*/control/*.safetensors"))) == 1
    assert json.loads(adapter.with_name("adapter_config.json").read_text())["lora_dropout"] == 0.1
    assert "| demo-routing, `muscle` | " in script("dial.py", *runs, "--cells", "demo-routing", "--methods", "muscle")
    assert "learned gate" in script("gate.py", *runs, "--cells", "demo-routing")
    # What was recorded suffices, and goes on: a model that is no longer in the plan stays.
    shutil.rmtree(tmp_path / "runs" / "routing" / "seed0" / "demo" / "muscle")
    assert "seed 0 ce" not in script("run.py", *runs, "--no-report")
    assert "ce_pseudo" in script("run.py", *runs, "--methods", "ce_pseudo", "--again", "--no-report")
    table = script("report.py")
    for name in plan["methods"]:
        assert f"(`{name}`) | 1 |" in table
    text = (study / "REPORT.md").read_text()
    assert "| [demo-routing](" in text
    assert (tmp_path / "benchmarks/results/study-demo-routing.svg").read_text().startswith("<svg")
    over_cells = {f"study_muscle-{figure}.svg" for figure in ("nfr", "acc_new")}
    assert {file.name for file in tmp_path.glob("benchmarks/results/study_*.svg")} == over_cells
    assert all(f"](../results/{file})" in text for file in over_cells)
    page = (tmp_path / "docs" / "explanation" / "study.md").read_text()
    correct = np.mean(
        [
            digit == right
            for digit, right in zip(
                *(found for found in (record["models"]["muscle"]["answers"], record["items"]["right"])), strict=True
            )
        ]
    )
    (row,) = re.findall(r"^\| the paper's objective \| .* \| ([\d.]+) % \|$", page, re.MULTILINE)
    assert row == f"{100 * correct:.1f}"
    assert "consensus after plain training | first" in text


def test_flips_between_two_seeds_are_counted_over_all_pairs_with_the_same_items(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))
    from answers import Answers
    from compared import flips_between

    def seed(items, v1, model):
        return Answers({"v1": np.array(v1, float), "model": np.array(model, float)}, items=items)

    seeds = (
        seed("a", [1, 1, 0, 0], [0, 1, 0, 1]),
        seed("a", [0, 1, 1, 1], [1, 1, 1, 0]),
        seed("b", [1, 1, 1, 1], [0, 0, 0, 0]),
    )
    assert flips_between(seeds[:2], "v1", same=True) == 0
    assert flips_between(seeds[:2], "v1", same=False) == (1 / 4 + 2 / 4) / 2
    assert flips_between(seeds, "model", same=True) == (1 / 4 + 1 / 4 + 1) / 3
    assert flips_between(seeds, "model", same=False) == (0 / 4 + 1 / 4) / 2
    assert math.isnan(flips_between(seeds[1:], "model", same=False))


def test_two_models_generate_by_the_mean_of_their_probabilities(monkeypatch):
    """Greedy, in a batch of unequal prompts and with each model's own cache: as computed without one."""
    monkeypatch.syspath_prepend(str(STUDY))
    from together import average

    models = [AutoModelForCausalLM.from_pretrained(demo_base(version)).eval() for version in ("v1", "v2")]
    tokenizer = AutoTokenizer.from_pretrained(demo_base("v2"), padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = ["The order was", "Please", "We write about the invoice of May"]
    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        start = ids.shape[1]
        with torch.no_grad():
            for _ in range(8):
                mean = sum(model(ids).logits[:, -1].softmax(-1) for model in models)
                ids = torch.cat([ids, mean.argmax(-1, keepdim=True)], dim=1)
        expected.append(ids[0, start:].tolist())
    batch = tokenizer(prompts, return_tensors="pt", padding=True)

    def answers():
        found = models[1].generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None)
        return found[:, batch.input_ids.shape[1] :].tolist()

    assert answers() != expected
    average(models[1], models[0])
    assert answers() == answers() == expected


def test_the_goals_across_tokenizers_are_those_figures(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))
    from answers import Answers
    from other_tokens import goal, reached

    wrong = {"v2": 10, "ce_long": 8, "transfer_answer": 6, "transfer_tokens": 7, "both at inference": 2}

    def quality(flips):
        return np.arange(100) >= flips

    answers = {name: quality(flips).astype(float) for name, flips in wrong.items()}
    seeds = (Answers({"v1": np.ones(100), **answers}, items="a"),)
    # 40 % below v2 and 25 % below the control; 30 % and 12.5 %.
    assert goal(seeds, "transfer_answer")[0] == "-40 %" and goal(seeds, "transfer_answer")[-1] == "yes"
    assert goal(seeds, "transfer_tokens")[0] == "-30 %" and goal(seeds, "transfer_tokens")[-1] == "no"
    assert reached(seeds, "transfer_answer") == pytest.approx(0.5) and reached(seeds, "transfer_choices") is None


def test_the_confirmation_says_whether_what_came_out_was_expected(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))
    from answers import Answers
    from confirmation import held, primary

    wrong = {"v2": (10, 12), "ce_long": (8, 12), "transfer_mean": (6, 9)}

    def seed(number):
        flips = {name: (np.arange(100) >= counts[number]).astype(float) for name, counts in wrong.items()}
        return Answers({"v1": np.ones(100), **flips}, items=f"{number}")

    cells = {"one": (seed(0), seed(1))}
    named = {"method": "transfer_mean", "reference": "ce_long", "figure": "nfr"}
    rows = [
        {**named, "expect": -25, "from": -30, "to": -20},
        {**named, "reference": "v2", "expect": 0, "from": -5, "to": 5},
    ]
    lines = held(cells, {"cells": {"one": {"expected": rows}}})[2:]
    assert ["| yes | 2 of 2 |" in lines[0], "| no | 2 of 2 |" in lines[1]] == [True, True] and "-25.0 [" in lines[0]
    ((value, p),) = primary(cells, {"primary": named}).values()
    assert value == pytest.approx(-25) and p == pytest.approx(scipy.stats.ttest_1samp([-0.02, -0.03], 0).pvalue)


@pytest.mark.slow
def test_a_base_with_other_tokens_knows_what_its_body_knew(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(STUDY))
    from bases import retokenized_base

    how = {"body": "muscle_hf/demo/bases/v1", "vocabulary": 900, "digits": 3, "tokens": 20_480}
    folder = retokenized_base(tmp_path / "base", ROOT, **how)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert (
        retokenized_base(folder, ROOT, **how) == folder and (folder / "model.safetensors").stat().st_mtime_ns == made
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 900 and model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    text = "Refund 12345 euros: (the keyboard) is broken."
    ids = tokenizer(text)["input_ids"]
    pieces = [tokenizer.decode(token) for token in ids]
    assert ids[0] == tokenizer.bos_token_id and "".join(pieces[1:]) == text
    assert 2 <= max(sum(letter.isdigit() for letter in token) for token in tokenizer.get_vocab()) <= 3
    torch.manual_seed(0)
    # What a help desk's customers write; the one with the number is no sentence of theirs.
    rows = torch.tensor([tokenizer("I want my money back for the lamp that arrived broken.")["input_ids"]])
    fresh = AutoModelForCausalLM.from_config(model.config)
    assert model(rows, labels=rows).loss < fresh(rows, labels=rows).loss - 0.5
