"""Fetching and loading: pinned, safetensors only, and never on another base than the one trained on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, HubServer
from hub_world import NEW, OLD, WORDS, files_in, make_tokenizer, save_base
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from muscle_hf import MuscleError, load_compatible
from muscle_hf.evaluation.loading import load_for_evaluation
from muscle_hf.evaluation.tasks import Task
from muscle_hf.hub import HubError, MismatchError, fetch, publish
from muscle_hf.hub.fetching import copy_to
from muscle_hf.pipeline.config import ModelSettings
from muscle_hf.pipeline.once import weights_key
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.teachers.loading import load_task_model

REPO = "tester/compat"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of the test's own: nothing an earlier test fetched is in it."""
    return tmp_path / "cache"


def test_a_run_knows_an_adapter_of_the_hub_by_its_content(bases: HubServer, adapter: Path):
    """A run is not "done before" where somebody pushed another adapter since."""
    publish(adapter, REPO, token=TOKEN)
    side = ModelSettings(base=NEW, adapter=REPO)
    before = weights_key(side)
    assert weights_key(side) == before == weights_key(ModelSettings(base=NEW, adapter=str(adapter)))
    file = adapter / "adapter_model.safetensors"
    save_file({name: part + 1 for name, part in load_file(file).items()}, file)
    (adapter / "muscle_provenance.json").unlink()
    bases.add(REPO, {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()})
    assert weights_key(side) != before


@pytest.fixture
def pushed(bases: HubServer, adapter: Path) -> HubServer:
    publish(adapter, REPO, token=TOKEN)
    return bases


def changed(hub: HubServer, name: str, content: bytes | None, **more: bytes) -> None:
    """Replace a published file (None: delete it) in a new commit."""
    repo = hub.repo(REPO)
    files = {path: blob.content for path, blob in repo.commits[repo.branches["main"]].items()}
    files.update({name: content} if content is not None else {}, **more)
    if content is None:
        del files[name]
    hub.add(REPO, files)


def edited(hub: HubServer, name: str, **changes) -> None:
    changed(hub, name, json.dumps({**json.loads(hub.repo(REPO).files()[name]), **changes}).encode())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]])).logits


def test_loads_what_was_trained_ready_to_generate(pushed: HubServer, adapter: Path, cache: Path):
    model, tokenizer = load_compatible(REPO, cache_dir=cache)
    assert isinstance(model, PeftModel) and not model.training
    base = AutoModelForCausalLM.from_pretrained(NEW)
    assert torch.equal(logits(model), logits(PeftModel.from_pretrained(base, adapter)))
    made = model.generate(**tokenizer("w1 w2", return_tensors="pt"), max_new_tokens=3)
    assert made.shape[1] <= 5
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()


def test_what_an_adapter_lacks_is_read_from_the_recorded_commit_of_its_base(pushed: HubServer, cache: Path):
    folder = copy_to(fetch(REPO, cache_dir=cache).folder, cache / "without")
    for file in folder.glob("*token*"):
        file.unlink()
    recorded = pushed.repo(NEW).files()
    pushed.add(NEW, {"README.md": recorded["README.md"], "tokenizer.json": b"{}", "config.json": b"{}"})
    loading = {"device": "cpu", "cache_dir": cache}
    task = Task("t", "generation", lambda row, index: None, metric="exact_match")
    for load in (
        lambda: load_for_evaluation(folder, task, **loading),
        lambda: load_compatible(folder, cache_dir=cache),
    ):
        assert load()[1].get_vocab() == make_tokenizer().get_vocab()


def test_only_files_of_an_adapter_are_fetched(pushed: HubServer, cache: Path):
    changed(pushed, "evil.py", b"raise SystemExit", **{"adapter_model.bin": b"pickle", "training_args.bin": b"pickle"})
    load_compatible(REPO, cache_dir=cache)
    asked = {path.rsplit("/", 1)[-1] for method, path in pushed.requests if "/resolve/" in path}
    assert not asked & {"evil.py", "adapter_model.bin", "training_args.bin", "pytorch_model.bin"}
    assert not list(cache.rglob("*.bin")) + list(cache.rglob("*.py"))


def test_the_base_comes_from_the_recorded_commit(pushed: HubServer, cache: Path, tmp_path: Path):
    trained_on = pushed.repo(NEW).branches["main"]
    other = files_in(save_base(tmp_path / "moved", seed=9))
    pushed.add(NEW, other)
    model, _ = load_compatible(REPO, cache_dir=cache)
    fetched = [path for _, path in pushed.requests if f"/{NEW}/resolve/" in path and "model.safetensors" in path]
    assert fetched and all(trained_on in path for path in fetched)
    assert not torch.equal(
        model.get_base_model().lm_head.weight, AutoModelForCausalLM.from_pretrained(tmp_path / "moved").lm_head.weight
    )


def test_a_pinned_base_that_was_altered_here_is_no_match(pushed: HubServer, cache: Path):
    load_compatible(REPO, cache_dir=cache)
    (file,) = (cache / f"models--{NEW.replace('/', '--')}").glob("snapshots/*/model.safetensors")
    weights = {name: tensor + 1 for name, tensor in load_file(file).items()}
    save_file(weights, file.resolve(), {"format": "pt"})
    later = file.lstat().st_mtime + 3600
    os.utime(file, (later, later))
    with pytest.raises(MismatchError, match="content hash"):
        load_compatible(REPO, cache_dir=cache)


def test_a_revision_that_moves_between_resolving_and_downloading(pushed: HubServer, adapter: Path, cache: Path):
    wanted = pushed.repo(REPO).branches["main"]
    weights = {name: tensor + 1 for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(weights, adapter / "other.safetensors")
    replaced = (adapter / "other.safetensors").read_bytes()
    pushed.before("HEAD", f"/{REPO}/resolve/", lambda: changed(pushed, "adapter_model.safetensors", replaced))
    fetched = fetch(REPO, cache_dir=cache)
    assert pushed.repo(REPO).branches["main"] != wanted
    assert fetched.commit == wanted
    assert (fetched.folder / "adapter_model.safetensors").read_bytes() != replaced


@pytest.mark.parametrize("by", ["commit", "branch"])
def test_a_revision_can_be_named(pushed: HubServer, adapter: Path, cache: Path, by: str):
    first = pushed.repo(REPO).branches["main"]
    pushed.repo(REPO).branches["v1"] = first
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    publish(adapter, REPO, token=TOKEN)
    fetched = fetch(REPO, revision=first if by == "commit" else "v1", cache_dir=cache)
    assert fetched.commit == first != fetch(REPO, cache_dir=cache).commit
    assert not (fetched.folder / "chat_template.jinja").exists()
    with pytest.raises(HubError, match="404"):
        fetch(REPO, revision="missing", cache_dir=cache)


def test_without_network_the_cache_is_used(pushed: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    commit = fetch(REPO, cache_dir=cache).commit
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fetch(REPO, revision=commit, cache_dir=cache).commit == commit
    with pytest.raises(HubError, match="run the same again"):
        fetch(REPO, cache_dir=cache / "empty")


def test_offline_mode_uses_the_cache_and_asks_nobody(pushed: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    commit = fetch(REPO, cache_dir=cache).commit
    asked = len(pushed.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(REPO, revision=commit, cache_dir=cache).commit == commit
    with pytest.raises(HubError, match=r"offline|HF_HUB_OFFLINE"):
        fetch(REPO, cache_dir=cache / "empty")
    assert len(pushed.requests) == asked


def test_offline_mode_uses_a_model_of_the_cache(bases: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    expected = logits(load_task_model(NEW, CAUSAL_LM, cache_dir=cache))
    asked = len(bases.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(logits(load_task_model(NEW, CAUSAL_LM, cache_dir=cache)), expected)
    with pytest.raises(MuscleError, match=OLD):
        load_task_model(OLD, CAUSAL_LM, cache_dir=cache)
    assert len(bases.requests) == asked


@pytest.mark.parametrize("status", [None, 503])
def test_a_download_that_breaks_can_be_repeated(
    pushed: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch, status: int | None
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    pushed.fail("GET", r"/resolve/.*/adapter_model.safetensors", status, times=50)
    with pytest.raises(HubError, match="run the same again"):
        fetch(REPO, cache_dir=cache)
    pushed.faults.clear()
    assert fetch(REPO, cache_dir=cache).commit


def test_a_private_adapter_needs_its_owners_token(bases: HubServer, adapter: Path, cache: Path):
    publish(adapter, REPO, token=TOKEN, private=True)
    with pytest.raises(HubError, match=r"401|does not exist"):
        fetch(REPO, cache_dir=cache)
    assert fetch(REPO, cache_dir=cache, token=TOKEN).commit


def test_a_local_copy_of_the_base_is_recognised_by_its_content(
    pushed: HubServer, cache: Path, tmp_path: Path, base_files: dict[str, dict[str, bytes]]
):
    copies = {}
    for name, files in base_files.items():
        copies[name] = tmp_path / name
        copies[name].mkdir(parents=True)
        for path, raw in files.items():
            (copies[name] / path).write_bytes(raw)
    model, _ = load_compatible(REPO, base_model=copies[NEW], cache_dir=cache)
    assert isinstance(model, PeftModel)
    recorded = fetch(REPO, cache_dir=cache).provenance["new"]["base"]["sha256"]
    with pytest.raises(MismatchError, match=f"recorded {NEW} with content hash {recorded}, found .*[0-9a-f]{{64}}"):
        load_compatible(REPO, base_model=copies[OLD], cache_dir=cache)
    with pytest.warns(UserWarning, match="weights of the base: recorded"):
        load_compatible(REPO, base_model=copies[OLD], cache_dir=cache, allow_mismatch=True)
    # In another precision the files are compared.
    load_compatible(REPO, base_model=copies[NEW], cache_dir=cache, dtype=torch.bfloat16)
    with pytest.raises(MismatchError, match="content hash"):
        load_compatible(REPO, base_model=copies[OLD], cache_dir=cache, dtype=torch.bfloat16)


def test_another_size_of_base_is_refused(pushed: HubServer, cache: Path, tmp_path: Path):
    save_base(tmp_path / "wide", seed=1, hidden_size=32)
    with pytest.raises(MismatchError, match="trained for another base"):
        load_compatible(REPO, base_model=tmp_path / "wide", cache_dir=cache)


def test_another_architecture_is_refused(pushed: HubServer, cache: Path, tmp_path: Path):
    from transformers import MistralConfig, MistralForCausalLM

    folder = save_base(tmp_path / "other", seed=1)
    config = json.loads((folder / "config.json").read_text())
    kept = {key: config[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    mistral = MistralConfig(**kept, num_attention_heads=2, num_key_value_heads=1)
    MistralForCausalLM(mistral).save_pretrained(folder)
    with pytest.raises(MismatchError, match="architecture: recorded LlamaForCausalLM, found MistralForCausalLM"):
        load_compatible(REPO, base_model=folder, cache_dir=cache)


def test_another_tokenizer_is_refused(pushed: HubServer, cache: Path, tmp_path: Path):
    swapped = [*WORDS[:4], WORDS[5], WORDS[4], *WORDS[6:]]
    make_tokenizer(swapped).save_pretrained(tmp_path / "tokenizer")
    changed(pushed, "tokenizer.json", (tmp_path / "tokenizer" / "tokenizer.json").read_bytes())
    recorded = fetch(REPO, cache_dir=cache).provenance["tokenizer"]["sha256"]
    with pytest.raises(MismatchError, match=f"vocabulary: recorded 48 tokens with hash {recorded}, found 48 with"):
        load_compatible(REPO, cache_dir=cache)


def test_replaced_weights_are_refused(pushed: HubServer, adapter: Path, cache: Path):
    weights = {name: tensor + 1 for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(weights, adapter / "other.safetensors")
    changed(pushed, "adapter_model.safetensors", (adapter / "other.safetensors").read_bytes())
    with pytest.raises(MismatchError, match=r"recorded SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}"):
        fetch(REPO, cache_dir=cache)


def test_a_configuration_that_names_another_base_is_refused(pushed: HubServer, cache: Path):
    edited(pushed, "adapter_config.json", base_model_name_or_path=OLD)
    with pytest.raises(MismatchError, match=f"records {NEW}, adapter_config.json names {OLD}"):
        load_compatible(REPO, cache_dir=cache)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_compatible(REPO, cache_dir=cache, allow_mismatch=True)
    assert any("adapter_config.json names" in str(warning.message) for warning in caught)


def test_pickled_weights_are_refused(pushed: HubServer, cache: Path):
    changed(pushed, "adapter_model.safetensors", None, **{"adapter_model.bin": b"pickle"})
    with pytest.raises(MuscleError, match=r"adapter_model\.safetensors"):
        load_compatible(REPO, cache_dir=cache)
    assert not list(cache.rglob("adapter_model*"))


def test_a_base_with_pickled_weights_alone_is_refused(pushed: HubServer, cache: Path, tmp_path: Path):
    folder = save_base(tmp_path / "pickled", seed=1)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(MuscleError, match="cannot be loaded"):
        load_compatible(REPO, base_model=folder, cache_dir=cache)


def test_a_plain_adapter_is_told_apart(pushed: HubServer, cache: Path):
    changed(pushed, "muscle_provenance.json", None)
    with pytest.raises(MuscleError, match=r"no muscle_provenance.json: it is no compatibility adapter"):
        load_compatible(REPO, cache_dir=cache)


@pytest.mark.parametrize(
    "name",
    [
        "../../outside.json",
        "/etc/cron.d/x",
        "a/../../../x.json",
        "..\\..\\x.json",
        "card_/../../../x.svg",
    ],
)
def test_files_whose_names_lead_out_of_the_folder_are_not_fetched(pushed: HubServer, cache: Path, name: str):
    changed(pushed, name, b"hostile")
    with contextlib.suppress(HubError, ValueError):
        fetch(REPO, cache_dir=cache)
    assert not any(path.read_bytes() == b"hostile" for path in cache.parent.rglob("*") if path.is_file())


def test_an_import_in_the_configuration_is_refused(pushed: HubServer, cache: Path):
    edited(pushed, "adapter_config.json", megatron_config={"x": 1}, megatron_core="antigravity")
    with pytest.raises(MuscleError, match="asks for a module to be imported"):
        load_compatible(REPO, cache_dir=cache)


def test_code_in_a_base_is_not_run(pushed: HubServer, cache: Path, tmp_path: Path):
    folder = save_base(tmp_path / "coded", seed=1)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(MuscleError):
        load_compatible(REPO, base_model=folder, cache_dir=cache)
    assert not (tmp_path / "ran").exists()


def test_trust_remote_code_cannot_be_asked_for(pushed: HubServer, cache: Path):
    with pytest.raises(MuscleError, match="trust_remote_code"):
        load_compatible(REPO, cache_dir=cache, trust_remote_code=True)


def test_a_folder_called_like_the_base_is_not_taken_for_it(
    pushed: HubServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / NEW).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MuscleError, match="a folder here is called like the recorded base"):
        load_compatible(REPO, cache_dir=cache)


def test_a_recorded_base_that_is_a_path_is_refused(pushed: HubServer, cache: Path, tmp_path: Path):
    provenance = json.loads(pushed.repo(REPO).files()["muscle_provenance.json"])
    provenance["new"]["base"]["name"] = "../../somewhere"
    changed(pushed, "muscle_provenance.json", json.dumps(provenance).encode())
    with pytest.raises(MuscleError, match="no repository's id"):
        load_compatible(REPO, cache_dir=cache)


def test_a_local_base_must_be_named(pushed: HubServer, cache: Path):
    provenance = json.loads(pushed.repo(REPO).files()["muscle_provenance.json"])
    provenance["new"]["base"].update(name="base-v2", revision=None, on_hub=False)
    changed(pushed, "muscle_provenance.json", json.dumps(provenance).encode())
    with pytest.raises(MuscleError, match=r"local copy of the base 'base-v2'.*base_model="):
        load_compatible(REPO, cache_dir=cache)


def test_a_saved_folder_is_loaded_like_a_repository(bases: HubServer, adapter: Path):
    model, _ = load_compatible(adapter)
    assert isinstance(model, PeftModel)


def test_plain_peft_and_its_auto_class_load_it(pushed: HubServer, adapter: Path):
    expected = logits(load_compatible(REPO)[0])
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(REPO).eval()), expected)
    base = AutoModelForCausalLM.from_pretrained(NEW)
    assert torch.equal(logits(PeftModel.from_pretrained(base, REPO).eval()), expected)
    merged = load_compatible(REPO)[0].merge_and_unload()
    assert torch.allclose(logits(merged), expected, atol=1e-5)


@pytest.mark.parametrize("missing", ["nobody/nothing", "not a name", "a/b/c"])
def test_what_is_not_there(bases: HubServer, cache: Path, missing: str):
    with pytest.raises(MuscleError, match=r"nobody/nothing|neither a folder"):
        load_compatible(missing, cache_dir=cache)


@pytest.mark.parametrize("damage", [b"{", b"[1]", b'{"format": 1}', b'{"format": 1, "old": {"base": 3}}', b"\xff\xfe"])
def test_a_damaged_provenance_is_told(pushed: HubServer, cache: Path, damage: bytes):
    changed(pushed, "muscle_provenance.json", damage)
    with pytest.raises(MuscleError, match=r"muscle_provenance.json"):
        fetch(REPO, cache_dir=cache)


def test_a_fetched_adapter_can_be_copied(pushed: HubServer, cache: Path, tmp_path: Path):
    fetched = fetch(REPO, cache_dir=cache)
    target = copy_to(fetched.folder, tmp_path / "mine")
    assert files_in(target) == files_in(fetched.folder)
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(MuscleError, match=r"thesis.tex"):
        copy_to(fetched.folder, target)
    shutil.rmtree(target)


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_whatever_loads_an_adapter_holds_it_against_its_provenance(
    pushed: HubServer, adapter: Path, where: str, monkeypatch: pytest.MonkeyPatch, cache: Path
):
    weights = load_file(adapter / "adapter_model.safetensors")
    altered = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(altered, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    changed(pushed, "adapter_model.safetensors", (adapter / "adapter_model.safetensors").read_bytes())
    name = str(adapter) if where == "folder" else REPO
    task = Task("any", "generation", lambda row, index: row, metric="exact_match")
    with pytest.raises(MismatchError):
        load_for_evaluation(name, task, cache_dir=cache)
    with pytest.raises(MismatchError):
        load_task_model(name, CAUSAL_LM, cache_dir=cache)
    if where == "folder":  # a plain adapter has no provenance, and nothing to be held against
        (adapter / "muscle_provenance.json").unlink()
        load_for_evaluation(name, task, cache_dir=cache)


def test_a_branch_is_no_pin(pushed: HubServer, cache: Path, tmp_path: Path):
    recorded = json.loads(pushed.repo(REPO).files()["muscle_provenance.json"])
    recorded["new"]["base"]["revision"] = "main"
    config = json.loads(pushed.repo(REPO).files()["adapter_config.json"])
    config = json.dumps({**config, "revision": "main"}).encode()
    changed(pushed, "muscle_provenance.json", json.dumps(recorded).encode(), **{"adapter_config.json": config})
    load_compatible(REPO, cache_dir=cache)
    pushed.add(NEW, files_in(save_base(tmp_path / "moved", 9)))
    with pytest.raises(MismatchError):
        load_compatible(REPO, cache_dir=cache)
