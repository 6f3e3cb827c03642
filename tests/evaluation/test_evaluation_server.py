"""A served model as the one that answers: a real ``transformers serve``, and a server that misbehaves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from itertools import pairwise

import pytest
from evaluation_models import make_choice_task, make_generation_task, make_model, make_tokenizer
from loopback import Scripted, serving

from muscle_hf.cli.main import main
from muscle_hf.errors import MissingDependencyError, MuscleError
from muscle_hf.evaluation import Server, evaluate_task, evaluate_task_on_server, read_predictions

GENERATION = make_generation_task(5)


@pytest.fixture
def scripted():
    with serving({"small": make_model()}, make_tokenizer()) as url:
        yield Server(url, "small", retries=3, concurrency=2, api_key="secret-key")


def test_choices_agree_with_the_model_itself(scripted):
    task, items = make_choice_task(6)
    items.append(replace(items[0], id="spaces", prompt=items[0].prompt + " ", choices=("late", "sent back")))
    served = evaluate_task_on_server(scripted, task, items, progress=False)
    local = evaluate_task(Scripted.models["small"], Scripted.tokenizer, task, items, progress=False)
    for a, b in zip(served, local, strict=True):
        assert a.log_likelihoods == pytest.approx(b.log_likelihoods, abs=1e-3)
        assert replace(a, log_likelihoods=b.log_likelihoods) == b
    exact = evaluate_task_on_server(replace(scripted, tokenizer=Scripted.tokenizer), task, items, progress=False)
    assert exact == served
    split = [replace(items[0], choices=(" \N{SNOWMAN}", " a"))]
    with pytest.raises(MuscleError, match="pass the model's tokenizer"):
        evaluate_task_on_server(scripted, task, split, progress=False)
    counted = evaluate_task_on_server(replace(scripted, tokenizer=Scripted.tokenizer), task, split, progress=False)
    own = evaluate_task(Scripted.models["small"], Scripted.tokenizer, task, split, progress=False)
    assert counted[0].log_likelihoods == pytest.approx(own[0].log_likelihoods, abs=1e-3)
    assert {key for *_, key in Scripted.requests} == {"Bearer secret-key"} and "secret-key" not in repr(scripted)


@pytest.mark.parametrize("twist", ["prefix", "cut"])
def test_a_server_that_reads_another_text_does_not_score_choices(twist):
    task, items = make_choice_task(2)
    with (
        serving({"small": make_model()}, make_tokenizer(), twist=twist) as url,
        pytest.raises(MuscleError, match="another text"),
    ):
        evaluate_task_on_server(Server(url, "small", tokenizer=make_tokenizer()), task, items, progress=False)


def test_broken_connections_and_busy_servers_are_retried(scripted):
    Scripted.mishaps += ["drop", (503, {}, "loading"), "half", (429, {"Retry-After": "1"}, "slow down")]
    task, items = GENERATION
    found = evaluate_task_on_server(scripted, task, items, progress=False)
    assert [p.prediction for p in found] == [f"answer to {len(item.prompt)}." for item in items]
    assert len(Scripted.requests) == len(items) + 4


def test_rate_limits_hold_back_all_requests(scripted):
    Scripted.mishaps += [(429, {"Retry-After": "1.0"}, "slow down")] * 2
    evaluate_task_on_server(scripted, *GENERATION, progress=False)
    times = sorted(moment for moment, *_ in Scripted.requests)
    # Two requests are under way when the server asks for a second of peace; then there is one.
    assert max(later - sooner for sooner, later in pairwise(times)) > 0.9
    assert len([moment for moment in times if moment - times[0] < 0.9]) <= 3


@pytest.mark.parametrize(
    ("mishaps", "message"),
    [([(404, {}, "no such model")], "no such model"), (["drop"] * 4 * 5, "still fails after 1 retries")],
)
def test_what_cannot_work_is_said(scripted, mishaps, message):
    Scripted.mishaps += mishaps
    with pytest.raises(MuscleError, match=message):
        evaluate_task_on_server(replace(scripted, retries=1), *GENERATION, progress=False)


def test_an_interrupted_run_goes_on(scripted, tmp_path):
    task, items = GENERATION
    partial = tmp_path / "answers.partial"
    one = replace(scripted, concurrency=1, retries=0)
    Scripted.mishaps += [None, None, (400, {}, "crash")]
    with pytest.raises(MuscleError, match="crash"):
        evaluate_task_on_server(one, task, items, partial=partial, progress=False)
    assert 2 <= partial.read_text().count("answer to") < 5
    before = partial.read_text().count("answer to")
    with partial.open("a") as file:
        file.write('{"id": "3", "ha')
    Scripted.requests.clear()
    found = evaluate_task_on_server(one, task, items, partial=partial, progress=False)
    assert [p.prediction for p in found] == [f"answer to {len(item.prompt)}." for item in items]
    assert len(Scripted.requests) == len(items) - before
    with pytest.raises(MuscleError, match="another run"):
        evaluate_task_on_server(replace(one, model="other"), task, items, partial=partial, progress=False)
    changed = [replace(items[0], prompt="another prompt"), *items[1:]]
    Scripted.requests.clear()
    evaluate_task_on_server(one, task, changed, partial=partial, progress=False)
    assert [body["prompt"] for _, _, body, _ in Scripted.requests] == ["another prompt"]


def test_tasks_that_a_server_cannot_answer(scripted):
    task, items = GENERATION
    with pytest.raises(MuscleError, match="repeated 2-grams"):
        evaluate_task_on_server(scripted, replace(task, no_repeat_ngram_size=2), items)
    with pytest.raises(MuscleError, match="need the model itself"):
        classes = [replace(item, answers=(0,)) for item in items]
        evaluate_task_on_server(scripted, replace(task, kind="classification", metric="acc"), classes)
    with pytest.raises(MuscleError, match="http://"):
        evaluate_task_on_server(replace(scripted, url="localhost:8000"), task, items)
    assert not Scripted.requests


def test_the_client_is_an_extra(scripted, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match="openai"):
        evaluate_task_on_server(scripted, *GENERATION, progress=False)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A real ``transformers serve`` on loopback with the small model."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("served")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--port", str(port)]
    log = (folder / "log").open("wb")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--device", "cpu"], stdout=log, stderr=log, env=environment
    )
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
            break
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
    yield folder, Server(f"http://127.0.0.1:{port}/v1", str(folder), retries=2, concurrency=2)
    process.terminate()
    process.wait(timeout=30)
    log.close()


@pytest.mark.slow
def test_a_real_server_answers_as_the_model_does(served, tmp_path, capsys):
    folder, server = served
    task, items = make_generation_task(4, max_new_tokens=8, stop=("zz", "\n"))
    local = evaluate_task(make_model(), make_tokenizer(), task, items, progress=False)
    assert evaluate_task_on_server(server, task, items, progress=False) == local
    assert evaluate_task_on_server(server, task, items, chat=True, progress=False) == local

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": i.prompt, "answer": i.target}) + "\n" for i in items))
    definition = tmp_path / "words.yaml"
    definition.write_text(
        "kind: generation\nprompt: '{text}'\nreference: answer\nmax_new_tokens: 8\nno_repeat_ngram_size: 2\n"
    )
    arguments = ["--task", str(definition), "--data", str(rows), "--quiet"]
    option = 'generation_config={"no_repeat_ngram_size": 2, "max_new_tokens": 8, "do_sample": false}'
    words = ["evaluate", str(folder), "--server", server.url, *arguments, "--output", str(tmp_path / "served.jsonl")]
    assert main(words) == 2
    assert "repeated 2-grams" in capsys.readouterr().err
    assert main([*words, "--server-option", f"generation_config={json.dumps(option.partition('=')[2])}"]) == 0
    assert main(["evaluate", str(folder), *arguments, "--output", str(tmp_path / "local.jsonl")]) == 0
    # What a server's model is by its hashes is not known.
    assert read_predictions(tmp_path / "served.jsonl") == [
        replace(prediction, origin=None) for prediction in read_predictions(tmp_path / "local.jsonl")
    ]
    assert not (tmp_path / "served.jsonl.partial").exists()


@pytest.mark.slow
def test_choices_need_log_probabilities_of_the_prompt(served):
    with pytest.raises(MuscleError, match="serve the model with vLLM"):
        evaluate_task_on_server(served[1], *make_choice_task(1), progress=False)
