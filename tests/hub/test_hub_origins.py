"""Which models gave the answers: predictions say it, and compare, card, push and pull carry it and check it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import TOKEN, HubServer, front_matter
from hub_world import NEW, OLD, add_bases, task_model
from huggingface_hub import parse_eval_result_entries

from muscle_hf.cli.main import main
from muscle_hf.compare import compare, source_of
from muscle_hf.evaluation.predictions import read_predictions, signed, write_predictions
from muscle_hf.hub import MismatchError, card, publish
from muscle_hf.hub.card import render_card
from muscle_hf.hub.files import is_card, is_published, pack
from muscle_hf.hub.origins import check_origins
from muscle_hf.record import same_base

REPO = "tester/compat"
TASK = """
name: next-word
kind: choice
prompt: "{{ start }}"
choices: ["{{ a }}", "{{ b }}"]
answer: answer
"""


@pytest.fixture(autouse=True)
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture(scope="module")
def answers(
    _running_hub: HubServer, base_files: dict[str, dict[str, bytes]], trained_folder: Path, tmp_path_factory
) -> Path:
    """A folder with the predictions of the adapter (``compat``), of what it was trained from and of others."""
    folder = tmp_path_factory.mktemp("answers")
    _running_hub.reset()
    add_bases(_running_hub, base_files)
    (folder / "task.yaml").write_text(TASK)
    rows = [{"start": f"w{n} w{n + 1}", "a": f"w{n + 2}", "b": "w40", "answer": n % 2} for n in range(6)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, base, seed in (("old", OLD, 0), ("new", NEW, 1), ("other", NEW, 7)):
        task_model(base, seed).save_pretrained(folder / name)
    models = {name: [folder / name] for name in ("old", "new", "other")}
    models |= {"compat": [trained_folder], "plain": [NEW], "half": [trained_folder, "--dtype", "bfloat16"]}
    for name, words in models.items():
        how = [
            "--task",
            folder / "task.yaml",
            "--data",
            folder,
            "--device",
            "cpu",
            "--output",
            folder / f"{name}.jsonl",
        ]
        assert main(["evaluate", "--quiet", *map(str, [*words, *how])]) == 0
    return folder


@pytest.fixture
def asked(answers: Path, tmp_path: Path) -> Path:
    """The predictions, to be changed at will."""
    for file in answers.glob("*.jsonl"):
        shutil.copy(file, tmp_path)
    return tmp_path


def compared(folder: Path, old: str = "old", new: str = "new", compat: str = "compat") -> Path:
    files = [str(folder / f"{name}.jsonl") for name in (old, new, compat)]
    assert main(["compare", *files, "--json", str(folder / "comparison.json"), "--quiet"]) == 0
    return folder / "comparison.json"


def changed(folder: Path, name: str, **changes: Any) -> None:
    """Predictions of another name that say something else of what gave them; ``origin=None``: nothing."""
    found = read_predictions(folder / "compat.jsonl")
    origin = None if changes.get("origin", found) is None else {**found[0].origin, **changes}
    write_predictions(folder / f"{name}.jsonl", signed(found, origin))


def test_from_the_answers_to_the_card_and_back(asked: Path, adapter: Path, bases: HubServer, capsys):
    recorded = json.loads((adapter / "muscle_provenance.json").read_text())
    for name, base, hashed in (
        ("old", recorded["old"]["base"], recorded["old"]["adapter"]["sha256"]),
        ("new", recorded["new"]["base"], recorded["new"]["adapter"]["sha256"]),
        ("compat", recorded["new"]["base"], recorded["adapter_sha256"]),
    ):
        origin = read_predictions(asked / f"{name}.jsonl")[0].origin
        assert origin["base"] == base and origin["adapter"]["sha256"] == hashed
    assert origin["adapter"]["file_sha256"] == recorded["adapter_file_sha256"]
    assert read_predictions(asked / "plain.jsonl")[0].origin["adapter"] is None
    capsys.readouterr()
    assert main(["card", str(adapter), "--comparison", str(compared(asked))]) == 0
    assert "not verified" not in capsys.readouterr().out
    assert main(["push", str(adapter), REPO]) == 0
    assert main(["pull", REPO]) == 0
    assert "figures:  of this adapter" in capsys.readouterr().out


@pytest.mark.parametrize(
    "sides",
    [
        {"compat": "other"},  # another adapter on the same base
        {"compat": "plain"},  # the base without the adapter
        {"compat": "old"},  # another base
        {"compat": "new"},
        {"old": "new", "new": "old"},
        {"new": "other"},
        {"old": "compat"},
        {"new": "plain"},
    ],
)
def test_answers_of_other_models_are_refused(asked: Path, adapter: Path, sides: dict[str, str], capsys):
    before = (adapter / "README.md").read_bytes()
    assert main(["card", str(adapter), "--comparison", str(compared(asked, **sides))]) == 2
    assert "provenance" in capsys.readouterr().err
    assert (adapter / "README.md").read_bytes() == before and not (adapter / "muscle_metrics.json").exists()


def test_a_file_with_rows_of_two_models_is_refused_and_said(asked: Path, adapter: Path):
    rows = (asked / "compat.jsonl").read_text().splitlines(True), (asked / "other.jsonl").read_text().splitlines(True)
    (asked / "mixed.jsonl").write_text("".join([*rows[0][:3], *rows[1][3:]]))
    document = compare(*(str(asked / f"{name}.jsonl") for name in ("old", "new", "mixed")))
    assert len(document.models[2].origins) == 2
    assert any("more than one model" in warning for warning in document.warnings)
    assert main(["card", str(adapter), "--comparison", str(compared(asked, compat="mixed"))]) == 2


@pytest.mark.parametrize("unsaid", ["all", "some", "half", "nonsense", "no hashes"])
def test_what_does_not_say_is_unverified_and_never_a_match(
    asked: Path, adapter: Path, bases: HubServer, unsaid: str, capsys
):
    changed(asked, "all", origin=None)
    changed(asked, "nonsense", base="NEW", adapter=3)
    origin = read_predictions(asked / "compat.jsonl")[0].origin
    changed(
        asked,
        "no hashes",
        **{part: {**origin[part], "sha256": None, "file_sha256": None} for part in origin if part != "data"},
    )
    rows = (asked / "compat.jsonl").read_text().splitlines(True), (asked / "all.jsonl").read_text().splitlines(True)
    (asked / "some.jsonl").write_text("".join([*rows[0][:3], *rows[1][3:]]))
    capsys.readouterr()
    assert main(["card", str(adapter), "--comparison", str(compared(asked, compat=unsaid))]) == 0
    known = unsaid == "half"  # the base's commit names it in any precision
    assert ("not verified" in capsys.readouterr().out) != known
    main(["push", str(adapter), REPO])
    main(["pull", REPO])
    told = capsys.readouterr().out
    assert ("figures:  not verified" in told) != known and ("figures:  of this adapter" in told) == known


def test_published_figures_of_other_models_are_said_and_not_pushed(
    asked: Path, adapter: Path, bases: HubServer, capsys
):
    main(["card", str(adapter), "--comparison", str(compared(asked))])
    publish(adapter, REPO)
    metrics = json.loads((adapter / "muscle_metrics.json").read_text())
    metrics["comparison"]["models"][2]["origins"] = [read_predictions(asked / "other.jsonl")[0].origin]
    (adapter / "muscle_metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(MismatchError):
        publish(adapter, REPO)
    bases.add(REPO, {**bases.repo(REPO).files(), "muscle_metrics.json": json.dumps(metrics).encode()})
    capsys.readouterr()
    assert main(["pull", REPO]) == 0
    assert "figures:  not of this adapter" in capsys.readouterr().out


def test_however_many_data_sets_a_log_has_each_model_in_it_is_kept(asked: Path):
    found = read_predictions(asked / "compat.jsonl")[0]
    origins = [{**found.origin, "data": {"task": str(n)}} for n in range(20)] + [{**found.origin, "adapter": None}]
    rows = [replace(found, id=str(n), origin=origin) for n, origin in enumerate([*origins, "mine", "mine"])]
    assert source_of(rows).origins == [*origins, None]


def test_bases_are_told_apart_only_where_they_can_be():
    base = {
        "name": "a/b",
        "revision": None,
        "architecture": "L",
        "dtype": "float32",
        "quantization": None,
        "sha256": "1",
    }
    half = {**base, "dtype": "bfloat16", "sha256": "2"}
    assert same_base(base, {**base, "name": "elsewhere"}) is True
    assert same_base(base, {**base, "sha256": "2"}) is False
    assert same_base(base, half) is None
    assert same_base(base, {**half, "architecture": "M"}) is False
    assert same_base({**base, "revision": "main"}, {**half, "revision": "main"}) is None
    assert same_base({**base, "revision": "a" * 40}, {**half, "revision": "a" * 40}) is True
    assert same_base(base, {**base, "sha256": None}) is None
    assert same_base(base, {"name": "a/b"}) is None
    packed = {**base, "quantization": {"load_in_4bit": True}}
    assert same_base(packed, {**packed, "sha256": "2"}) is None


def test_the_data_set_in_the_model_index_is_that_of_the_answers(asked: Path, adapter: Path):
    data = {"task": "next-word", "path": "acme/words", "config": "easy", "revision": None, "split": "validation"}
    for name in ("old", "new", "compat"):
        found = read_predictions(asked / f"{name}.jsonl")
        write_predictions(asked / f"{name}.jsonl", signed(found, {**found[0].origin, "data": data}))
    main(["card", str(adapter), "--comparison", str(compared(asked)), "--dataset", "acme/trained-on"])
    (result,) = front_matter((adapter / "README.md").read_text())["model-index"][0]["results"]
    assert result["dataset"] == {"type": "acme/words", "name": "next-word", "config": "easy", "split": "validation"}


@pytest.mark.parametrize(
    ("changed", "known"),
    [({}, True), ({"split": "train"}, False), ({"config": "socratic"}, False), ({"path": "acme/gsm8k"}, False)],
)
def test_a_whole_benchmark_goes_to_its_page(asked: Path, adapter: Path, monkeypatch, changed, known):
    data = {"task": "next-word", "path": "openai/gsm8k", "config": "main", "revision": "a" * 40, "split": "test"}
    for name in ("old", "new", "compat"):
        found = read_predictions(asked / f"{name}.jsonl")
        write_predictions(asked / f"{name}.jsonl", signed(found, {**found[0].origin, "data": {**data, **changed}}))
    main(["card", str(adapter), "--comparison", str(compared(asked))])
    assert not render_card(adapter).results  # not all of its items
    monkeypatch.setitem(card._BENCHMARKS, "openai/gsm8k", ("gsm8k", "main", "test", len(found)))
    contents = pack(adapter).contents
    if not known:
        assert not [name for name in contents if name.startswith(".eval_results")]
        return
    (entry,) = parse_eval_result_entries(yaml.safe_load(contents[".eval_results/muscle_gsm8k.yaml"]))
    (index,) = front_matter((adapter / "README.md").read_text())["model-index"][0]["results"]
    figures = {metric["type"]: metric["value"] for metric in index["metrics"]}
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("openai/gsm8k", "gsm8k", "a" * 40)
    assert entry.value == pytest.approx(100 * figures["accuracy"], abs=0.005)
    assert f"{100 * figures['nfr']:.2f} %" in entry.notes
    assert is_published(".eval_results/muscle_gsm8k.yaml") and is_card(".eval_results/muscle_gsm8k.yaml")


def test_check_origins_takes_old_comparisons():
    models = [{"label": role, "role": role} for role in ("old", "new", "compat")]
    provenance = {"old": {"base": {}, "adapter": None}, "new": {"base": {}, "adapter": None}}
    assert check_origins({"models": models}, provenance) == ["old", "new", "compat"]
