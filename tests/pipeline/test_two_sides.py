"""An update whose versions have tokenizers and prompts of their own: rows, adapters, answers and what is compared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from muscle_hf import TransferPrompts
from muscle_hf.compare import compare, source_of
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import choice_log_likelihoods, item_hash, load_items, read_predictions
from muscle_hf.evaluation.yaml_task import task_from_dict
from muscle_hf.pipeline.caching import cache_run
from muscle_hf.pipeline.config import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    RunSettings,
    SplitSettings,
    TransferSettings,
)
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.sides import recorded_answers
from muscle_hf.pipeline.steps import load_task_adapter, task_adapter_model
from muscle_hf.teachers import ModelTeacher
from muscle_hf.training.transfer_rows import Models

TOWNS = ("Lima", "Oslo", "Cairo", "Quito", "Delhi", "Paris", "Rome", "Bern", "Kyoto", "Dakar")
ASKED = {
    "place": "Where does the train to {} leave?",
    "person": "Who is the mayor of {}?",
    "number": "How many people live in {}?",
}
ROWS = [{"n": f"q{i}", "q": ASKED[kind].format(town), "kind": kind}
        for i, (town, kind) in enumerate((town, kind) for town in TOWNS for kind in ASKED)]  # fmt: skip
NEW_TASK = 'kind: choice\nid: n\nprompt: "{q}\\nKind of answer:"\nchoices: [place, person, number]\nanswer: kind\n'
OLD_TASK = NEW_TASK.replace("{q}\\nKind of answer:", "<ask> {q} <reply>") + 'delimiter: "\\n"\n'
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[assistant]"


def base(folder, pre_tokenizer, decoder, size, seed):
    """A small random Llama with a tokenizer of its own, learnt from the rows."""
    fast = Tokenizer(models.BPE(unk_token="<unk>"))
    fast.pre_tokenizer, fast.decoder = pre_tokenizer, decoder
    texts = [
        f"<ask> {row['q']}\nKind of answer: {row['kind']} <reply> {row['kind']} [user] [assistant]" for row in ROWS
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(pre_tokenizer, pre_tokenizers.ByteLevel) else []
    special = ["<unk>", "<s>", "</s>"]
    learner = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(texts, learner)
    PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=fast.get_vocab_size(), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two bases and two ways to ask the same rows."""
    folder = tmp_path_factory.mktemp("world")
    metaspace = pre_tokenizers.Metaspace(), decoders.Metaspace()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    base(folder / "v1", *metaspace, 120, seed=1)
    base(folder / "v2", *byte_level, 320, seed=2)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "new.yaml").write_text("name: kinds\n" + NEW_TASK)
    (folder / "old.yaml").write_text(OLD_TASK)
    (folder / "chat.jinja").write_text(TEMPLATE)
    return folder


def settings(world, tmp_path, old=None, **changes):
    data = {"train": SplitSettings("a", 0, 15), "validation_share": 0.2, "test": SplitSettings("a", 15, 9)}
    data["transfer"] = TransferSettings("a", 24, 6)
    training = {
        "trained_tokens": "completion",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    made = RunSettings(
        old=ModelSettings(str(world / "v1"), **({"task": str(world / "old.yaml")} if old is None else old)),
        new=ModelSettings(str(world / "v2")),
        output_dir=str(tmp_path / "run"),
        task=str(world / "new.yaml"),
        data=DataSettings(str(world / "rows.jsonl"), **data),
        lora=LoraSettings(r=2, alpha=4),
        training=training,
    )
    return dataclasses.replace(made, **changes)


def texts(run, name):
    """What an adapter of a run is trained on, as its own tokenizer reads it."""
    data = run.data_for(name)
    return [data.tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in data.train]


def test_each_version_reads_the_same_rows_in_its_own_words_and_tokens(world, tmp_path):
    run = Run.of(settings(world, tmp_path), lambda line: None)
    old, new = (run.sides[name] for name in ("old", "new"))
    assert [item.id for item in old.splits.train] == [item.id for item in new.splits.train]
    assert old.task.name == new.task.name == "kinds"
    assert texts(run, "new")[0] == "Where does the train to Lima leave?\nKind of answer: place"
    assert texts(run, "old")[0].replace(" ", "") == "<ask>WheredoesthetraintoLimaleave?<reply>\nplace"
    ids = [data.tokenizer.get_vocab() for data in (run.data_for("old"), run.data_for("new"))]
    assert max(max(row["input_ids"]) for row in run.data_for("old").train) < len(ids[0]) < len(ids[1])


@pytest.mark.parametrize(
    ("template", "expected"),
    [("chat.jinja", "[user] Where does the train to Lima leave?\nKind of answer: [assistant] place")],
)
def test_a_version_in_a_chat_template(template, expected, world, tmp_path):
    run = Run.of(settings(world, tmp_path, {"chat_template": str(world / template)}), lambda line: None)
    assert texts(run, "old")[0].replace(" ", "") == expected.replace(" ", "")
    assert texts(run, "new")[0].startswith("Where does")
    with pytest.raises(MuscleError, match="has no template"):
        Run.of(settings(world, tmp_path, {"chat_template": "tool_use"}))


def test_a_tokenizer_beside_another_base(world, tmp_path):
    changed = settings(world, tmp_path, {})
    changed.new.tokenizer = str(world / "v1")
    run = Run.of(changed, lambda line: None)
    assert run.data_for("old") is run.data_for("new"), "nothing differs any more"
    with pytest.raises(MuscleError, match="120"):
        Run.of(settings(world, tmp_path, {"tokenizer": str(world / "v2")}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("id: n", "id: q"), "Where does the train to Lima leave"),
        (("choices: [place, person, number]", "choices: [person, place, number]"), "q0"),
        (("choices: [place, person, number]", "choices: [place, person, number, none]"), "q0"),
        (("kind: choice", "kind: classification"), "classification"),
    ],
)
def test_a_second_task_that_asks_something_else_is_refused(change, named, world, tmp_path):
    content = OLD_TASK.replace(*change)
    if "classification" in named:
        content = "kind: classification\nid: n\nprompt: '{q}'\nlabels: [place, person, number]\nanswer: kind\n"
    (tmp_path / "other.yaml").write_text(content)
    with pytest.raises(MuscleError, match=named):
        Run.of(settings(world, tmp_path, {"task": str(tmp_path / "other.yaml")}))


def test_where_words_of_ones_own_have_no_place(world, tmp_path):
    made = settings(world, tmp_path)
    with pytest.raises(MuscleError, match="trained_tokens: completion"):
        Run.of(dataclasses.replace(made, training={**made.training, "trained_tokens": "labels"}))
    for changes in (
        {"new": ModelSettings("x", task="new.yaml")},
        {"task": None, "data": DataSettings("x", format="trl"), "trainer": "trl"},
    ):
        with pytest.raises(MuscleError, match=r"(old|new)\.task"):
            dataclasses.replace(made, **changes)


def test_a_start_from_v1_across_tokenizers_is_refused_and_across_numberings_it_is_not(world, tmp_path):
    made = settings(world, tmp_path, {})
    made.training["start_from"] = "old"
    with pytest.raises(MuscleError, match="start_from"):
        Run.of(made)
    extended = AutoTokenizer.from_pretrained(world / "v2")
    extended.add_special_tokens({"pad_token": "<pad>"})
    extended.save_pretrained(tmp_path / "extended")
    made.old = ModelSettings(str(world / "v2"), tokenizer=str(tmp_path / "extended"))
    assert Run.of(made).level == "renumbered"


def test_adapters_and_answers_of_both_versions(world, tmp_path):
    measured = settings(world, tmp_path, compatibility=False)
    said: list[str] = []
    result = Run.of(measured, said.append).whole()
    assert [row.model for row in result.rows] == ["old", "new"]
    found = {name: read_predictions(tmp_path / "run" / "predictions" / f"{name}.jsonl") for name in ("old", "new")}
    run = Run.of(measured, said.append)
    for name, answers in found.items():
        items, side = run.splits.test, run.sides[name]
        assert [answer.hash for answer in answers] == [item_hash(item) for item in items]
        assert [answer.choices for answer in answers] == [list(item.choices) for item in items]
        # In its own words all the same.
        model = load_task_adapter(run.side(name), {}, trainable=False)
        pairs = [(item.prompt, choice) for item in side.splits.test for choice in item.choices]
        expected = choice_log_likelihoods(model, side.tokenizer, pairs)
        assert [value for answer in answers for value in answer.log_likelihoods] == pytest.approx(expected, abs=1e-4)
    document = compare(*(source_of(answers, name) for name, answers in found.items()))
    assert not any("prompt" in text for text in document.warnings)
    said.clear()
    Run.of(measured, said.append).whole()
    assert sum("done before" in line for line in said) == 2
    (tmp_path / "old.yaml").write_text(OLD_TASK.replace("<reply>", "<reply> [assistant]"))
    said.clear()
    other = settings(world, tmp_path, {"task": str(tmp_path / "old.yaml")}, compatibility=False)
    Run.of(other, said.append).whole()
    assert [line for line in said if "done before" in line or "Task adapter on v1" in line] == [
        "Task adapter on v1",
        f"Task adapter on v2: done before, in {tmp_path / 'run' / 'new'}",
    ]


def test_each_teacher_is_asked_for_answers_in_its_own_words_and_tokens(world, tmp_path):
    run = Run.of(settings(world, tmp_path), lambda line: None)
    models = {
        name: task_adapter_model(version, LoraSettings(r=2), {}, seed=0)
        for name, version in (("old", run.settings.old), ("new", run.settings.new))
    }
    teachers = {name: ModelTeacher(name, model) for name, model in models.items()}
    new, old = run.sides["new"].tokenizer, run.sides["old"].tokenizer
    asked, teachers["old"].tokenizer = run.transfer, old
    rows = asked.rows(Models(models["new"], teachers, new, tmp_path, progress=False))
    expected = []
    likeliest = {}
    for name, side in run.sides.items():
        pairs = [(item.prompt, choice) for item in side.splits.transfer for choice in item.choices]
        found = torch.tensor(choice_log_likelihoods(models[name], side.tokenizer, pairs)).view(-1, 3)
        likeliest[name] = found.argmax(-1).tolist()
    assert likeliest["old"] != likeliest["new"], "nothing to tell them apart by"
    for item, *chosen in zip(run.splits.transfer, likeliest["old"], likeliest["new"], strict=True):
        expected += [item.prompt + item.choices[index] for index in dict.fromkeys(chosen)]
    assert [new.decode(row["input_ids"], skip_special_tokens=True) for row in rows] == expected
    other = dataclasses.replace(asked, old_prompts=[dataclasses.replace(item, prompt="x") for item in asked.old_items])
    assert len({asked.identity(), other.identity(), dataclasses.replace(asked, old_prompts=None).identity()}) == 3
    with pytest.raises(MuscleError, match="old_prompts"):
        dataclasses.replace(asked, old_prompts=asked.old_items[1:])
    texts = TransferPrompts(["a b", "c d"], "old", old_prompts=["<a b>", "<c d>"])
    assert [item.prompt for item in texts.old_items] == ["<a b>", "<c d>"]


@pytest.mark.slow
@pytest.mark.parametrize("training", [{}, {"old_targets": "tokens"}])
@pytest.mark.parametrize(("base", "words"), [("v1", {}), ("v1", {"task": "old.yaml"}), ("v2", {"task": "old.yaml"})])
def test_a_whole_run(base, words, training, world, tmp_path):
    """Another tokenizer; other words besides; other words alone, on one base. By scores of choices, and by tokens."""
    asked = settings(world, tmp_path, {key: str(world / name) for key, name in words.items()})
    asked.old.base, asked.training = str(world / base), {**asked.training, **training}
    said: list[str] = []
    run = Run.of(asked, said.append)
    assert run.teaching().scores is not bool(training)
    assert [row.model for row in run.whole().rows] == ["old", "new", "control", "muscle"]
    found = json.loads((tmp_path / "run" / "muscle" / "muscle_provenance.json").read_text())
    assert found["old"]["base"]["name"] == Path(asked.old.base).name
    assert found["metrics"]["share_old"] > 0 and found["metrics"]["loss"] > 0
    assert ("old_targets" in found["objective"]) is not bool(training)
    said.clear()
    Run.of(asked, said.append).whole()
    assert sum("done before" in line for line in said) == 4


@pytest.mark.parametrize(
    ("old", "training", "scores"),
    [
        ({}, {}, True),
        ({}, {"old_targets": "tokens"}, False),
        ({}, {"trained_tokens": "labels"}, False),
        ({"base": "v2"}, {}, False),
        ({"base": "v2"}, {"old_targets": "choices"}, True),
        ({"base": "v2", "task": "old.yaml"}, {}, True),
        ({"base": "v2", "tokenizer": "extended"}, {}, False),
        ({"base": "v2", "tokenizer": "extended", "task": "old.yaml"}, {}, True),
    ],
)
def test_scores_of_choices_are_followed_where_tokens_or_words_differ_or_the_settings_say_so(
    old, training, scores, world, tmp_path
):
    if old.get("tokenizer") == "extended":
        extended = AutoTokenizer.from_pretrained(world / "v2")
        extended.add_special_tokens({"pad_token": "<pad>"})
        extended.save_pretrained(world / "extended")
    asked = settings(world, tmp_path, {key: str(world / name) for key, name in old.items() if key != "base"})
    asked.old.base = str(world / old.get("base", "v1"))
    asked.training = {**asked.training, **training}
    found = Run.of(asked, lambda line: None).teaching()
    assert found.scores is scores and ("scores of the choices" in found.why) is scores


def test_scores_are_followed_whatever_the_tokens_are(world, tmp_path):
    """Lower-cased ones are no byte strings, which v1 cannot be followed in token by token."""
    lower = AutoTokenizer.from_pretrained(world / "v1")
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower.save_pretrained(tmp_path / "lower")
    asked = settings(world, tmp_path, {"tokenizer": str(tmp_path / "lower")}, control=False)
    assert cache_run(asked, tmp_path / "cache", say=lambda line: None) == {} and not (tmp_path / "cache").exists()
    run = Run.of(asked, lambda line: None)
    assert run.level == "foreign" and run.teaching().scores
    assert all((run.folder / "train_predictions" / f"{name}.jsonl").is_file() for name in ("old", "new"))
    assert (run.adapter("muscle") / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "answer",
    [
        {"prompt": ["w3"], "prediction": 0},
        {"prompt": "w3", "prediction": 2},
        {"prompt": "w3", "prediction": 0, "log_likelihoods": [-1.0]},
        {"prompt": "w3", "prediction": 0, "log_likelihoods": ["-1", "-2"]},
        {"prompt": "w3", "prediction": 0, "log_likelihoods": -1.0},
    ],
)
def test_damaged_answers_of_v1_are_refused(answer, tmp_path):
    fields = {"name": "t", "kind": "choice", "prompt": "{text}", "choices": ["a", "b"], "answer": "right"}
    task = task_from_dict(fields)
    (tmp_path / "old.jsonl").write_text(json.dumps(answer) + "\n")
    with pytest.raises(MuscleError, match=r"old\.answers"):
        recorded_answers([str(tmp_path / "old.jsonl")], task, [task.to_item({"text": "w3", "right": 0}, 0)])


def test_a_v1_of_which_nothing_but_answers_is_left(world, tmp_path):
    whole = settings(world, tmp_path, compatibility=False)
    before = Run.of(whole, lambda line: None)
    logs = [str(tmp_path / f"{part}.jsonl") for part in ("train", "validation", "transfer", "test")]
    for log in logs:
        before._answered("old", Path(log).stem, Path(log))
    asked = settings(world, tmp_path, {"answers": logs}, control=False, output_dir=str(tmp_path / "again"))
    asked.old.base = ""
    asked = dataclasses.replace(asked)
    assert asked.old.base == asked.new.base
    said: list[str] = []
    result = Run.of(asked, said.append).whole()
    assert [row.model for row in result.rows] == ["old", "new", "muscle"]
    again = read_predictions(tmp_path / "again" / "predictions" / "old.jsonl")
    assert [answer.prediction for answer in again] == [answer.prediction for answer in before.answers("old")]
    assert not any("v1" in line and "adapter" in line for line in said)
    assert not (tmp_path / "again" / "old").exists()
    # Texts alone do as well; too few answers do not.
    rows = [json.loads(line) for log in logs for line in Path(log).read_text().splitlines()]
    texts = [{"prompt": row["prompt"], "prediction": row["choices"][row["prediction"]].strip()} for row in rows]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    asked.old.answers = [str(tmp_path / "texts.jsonl")]
    run = Run.of(dataclasses.replace(asked, output_dir=str(tmp_path / "texts")), said.append)
    assert (run.adapter("muscle") / "adapter_model.safetensors").is_file()
    chosen = dataclasses.replace(asked.data.transfer, target="chosen")
    with pytest.raises(MuscleError, match="log_likelihoods"):
        Run.of(dataclasses.replace(asked, data=dataclasses.replace(asked.data, transfer=chosen)))
    (tmp_path / "two.jsonl").write_text("".join(json.dumps({**row, "prediction": "x"}) + "\n" for row in texts))
    cases = ((logs[:1], r"old\.answers: 9 of 9 items"), ([str(tmp_path / "none.jsonl")], "none.jsonl"))
    for files, said in (*cases, ([str(tmp_path / name) for name in ("texts.jsonl", "two.jsonl")], "two answers")):
        asked.old.answers = files
        with pytest.raises(MuscleError, match=said):
            Run.of(asked)
    for changes in ({"old": ModelSettings()}, {"old": ModelSettings(answers=logs, adapter="x")}):
        with pytest.raises(MuscleError, match=r"old\.(base|adapter)"):
            dataclasses.replace(asked, **changes)


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("targets", ["auto", "tokens"])
def test_a_real_update_across_tokenizers(targets, shared_dir, tmp_path):
    """SentencePiece to byte-level BPE, and other words, on questions (TREC)."""
    names = ("place", "description", "thing", "abbreviation", "person", "number")
    task = f"kind: choice\nprompt: 'Q: {{text}} A:'\nchoices: {list(names)}\nanswer: label\n"
    rows = load_items("trec", shared_dir / "data" / "trec", "train", limit=130)
    lines = [{"text": item.prompt.split("\n")[0][:80], "label": item.answers[0]} for item in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "new.yaml").write_text("name: questions\n" + task)
    (tmp_path / "old.yaml").write_text(task.replace("Q: {text} A:", "<user> {text} <assistant>"))
    training = {"trained_tokens": "completion", "learning_rate": 4e-3, "per_device_train_batch_size": 16}
    asked = RunSettings(
        old=ModelSettings(str(shared_dir / "models" / "stories260k"), task=str(tmp_path / "old.yaml")),
        new=ModelSettings(str(shared_dir / "models" / "stories290k_bpe")),
        output_dir=str(tmp_path / "run"),
        task=str(tmp_path / "new.yaml"),
        data=DataSettings(
            str(tmp_path / "rows.jsonl"),
            train=SplitSettings("a", 0, 60),
            test=SplitSettings("a", 100),
            transfer=TransferSettings("a", 60, 40),
            end_answers=False,
        ),
        lora=LoraSettings(r=4, alpha=8),
        training={**training, "num_train_epochs": 2, "use_cpu": True, "disable_tqdm": True, "old_targets": targets},
        control=False,
    )
    run = Run.of(asked, lambda line: None)
    assert run.level == "foreign" and run.teaching().scores is (targets == "auto")
    assert run.whole().row("muscle").quality > 0
    metrics = json.loads((tmp_path / "run" / "muscle" / "muscle_provenance.json").read_text())["metrics"]
    assert metrics["share_old"] > 0 and metrics["loss"] > 0
