"""v1 behind a server as a teacher: what it says is that of the model itself, asked for once, and kept."""

from __future__ import annotations

import builders
import pytest
import torch
from evaluation_models import TEXT, make_tokenizer
from loopback import Scripted, serving

from muscle_hf import MuscleError
from muscle_hf.cache import TopTokens
from muscle_hf.pipeline.caching import cache_teachers
from muscle_hf.served.logprobs import ServedModel
from muscle_hf.served.server import Server
from muscle_hf.served.teacher import ServedTeacher, texts_of
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.kinds import CAUSAL_LM, SEQUENCE_CLASSIFICATION
from muscle_hf.training.data import encode_answers

KEY = "sk-very-secret"


@pytest.fixture(scope="module")
def old():
    return builders.with_lora(builders.llama(1), 10).eval()


@pytest.fixture(scope="module")
def words():
    return builders.tokenizer()


def trainer(folder, old_model, words, **settings):
    settings = {"mask": "mean", "max_steps": 4, "train_dataset": builders.rows(ignore=0), **settings}
    if isinstance(old_model, str):
        kwargs = {"model": "v1", "top_k": 20, "retries": 1, "api_key": KEY, **settings.pop("kwargs", {})}
        settings["old_model_kwargs"] = kwargs
    student = builders.with_lora(builders.llama(2), 20)
    return builders.trainer(folder, student, old_model, processing_class=words, **settings)


def figures(done) -> dict[str, float]:
    return {name: value for name, value in done.evaluate().items() if builders.is_figure(name)}


def test_with_every_token_a_run_is_that_with_the_model_itself(old, words, tmp_path):
    more = {"eval_dataset": builders.rows(4, 5)}
    local = trainer(tmp_path / "local", builders.with_lora(builders.llama(1), 10), words, **more)
    local.train()
    expected = figures(local)
    more |= {"teacher_cache": str(tmp_path / "cache"), "kwargs": {"top_k": builders.VOCABULARY}}
    with serving({"v1": old}, words, greedy=True) as url:
        runs = [trainer(tmp_path / "served", url, words, **more)]
        runs[0].train()
        figures(runs[0])
        # Each row once, and what a server is looked at by.
        assert len(Scripted.requests) == 8 + 4 + 2
        assert {key for *_, key in Scripted.requests} == {f"Bearer {KEY}"}
    # Elsewhere, and not even running.
    runs.append(trainer(tmp_path / "again", "http://127.0.0.1:9/v1", words, **more))
    runs[1].train()
    runs[1].save_model()
    for run in runs:
        assert figures(run) == pytest.approx(expected, rel=1e-3, abs=1e-6)
        for name, weight in dict(local.model.named_parameters()).items():
            torch.testing.assert_close(run.model.get_parameter(name), weight, rtol=1e-3, atol=2e-4)
    assert runs[1].provenance.old["base"]["name"] == "v1"
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert KEY.encode() not in content and b"127.0.0.1" not in content, file


def test_what_it_says_of_whole_answers_is_kept_with_it(old, words, tmp_path):
    more = {"teacher_cache": str(tmp_path / "cache"), "old_targets": "answer"}
    with serving({"v1": old}, words, greedy=True) as url:
        trainer(tmp_path / "served", url, words, **more).train()
    trainer(tmp_path / "again", "http://127.0.0.1:9/v1", words, **more).train()


@pytest.mark.parametrize("ways", ["prompt_logprobs", "echo", "generated"])
@pytest.mark.parametrize("rows", ["right", "left", "packed", "transfer"])
def test_what_is_kept_is_what_the_model_says(rows, ways, old, words, tmp_path):
    batch = {name: tensor.clone() for name, tensor in builders.collate(builders.rows(5, ignore=1)).items()}
    if rows == "left":
        count = batch["attention_mask"].sum(dim=1)
        for row, moved in enumerate((batch["input_ids"].size(1) - count).tolist()):
            for tensor in batch.values():
                tensor[row] = tensor[row].roll(moved)
    if rows == "packed":
        kept = batch.pop("attention_mask").bool()
        positions = (kept.cumsum(dim=1) - 1)[kept]
        batch = {name: tensor[kept].unsqueeze(0) for name, tensor in batch.items()} | {"position_ids": positions[None]}
        batch["labels"] = batch["labels"].masked_fill(positions[None] == 0, -100)
    labels = CAUSAL_LM.trained_labels(batch["labels"])
    if rows == "transfer":
        labels = torch.where(labels == -100, labels, 0)
    whole = Batch(batch, labels, CAUSAL_LM)
    with torch.no_grad():
        expected = TopTokens(5, 1.0, builders.VOCABULARY).of(whole.of_trained(old(**batch, use_cache=False).logits))
    with serving({"v1": old}, words, greedy=True, ways=frozenset({ways})) as url:
        teacher = ServedTeacher("old", Server(url, "v1", retries=1), 5, tmp_path, builders.VOCABULARY)
        teacher.place(None, words)
        none = torch.zeros(len(whole), dtype=torch.bool)
        assert not teacher.states(whole, none).any() and not Scripted.requests
        torch.testing.assert_close(teacher.states(whole.trimmed()), expected, rtol=1e-4, atol=1e-4)
        asked = len(Scripted.requests)
        torch.testing.assert_close(teacher.states(whole), expected, rtol=1e-4, atol=1e-4)
        assert len(Scripted.requests) == asked
        if ways == "generated":
            with pytest.raises(MuscleError, match="old_targets"):
                teacher.log_likelihoods(whole, ~none)
            return
        # The text's own tokens have their log-probabilities too, whether they are among the likeliest or not.
        ids = builders.rows(1, 7)[0]["input_ids"]
        found = ServedModel(teacher.model_there.server, 2, builders.VOCABULARY).along(ids, places=[1, 3])
        with torch.no_grad():
            scores = old(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        own = torch.stack([scores[0, ids[1]], scores[2, ids[3]]])
        torch.testing.assert_close(found.own, own, rtol=1e-4, atol=1e-4)
        rest = (1 - found.top.exp().sum(-1)).log()
        torch.testing.assert_close(found.rest, rest, rtol=1e-4, atol=1e-4)


def test_an_interrupted_run_goes_on_where_it_was(old, words, tmp_path):
    more = {"teacher_cache": str(tmp_path / "cache"), "kwargs": {"concurrency": 1, "retries": 0}}
    with serving({"v1": old}, words, greedy=True) as url:
        run = trainer(tmp_path / "1", url, words, **more)
        seen = len(Scripted.requests)
        Scripted.mishaps += [None, None, None, "drop"]
        with pytest.raises(MuscleError, match="still fails"):
            cache_teachers(run, tmp_path / "cache")
        again = trainer(tmp_path / "2", url, words, **more)
        before = len(Scripted.requests)
        assert before == seen + 4
        cached = cache_teachers(again, tmp_path / "cache")["old"]
        # Five rows are left, and the server is looked at once more.
        assert len(Scripted.requests) - before == 5 + 2
        assert (cached.rows, cached.computed) == (8, 5)
        # Broken connections and busy servers are another matter.
        Scripted.mishaps += ["drop", (503, {}, "busy"), "half"]
        patient = trainer(tmp_path / "3", url, words, kwargs={"retries": 4}, teacher_cache=str(tmp_path / "other"))
        assert cache_teachers(patient, tmp_path / "other")["old"].computed == 8


@pytest.mark.parametrize(
    "how",
    [{"twist": twist} for twist in ("prefix", "cut", "normalised", "logits", "biased")]
    + [{"ways": frozenset()}, {"most": 19}]
    + [{"ways": frozenset({way}), "twist": "prefix"} for way in ("echo", "generated")],
    ids=lambda how: "-".join(map(str, how.values())),
)
def test_servers_whose_log_probabilities_are_not_the_models_are_refused_before_training(how, old, words, tmp_path):
    with serving({"v1": old}, words, greedy=True, **how) as url, pytest.raises(MuscleError) as refused:
        trainer(tmp_path, url, words)
    assert KEY not in str(refused.value)


def test_a_served_v1_with_other_tokens_is_followed_by_its_likelihoods_of_answers(tmp_path):
    own, others, model = make_tokenizer(size=330), make_tokenizer(size=270), builders.llama_of_tokens
    pairs = [(f"{text}\nIt is about", f" {text.split()[-1]}") for text in TEXT]
    rows = encode_answers(own, pairs, answers_only=True)
    old = model(1, 270).eval()
    same = {"processing_class": own, "old_processing_class": others, "train_dataset": rows, "mask": "mean"}
    same |= {"max_steps": 4, "old_targets": "answer", "teacher_cache": str(tmp_path / "cache")}
    local = builders.trainer(tmp_path / "local", model(2, 330), model(1, 270), **same)
    local.train()
    with serving({"v1": old}, others, greedy=True) as url:
        same["old_model_kwargs"] = {"model": "v1", "top_k": 2, "retries": 0}
        served = builders.trainer(tmp_path / "served", model(2, 330), url, **same)
        cached = cache_teachers(served, tmp_path / "cache")["old"]
        assert (cached.rows, cached.computed) == (4, 4)
        before = len(Scripted.requests)
        served.train()
        assert len(Scripted.requests) == before
        # Token by token, as far as k reaches: with all tokens, what v1 in memory says.
        by_tokens = {**same, "old_targets": "tokens"}
        losses = {}
        for k in (1, 20, 270):
            by_tokens["old_model_kwargs"] = {"model": "v1", "top_k": k, "retries": 0}
            made = builders.trainer(tmp_path / "tokens", model(2, 330), url, **by_tokens)
            losses[k] = made.compute_loss(made.model, builders.collate(rows)).item()
        del by_tokens["old_model_kwargs"]
        made = builders.trainer(tmp_path / "tokens", model(2, 330), model(1, 270), **by_tokens)
        expected = made.compute_loss(made.model, builders.collate(rows)).item()
        assert losses[270] == pytest.approx(expected, rel=1e-3)
        assert losses[1] < losses[20] < expected
    assert served.old_targets == "answer"
    for name, weight in dict(local.model.named_parameters()).items():
        torch.testing.assert_close(served.model.get_parameter(name), weight, rtol=1e-3, atol=2e-4)


def test_answers_that_differ_in_their_last_token_have_numbers_of_their_own(old, words, tmp_path):
    ids = torch.tensor([builders.rows(1, 3)[0]["input_ids"][:5]] * 2)
    ids[1, -1] = (ids[0, -1] + 1) % builders.VOCABULARY
    labels = torch.full_like(ids, -100)
    labels[:, -2:] = torch.cat([ids[:, -1:], torch.full((2, 1), -100)], dim=1)
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels, CAUSAL_LM)
    with torch.no_grad():
        scores = old(input_ids=ids[:1]).logits[0, -2].log_softmax(-1)
    with serving({"v1": old}, words, greedy=True) as url:
        teacher = ServedTeacher("old", Server(url, "v1", retries=1), 5, tmp_path, builders.VOCABULARY)
        teacher.place(None, words)
        for _ in range(2):
            found = teacher.log_likelihoods(batch, torch.ones(2, dtype=torch.bool))
            torch.testing.assert_close(found, scores[ids[:, -1]], rtol=1e-4, atol=1e-4)


def test_another_model_under_the_same_name_is_noticed(old, words, tmp_path):
    more = {"teacher_cache": str(tmp_path / "cache")}
    with serving({"v1": old}, words, greedy=True) as url:
        trainer(tmp_path / "1", url, words, **more).train()
    with serving({"v1": builders.llama(3).eval()}, words, greedy=True) as url:
        run = trainer(tmp_path / "2", url, words, train_dataset=builders.rows(8, 9, ignore=0), **more)
        with pytest.raises(MuscleError, match="another model"):
            run.train()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mask": "old_right"}, "masks that read"),
        ({"divergence": "logit_difference"}, "logit_difference"),
        ({"calibrate_teachers": True, "eval_dataset": builders.rows(2)}, "calibrate_teachers"),
        ({"kwargs": {"model": None}}, "model"),
        ({"kwargs": {"revision": "main"}}, "revision"),
        ({"kwargs": {"top_k": 49}}, "49"),
        ({"kwargs": {"model": "v3"}}, "v3"),
        ({"old_processing_class": builders.tokenizer([f"w{(i + 9) % 48}" for i in range(48)])}, "another tokenizer"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_a_server_cannot_be_asked_for(settings, says, old, words, tmp_path):
    with serving({"v1": old}, words, greedy=True) as url, pytest.raises(MuscleError, match=says):
        trainer(tmp_path, url, words, **settings)


def test_rows_that_are_no_texts_are_refused():
    labels = torch.tensor([[1, -100]])
    inputs = {"input_ids": torch.tensor([[3, 4]]), "labels": labels}
    with pytest.raises(MuscleError, match="pixel_values"):
        texts_of(Batch({**inputs, "pixel_values": torch.zeros(1, 3, 2, 2)}, labels, CAUSAL_LM))
    with pytest.raises(MuscleError, match="sequence classification"):
        texts_of(Batch(inputs, torch.tensor([[1]]), SEQUENCE_CLASSIFICATION))
