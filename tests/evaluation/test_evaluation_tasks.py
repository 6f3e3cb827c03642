"""Ready-made tasks on real data, rows from files, and tasks in YAML and Python."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

import paths
import pytest
from evaluation_models import make_model, make_tokenizer

from muscle_hf.cli.main import main
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import Item, Source, Task, builtin_tasks, load_items, load_rows, load_task, read_predictions
from muscle_hf.evaluation.scoring import check_items
from muscle_hf.evaluation.yaml_task import task_from_dict

SIZES = {
    "piqa": 1838,
    "hellaswag": 10042,
    "gsm8k": 1319,
    "samsum": 819,
    "dialogsum": 500,
    "sst2": 1821,
    "trec": 500,
    "ag_news": 7600,
    "arc_easy": 2376,
    "openbookqa": 500,
}
# Rows as the Hub's data sets have them, and the same item from the original files.
HUB_ROWS = {
    "piqa": ({"goal": "g", "sol1": "a", "sol2": "b", "label": 1}, (1,)),
    "hellaswag": (
        {"activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "endings": ["is x.", "y"], "label": "1"},
        (1,),
    ),
    "sst2": ({"idx": 3, "sentence": "fine", "label": 0}, (0,)),
    "trec": ({"text": "How far?", "coarse_label": 5, "fine_label": 3}, (5,)),
    "ag_news": ({"text": "news", "label": 3}, (3,)),
    "arc_easy": (
        {"id": "A1", "question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        (1,),
    ),
    "openbookqa": (
        {"id": "B", "question_stem": "stem", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A "},
        (0,),
    ),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", SIZES)
def test_ready_made_tasks_on_real_data(name, shared_dir):
    assert set(SIZES) == set(builtin_tasks())
    items = load_items(name, shared_dir / "data" / name)
    assert len(items) == SIZES[name]
    check_items(load_task(name), items)
    assert all(item.target.startswith(" ") and item.prompt == item.prompt.rstrip() for item in items)


@pytest.mark.shared_data
def test_prompts(shared_dir):
    data = shared_dir / "data"
    piqa = load_items("piqa", data / "piqa", limit=1)[0]
    assert piqa.prompt == "Question: How do I ready a guinea pig cage for it's new occupants?\nAnswer:"
    assert piqa.answers == (0,)
    swag = load_items("hellaswag", data / "hellaswag", limit=1)[0]
    assert swag.prompt == "Roof shingle removal: A man is sitting on a roof. He"
    assert swag.choices[3] == " starts pulling up roofing on a roof." and swag.answers == (3,)
    gsm = load_items("gsm8k", data / "gsm8k", limit=1)[0]
    assert gsm.prompt.endswith("farmers' market?\nAnswer:") and gsm.target.endswith("#### 18")
    trec = load_items("trec", data / "trec", start=3, limit=2)
    assert [item.id for item in trec] == ["3", "4"]
    shots = load_items("sst2", data / "sst2", limit=1, num_fewshot=2)[0]
    assert shots.prompt.count("\nAnswer:") == 3 and "Answer: positive\n\n" in shots.prompt


@pytest.mark.parametrize("name", HUB_ROWS)
def test_rows_as_on_the_hub(name):
    row, answers = HUB_ROWS[name]
    item = load_task(name).to_item(row, 0)
    assert item.answers == answers and len(item.choices) >= 2


def test_hellaswag_is_cleaned_as_in_the_harness():
    utils = pytest.importorskip("lm_eval.tasks.hellaswag.utils")
    row = {
        "activity_label": "Home",
        "ctx_a": "How to plant. [header] Dig [title] Use a  spade.",
        "ctx_b": "then the Man",
        "endings": [" [step] wait  now", "go"],
        "label": "0",
    }
    query = utils.preprocess(f"Home: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    item = load_task("hellaswag").to_item(row, 0)
    assert item.prompt == query
    assert item.choices == tuple(f" {utils.preprocess(ending)}" for ending in row["endings"])


def test_splits_without_labels_are_refused(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"sentence": "x", "label": -1, "idx": 0}\n')
    with pytest.raises(MuscleError, match=r"row 0: .*without labels"):
        load_items("sst2", path)


def test_rows_from_files(tmp_path):
    rows = [{"text": "eins, zwei", "label": 1}, {"text": 'a "b"\nc', "label": 0}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "dev.jsonl").write_text(lines)
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.write(lines)
    (tmp_path / "test.json").write_text(json.dumps(rows))
    (tmp_path / "more.csv").write_text('\ufefftext,label\n"eins, zwei",1\n"a ""b""\nc",0\n', encoding="utf-8")
    for split in ("train", "validation", "test"):
        assert load_rows("sst2", tmp_path, split) == rows
    assert load_rows("sst2", tmp_path / "more.csv") == [{**row, "label": str(row["label"])} for row in rows]
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    assert load_rows("sst2", tmp_path / "rows.parquet") == rows


def test_rows_through_the_datasets_library(tmp_path):
    pytest.importorskip("datasets")
    rows = [{"text": "x", "label": i} for i in range(2)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_rows("sst2", Source(str(tmp_path), splits={"test": "validation"})) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"a": 1}\n{"a"', "line 2: not valid JSON"),
        ("x.jsonl", "", "is empty"),
        ("x.json", '{"a": 1}', "holds no rows"),
        ("x.txt", "a", "unknown format"),
        ("x.jsonl.gz", "not compressed", "damaged or cut off"),
        ("x.jsonl.gz", gzip.compress(b"{}", mtime=0)[:10] + b"damaged", "damaged or cut off"),
        ("x.csv", "a,b\n1,2\n3\n", "line 3"),
        ("x.tsv", "a\tb\n1\t2\t3\n", "line 2"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MuscleError, match=message):
        load_rows("piqa", tmp_path / name)


def test_missing_data(tmp_path):
    with pytest.raises(MuscleError, match="no file or folder"):
        load_rows("piqa", tmp_path / "nothing.jsonl")
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(MuscleError, match=r"no file for the split 'test'; it has: train.jsonl"):
        load_rows("gsm8k", tmp_path)
    (tmp_path / "valid.jsonl").write_text("{}\n{}\n")
    (tmp_path / "valid-labels.lst").write_text("0\n")
    with pytest.raises(MuscleError, match="1 labels, but there are 2 rows"):
        load_rows("piqa", tmp_path)
    with pytest.raises(MuscleError, match="no column 'question'"):
        load_items("gsm8k", tmp_path, "train")
    with pytest.raises(MuscleError, match="are nothing"):
        load_items("gsm8k", tmp_path, "train", start=5)
    with pytest.raises(MuscleError, match="hellaswag"):
        load_task("helaswag")


CHOICE = {"name": "c", "kind": "choice", "prompt": "{q.text}?", "choices": "options", "answer": "right"}


@pytest.mark.parametrize(
    ("changes", "row", "expected"),
    [
        ({}, {"right": 1}, (1,)),
        ({}, {"right": "1"}, (1,)),
        ({}, {"right": "no"}, (1,)),
        ({}, {"right": [0, "no"]}, (0, 1)),
        ({"answer_labels": ["A", "B"]}, {"right": "B"}, (1,)),
        ({"answer_labels": "keys"}, {"right": 7, "keys": [7, 8]}, (0,)),
        ({"choices": ["{a}", "{options.1}"]}, {"right": "no", "a": "x"}, (1,)),
        ({"choices": [3, "no"]}, {"right": 1.0}, (1,)),
        # choices that are numbers
        ({}, {"options": ["1", "no", "24"], "right": 1}, (1,)),
        ({}, {"options": ["8", "no", "9", 0], "right": [0, "9"]}, (0, 2)),
        ({}, {"options": ["8", "no", "2"], "right": "2"}, (2,)),
        ({}, {"options": ["8", "no", "2"], "right": "8"}, (0,)),
        ({"answer_labels": [0, 1, 2]}, {"options": ["2", "no", "0"], "right": "2"}, (2,)),
        ({"answer_labels": "options"}, {"options": ["2", "no", "0"], "right": "2"}, (0,)),
        ({"choices": ["2", " no"], "answer_labels": ["{a}", "no"]}, {"right": "2", "a": "2"}, (0,)),
    ],
)
def test_yaml_answers(changes, row, expected):
    task = task_from_dict({**CHOICE, **changes, "columns": ["right"]})
    item = task.to_item({"q": {"text": "is it"}, "options": ["yes", "no"], **row}, 4)
    assert item.prompt == "is it?" and item.answers == expected and item.id == "4"
    assert item.choices[1] == " no" and item.columns == {"right": row["right"]}


def test_yaml_generation_and_jinja():
    task = task_from_dict(
        {
            "name": "g",
            "kind": "generation",
            "prompt": "{% for t in turns %}{{ t }}\n{% endfor %}Summary:",
            "reference": "summaries",
            "metric": "rougeL",
            "stop": ["\n"],
            "data": {"path": "a/b", "splits": {"test": "dev"}},
        }
    )
    item = task.to_item({"turns": ["a", "{b}"], "summaries": ["s", "\nt"]}, 0)
    assert item == Item("0", "a\n{b}\nSummary:", references=(" s", "\nt"))
    assert task.source == Source("a/b", splits={"test": "dev"}) and task.stop == ("\n",)
    with pytest.raises(MuscleError, match="cannot be filled"):
        task.to_item({"summaries": ["s"]}, 0)
    hostile = task_from_dict({**CHOICE, "prompt": "{{ q.__class__.__mro__ }}"})
    with pytest.raises(MuscleError, match="cannot be filled"):
        hostile.to_item({"q": "", "options": ["a"], "right": 0}, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "quiz"}, "kind must be one of"),
        ({"chioces": []}, "choices"),
        ({"metric": "rouge1"}, "not 'rouge1'"),
        ({"prompt": "{{ x"}, "not valid Jinja"),
        ({"data": "x"}, "path"),
        ({"data": {"path": "a/b", "spilt": "dev"}}, "spilt"),
        ({"prompt": None}, "None"),
        ({"choices": [True, "no"]}, "True"),  # `[yes, "no"]`
        ({"choices": 5}, "choices"),
        ({"answer_labels": 5}, "answer_labels"),
        ({"columns": 5}, "columns"),
        ({"prompt": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"}, "cannot be filled"),
        ({"prompt": "{{ q.text - 1 }}"}, "cannot be filled"),
    ],
)
def test_bad_yaml(changes, message):
    with pytest.raises(MuscleError, match=message):
        task_from_dict({**CHOICE, **changes}).to_item({"q": {"text": ""}, "options": ["a"], "right": 0}, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"right": 2}, "out of range"),
        ({"right": "maybe"}, "maybe"),
        ({"right": 0.5}, "0.5"),
        ({"options": ["0", "1", "3", "2"], "right": "2"}, "text of choice 3 and the index of choice 2; say which"),
        ({"rihgt": 1}, "rihgt"),
    ],
)
def test_bad_rows_for_yaml(row, message):
    with pytest.raises(MuscleError, match=message):
        task_from_dict(CHOICE).to_item({"q": {"text": ""}, "options": ["a", "b"], **row}, 0)


def test_a_generation_task_has_a_metric_of_its_own():
    def politeness(prediction, references):
        return 1.0

    def name(function):
        return Task("mails", "generation", lambda row, i: None, similarity=function).metric

    assert name(politeness) == "politeness" and name(lambda prediction, references: 1.0) == "similarity"
    with pytest.raises(MuscleError, match="needs metric='exact_match' or a similarity"):
        Task("mails", "generation", lambda row, i: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "rogue1"}, "unknown similarity 'rogue1'; known: exact_match"),
        ({"extract": "gsm"}, "unknown answer extraction 'gsm'; known: gsm8k"),
        ({"metric": "bertscore"}, "says no encoder; write the task in Python"),
        ({"metric": "chrf"}, r"needs sacrebleu; install it with"),
    ],
)
def test_how_generated_answers_are_scored_is_checked_when_the_task_is_made(monkeypatch, changes, message):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(MuscleError, match=message):
        task_from_dict({"name": "g", "kind": "generation", "prompt": "{q}", "reference": "a", **changes})


def test_a_data_set_that_the_hub_does_not_give(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(MuscleError, match=r"baber/piqa cannot be loaded from the Hub.*--data, or data\.source"):
        load_rows("piqa")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_the_documented_examples_run(tmp_path, monkeypatch, model_folder):
    text = (paths.ROOT / "docs" / "howto" / "tasks.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, content in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", text, re.S):
        Path(name).write_text(content, encoding="utf-8")
    (command,) = re.findall(r"<!-- run -->\n```bash\n(.*?)\n```", text, re.S)
    assert main(command.replace("MODEL", str(model_folder)).split()[1:]) == 0
    found = read_predictions("answers.jsonl")
    assert [p.target for p in found] == [0, 1] and found[0].task == "colours"
    assert found[1].choices == [" red", " green", " black"] and found[0].columns == {"topic": "nature"}

    (code,) = re.findall(r"<!-- python -->\n```python\n(.*?)```", text, re.S)
    exec(code, {"model": make_model(), "tokenizer": make_tokenizer()})
    assert len(read_predictions("answers.jsonl")) == 1
    Path("mine.py").write_text(code.partition("rows =")[0])
    assert load_task("mine.py:colours").name == "colours"
    with pytest.raises(MuscleError, match="Item is no Task"):
        load_task("mine.py:Item")


def test_the_command_refuses_bad_use(tmp_path, model_folder, capsys):
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    arguments = ["evaluate", str(model_folder), "--task", "piqa", "--output", str(output)]
    assert main(arguments) == 2
    assert "exists" in capsys.readouterr().err and output.read_text() == "mine"
    assert main(["evaluate", str(tmp_path), "--task", "nope", "--output", str(tmp_path / "o")]) == 2
    assert "unknown task 'nope'" in capsys.readouterr().err
    task = ["--task", "sst2", "--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "o")]
    (tmp_path / "rows.jsonl").write_text('{"text": "fine", "label": 1}\n')
    assert main(["evaluate", str(model_folder), *task, "--device", "nowhere"]) == 2
    assert "device 'nowhere'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(model_folder), *task, "--dtype", "float31"])
    assert not (tmp_path / "o").exists()


@pytest.mark.shared_data
def test_the_command_on_an_adapter(tmp_path, shared_dir, capsys):
    import peft
    from transformers import AutoModelForCausalLM

    base = shared_dir / "models" / "stories260k"
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    common = ["--task", "piqa", "--data", str(shared_dir / "data" / "piqa"), "--limit", "6", "--quiet"]
    outputs = {}
    for name, words in {
        "adapter": [str(tmp_path / "adapter")],
        "on base": [str(base), "--adapter", str(tmp_path / "adapter")],
        "base": [str(base)],
    }.items():
        file = tmp_path / f"{name}.jsonl"
        assert main(["evaluate", *words, *common, "--output", str(file)]) == 0
        outputs[name] = [p.log_likelihoods for p in read_predictions(file)]
    assert outputs["adapter"] == outputs["on base"] != outputs["base"]
    assert "piqa: acc" in capsys.readouterr().out
