"""A fleet, small: what is wrong with its file, its steps, a task in it and alone, and the release after it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from fleet_world import content, entry, rows_in, written
from hub_server import Blob, Repo
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from muscle_hf import demo
from muscle_hf.cli.main import main
from muscle_hf.errors import MuscleError
from muscle_hf.fleet.checks import checked_runs
from muscle_hf.fleet.lock import LOCK_FILE, Lock, Version, base_hash
from muscle_hf.fleet.run import PAGE_FILE, chosen, run_fleet, status_of
from muscle_hf.fleet.settings import load_fleet
from muscle_hf.fleet.task import OUTCOME_FILE, STATE_FILE, TaskRun, outcome_of, read_state
from muscle_hf.pipeline.config import ModelSettings
from muscle_hf.record import file_sha256, read_provenance
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.teachers.loading import find_adapter, load_model
from muscle_hf.teachers.pool import BasePool, keeping


def quiet(text):
    """Says nothing."""


def adapter_on(base, folder, **config):
    """An untrained adapter of a base, in a folder."""
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **config)).save_pretrained(folder)
    return folder


# ---- The file ----


def test_everything_wrong_is_told_at_once_and_nothing_is_run(tmp_path):
    rows = rows_in(tmp_path / "rows")
    foreign = adapter_on(demo.base("v2"), tmp_path / "foreign", target_modules=["q_proj"])
    narrow = shutil.copytree(foreign, tmp_path / "narrow")
    weights = load_file(narrow / "adapter_model.safetensors")
    save_file({name: part[:, :8].contiguous() for name, part in weights.items()}, narrow / "adapter_model.safetensors")
    missing = entry(rows, "lacks-a-split")
    missing["data"]["train"] = {"split": "holdout"}
    tasks = [
        entry(rows, "twice"),
        entry(rows, "twice"),
        entry(rows, "lacks-no-split"),
        entry(rows, "other-base", old={"adapter": str(foreign)}),
        entry(rows, "other-width", old={"adapter": str(narrow)}),
        missing,
        entry(rows, "too-few", budget={"max_nfr": 0.01}),
        entry(rows, "misspelt", lorra={"r": 4}),
        entry(rows, "no-budget", budget={"max_nfr": None}),
        entry(rows, "a/b"),
        entry(rows, "cache"),
        "no mapping",
        entry(rows, "no-side", old="acme/adapter"),
        {"adapters": str(tmp_path / "nowhere" / "*"), "task": "trec"},
    ]
    fleet = load_fleet(written(tmp_path / "fleet.yaml", content(tmp_path / "out", *tasks)))
    with pytest.raises(MuscleError) as caught:
        checked_runs(fleet, chosen(fleet), quiet)
    told = str(caught.value)
    for word in ("'twice'", "other-base: ", "other-width: ", "lacks-a-split: ", "too-few: ", "lorra", "no-budget: "):
        assert word in told
    for word in ("'a/b'", "nowhere", "'cache'", str(demo.base("v2")), "holdout", "1.00%"):
        assert word in told
    assert told.count("\n  - ") == 12
    assert not (tmp_path / "out").exists()
    assert list(checked_runs(fleet, chosen(fleet, ["lacks-no-split"]), quiet)) == ["lacks-no-split"]
    with pytest.raises(MuscleError, match="lorra"):
        checked_runs(fleet, chosen(fleet, ["misspelt"]), quiet)


def test_a_pattern_is_a_task_for_each_adapter(tmp_path):
    rows = rows_in(tmp_path / "rows")
    for name in ("mail", "chat"):
        adapter_on(demo.base("v1"), tmp_path / "adapters" / name / "final")
    pattern = str(tmp_path / "adapters" / "*" / "final")
    group = entry(rows, "desk-{name}", adapters=pattern, card={"title": "For {name}"})
    settings = content(tmp_path / "out", group)
    words = ["--data.train.limit", "5", "--max_steps", "7", "--steps.retries", "1"]
    fleet = load_fleet(written(tmp_path / "fleet.yaml", settings), words)
    assert [task.name for task in fleet.tasks] == ["desk-chat", "desk-mail"]
    chat = fleet.tasks[0].settings
    assert chat.old.adapter == str(tmp_path / "adapters" / "chat" / "final")
    assert chat.card["title"] == "For chat" and chat.training["max_steps"] == 7 and chat.data.train.limit == 5
    assert fleet.settings.steps.retries == 1
    assert len(checked_runs(fleet, ["desk-chat"], quiet)) == 1


def test_a_collection_of_the_hub_is_a_pattern_too(hub, tmp_path):
    hub.collections["acme/desk-0123"] = ["acme/mail-v1", "acme/chat-v1"]
    group = entry(tmp_path, "{name}", adapters="https://huggingface.co/collections/acme/desk-0123")
    fleet = load_fleet(written(tmp_path / "fleet.yaml", content(tmp_path / "out", group)))
    assert [(task.name, task.settings.old.adapter) for task in fleet.tasks] == [
        ("mail-v1", "acme/mail-v1"),
        ("chat-v1", "acme/chat-v1"),
    ]
    group["adapters"] = "collections/acme/none-0123"
    fleet = load_fleet(written(tmp_path / "fleet.yaml", content(tmp_path / "out", group)))
    assert fleet.tasks == [] and "acme/none-0123" in fleet.problems[0][1]


def test_a_lock_pins_an_adapter_of_the_hub(hub, tmp_path):
    folder = adapter_on(demo.base("v1"), tmp_path / "adapter")
    files = {path.name: Blob(path.read_bytes(), path.suffix == ".safetensors") for path in folder.iterdir()}
    repo = hub.repos["model", "acme/mail-v1"] = Repo("acme/mail-v1")
    commit = repo.commit(files)
    assert find_adapter("acme/mail-v1", None, {}).commit == commit
    version = Version.of(ModelSettings(str(demo.base("v1")), adapter="acme/mail-v1"))
    assert version.side.adapter_revision == commit
    assert version.sha256 == file_sha256(folder / "adapter_model.safetensors")
    repo.commit({**files, "adapter_model.safetensors": Blob(b"another one", True)})
    version.check("mail")
    with pytest.raises(MuscleError, match="SHA-256"):
        replace(version, sha256="0" * 64).check("mail")


# ---- Bases in memory ----


def test_what_is_done_to_a_model_of_a_pool_is_not_done_to_the_next():
    def base(**how):
        return load_model(demo.base("v1"), CAUSAL_LM, {"revision": "main", **how})

    plain = base(dtype="auto")
    pool = BasePool()
    with keeping(pool):
        first = base(dtype="auto")
        tuned = get_peft_model(first, LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear"))
        tuned.train()
        first.config.use_cache = False
        second = base(dtype=torch.float32)
        assert pool.loaded == 1
        assert second.state_dict().keys() == plain.state_dict().keys()
        assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in second.state_dict().items())
        assert not second.training and second.config.use_cache == plain.config.use_cache
        assert all(parameter.requires_grad for parameter in second.parameters())
        assert second.get_input_embeddings().weight is second.get_output_embeddings().weight
        assert second.get_input_embeddings().weight.data_ptr() == first.get_input_embeddings().weight.data_ptr()
        # Who writes to the weights has the last word, and the next one reads the files again.
        with torch.no_grad():
            second.get_input_embeddings().weight.add_(1.0)
        third = base(dtype="auto")
        assert pool.loaded == 2
        assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in third.state_dict().items())
    assert base().get_input_embeddings().weight.data_ptr() != third.get_input_embeddings().weight.data_ptr()


# ---- A fleet that is run ----

MODELS = ("old", "new", "control", "muscle")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A fleet of two tasks that was run, its file, and the exit code."""
    folder = tmp_path_factory.mktemp("fleet")
    rows = rows_in(folder / "rows")
    transfer = {"split": "train", "start": 30, "limit": 12, "target": "chosen"}
    first, second = entry(rows, "mail"), entry(rows, "chat", 12, control=True)
    first["data"]["transfer"] = transfer
    file = written(folder / "fleet.yaml", content(folder / "v2", first, second))
    return folder, file, main(["fleet", str(file)])


def fleet_of(world, output=None, words=()):
    return load_fleet(world[1], [*words, *(["--output_dir", str(output)] if output else [])])


@pytest.mark.slow
def test_each_task_gets_a_verdict_a_report_and_its_place_in_the_lock(world):
    folder, _, code = world
    fleet = fleet_of(world)
    outcomes = {task.name: outcome_of(task) for task in fleet.tasks}
    held = [outcome for outcome in outcomes.values() if outcome.verdict == "hold"]
    assert code == (0 if not held else 3 if all(outcome.undecided for outcome in held) else 1)
    lock = Lock.read(folder / "v2" / LOCK_FILE)
    for name, outcome in outcomes.items():
        models = {"hold": "old", "ship plain": "new", "ship compatible": "muscle"}
        shipped = folder / "v2" / name / models[outcome.verdict]
        assert lock.tasks[name]["now"].side.adapter == str(shipped)
        assert [part.kind for part in lock.tasks[name]["ancestors"]] == [] if outcome.verdict == "hold" else ["first"]
        assert (folder / "v2" / name / "report.html").is_file()
        result = json.loads((folder / "v2" / name / "result.json").read_text())["result"]["rows"]
        assert outcome.quality["muscle"].value == pytest.approx(result[-1]["quality"])
        assert outcome.now.nfr["new"].value == pytest.approx(result[1]["nfr"])
    assert (folder / "v2" / "mail" / "targets.json").is_file()
    page = (folder / "v2" / PAGE_FILE).read_text()
    assert 'href="mail/report.html"' in page and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_a_later_task_is_what_it_is_alone(world, tmp_path):
    alone = fleet_of(world, tmp_path / "alone")
    (run,) = [run for name, run in checked_runs(alone, ["chat"], quiet).items()]
    run.whole()
    for name in MODELS:
        for file in (f"{name}/adapter_model.safetensors", f"predictions/{name}.jsonl"):
            one, other = (folder / "chat" / file for folder in (world[0] / "v2", tmp_path / "alone"))
            assert one.read_bytes() == other.read_bytes(), file


@pytest.mark.slow
def test_what_an_adapter_of_v1_says_of_the_same_rows_is_kept_once(world, tmp_path):
    old = {"adapter": str(world[0] / "v2" / "mail" / "old")}
    tasks = [entry(world[0] / "rows", name, old=old, lora={"r": rank}) for name, rank in (("a", 2), ("b", 3))]
    settings = content(tmp_path / "v2", *tasks)
    settings["defaults"]["training"]["max_steps"] = 8
    assert run_fleet(load_fleet(written(tmp_path / "fleet.yaml", settings)), say=quiet) in (0, 1, 3)
    # Of v1 one, of v2 one for each adapter.
    assert len(list((tmp_path / "v2" / "cache").glob("*/manifest.json"))) == 3


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_only_says_which(world, capsys):
    folder = world[0] / "v2"
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("adapter_model.safetensors")}
    took = read_state(fleet_of(world).tasks[1])
    assert main(["fleet", str(world[1]), "--only", "chat"]) in (0, 1, 3)
    said = capsys.readouterr().out
    assert "[1/1] chat" in said and "done before" in said
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("adapter_model.safetensors")} == before
    assert read_state(fleet_of(world).tasks[1])["muscle"]["seconds"] == took["muscle"]["seconds"]
    assert main(["fleet", str(world[1]), "--only", "chatt"]) == 2
    assert "'chat'" in capsys.readouterr().err


@pytest.mark.slow
def test_muscle_hf_train_does_the_same_run(world, capsys):
    assert main(["train", "--config", str(world[0] / "v2" / "chat" / "run.yaml")]) == 0
    assert capsys.readouterr().out.count("done before") == len(MODELS)


@pytest.mark.slow
def test_the_plan_runs_nothing(world, tmp_path, capsys):
    assert main(["fleet", str(world[1]), "--plan", "--output_dir", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert "mail: old new flips target muscle gate" in said and "chat: old new flips muscle control gate" in said
    assert not (tmp_path / "new").exists()
    assert main(["fleet", str(world[1]), "--plan"]) == 0
    assert capsys.readouterr().out.count("nothing left to do") == 2


@pytest.mark.slow
def test_the_failure_of_one_task_is_its_own(world, tmp_path, monkeypatch, capsys):
    do = TaskRun.do

    def fails(run, step, task):
        if task.name == "mail" and step == "new":
            raise RuntimeError("out of memory")
        do(run, step, task)

    monkeypatch.setattr(TaskRun, "do", fails)
    fleet = fleet_of(world, tmp_path / "v2", ["--control", "false"])
    assert run_fleet(fleet, say=quiet) == 1
    assert status_of(fleet.tasks[0])[0] == "failed" and "out of memory" in status_of(fleet.tasks[0])[1]
    assert status_of(fleet.tasks[1])[0] == "done"
    assert list(Lock.read(tmp_path / "v2" / LOCK_FILE).tasks) == ["chat"]
    assert "out of memory" in (tmp_path / "v2" / PAGE_FILE).read_text()
    monkeypatch.undo()
    assert main(["fleet", str(world[1]), "--status", "--output_dir", str(tmp_path / "v2"), "--control", "false"]) == 0
    assert "failed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_fleet_that_is_stopped_loses_the_running_step_at_most(number, code, world, tmp_path):
    words = ["--output_dir", str(tmp_path / "v2"), "--only", "chat", "--defaults.training.max_steps", "40"]
    words += ["--defaults.control", "false"]
    command = [sys.executable, "-m", "muscle_hf", "fleet", str(world[1]), *words]
    # What a shell starts in the background ignores SIGINT, and hands that down.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=heard)
    fleet = load_fleet(world[1], [word for word in words if word not in ("--only", "chat")])
    (task,) = [task for task in fleet.tasks if task.name == "chat"]
    deadline = time.monotonic() + 300
    while read_state(task).get("new", {}).get("state") != "running" and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == code
    assert read_state(task)["old"]["state"] == "done"
    assert status_of(task)[0] == "stopped"
    before = (task.folder / "old" / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_fleet(fleet, ["chat"], quiet) in (0, 1, 3)
    assert (task.folder / "old" / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert status_of(task)[0] == "done"


# ---- The release after it ----


@pytest.mark.slow
def test_the_next_update_starts_from_what_users_see_now(world, tmp_path):
    first = fleet_of(world, tmp_path / "v2")
    for task in first.tasks:
        task.budget.limits = {"max_nfr": {"*": 1.0}}
    run_fleet(first, ["mail"], quiet)
    lock = json.loads((tmp_path / "v2" / LOCK_FILE).read_text())
    assert lock["tasks"]["mail"]["verdict"] == "ship plain"
    assert lock["tasks"]["mail"]["ancestors"][0]["side"]["adapter"] == "./mail/old"
    # As where only the compatible one passes.
    sha256 = file_sha256(tmp_path / "v2" / "mail" / "muscle" / "adapter_model.safetensors")
    lock["tasks"]["mail"]["now"] |= {"sha256": sha256, "kind": "compatible"}
    lock["tasks"]["mail"]["now"]["side"]["adapter"] = "./mail/muscle"
    (tmp_path / "v2" / LOCK_FILE).write_text(json.dumps(lock))
    moved = shutil.move(tmp_path / "v2", tmp_path / "released")

    # The next base: the first one again, which is another one than v2.
    words = ["--update.old", str(moved / LOCK_FILE), "--update.new", str(demo.base("v1"))]
    words += ["--old.adapter", "acme/what-the-file-said-of-the-first-one"]
    second = fleet_of(world, tmp_path / "v3", words)
    assert [name for name, _ in second.problems] == ["chat"]
    assert second.tasks[0].settings.old.adapter == str(moved / "mail" / "muscle")
    run_fleet(second, ["mail"], quiet)
    outcome = outcome_of(second.tasks[0])
    assert [generation.name for generation in outcome.generations] == ["v1", "v2"]
    provenance = read_provenance(tmp_path / "v3" / "mail" / "muscle")
    own = read_provenance(moved / "mail" / "muscle")
    assert provenance["ancestors"] == [own["old"]]
    assert provenance["old"]["adapter"]["sha256"] == own["adapter_sha256"]
    assert (tmp_path / "v3" / "mail" / "report_first.html").is_file()
    assert "Generations" in (tmp_path / "v3" / PAGE_FILE).read_text()
    ancestors = Lock.read(tmp_path / "v3" / LOCK_FILE).tasks["mail"]["ancestors"]
    assert [part.kind for part in ancestors][:1] == ["first"]

    file = moved / "mail" / "muscle" / "adapter_model.safetensors"
    save_file({name: part + 1 for name, part in load_file(file).items()}, file)
    changed = fleet_of(world, tmp_path / "v4", words)
    assert any(name == "mail" and "SHA-256" in text for name, text in changed.problems)


def test_a_lock_names_what_is_on_another_drive_by_its_whole_path(tmp_path, monkeypatch):
    def other_drive(path, start=None):  # as on Windows
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    version = Version.of(ModelSettings(base=str(demo.base("v1")), adapter="acme/mail-v1"))
    monkeypatch.setattr(os.path, "relpath", other_drive)
    Lock({"mail": {"now": version, "ancestors": []}}).write(tmp_path)
    assert Lock.read(tmp_path / LOCK_FILE).old_side("mail")[0].side.base == str(demo.base("v1"))


def test_a_lock_names_bases_and_adapters_by_their_hashes(tmp_path, caplog):
    base = shutil.copytree(demo.base("v1"), tmp_path / "base")
    adapter_on(base, tmp_path / "adapter")
    version = Version.of(ModelSettings(base=str(base), adapter=str(tmp_path / "adapter")))
    kept = {"now": version, "ancestors": [version]}
    Lock({"mail": kept, "unhashed": {**kept, "now": replace(version, sha256=None, base_sha256=None)}}).write(tmp_path)
    lock = Lock.read(tmp_path / LOCK_FILE)
    assert lock.old_side("mail")[0].side.base == str(base)
    with caplog.at_level("WARNING"):
        lock.old_side("unhashed")
    (file,) = base.glob("*.safetensors")
    save_file({name: part + 1 for name, part in load_file(file).items()}, file)
    base_hash.cache_clear()
    with pytest.raises(MuscleError, match="base"):
        lock.old_side("mail")
    settings = content(tmp_path, entry(tmp_path, "mail"), old=tmp_path / LOCK_FILE)
    with pytest.raises(MuscleError, match="written over"):
        load_fleet(written(tmp_path / "fleet.yaml", settings))


@pytest.mark.parametrize("damaged", ["[]", "{}", "null", "[" * 99999, '{"key": 1}', "\0"])
def test_broken_notes_of_a_fleet_are_notes_of_nothing(damaged, tmp_path):
    task = entry(rows_in(tmp_path / "rows"), "mail")
    (task,) = load_fleet(written(tmp_path / "fleet.yaml", content(tmp_path / "out", task))).tasks
    task.folder.mkdir(parents=True)
    for name in (STATE_FILE, OUTCOME_FILE):
        (task.folder / name).write_text(damaged)
    assert read_state(task) == {} and outcome_of(task) is None and status_of(task)[0] == "open"


@pytest.mark.slow
def test_an_outcome_of_other_settings_is_none(world):
    (task, _) = fleet_of(world, None, ["--learning_rate", "1e-3"]).tasks
    assert (task.folder / OUTCOME_FILE).is_file()
    assert outcome_of(task) is None and read_state(task) == {} and status_of(task)[0] == "open"
