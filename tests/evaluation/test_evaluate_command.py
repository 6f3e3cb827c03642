"""``muscle-hf evaluate`` and ``tasks``: stopped, twice at once, on damaged files; what they say."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
from evaluation_models import TEXT, make_model, make_tokenizer

from muscle_hf.cli.main import main
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import builtin_tasks, load_items, load_task, read_predictions


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


class Breaks:
    """Ends a model's work after some forward passes, as Ctrl-C does."""

    def __init__(self, model, passes: int, error: BaseException):
        self.left, self.error = passes, error
        self.handle = model.register_forward_pre_hook(self)

    def __call__(self, *_):
        self.left -= 1
        if self.left < 0:
            raise self.error


@pytest.fixture
def rows(tmp_path):
    lines = [json.dumps({"text": " ".join(TEXT[i % 4].split()[: 2 + i]), "label": i % 2}) for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


SUMMARY = "kind: generation\nprompt: '{text}'\nreference: '{label}'\nmetric: exact_match\nmax_new_tokens: 4\n"


@pytest.mark.parametrize("kind", ["choice", "generation"])
@pytest.mark.parametrize("how", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_the_command_goes_on_after_the_answers_that_it_has(kind, how, rows, model_folder, monkeypatch, capsys):
    from muscle_hf.evaluation import loading

    folder = rows.parent
    (folder / "task.yaml").write_text(SUMMARY)
    task = "sst2" if kind == "choice" else str(folder / "task.yaml")
    words = ["evaluate", str(model_folder), "--task", task, "--data", str(rows), "--batch-size", "1", "--quiet"]
    assert main([*words, "--output", str(folder / "whole.jsonl")]) == 0
    load, passes = loading.load_described, []

    def breaking(*args, **options):
        model, *rest = load(*args, **options)
        Breaks(model, 13, how)
        return model, *rest

    def counting(*args, **options):
        model, *rest = load(*args, **options)
        model.register_forward_pre_hook(lambda *_: passes.append(1))
        return model, *rest

    output = folder / "answers.jsonl"
    words += ["--output", str(output)]
    monkeypatch.setattr(loading, "load_described", breaking)
    assert main(words) == (130 if isinstance(how, KeyboardInterrupt) else 2)
    assert "Traceback" not in capsys.readouterr().err and not output.exists()
    kept = len((folder / "answers.jsonl.partial").read_text().splitlines()) - 1
    assert 0 < kept < 8
    monkeypatch.setattr(loading, "load_described", counting)
    assert main(words) == 0
    assert output.read_bytes() == (folder / "whole.jsonl").read_bytes()
    resumed = len(passes)
    assert main([*words, "--overwrite"]) == 0
    assert resumed < len(passes) - resumed
    assert sorted(path.name for path in folder.glob("*answers*")) == ["answers.jsonl"]


def test_answers_of_another_model_are_not_gone_on_with(rows, model_folder, tmp_path):
    from muscle_hf.evaluation.loading import load_for_evaluation
    from muscle_hf.evaluation.partial import PartialAnswers
    from muscle_hf.teachers.identity import describe_model

    task, items = load_task("sst2"), load_items("sst2", rows)
    for seed in (1, 2):
        make_model(seed=seed).save_pretrained(tmp_path / str(seed))
        make_tokenizer().save_pretrained(tmp_path / str(seed))
        adapted = peft.get_peft_model(make_model(seed=1), peft.LoraConfig(target_modules=["q_proj"]))
        torch.manual_seed(seed)
        torch.nn.init.normal_(next(p for n, p in adapted.named_parameters() if "lora_B" in n))
        adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "1")
        adapted.save_pretrained(tmp_path / f"adapter-{seed}")
    names = ("1", "2", "adapter-1", "adapter-2")
    who = [describe_model(load_for_evaluation(tmp_path / name, task)[0]) for name in names]
    assert len({repr(one) for one in who}) == 4
    assert describe_model(load_for_evaluation(tmp_path / "adapter-1", task)[0]) == who[2]
    PartialAnswers(tmp_path / "partial", who[0], task, False).read(items)
    PartialAnswers(tmp_path / "partial", who[0], task, False).read(items)
    with (tmp_path / "partial").open("a") as file:
        file.write('{"id": "1"}\n')
    with pytest.raises(MuscleError, match="damaged"):
        PartialAnswers(tmp_path / "partial", who[0], task, False).read(items)
    for other, chat in ((who[1], False), (who[2], False), (who[0], True)):
        with pytest.raises(MuscleError, match="another run"):
            PartialAnswers(tmp_path / "partial", other, task, chat).read(items)


def test_two_evaluations_of_one_output_at_a_time_are_refused(rows, model_folder, monkeypatch, capsys):
    from muscle_hf.evaluation import loading

    output = rows.parent / "answers.jsonl"
    words = ["evaluate", str(model_folder), "--task", "sst2", "--data", str(rows), "--output", str(output)]
    load, codes = loading.load_described, []

    def another_starts(*args, **options):
        monkeypatch.setattr(loading, "load_described", load)
        for more in ([], ["--overwrite"]):
            codes.append(main([*words, *more]))
        return load(*args, **options)

    monkeypatch.setattr(loading, "load_described", another_starts)
    assert main(words) == 0 and codes == [2, 2]
    said = capsys.readouterr()
    assert "answers.jsonl" in said.err and len(read_predictions(output)) == 8
    # The prompt is said as the model sees it, and what to do next can be pasted.
    assert "  | a parcel\n  | Question: Is this sentence positive or negative?" in said.out
    assert f" compare OLD.jsonl {output}" in said.out


def test_answers_on_the_standard_output_are_alone_there(rows, model_folder, tmp_path, capfd):
    words = ["evaluate", str(model_folder), "--task", "sst2", "--data", str(rows)]
    assert main([*words, "--output", "-"]) == 0
    said = capfd.readouterr()
    assert [json.loads(line)["id"] for line in said.out.splitlines()] == [str(i) for i in range(8)]
    assert "sst2: acc" in said.err
    assert main([*words, "--output", "/dev/null", "--quiet"]) == 0


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "deep", "other"])
def test_damaged_files_of_a_model_are_said(name, damage, rows, model_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    adapted = peft.get_peft_model(make_model(), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(folder)
    for file in model_folder.iterdir():
        shutil.copy(file, folder)
    content = (folder / name).read_bytes()
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "deep": b"[" * 99999, "other": b"\xff\xfe{}"}
    (folder / name).write_bytes(damaged[damage])
    words = ["--task", "sst2", "--data", str(rows), "--output", str(tmp_path / "o.jsonl")]
    adapter = ["--adapter", str(folder)] if name.startswith("adapter") else []
    if not adapter:
        (folder / "adapter_config.json").unlink()
    assert main(["evaluate", str(folder if not adapter else model_folder), *adapter, *words]) == 2
    said = capsys.readouterr().err
    assert str(folder) in said and "Traceback" not in said


@pytest.mark.parametrize(
    "template", ["{{ text | nosuch }}", "{{ text / 2 }}", "{{ text[9].x }}", "{{ 1 // 0 }}", "{% if %}"]
)
def test_a_task_whose_template_fails_is_said(template, rows, capsys):
    (rows.parent / "task.yaml").write_text(SUMMARY.replace("'{text}'", json.dumps(template)))
    assert main(["tasks", str(rows.parent / "task.yaml"), "--data", str(rows)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_every_task_shows_an_item(capsys):
    from muscle_hf.evaluation.builtin import examples

    assert list(examples()) == builtin_tasks()
    assert main(["tasks"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == builtin_tasks()
    for name in builtin_tasks():
        assert main(["tasks", name]) == 0
        item = load_task(name).to_item(examples()[name], 0)
        said = capsys.readouterr().out
        assert all(f"  | {line}\n" in said for line in item.prompt.splitlines()) and f"* {item.target!r}" in said
