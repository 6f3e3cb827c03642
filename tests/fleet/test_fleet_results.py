"""Results of a fleet at a URL of fsspec: the machine's memory, and a Hub on loopback by the real client."""

from __future__ import annotations

import fsspec
import pytest
from fleet_world import content, entry, rows_in, written
from hub_server import TOKEN, USER, Blob, HubServer, Repo

from muscle_hf.errors import MuscleError
from muscle_hf.fleet import results
from muscle_hf.fleet.lock import LOCK_FILE
from muscle_hf.fleet.results import fetch, leave
from muscle_hf.fleet.run import PAGE_FILE, run_fleet, status_of
from muscle_hf.fleet.settings import load_fleet


@pytest.fixture
def repository(hub: HubServer, monkeypatch) -> Repo:
    """An empty one on the Hub, whose owner is logged in."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    repo = hub.repos["model", f"{USER}/fleet"] = Repo(f"{USER}/fleet")
    repo.commit({".gitattributes": Blob(b"", False)})
    return repo


@pytest.fixture(params=["memory", "hf"])
def url(request, repository) -> str:
    """A place that keeps nothing yet."""
    if request.param == "hf":
        return f"hf://{repository.id}/v2/mail"
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/v2/mail"


def files_of(folder) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_only_what_is_new_travels_and_every_machine_sees_the_last(url, tmp_path, monkeypatch):
    one, two, sent = tmp_path / "one", tmp_path / "two", []
    put = results.put
    monkeypatch.setattr(results, "put", lambda *what: (sent.append(sorted(what[2])), put(*what)))
    fetch(url, one)
    assert not one.exists()
    for name in ("old/adapter.bin", "old/checkpoint-3/state", ".lock", "note"):
        (one / name).parent.mkdir(parents=True, exist_ok=True)
        (one / name).write_text(name)
    (tmp_path / "of mine").write_text("a secret")
    (one / "link").symlink_to(tmp_path / "of mine")
    leave(url, one)
    leave(url, one)
    assert sent == [["note", "old/adapter.bin"]]
    fetch(url, two)
    del (kept := files_of(two))[results._NOTE]
    assert kept == {"note": "note", "old/adapter.bin": "old/adapter.bin"}
    leave(url, two)
    (two / "note").write_text("NOTE")
    leave(url, two)
    assert sent[1:] == [["note"]]
    # What is ahead of the URL stays, and what has changed there comes.
    (one / "old" / "adapter.bin").write_text("trained again")
    fetch(url, one)
    assert (one / "old" / "adapter.bin").read_text() == "trained again" and (one / "note").read_text() == "NOTE"


def test_a_step_is_one_commit(repository, tmp_path):
    for name in ("a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    leave(f"hf://{repository.id}/v2/mail", tmp_path)
    assert len(repository.titles) == 2
    assert {"v2/mail/a", "v2/mail/b/c"} <= repository.files().keys()


def test_a_place_that_is_not_there_is_told_before_anything_is_run(hub, tmp_path):
    settings = content(tmp_path / "v2", entry(rows_in(tmp_path / "rows"), "mail"), results=f"hf://{USER}/none")
    with pytest.raises(MuscleError, match="none"):
        run_fleet(load_fleet(written(tmp_path / "fleet.yaml", settings)), say=lambda text: None)
    assert not (tmp_path / "v2" / "mail").exists()


@pytest.mark.slow
def test_another_machine_goes_on_where_the_first_one_was_lost(repository, tmp_path):
    rows = rows_in(tmp_path / "rows")
    settings = content(tmp_path / "v2", entry(rows, "mail"), entry(rows, "chat", 12), results=f"hf://{repository.id}")
    file = written(tmp_path / "fleet.yaml", settings)
    run_fleet(load_fleet(file), ["mail"], say=lambda text: None)
    there = repository.files()
    assert {PAGE_FILE, LOCK_FILE, "mail/muscle/adapter_model.safetensors", "mail/report.html"} <= there.keys()
    said: list[str] = []
    second = load_fleet(file, ["--output_dir", str(tmp_path / "elsewhere")])
    run_fleet(second, ["mail"], said.append)
    assert status_of(second.tasks[0]) == ("done", "") and sum("done before" in line for line in said) == 3
    run_fleet(second, ["chat"], lambda text: None)
    assert b'"mail"' in repository.files()[LOCK_FILE] and b'"chat"' in repository.files()[LOCK_FILE]
    assert (
        repository.files()["mail/muscle/adapter_model.safetensors"] == there["mail/muscle/adapter_model.safetensors"]
    )
