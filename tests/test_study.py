"""The study's plan means something: known settings, rows that are apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from muscle_hf import MuscleConfig
from muscle_hf.evaluation import load_items, load_task

pytestmark = pytest.mark.filterwarnings("ignore:.*unstable without the auxiliary cross-entropy")
PLAN = yaml.safe_load((Path(__file__).parents[1] / "benchmarks" / "study" / "plan.yaml").read_text())


@pytest.mark.parametrize("name", PLAN["methods"])
def test_methods_are_settings(name, tmp_path):
    method = dict(PLAN["methods"][name])
    assert method.pop("kind") in ("ce", "muscle") and method.pop("rows") in ("labelled", "transfer", "pseudo")
    assert method.pop("says") and method.pop("steps", "transfer") == "transfer"
    MuscleConfig(str(tmp_path), use_cpu=True, **{**PLAN["training"], **method.pop("training", {})})
    assert method.pop("epochs", 1) > 0 and not method


def test_cells_name_what_there_is():
    for cell in PLAN["cells"].values():
        assert cell["update"] in PLAN["updates"] and cell["task"] in PLAN["tasks"]


@pytest.mark.parametrize("name", PLAN["tasks"])
def test_no_row_is_in_two_parts(name, shared_dir):
    rows, task = PLAN["tasks"][name], load_task(name)
    parts = {}
    for part in ("train", "transfer", "test"):
        items = load_items(
            task, str(shared_dir / "data" / Path(rows["source"]).name), rows[part]["split"],
            start=rows[part].get("start", 0), limit=rows[part].get("limit"),
        )  # fmt: skip
        parts[part] = {item.id for item in items}
        assert len(parts[part]) == (rows[part].get("limit") or len(items))
    assert not parts["train"] & parts["transfer"]
    if rows["test"]["split"] == rows["train"]["split"]:
        assert not parts["test"] & (parts["train"] | parts["transfer"])
