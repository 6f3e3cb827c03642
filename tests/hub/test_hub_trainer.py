"""The Trainer's ways to the Hub: every strategy, every order of saving and pushing, and failures on the way."""

from __future__ import annotations

import json
import logging
import traceback
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import TOKEN, HubServer, front_matter
from hub_world import NEW, files_in, make_trainer
from huggingface_hub import ModelCard
from transformers import Trainer, TrainerCallback

from muscle_hf import MuscleError, MuscleTrainer
from muscle_hf.hub import HubError
from muscle_hf.hub.card import MARKER

REPO = "tester/run"
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "muscle_provenance.json"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
CARD = {"README.md", "muscle_card.json", "card_curves.svg"}


def published(hub: HubServer) -> dict[str, bytes]:
    return {name: raw for name, raw in hub.repo(REPO).files().items() if name != ".gitattributes"}


def trained(tmp_path: Path, **settings) -> MuscleTrainer:
    trainer = make_trainer(tmp_path / "run", push_to_hub=True, hub_token=TOKEN, save_steps=2, **settings)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("end", set()),
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-2", "checkpoint-4"}),
    ],
)
def test_every_strategy_publishes_adapters_only(bases: HubServer, tmp_path: Path, strategy: str, folders: set[str]):
    trainer = trained(tmp_path, hub_strategy=strategy)
    if strategy == "end":
        assert published(bases) == {}
    trainer.push_to_hub()
    expected = ADAPTER | TOKENIZER | CARD
    expected |= {f"{folder}/{name}" for folder in folders for name in ADAPTER | TOKENIZER}
    files = published(bases)
    assert set(files) == expected
    assert (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").is_file()
    for name, raw in files.items():
        assert TOKEN.encode() not in raw, name
        assert str(tmp_path).encode() not in raw, name
    last = tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors"
    for folder in folders - {"checkpoint-2"}:
        assert files[f"{folder}/adapter_model.safetensors"] == last.read_bytes()


def test_a_pushed_checkpoint_has_a_card_that_the_local_one_does_without(bases: HubServer, tmp_path: Path):
    trained(tmp_path, hub_strategy="every_save")
    assert set(published(bases)) == ADAPTER | TOKENIZER | CARD
    resuming = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    for step in (2, 4):
        assert set(files_in(tmp_path / "run" / f"checkpoint-{step}")) == ADAPTER | TOKENIZER | resuming | {
            "muscle_card.json"
        }
    assert not CARD & set(files_in(tmp_path / "run"))


def test_saving_publishes_as_trainer_does(bases: HubServer, tmp_path: Path):
    trainer = trained(tmp_path, hub_strategy="end")
    trainer.save_model()
    assert set(published(bases)) == ADAPTER | TOKENIZER | CARD
    assert bases.repo(REPO).titles[-1] == "Model save"


def test_pushing_by_hand_and_again(bases: HubServer, tmp_path: Path):
    trainer = make_trainer(tmp_path / "run", hub_token=TOKEN)
    trainer.train()
    assert not bases.repos.keys() & {("model", REPO)}
    commit = trainer.push_to_hub("First", tags="help-desk", language="en", license="mit", dataset_tags="acme/tickets")
    assert commit.oid == bases.repo(REPO).branches["main"]
    data = ModelCard(published(bases)["README.md"].decode()).data
    assert {"muscle-hf", "help-desk"} <= set(data.tags)
    assert (data.language, data.license, data.datasets) == (["en"], "mit", ["acme/tickets"])
    sending = (("PUT", "/upload/"), ("POST", "/commit/"))
    sent, commits = [bases.count(*what) for what in sending], len(bases.repo(REPO).commits)
    assert trainer.push_to_hub("Second").oid == commit.oid
    assert len(bases.repo(REPO).commits) == commits
    assert [bases.count(*what) for what in sending] == sent, "a repeat sends nothing but questions"


def test_pushing_in_the_background(bases: HubServer, tmp_path: Path):
    trainer = make_trainer(tmp_path / "run", hub_token=TOKEN, max_steps=1)
    trainer.train()
    job = trainer.push_to_hub(blocking=False)
    assert isinstance(job, Future)
    assert job.result(30).oid == bases.repo(REPO).branches["main"]


def test_a_branch_can_be_named(bases: HubServer, tmp_path: Path):
    trainer = make_trainer(
        tmp_path / "run", push_to_hub=True, hub_token=TOKEN, hub_strategy="end", hub_revision="candidate",
        hub_private_repo=True, hub_model_id="named", max_steps=1,
    )  # fmt: skip
    trainer.train()
    trainer.push_to_hub()
    repo = bases.repo("tester/named")
    assert repo.private
    assert set(repo.files("candidate")) >= ADAPTER and not ADAPTER & set(repo.files("main"))


def test_a_bad_token_is_told_before_anything_is_computed(bases: HubServer, tmp_path: Path):
    with pytest.raises(HubError, match="401"):
        make_trainer(tmp_path / "run", push_to_hub=True, hub_token="hf_wrong")


def test_a_repository_with_a_whole_model_is_told_before_anything_is_computed(bases: HubServer, tmp_path: Path):
    bases.add(REPO, {"config.json": b"{}", "model.safetensors": b"w"})
    with pytest.raises(MuscleError, match="holds a model already"):
        make_trainer(tmp_path / "run", push_to_hub=True, hub_token=TOKEN)


def test_a_link_in_a_checkpoint_fails_its_upload_and_not_the_training(
    bases: HubServer, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    logging.getLogger("muscle_hf").propagate = True
    trainer = make_trainer(tmp_path / "run", push_to_hub=True, hub_token=TOKEN, hub_strategy="every_save")
    (adapter / "checkpoint-4" / "merges.txt").symlink_to(__file__)
    with caplog.at_level(logging.ERROR):
        trainer._push_from_checkpoint(str(adapter / "checkpoint-4"))
    assert "merges.txt" in caplog.text and published(bases) == {}


def test_training_outlives_failing_uploads(bases: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trainer = make_trainer(tmp_path / "run", push_to_hub=True, hub_token=TOKEN, hub_strategy="every_save")
    bases.fail("POST", "/commit/main", 500, times=50)
    logging.getLogger("muscle_hf").propagate = True
    with caplog.at_level(logging.ERROR):
        trainer.train()
    assert trainer.state.global_step == 4
    assert "checkpoint-4" in caplog.text
    with pytest.raises(HubError, match="run the same again"):
        trainer.push_to_hub()
    whole = files_in(tmp_path / "run")
    assert set(whole) >= ADAPTER
    bases.faults.clear()
    trainer.push_to_hub()
    assert published(bases)["adapter_model.safetensors"] == whole["adapter_model.safetensors"]


@pytest.mark.parametrize("order", ["peft, push", "trainer card, push", "push, peft, push", "save, peft, save, push"])
def test_other_writers_do_not_clobber_the_card(bases: HubServer, tmp_path: Path, order: str):
    trainer = make_trainer(tmp_path / "run", hub_token=TOKEN, max_steps=1)
    trainer.train()
    trainer.save_model()
    steps = {
        "peft": lambda: trainer.student.save_pretrained(tmp_path / "run", selected_adapters=["default"]),
        "trainer card": lambda: Trainer.create_model_card(trainer, tags="foreign"),
        "save": trainer.save_model,
        "push": trainer.push_to_hub,
    }
    for step in order.split(", "):
        steps[step]()
    text = published(bases)["README.md"].decode()
    assert MARKER in text and "foreign" not in text
    assert ModelCard(text).data.base_model == NEW
    assert MARKER in (tmp_path / "run" / "README.md").read_text()


def test_the_token_is_in_no_file_log_or_text(
    bases: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
):
    with caplog.at_level(logging.INFO):
        trainer = trained(tmp_path, hub_strategy="checkpoint")
        trainer.push_to_hub()
        # A server that echoes what it was sent, in an error.
        bases.fail("POST", "/api/repos/create", 400, message=f"bad token {TOKEN}")
        trainer.hub_model_id = None
        with pytest.raises(MuscleError) as failure:
            trainer.push_to_hub()
    texts = {
        "log": caplog.text,
        "output": "".join(capsys.readouterr()),
        "traceback": "".join(traceback.format_exception(failure.value)),
        "arguments": repr(trainer.args) + str(trainer.args),
        "card state": repr(trainer.card_state),
        "provenance": repr(trainer.provenance),
    }
    for where, text in texts.items():
        assert TOKEN not in text, where
    assert "***" in texts["traceback"]
    for name, raw in {**files_in(tmp_path), **published(bases)}.items():
        assert TOKEN.encode() not in raw, name


def test_the_state_of_the_card_is_collected_while_training(bases: HubServer, tmp_path: Path):
    trainer = make_trainer(tmp_path / "run")
    trainer.card_state.summary = "For <b>tickets</b>."
    trainer.train()
    trainer.save_model()
    state = json.loads((tmp_path / "run" / "muscle_card.json").read_text())
    assert [entry["step"] for entry in state["history"] if "loss" in entry] == [1, 2, 3, 4]
    assert any("eval_kl_old" in entry for entry in state["history"])
    assert state["train_seconds"] > 0 and state["hardware"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "For &lt;b&gt;tickets&lt;/b&gt;." in card
    assert (tmp_path / "run" / "card_curves.svg").is_file()


def test_a_run_that_went_on_does_not_give_its_last_part_for_the_whole(bases: HubServer, tmp_path: Path):
    class Tracked(TrainerCallback):
        tracker = SimpleNamespace(final_emissions=0.002)

    make_trainer(tmp_path / "run", max_steps=4, save_strategy="steps", save_steps=2).train()
    again = make_trainer(tmp_path / "run", max_steps=4)
    again.add_callback(Tracked())
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    again.save_model()
    state = json.loads((tmp_path / "run" / "muscle_card.json").read_text())
    assert [entry["step"] for entry in state["history"] if "loss" in entry] == [1, 2, 3, 4]
    assert state.get("train_seconds") is None and state.get("emissions_kg") is None


def test_tracked_emissions_stand_in_the_card(bases: HubServer, tmp_path: Path):
    class Tracked(TrainerCallback):  # as transformers' CodeCarbonCallback after training
        tracker = SimpleNamespace(final_emissions=0.002)

    trainer = make_trainer(tmp_path / "run", max_steps=1)
    trainer.add_callback(Tracked())
    trainer.train()
    trainer.save_model()
    text = (tmp_path / "run" / "README.md").read_text()
    assert front_matter(text)["co2_eq_emissions"]["emissions"] == 2.0
    assert "2 g CO2eq" in text


def test_a_card_that_cannot_be_written_leaves_the_adapter_whole(bases: HubServer, tmp_path: Path):
    trainer = make_trainer(tmp_path / "run", max_steps=1)
    trainer.train()
    (tmp_path / "run" / "README.md").mkdir()
    with pytest.raises(MuscleError, match="is saved, but its card could not be written"):
        trainer.save_model()
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


def test_a_script_that_only_evaluates_may_ask_for_a_card(bases: HubServer, tmp_path: Path):
    trainer = make_trainer(tmp_path / "run")
    trainer.create_model_card(tasks="summarization")
    assert not (tmp_path / "run" / "README.md").exists()
