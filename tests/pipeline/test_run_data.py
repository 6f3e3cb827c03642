"""Rows of a run: the formats of TRL, streams, real data sets; one preprocessing for every adapter."""

from __future__ import annotations

import gzip
import json

import pytest

from muscle_hf import demo
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import load_items
from muscle_hf.evaluation.registry import load_task
from muscle_hf.pipeline.config import DataSettings, LoraSettings, ModelSettings, RunSettings, SplitSettings
from muscle_hf.pipeline.data import TrainingData, load_splits
from muscle_hf.pipeline.run import Run, run
from muscle_hf.pipeline.smoke import tiny_model
from muscle_hf.pipeline.steps import load_tokenizer, training_arguments
from muscle_hf.training.data import encode_items

pytest.importorskip("trl")

TICKETS = [row["text"] for row in demo.rows("routing", "train", count=10)]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Ask: {{ m['content'] }}\n{% else %}Say: {% generation %}"
    "{{ m['content'] }}\n{% endgeneration %}{% endif %}{% endfor %}"
)
ROWS = {
    "text": [{"text": text} for text in TICKETS],
    "prompt-completion": [{"prompt": text, "completion": " billing"} for text in TICKETS],
    "messages": [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "billing"}]}
        for text in TICKETS
    ],
    "tokenized": [{"input_ids": [5, 6, 7, 8 + i], "labels": [-100, 6, 7, 8 + i]} for i in range(10)],
}


def written(folder, rows, name="train.jsonl"):
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def settings(folder, source=None, **changes):
    training = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False, "max_length": 48}
    training |= {"gradient_checkpointing": False, **changes.pop("training", {})}
    data = changes.pop("data", {})
    return RunSettings(
        old=ModelSettings(str(demo.base("v1"))),
        new=ModelSettings(str(demo.base("v2"))),
        output_dir=str(folder / "run"),
        data=DataSettings(str(source) if source else None, **{"format": "trl", **data}),
        lora=LoraSettings(r=2, alpha=4),
        trainer="trl",
        training=training,
        **changes,
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_a_fifth_is_held_out_of_files_and_streams(name, streaming, tmp_path):
    written(tmp_path, ROWS["text"], name)
    data = DataSettings(str(tmp_path), format="trl", streaming=streaming, train=SplitSettings("train", 1, 8))
    splits = load_splits(None, data)
    kept, held_out = ([row["text"] for row in part] for part in (splits.train, splits.validation))
    assert (kept, held_out) == (TICKETS[1:5] + TICKETS[6:9], TICKETS[5:6])
    assert hasattr(splits.train, "__len__") is not streaming


def test_columns_that_the_first_row_lacks_are_kept(tmp_path):
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    written(tmp_path, [ROWS["messages"][0], {**ROWS["messages"][1], "tools": tools}, ROWS["messages"][2]])
    rows = load_splits(None, DataSettings(str(tmp_path), format="trl", validation=SplitSettings("train", 0, 1))).train
    assert [row["tools"] for row in rows] == [None, tools, None]


@pytest.mark.parametrize(("name", "separator"), [("train.tsv", "\t"), ("train.csv", ",")])
def test_tables_are_streamed_by_their_own_separator(name, separator, tmp_path):
    lines = [f"ticket {i}{separator}billing" for i in range(10)]
    (tmp_path / name).write_text("\n".join([f"prompt{separator}completion", *lines]))
    data = DataSettings(str(tmp_path / name), format="trl", streaming=True, validation=SplitSettings("train", 0, 1))
    assert [row["completion"] for row in load_splits(None, data).train] == ["billing"] * 10


def test_identity_follows_the_rows(tmp_path):
    tokenizer = load_tokenizer(ModelSettings(str(demo.base("v2"))))

    def identity(rows):
        written(tmp_path, rows)
        splits = load_splits(None, DataSettings(str(tmp_path), format="trl"))
        return TrainingData.of(tokenizer, splits.train, splits.validation).identity

    one, again, other = identity(ROWS["text"]), identity(ROWS["text"]), identity(ROWS["text"][1:])
    assert one == again
    assert one != other


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_every_adapter_of_a_run_trains_on_such_rows(kind, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    training = {"chat_template_path": str(template), "assistant_only_loss": True} if kind == "messages" else {}
    source = written(tmp_path, ROWS[kind])
    said = []
    card = {"title": "Rows of our own", "license": "mit"}
    assert run(settings(tmp_path, source, training=training, card=card), said.append) is None, "no task, no table"
    text = (tmp_path / "run" / "muscle" / "README.md").read_text()
    assert "# Rows of our own" in text and "license: mit" in text
    for name in ("old", "new", "control", "muscle"):
        files = {path.name for path in (tmp_path / "run" / name).iterdir()}
        assert "adapter_model.safetensors" in files
        assert not any(file.endswith(".bin") for file in files)
    assert not (tmp_path / "run" / "result.json").exists()
    run(settings(tmp_path, source, training=training), said.append)
    assert sum("done before" in line for line in said) == 4


@pytest.mark.slow
def test_a_stream_and_packed_rows(tmp_path):
    source = written(tmp_path, ROWS["prompt-completion"])
    for options in ({"data": {"streaming": True}}, {"training": {"packing": True}}):
        run(settings(tmp_path, source, control=False, **options), lambda line: None)
        assert (tmp_path / "run" / "muscle" / "adapter_model.safetensors").is_file()


def test_task_and_compatibility_training_see_the_same_tokens(tmp_path):
    from trl import SFTConfig, SFTTrainer

    from muscle_hf import MuscleSFTConfig, MuscleSFTTrainer
    from muscle_hf.pipeline.steps import task_adapter_model

    asked = settings(tmp_path, written(tmp_path, ROWS["prompt-completion"]))
    tokenizer = load_tokenizer(asked.new)
    splits = load_splits(None, asked.data)
    data = TrainingData.of(tokenizer, splits.train, splits.validation)
    seen = []
    for cls, trainer_class in ((SFTConfig, SFTTrainer), (MuscleSFTConfig, MuscleSFTTrainer)):
        arguments = training_arguments(cls, asked.training, tmp_path / "out")
        old = {"old_model": str(demo.base("v1"))} if cls is MuscleSFTConfig else {}
        model = task_adapter_model(asked.new, LoraSettings(r=2), {}, seed=0)
        trainer = trainer_class(model, arguments, **old, **data.for_trainer(arguments))
        seen.append([trainer.train_dataset[:], trainer.eval_dataset[:]])
    assert seen[0] == seen[1]


def test_rows_that_are_not_there_are_refused_before_anything_is_loaded(tmp_path):
    data = {"train": SplitSettings("train", 99)}
    with pytest.raises(MuscleError, match="start and limit"):
        Run.of(settings(tmp_path, written(tmp_path, ROWS["text"]), data=data))


@pytest.mark.parametrize(
    ("rows", "training", "message"),
    [
        ([{"question": "a"}] * 5, {}, "text"),
        (ROWS["messages"], {}, "chat"),
        (ROWS["text"], {"assistant_only_loss": True}, "assistant_only_loss"),
    ],
)
def test_rows_that_trl_does_not_take_are_refused_before_anything_is_trained(rows, training, message, tmp_path):
    with pytest.raises(MuscleError, match=message):
        run(settings(tmp_path, written(tmp_path, rows), training=training), lambda line: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"format": "csv"}}, "data.format is 'csv'; choose one of task, trl"),
        ({"data": {"format": "task"}}, "missing: task"),
        ({"data": {"streaming": True}, "training": {"max_steps": -1}}, "a stream has no length"),
        ({"training": {"pakcing": True}}, "packing"),
        ({"quantization": "int4"}, "choose one of nf4, int8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises(MuscleError, match=message):
        settings(tmp_path, "rows", **changes)


# ---- The paper's tasks on their real files ----

FILES = {"gsm8k": "train", "samsum": "train", "hellaswag": "validation", "piqa": "train"}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", FILES)
def test_context_and_answer_of_real_rows_are_trained_on(name, shared_dir):
    tokenizer = load_tokenizer(ModelSettings(str(demo.base("v2"))))
    items = load_items(name, shared_dir / "data" / name, FILES[name], limit=40)
    for item, row in zip(items, encode_items(tokenizer, items), strict=True):
        assert row["labels"] == row["input_ids"]
        answer = [token for token, flag in zip(row["input_ids"], row["completion_mask"], strict=True) if flag]
        assert answer[-1] == tokenizer.eos_token_id
        alone = tokenizer(item.prompt + item.target, add_special_tokens=False)["input_ids"]
        assert row["input_ids"][-len(alone) - 1 : -1] == alone
        assert 0 < len(answer) < len(row["input_ids"])


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["gsm8k", "samsum"])
def test_real_rows_streamed_are_those_loaded(name, shared_dir):
    task = load_task(name)
    base = {"source": str(shared_dir / "data" / name), "train": SplitSettings("train", 3, 20)}
    loaded = load_splits(task, DataSettings(**base, test=SplitSettings("test", 0, 2)))
    streamed = load_splits(task, DataSettings(**base, streaming=True, test=SplitSettings("test", 0, 2)))
    for items, rows in ((loaded.train, streamed.train), (loaded.validation, streamed.validation)):
        assert [(i.prompt, i.target) for i in items] == [(r["prompt"], r["completion"]) for r in rows]


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("name", FILES)
def test_a_run_with_trls_trainer_on_real_rows(name, shared_dir, tmp_path):
    split = FILES[name]
    data = {"format": "task", "train": SplitSettings(split, 0, 6), "test": SplitSettings(split, 6, 2)}
    source = shared_dir / "data" / name
    asked = settings(tmp_path, source, data=data, task=name, control=False)
    # The embedded world's bases are too short for these prompts.
    asked.old.base, asked.new.base = (str(tiny_model(tmp_path / v, seed)) for v, seed in (("v1", 1), ("v2", 2)))
    result = run(asked, lambda line: None)
    assert result.items == 2
    assert [row.model for row in result.rows] == ["old", "new", "muscle"]
