"""Where rows are found: files, splits, names on the Hub."""

from __future__ import annotations

import pytest

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import load_items
from muscle_hf.evaluation.rows import find_rows
from muscle_hf.evaluation.tasks import Source

ROWS = "sentence,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(20))


@pytest.mark.parametrize("name", ["owner/data", "owner/data-2.5", "owner/Open.Data", "squad"])
def test_names_on_the_hub_may_have_a_dot(name):
    assert find_rows(name, "train") == Source(name)


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "data/rows.csv", "data/rows.jsonl.gz", "rows.txt", "a/b/c", "./owner/data", "owner\\data"]
)
def test_what_looks_like_a_path_is_not_looked_up_on_the_hub(name):
    with pytest.raises(MuscleError, match="there is no file or folder"):
        find_rows(name, "train")


def test_no_item_is_among_the_examples_before_it(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(ROWS)
    with pytest.raises(MuscleError, match=r"shown their own answers.*start: 3"):
        load_items("sst2", file, num_fewshot=3)
    item, *_ = load_items("sst2", file, start=3, num_fewshot=3)
    assert [f"row {i}" in item.prompt for i in range(5)] == [True, True, True, True, False]
    (tmp_path / "train.csv").write_text(ROWS.replace("row", "line"))
    (tmp_path / "test.csv").write_text(ROWS)
    item, *_ = load_items("sst2", tmp_path, num_fewshot=3)
    assert "line 2" in item.prompt and "row 0" in item.prompt and "row 1" not in item.prompt
