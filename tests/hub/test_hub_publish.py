"""Publishing an adapter's folder: what goes out, what a repeat sends, and what a failure leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PureWindowsPath

import pytest
from hub_server import OTHER_TOKEN, TOKEN, HubServer, front_matter
from hub_world import NEW, OLD, files_in

from muscle_hf import MuscleError
from muscle_hf.cli.main import main
from muscle_hf.hub import HubError, MismatchError, fetch, list_compatible, publish
from muscle_hf.hub.completing import export_card
from muscle_hf.hub.files import is_published

REPO = "tester/compat"
EXPECTED = {
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "muscle_card.json", "muscle_provenance.json"),
    *("tokenizer.json", "tokenizer_config.json", "card_curves.svg"),
}


@pytest.fixture(autouse=True)
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits between its own retries; the tests need not."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def published(hub: HubServer, revision: str = "main") -> dict[str, bytes]:
    return {name: raw for name, raw in hub.repo(REPO).files(revision).items() if name != ".gitattributes"}


def test_uploads_the_adapter_and_what_describes_it_and_nothing_else(bases: HubServer, adapter: Path):
    (adapter / "training_args.bin").write_bytes(b"pickle")
    (adapter / "teacher_cache").mkdir()
    (adapter / "teacher_cache" / "states.safetensors").write_bytes(b"cache")
    (adapter / "modeling.py").write_text("print('code')")
    before = files_in(adapter)
    done = publish(adapter, REPO)
    assert set(published(bases)) == EXPECTED == set(done.uploaded)
    assert {"training_args.bin", "teacher_cache/states.safetensors", "modeling.py"} <= set(done.left_out)
    assert any(name.startswith("checkpoint-") and name.endswith("optimizer.pt") for name in done.left_out)
    assert published(bases)["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert files_in(adapter) == before


def test_the_base_is_pinned_in_the_configuration_that_goes_out(bases: HubServer, adapter: Path):
    publish(adapter, REPO)
    config = json.loads(published(bases)["adapter_config.json"])
    assert config["base_model_name_or_path"] == NEW
    assert config["revision"] == bases.repo(NEW).branches["main"]
    assert config["target_modules"] == sorted(config["target_modules"])


def test_a_repeat_sends_nothing_and_a_change_sends_what_changed(bases: HubServer, adapter: Path):
    first = publish(adapter, REPO)
    commits, puts = len(bases.repo(REPO).commits), bases.count("PUT", "/upload/")
    again = publish(adapter, REPO)
    assert set(again.uploaded) == EXPECTED
    assert again.commit.oid == first.commit.oid
    assert len(bases.repo(REPO).commits) == commits
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 7}))
    before = published(bases)
    publish(adapter, REPO)
    after = published(bases)
    assert {name for name in after if after[name] != before[name]} == {"tokenizer_config.json"}
    assert bases.count("PUT", "/upload/") == puts


def test_what_an_earlier_upload_left_is_removed_and_foreign_files_stay(bases: HubServer, adapter: Path):
    (adapter / "report.html").write_text("<html>texts</html>")
    done = publish(adapter, REPO)
    assert "report.html" in done.uploaded
    assert any("report.html" in note and "texts" in note for note in done.notes)
    repo = bases.repo(REPO)
    foreign = {**repo.commits[repo.branches["main"]]}
    foreign["NOTICE.txt"] = foreign["README.md"]
    repo.commit(foreign)
    (adapter / "report.html").unlink()
    assert publish(adapter, REPO).removed == ["report.html"]
    assert "report.html" not in published(bases)
    assert "NOTICE.txt" in published(bases)


@pytest.mark.parametrize("weights", ["model.safetensors", "unet/diffusion_pytorch_model.safetensors", "model-q4.gguf"])
def test_a_repository_with_a_whole_model_is_refused(bases: HubServer, adapter: Path, weights: str):
    theirs = {"README.md": b"# Ours, merged", weights: b"w", "tokenizer.model": b"t", "merges.txt": b"m"}
    repo = bases.add(REPO, theirs)
    with pytest.raises(MuscleError, match=r"tester/compat holds a model already \(.*repository of its own"):
        publish(adapter, REPO)
    assert published(bases) == theirs and len(repo.commits) == 1


def test_files_of_an_adapter_from_elsewhere_are_not_removed(bases: HubServer, adapter: Path):
    """As Trainer and peft publish one: its files may be replaced, but none goes for want of a counterpart."""
    theirs = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w", "merges.txt": b"m", "report.html": b"r"}
    bases.add(REPO, {**theirs, "training_args.bin": b"pickle"})
    assert publish(adapter, REPO).removed == []
    assert set(published(bases)) == EXPECTED | {"merges.txt", "report.html", "training_args.bin"}
    assert set(publish(adapter, REPO).removed) == {"merges.txt", "report.html"}


def test_a_branch_is_made_and_a_private_repository_is_private(bases: HubServer, adapter: Path):
    publish(adapter, REPO, revision="candidate", private=True)
    assert set(published(bases, "candidate")) == EXPECTED
    assert published(bases) == {}
    assert bases.repo(REPO).private


def test_a_name_without_namespace_goes_to_the_tokens_own(bases: HubServer, adapter: Path):
    assert publish(adapter, "compat").repo_id == REPO


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("PUT", "/upload/", None, ""),
        ("POST", "/commit/main", None, ""),
        ("POST", "/commit/main", 412, "Somebody else"),
        ("POST", "/commit/main", 503, "503"),
        ("POST", "/commit/main", 500, "500"),
        ("POST", "/preupload/", 502, "502"),
        ("POST", "/api/repos/create", 401, "hf auth login"),
        ("POST", "/commit/main", 401, "hf auth login"),
        ("POST", "/commit/main", 403, "write access"),
    ],
)
def test_a_failed_upload_loses_nothing_and_can_be_repeated(
    bases: HubServer, adapter: Path, no_waiting: None, method: str, path: str, status: int | None, says: str
):
    before = files_in(adapter)
    bases.fail(method, path, status, times=50)
    with pytest.raises(HubError, match=says) as failure:
        publish(adapter, REPO)
    assert "run the same again" in str(failure.value)
    assert files_in(adapter) == before
    if ("model", REPO) in bases.repos:
        assert published(bases) == {}, "a broken upload must not leave half an adapter"
    bases.faults.clear()
    publish(adapter, REPO)
    assert set(published(bases)) == EXPECTED


def test_a_connection_that_drops_once_is_taken_up_again(bases: HubServer, adapter: Path, no_waiting: None):
    bases.fail("PUT", "/upload/", None, times=1)
    publish(adapter, REPO)
    assert set(published(bases)) == EXPECTED


def test_a_push_that_broke_after_the_weights_does_not_send_them_again(bases: HubServer, adapter: Path):
    bases.fail("POST", "/commit/main", 500)
    with pytest.raises(HubError):
        publish(adapter, REPO)
    publish(adapter, REPO)
    assert bases.count("PUT", "/upload/") == 1


def test_somebody_else_pushing_meanwhile_is_noticed(bases: HubServer, adapter: Path):
    publish(adapter, REPO)
    repo = bases.repo(REPO)
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    bases.before("POST", "/preupload/", lambda: repo.commit({}, title="somebody else"))
    with pytest.raises(HubError, match="Somebody else"):
        publish(adapter, REPO)
    assert repo.titles[-1] == "somebody else"


def test_no_network(bases: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="run the same again"):
        publish(adapter, REPO)


def test_another_persons_repository(bases: HubServer, adapter: Path):
    bases.add("tester/compat", {"README.md": b"mine"})
    with pytest.raises(HubError, match="403"):
        publish(adapter, REPO, token=OTHER_TOKEN)


def test_nobody_logged_in(bases: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="hf auth login"):
        publish(adapter, REPO)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "muscle_provenance.json"])
def test_an_incomplete_folder_is_refused_before_any_request(bases: HubServer, adapter: Path, name: str):
    (adapter / name).unlink()
    asked = len(bases.requests)
    with pytest.raises(MuscleError, match=name):
        publish(adapter, REPO)
    assert len(bases.requests) == asked


def test_weights_that_are_not_those_of_the_provenance_are_refused(bases: HubServer, adapter: Path):
    file = adapter / "adapter_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    recorded = json.loads((adapter / "muscle_provenance.json").read_text())["adapter_file_sha256"]
    with pytest.raises(MismatchError, match=f"recorded SHA-256 {recorded}, found [0-9a-f]{{64}}"):
        publish(adapter, REPO)


def test_a_local_base_is_published_by_name_only_and_that_is_said(
    bases: HubServer, tmp_path: Path, base_files: dict[str, dict[str, bytes]], capsys: pytest.CaptureFixture
):
    folder = train_on_local_bases(tmp_path, base_files)
    done = publish(folder, REPO)
    assert main(["push", str(folder), REPO]) == 0
    assert f" pull {REPO} --base-model FOLDER" in capsys.readouterr().out
    assert any("local folder" in note and "base_model" in note for note in done.notes)
    for name, raw in published(bases).items():
        assert str(tmp_path).encode() not in raw, name
    config = json.loads(published(bases)["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("base-v2", None)
    data = front_matter(published(bases)["README.md"].decode())
    assert "base_model" not in data, "a local name would point to somebody else's repository"
    assert [(entry.old, entry.new) for entry in list_compatible(author="tester")] == [("base-v1", "base-v2")]
    assert data["license"] == "apache-2.0", "read off the cards in the bases' folders"
    named = publish(folder, REPO, base_model=NEW)
    assert not any("local folder" in note for note in named.notes)
    config = json.loads(published(bases)["adapter_config.json"])
    pinned = bases.repo(NEW).branches["main"]
    assert (config["base_model_name_or_path"], config["revision"]) == (NEW, pinned)
    assert json.loads(published(bases)["muscle_provenance.json"])["new"]["base"]["revision"] == pinned
    assert front_matter(published(bases)["README.md"].decode())["base_model"] == NEW


def train_on_local_bases(tmp_path: Path, base_files: dict[str, dict[str, bytes]]) -> Path:
    from hub_world import make_trainer

    places = {}
    for name, files in base_files.items():
        places[name] = tmp_path / "private" / name.split("/")[1]
        places[name].mkdir(parents=True)
        for path, raw in files.items():
            (places[name] / path).write_bytes(raw)
    trainer = make_trainer(tmp_path / "run", places[OLD], places[NEW], max_steps=1, eval_strategy="no")
    trainer.train()
    trainer.save_model()
    return tmp_path / "run"


def test_a_file_that_names_a_place_on_this_machine_is_refused(bases: HubServer, adapter: Path):
    provenance = json.loads((adapter / "muscle_provenance.json").read_text())
    provenance["training"]["deepspeed"] = f"trained in {adapter}/data"
    (adapter / "muscle_provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(MuscleError, match=r"muscle_provenance.json names a place on this machine"):
        publish(adapter, REPO)
    assert ("model", REPO) not in bases.repos


def test_a_place_on_windows_is_refused(bases: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: PureWindowsPath(r"C:\Users\ann")))
    provenance = json.loads((adapter / "muscle_provenance.json").read_text())
    provenance["training"]["deepspeed"] = r"C:\Users\ann\ds.json"
    (adapter / "muscle_provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(MuscleError, match=r"muscle_provenance.json names a place on this machine"):
        publish(adapter, REPO)


def test_a_file_with_a_token_in_it_is_refused(bases: HubServer, adapter: Path):
    for token in (TOKEN, "hf_" + "x" * 34):
        (adapter / "chat_template.jinja").write_text(f"{{# {token} #}}")
        with pytest.raises(MuscleError, match=r"chat_template.jinja holds an access token") as refusal:
            publish(adapter, REPO)
        assert token not in str(refusal.value)
    assert ("model", REPO) not in bases.repos


def test_a_card_of_ones_own_is_kept_on_request_only(bases: HubServer, adapter: Path):
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    done = publish(adapter, REPO)
    assert any("--keep-card" in note for note in done.notes)
    assert b"# Mine" not in published(bases)["README.md"]
    publish(adapter, REPO, keep_card=True)
    assert b"# Mine" in published(bases)["README.md"]


def test_metrics_of_other_weights_are_not_published(bases: HubServer, adapter: Path):
    metrics = {"format": 1, "adapter_sha256": "0" * 64, "comparison": {"tasks": []}}
    (adapter / "muscle_metrics.json").write_text(json.dumps(metrics))
    done = publish(adapter, REPO)
    assert "muscle_metrics.json" in done.left_out
    assert any("other weights" in note for note in done.notes)
    assert "muscle_metrics.json" not in published(bases)


def test_a_checkpoint_folder_can_be_published(bases: HubServer, adapter: Path):
    publish(adapter / "checkpoint-4", REPO)
    assert {"adapter_model.safetensors", "README.md"} <= set(published(bases)) <= EXPECTED


def test_an_unreadable_licence_page_of_a_base_does_not_stop_the_upload(bases: HubServer, adapter: Path):
    card = json.loads((adapter / "muscle_card.json").read_text())
    (adapter / "muscle_card.json").write_text(json.dumps({**card, "license_old": None, "license_new": None}))
    del bases.repos["model", OLD]
    publish(adapter, REPO)
    assert b"old base: unknown; new base: apache-2.0" in published(bases)["README.md"]


SECRET = b"root:x:0:0"


def linked(adapter: Path, way: str, elsewhere: Path) -> None:
    """Make a published name lead to a secret that is no part of the adapter."""
    elsewhere.mkdir()
    (elsewhere / "secret.jinja").write_bytes(SECRET)
    (adapter / ".env").write_bytes(SECRET)
    if way == "folder":
        (adapter / "additional_chat_templates").symlink_to(elsewhere, target_is_directory=True)
    elif way == "chain":
        (elsewhere / "step").symlink_to("secret.jinja")
        (adapter / "merges.txt").symlink_to(elsewhere / "step")
    elif way == "card":
        shutil.move(adapter / "muscle_card.json", elsewhere)
        (adapter / "muscle_card.json").symlink_to(elsewhere / "muscle_card.json")
    elif way == "weights":
        shutil.move(adapter / "adapter_model.safetensors", elsewhere)
        (adapter / "adapter_model.safetensors").symlink_to(elsewhere / "adapter_model.safetensors")
    else:
        (adapter / "merges.txt").symlink_to(".env" if way == "inside" else elsewhere / "secret.jinja")


@pytest.mark.parametrize("way", ["outside", "inside", "chain", "folder", "card", "weights"])
def test_no_link_is_published_or_copied(bases: HubServer, adapter: Path, tmp_path: Path, way: str):
    linked(adapter, way, tmp_path / "elsewhere")
    with pytest.raises(MuscleError, match="link"):
        publish(adapter, REPO)
    with pytest.raises(MuscleError, match="link"):
        export_card(adapter, tmp_path / "exported")
    assert main(["pull", str(adapter), "--adapter-only", "--to", str(tmp_path / "copy")]) == 2
    assert ("model", REPO) not in bases.repos
    assert not any(SECRET in raw for name in ("exported", "copy") for raw in files_in(tmp_path / name).values())


def test_links_of_the_hubs_cache_are_its_own_files(bases: HubServer, adapter: Path, tmp_path: Path):
    publish(adapter, REPO)
    cached = fetch(REPO, cache_dir=tmp_path / "cache").folder
    assert (cached / "adapter_model.safetensors").is_symlink()
    publish(cached, "tester/again")
    names = {"adapter_model.safetensors", "tokenizer.json"}
    assert all(bases.repo("tester/again").files()[name] == published(bases)[name] for name in names)
    (cached / "tokenizer.json").unlink()
    (cached / "tokenizer.json").symlink_to(tmp_path / "adapter" / "tokenizer.json")
    with pytest.raises(MuscleError, match="link"):
        publish(cached, "tester/again")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adapter_model.safetensors", True),
        ("card_quadrants_1.svg", True),
        ("additional_chat_templates/tools.jinja", True),
        ("adapter_model.bin", False),
        ("optimizer.pt", False),
        ("checkpoint-4/adapter_model.safetensors", False),
        ("card_x/../../evil.svg", False),
        ("additional_chat_templates/../../x.jinja", False),
        ("../adapter_config.json", False),
        ("/adapter_config.json", False),
        ("C:\\tokenizer.json", False),
        ("", False),
    ],
)
def test_which_names_belong_to_an_adapter(name: str, expected: bool):
    assert is_published(name) is expected


def test_the_folder_can_be_moved(bases: HubServer, adapter: Path, tmp_path: Path):
    moved = shutil.move(adapter, tmp_path / "elsewhere")
    publish(moved, REPO)
    assert set(published(bases)) == EXPECTED
