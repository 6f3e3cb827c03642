"""The commands: card, push, pull, list, push-metric."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from example_document import example_document
from hub_server import TOKEN, HubServer
from hub_world import NEW, OLD, files_in

from muscle_hf.cli.main import main
from muscle_hf.hub import list_compatible

REPO = "tester/compat"


@pytest.fixture(autouse=True)
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("COLUMNS", "200")


def test_from_a_folder_to_the_hub_and_back(
    bases: HubServer, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "comparison.json").write_text(example_document().to_json())
    completed = ["--task", "routing", "--language", "en", "--dataset", "acme/tickets", "--label", "muscle"]
    assert main(["card", str(adapter), "--comparison", str(tmp_path / "comparison.json"), *completed]) == 0
    assert main(["push", str(adapter), REPO, "--message", "A better one"]) == 0
    told = capsys.readouterr().out
    assert "pull tester/compat" in told and "checkpoint-4/" in told
    assert bases.repo(REPO).titles[-1] == "A better one"
    commits = len(bases.repo(REPO).commits)
    assert main(["push", str(adapter), REPO]) == 0
    assert len(bases.repo(REPO).commits) == commits, "nothing has changed"
    capsys.readouterr()
    assert main(["pull", REPO, "--to", str(tmp_path / "mine")]) == 0
    told = capsys.readouterr().out
    assert bases.repo(REPO).branches["main"] in told and "tokenizer checked" in told and "as recorded" in told
    expected = {name: raw for name, raw in bases.repo(REPO).files().items() if name != ".gitattributes"}
    assert files_in(tmp_path / "mine") == expected
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    assert REPO in told and f"{OLD} → {NEW}" in told and "14.5% → 7.5%" in told and "-48 %" in told
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed[0]["tasks"] == [{"task": "routing", "nfr_new": 0.145, "nfr": 0.075}]


def test_pull_at_a_revision(bases: HubServer, adapter: Path, capsys: pytest.CaptureFixture):
    main(["push", str(adapter), REPO])
    first = bases.repo(REPO).branches["main"]
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    main(["push", str(adapter), REPO])
    capsys.readouterr()
    assert main(["pull", REPO, "--revision", first]) == 0
    assert first in capsys.readouterr().out


@pytest.mark.parametrize("damage", [b"", b'{"format": 1', b"[]", b"null", b"[" * 99_999, b"\xff\xfe{\0}\0"])
def test_no_damaged_file_of_a_folder_is_a_crash(bases: HubServer, adapter: Path, damage: bytes):
    for name in ("adapter_config.json", "muscle_provenance.json", "muscle_card.json", "tokenizer_config.json"):
        before = (adapter / name).read_bytes()
        (adapter / name).write_bytes(damage)
        done = [main([*words]) for words in (("push", str(adapter), REPO, "--dry-run"), ("pull", str(adapter)))]
        done.append(main(["card", str(adapter)]))
        assert set(done) <= {0, 2} and 2 in done, name
        (adapter / name).write_bytes(before)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["push", "missing-folder", REPO], "not the folder of a saved compatibility adapter"),
        (["push", ".", "a/b/c"], "not the folder"),
        (["pull", "nobody/nothing"], "nobody/nothing"),
        (["pull", "not a name"], "neither a folder"),
        (["card", "."], "was not saved by MuscleTrainer"),
        (["push-metric", "rouge"], "no evaluate module"),
        (["push-metric", "muscle_flips", "tester/other"], "must be called muscle_flips"),
        (["push-metric", "all", "tester/x"], "name the namespace alone"),
    ],
)
def test_bad_use_is_told_in_a_line(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    arguments: list[str], says: str,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_a_mismatch_is_refused_and_can_be_overridden(
    bases: HubServer, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture, base_files: dict
):
    main(["push", str(adapter), REPO])
    other = tmp_path / "other"
    other.mkdir()
    for name, raw in base_files[OLD].items():
        (other / name).write_bytes(raw)
    check = ["pull", REPO, "--base-model", str(other)]
    assert main(check) == 2
    assert "content hash" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="content hash"):
        assert main([*check, "--allow-mismatch"]) == 0
    assert "what does not fit is only warned of" in capsys.readouterr().out
    assert main([*check, "--adapter-only"]) == 0
    assert "checked" not in capsys.readouterr().out.splitlines()[-2]


def test_list_finds_by_tag_author_base_and_name(bases: HubServer, adapter: Path, capsys: pytest.CaptureFixture):
    main(["push", str(adapter), REPO])
    main(["push", str(adapter), "tester/second"])
    bases.add("acme/plain-lora", {"README.md": b"---\ntags: [lora]\n---\n"})
    hostile = (
        b'---\ntags: [muscle-hf]\nold_model: "\\e[31m[red]x"\nmodel-index: [1, {results: [2, {metrics: 3}]}]\n---\n'
    )
    bases.add("acme/hostile", {"README.md": hostile})
    assert {entry.repo_id for entry in list_compatible()} == {REPO, "tester/second", "acme/hostile"}
    assert {entry.repo_id for entry in list_compatible(author="tester")} == {REPO, "tester/second"}
    assert {entry.repo_id for entry in list_compatible("second")} == {"tester/second"}
    assert {entry.repo_id for entry in list_compatible(base_model=NEW)} == {REPO, "tester/second"}
    assert len(list(list_compatible(limit=1))) == 1
    capsys.readouterr()
    main(["list"])
    told = capsys.readouterr().out
    assert "\x1b" not in told and "[red]x" in told
    bases.reset()
    assert main(["list"]) == 0
    assert "no compatibility adapters found" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["muscle_flips", "muscle_smooth_flips"])
def test_a_metric_is_pushed_as_a_space_and_loaded_back(hub: HubServer, capsys: pytest.CaptureFixture, name: str):
    evaluate = pytest.importorskip("evaluate")
    assert main(["push-metric", name]) == 0
    space = f"tester/{name}"
    assert f'evaluate.load("{space}")' in capsys.readouterr().out
    repo = hub.repo(space, "space")
    assert repo.settings["sdk"] == "gradio"
    assert {f"{name}.py", "README.md", "app.py", "requirements.txt"} <= set(repo.files())
    assert not any("__pycache__" in path or path.endswith(".pyc") for path in repo.files())
    metric = evaluate.load(space)
    if name == "muscle_flips":
        result = metric.compute(old_predictions=[0, 1, 2], predictions=[0, 2, 2], references=[0, 1, 2])
        assert result["nfr"] == pytest.approx(1 / 3)
    else:
        result = metric.compute(old_predictions=["a b"], predictions=["a"], references=["a b"])
        assert result["nfr_smooth"] == 1.0
    commits = len(repo.commits)
    assert main(["push-metric", name, "tester"]) == 0
    assert len(repo.commits) == commits


def test_all_metrics_at_once(hub: HubServer):
    assert main(["push-metric", "all", "tester", "--private"]) == 0
    assert set(hub.repos) == {("space", "tester/muscle_flips"), ("space", "tester/muscle_smooth_flips")}
    assert all(repo.private for repo in hub.repos.values())


def test_a_metric_that_cannot_be_pushed_is_told(hub: HubServer, capsys: pytest.CaptureFixture):
    hub.fail("POST", "/commit/main", 500)
    assert main(["push-metric", "muscle_flips"]) == 2
    assert "500" in capsys.readouterr().err
    assert main(["push-metric", "muscle_flips"]) == 0


def test_the_commands_help_is_light():
    """None of these needs torch to explain itself."""
    code = "import sys; from muscle_hf.cli.main import main\ntry: main(['push', '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.monotonic() - start < 20


def test_a_dry_run_lists_what_a_push_uploads_and_asks_nobody(
    bases: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.delenv("HF_TOKEN")
    before, asked = files_in(adapter), len(bases.requests)
    assert main(["push", str(adapter), REPO, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert len(bases.requests) == asked and files_in(adapter) == before
    listed = {line.split()[2]: line for line in told.splitlines() if line.startswith("would upload:")}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    main(["push", str(adapter), REPO])
    assert set(listed) == {name for name in bases.repo(REPO).files() if name != ".gitattributes"}
    assert f"({(adapter / 'adapter_model.safetensors').stat().st_size:,} bytes)" in listed["adapter_model.safetensors"]


@pytest.mark.parametrize("unknown", ["adapter_file_sha256", "tokenizer"])
def test_pull_says_what_has_no_hash_and_never_calls_it_a_match(
    bases: HubServer, adapter: Path, unknown: str, capsys: pytest.CaptureFixture
):
    file = adapter / "muscle_provenance.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), unknown: None}))
    main(["push", str(adapter), REPO])
    assert ("records no hash" in capsys.readouterr().out) == (unknown == "adapter_file_sha256")
    with pytest.warns(UserWarning, match="no hash"):
        assert main(["pull", REPO]) == 0
    told = capsys.readouterr().out
    assert ("as recorded" in told) == (unknown == "tokenizer")
    assert ("tokenizer checked" in told) == (unknown != "tokenizer")
