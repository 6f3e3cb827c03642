"""The dial: exact mixtures of two adapters, measured, chosen, saved and loaded by plain PEFT."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import builders
import pytest
import torch
from chromium import Chromium, find_chromium
from peft import LoraConfig, PeftModel, get_peft_model
from report_documents import HOSTILE
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from muscle_hf import MuscleError, load_compatible
from muscle_hf.cli.main import main
from muscle_hf.dial import Dial, DialPath, DialPoint, LoraAdapter, check_points, choose, interpolate, walk
from muscle_hf.evaluation import Item, Task, evaluate_task, read_predictions, write_predictions
from muscle_hf.hub.serving import serving_problems
from muscle_hf.metrics import Estimate, flip_metrics
from muscle_hf.report import dial as report

DOCUMENT = Path(__file__).parents[1] / "docs" / "dial.md"
WORDS = [f"w{index}" for index in range(builders.VOCABULARY)]


def task_item(row: dict, index: int) -> Item:
    return Item(str(index), row["text"], choices=(" w3", " w4", " w5"), answers=(row["answer"],))


TASK = Task("tiny", "choice", task_item)
ITEMS = [task_item({"text": f"w{6 + i % 40} w{9 + 3 * i % 31}", "answer": i % 3}, i) for i in range(40)]


def two_adapters(base: nn.Module, compat: dict | None = None, **new: object) -> PeftModel:
    """A base with the random adapters ``new`` and ``compat`` on it."""
    model = builders.with_lora(base, 20, "new", **new)
    torch.manual_seed(21)
    config = {**model.peft_config["new"].to_dict(), **(compat or {})}
    config = {name: config[name] for name in LoraConfig.__dataclass_fields__ if name in config}
    config.pop("runtime_config", None)
    model.add_adapter("compat", LoraConfig(**config))
    if model.peft_config["new"].modules_to_save:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save.compat" in name:
                    parameter.add_(torch.randn_like(parameter))
    return model


def ends(model: PeftModel) -> tuple[LoraAdapter, LoraAdapter]:
    return LoraAdapter.of(model, "new"), LoraAdapter.of(model, "compat")


def layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")]


def batch() -> torch.Tensor:
    return torch.arange(24).reshape(2, 12) % builders.VOCABULARY


# ---- Exactness ----

DIFFERENT = {
    "ranks and alphas": {"r": 6, "lora_alpha": 5},
    "rslora": {"r": 9, "use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "v_proj": 7}, "alpha_pattern": {"q_proj": 3, r"layers\.0\.mlp.*": 11}},
    "other layers": {"target_modules": ["q_proj", "embed_tokens"]},
    "one of the layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0]},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("t", [0.3, 0.5, -0.5, 1.25])
@pytest.mark.parametrize("compat", DIFFERENT.values(), ids=list(DIFFERENT))
def test_the_delta_is_the_mixture_of_both(compat: dict, t: float, dtype: torch.dtype):
    model = two_adapters(builders.llama(2).to(dtype), {**compat})
    new, other = ends(model)
    point = interpolate(new, other, t)
    for name in layers(model):
        mixture = sum(
            weight * model.get_submodule(f"base_model.model.{name}").get_delta_weight(adapter).double()
            for adapter, weight in (("new", 1 - t), ("compat", t))
            if adapter in model.get_submodule(f"base_model.model.{name}").scaling
        )
        delta = point.delta(name)
        delta = delta.T if "embed" in name and delta.shape != mixture.shape else delta
        error = (delta - mixture).abs().max() / mixture.abs().max()
        assert error < (1e-14 if dtype == torch.float64 else 1e-6), name
    assert set(point.weights) == set(new.weights) | set(other.weights)


@pytest.mark.parametrize("compat", DIFFERENT.values(), ids=list(DIFFERENT))
def test_a_point_needs_no_patterns_and_is_served(compat: dict):
    model = two_adapters(builders.llama(2), compat)
    point = interpolate(*ends(model), 0.4)
    config = point.config
    assert (config.lora_alpha, config.rank_pattern, config.alpha_pattern) == (config.r, {}, {})
    assert not config.use_rslora and serving_problems(config.to_dict()) == []
    ranks = {tensor.shape[0] for key, tensor in point.weights.items() if "lora_A" in key or "embedding_A" in key}
    assert ranks == {config.r}


def test_the_delta_is_not_that_of_interpolated_factors():
    """What a tempting shortcut gives is another model: the test would notice it."""
    model = two_adapters(builders.llama(2))
    new, other = ends(model)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = ((new.weights[f"{name}.lora_{x}.weight"] + other.weights[f"{name}.lora_{x}.weight"]) / 2 for x in "AB")
    exact = interpolate(new, other, 0.5).delta(name.removeprefix("base_model.model."))
    assert (2 * (b @ a).double() - exact).abs().max() > 0.1 * exact.abs().max()


@pytest.mark.parametrize("t", [0, 1])
def test_the_ends_are_the_adapters_themselves(t: int):
    sides = ends(two_adapters(builders.llama(2), {"r": 6}))
    point = interpolate(*sides, t)
    assert point.config.r == (4, 6)[t]
    assert all(torch.equal(point.weights[key], tensor) for key, tensor in sides[t].weights.items())


def test_half_precision_adapters_give_a_float32_point():
    new, other = ends(two_adapters(builders.llama(2)))
    halves = [
        LoraAdapter(side.config, {key: tensor.bfloat16() for key, tensor in side.weights.items()})
        for side in (new, other)
    ]
    point = interpolate(*halves, 0.3)
    name = "model.layers.0.mlp.up_proj"
    mixture = 0.7 * halves[0].delta(name) + 0.3 * halves[1].delta(name)
    assert {tensor.dtype for tensor in point.weights.values()} == {torch.float32}
    assert (point.delta(name) - mixture).abs().max() < 1e-6 * mixture.abs().max()


def test_a_head_is_interpolated_itself():
    model = two_adapters(builders.bert_sequences(2), target_modules=["query", "value"])
    new, other = ends(model)
    key = "base_model.model.classifier.weight"
    point = interpolate(new, other, 0.25)
    assert not torch.equal(new.weights[key], other.weights[key])
    torch.testing.assert_close(point.weights[key], 0.75 * new.weights[key] + 0.25 * other.weights[key])
    same = interpolate(new, LoraAdapter(other.config, {**other.weights, key: new.weights[key]}), 0.3)
    assert torch.equal(same.weights[key], new.weights[key])


def test_biases_are_interpolated_in_files(tmp_path: Path):
    sides = []
    for seed in (1, 2):
        model = builders.with_lora(builders.bert_sequences(2), seed, target_modules=["query"], bias="lora_only")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") and parameter.requires_grad:
                    parameter.normal_()
        model.save_pretrained(tmp_path / str(seed))
        sides.append(LoraAdapter.read(tmp_path / str(seed)))
    point = interpolate(*sides, 0.5)
    (key, *_) = [key for key in point.weights if "query" in key and key.endswith("bias")]
    torch.testing.assert_close(point.weights[key], (sides[0].weights[key] + sides[1].weights[key]) / 2)


def test_lora_biases_are_part_of_the_delta():
    model = two_adapters(builders.bert_sequences(2), target_modules=["query"], lora_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and name.endswith("bias"):
                parameter.normal_()
    new, other = ends(model)
    point = interpolate(new, other, 0.25)
    (key,) = [key for key in point.weights if key.endswith("lora_B.bias")]
    assert point.config.lora_bias
    torch.testing.assert_close(point.weights[key], 2 * (0.75 * new.weights[key] + 0.25 * other.weights[key]))


# ---- Refusals ----


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_dora": True}, "DoRA rescales"),
        ({"init_lora_weights": "pissa"}, "initialisation .pissa. changed the base"),
        ({"target_parameters": ["mlp.up_proj.weight"], "target_modules": []}, "adapts parameters"),
    ],
)
def test_what_is_not_linear_is_refused(settings: dict, says: str):
    model = builders.with_lora(builders.llama(2), 20, "new")
    plain = LoraAdapter.of(model, "new")
    odd = LoraAdapter(dataclasses.replace(plain.config, **settings), plain.weights)
    with pytest.raises(MuscleError, match=f"the compatibility adapter cannot be interpolated: .*{says}"):
        interpolate(plain, odd, 0.5)
    with pytest.raises(MuscleError, match="v2's adapter cannot be interpolated"):
        interpolate(odd, plain, 0)


def test_a_magnitude_in_the_file_is_refused_whatever_the_configuration_says():
    plain = LoraAdapter.of(builders.with_lora(builders.llama(2), 20, "new"), "new")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    with pytest.raises(MuscleError, match="lora_magnitude_vector"):
        interpolate(plain, LoraAdapter(plain.config, {**plain.weights, key: torch.ones(16)}), 0.5)


def test_adapters_that_do_not_belong_together_are_refused():
    one = LoraAdapter.of(builders.with_lora(builders.llama(2), 20, "new"), "new")
    wide = LoraAdapter.of(builders.with_lora(builders.llama(2, hidden_size=32), 20, "new"), "new")
    with pytest.raises(MuscleError, match=r"different bases: .* has the sizes"):
        interpolate(one, wide, 0.5)
    head = LoraAdapter(dataclasses.replace(one.config, modules_to_save=["lm_head"]), one.weights)
    with pytest.raises(MuscleError, match="differ in modules_to_save"):
        interpolate(one, head, 0.5)
    with pytest.raises(MuscleError, match="finite"):
        interpolate(one, one, float("nan"))


def test_other_adapters_than_lora_are_refused():
    from peft import IA3Config

    model = get_peft_model(
        builders.llama(2), IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    )
    with pytest.raises(MuscleError, match="only LoRA"):
        LoraAdapter.of(model, "default")


def test_a_rank_that_no_server_takes_is_said():
    plain = LoraAdapter.of(builders.with_lora(builders.llama(2), 20, "new", r=300), "new")
    problems = serving_problems(interpolate(plain, plain, 0.5).config.to_dict())
    assert any("rank is 600; vLLM serves ranks of up to 512" in problem for problem in problems)


# ---- In memory ----


@pytest.mark.parametrize("kind", [builders.llama, builders.t5, builders.bert_sequences])
def test_a_point_answers_in_memory_as_it_does_when_saved(kind, tmp_path: Path):
    model = two_adapters(kind(2), {"r": 3}).eval()
    inputs = {"input_ids": batch()}
    if kind is builders.t5:
        inputs["decoder_input_ids"] = batch()[:, :4]
    dial = Dial(model, new="new", compat="compat")
    before = builders.weights_of(model)
    for t in (0, 0.4, 0.7, 0.4, 1):
        with dial.at(t) as frozen, torch.no_grad():
            inside = frozen(**inputs).logits
        dial.save(tmp_path / f"{t}", t)
        alone = PeftModel.from_pretrained(kind(2), str(tmp_path / f"{t}")).eval()
        with torch.no_grad():
            assert torch.equal(alone(**inputs).logits, inside)
    assert alone.peft_config["default"].r == 3 and dial.rank(0.4) == 7
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    dial.remove()
    assert set(model.peft_config) == {"new", "compat"}


def test_the_model_is_left_as_it_was():
    model = two_adapters(builders.llama(2))
    model.set_adapter("compat")
    model.train()
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with Dial(model, new="new", compat="compat").at(0.5) as inside:
        assert not inside.training and inside.active_adapter == "muscle_dial"
    assert model.active_adapter == "compat" and model.training
    assert {name: p.requires_grad for name, p in model.named_parameters() if "muscle_dial" not in name} == flags


def test_v2_may_be_a_whole_model(tmp_path: Path):
    """A merged or fully fine-tuned v2: the compatibility adapter is the only delta, and keeps its rank."""
    base = builders.llama(2)
    base.save_pretrained(tmp_path / "v2")
    builders.tokenizer(WORDS).save_pretrained(tmp_path / "v2")
    model = builders.with_lora(builders.llama(2), 20, lora_alpha=3)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "v2")
    model.save_pretrained(tmp_path / "compat")
    dial = Dial.load(tmp_path / "v2", tmp_path / "compat", TASK, device="cpu")
    x = batch()
    name = "model.layers.0.mlp.down_proj"
    torch.testing.assert_close(dial.point(0.25).delta(name), 0.25 * dial.point(1).delta(name), rtol=1e-6, atol=1e-9)
    assert (dial.rank(0), dial.rank(0.25), dial.rank(1)) == (0, 4, 4)
    with dial.at(0) as inside, torch.no_grad():
        assert torch.equal(inside(x).logits, base(x).logits)
    with dial.at(0.25) as inside, torch.no_grad():
        logits = inside(x).logits
    dial.save(tmp_path / "point", 0.25)
    alone = PeftModel.from_pretrained(builders.llama(2), str(tmp_path / "point")).eval()
    with torch.no_grad():
        assert torch.equal(alone(x).logits, logits)
    assert json.loads((tmp_path / "point" / "muscle_dial.json").read_text())["new"] is None
    with pytest.raises(MuscleError, match="at t = 0 there is no adapter"):
        dial.save(tmp_path / "none", 0)
    old = evaluate_task(builders.with_lora(builders.llama(1), 10), dial.tokenizer, TASK, ITEMS, progress=False)
    assert [p.rank for p in walk(dial, TASK, ITEMS, old, [0.25], progress=False).points] == [0, 4, 4]
    head = LoraAdapter.of(builders.with_lora(builders.bert_sequences(2), 20, target_modules=["query"]), "default")
    with pytest.raises(MuscleError, match=r"replaces .*classifier.* as a whole"):
        interpolate(None, head, 0.5)


def test_the_trainer_has_both_adapters(tmp_path: Path):
    trainer = builders.trainer(tmp_path)
    trainer.train()
    dial = Dial(trainer.model)  # under the names that the trainer gave them
    x = batch()
    logits = {}
    for t in (0, 0.5, 1):
        with dial.at(t) as model, torch.no_grad():
            logits[t] = model(x).logits
    assert not torch.equal(logits[0], logits[1]) and not torch.equal(logits[0.5], logits[0])
    start = builders.with_lora(builders.llama(2), 20).eval()
    with torch.no_grad():
        assert torch.equal(start(x).logits, logits[0])


# ---- The path ----


def point(t: float, accuracy: float, nfr: float, rank: int = 8) -> DialPoint:
    def made(value: float) -> Estimate:
        return Estimate(value, value - 0.01, value + 0.01, 0.95, "wilson")

    change = (None, None) if t == 0 else (made(0.01), made(-0.02))
    return DialPoint(t, rank, made(accuracy), made(nfr), made(0.1), made(0.2), *change)


def path(*points: DialPoint, task: str = "tiny") -> DialPath:
    return DialPath(task, "acc", "correct", 400, Estimate(0.7, 0.6, 0.8), list(points))


@pytest.mark.parametrize(
    ("rule", "max_loss", "t"),
    [
        ("least_nfr_at_no_loss", 0.0, 0.25),
        ("least_nfr_at_no_loss", 0.03, 0.75),
        ("least_nfr", 0.0, 1.0),
        ("most_accurate", 0.0, 0.5),
    ],
)
def test_each_rule_chooses_its_point(rule: str, max_loss: float, t: float):
    figures = [(0, 0.80, 0.10), (0.25, 0.80, 0.07), (0.5, 0.82, 0.08), (0.75, 0.78, 0.05), (1, 0.7, 0.04)]
    measured = path(*(point(*row) for row in figures))
    chosen = choose(measured, rule, max_loss=max_loss)
    assert chosen is not None and chosen.t == t
    assert choose(measured, lambda given: given.points[-1]).t == 1


def test_no_point_may_qualify_and_that_is_said():
    measured = path(point(0, 0.80, 0.10), point(0.5, 0.79, 0.05), point(1, 0.81, 0.10))
    assert choose(measured) is None
    words = report.verdict(measured, None, "least_nfr_at_no_loss")
    assert "No point qualifies" in words and "none has less NFR than v2 without losing accuracy" in words
    assert choose(measured, "least_nfr").t == 0.5
    assert "No point qualifies" in report.page(measured, None, "least_nfr_at_no_loss")


def test_of_equal_points_the_better_answers_win_then_the_lower_rank():
    measured = path(
        point(0, 0.80, 0.10), point(0.5, 0.80, 0.05, 16), point(0.75, 0.82, 0.05, 16), point(1, 0.82, 0.05, 8)
    )
    assert choose(measured).t == 1


def test_bad_questions_are_refused():
    measured = path(point(0, 0.8, 0.1), point(1, 0.8, 0.1))
    with pytest.raises(MuscleError, match="there are least_nfr_at_no_loss, least_nfr, most_accurate"):
        choose(measured, "best")
    with pytest.raises(MuscleError, match="max_loss is for"):
        choose(measured, "least_nfr", max_loss=0.1)
    with pytest.raises(MuscleError, match=r"t = 0\.3 was not measured"):
        measured.point(0.3)
    with pytest.raises(MuscleError, match=r"-0\.5, 1\.5 lie beyond"):
        check_points([-0.5, 0.5, 1.5])
    with pytest.raises(MuscleError, match="finite"):
        check_points([float("inf")], extrapolate=True)
    assert check_points([0.5, -0.5], extrapolate=True) == [-0.5, 0.0, 0.5, 1.0]


def test_the_path_is_what_the_points_answer():
    old_model = builders.with_lora(builders.llama(1), 10)
    tokenizer = builders.tokenizer(WORDS)
    old = evaluate_task(old_model, tokenizer, TASK, ITEMS, progress=False)
    dial = Dial(two_adapters(builders.llama(2)), tokenizer, new="new", compat="compat")
    told: list[str] = []
    measured = walk(dial, TASK, ITEMS, old, [0.5], progress=False, say=told.append)
    assert [p.t for p in measured.points] == [0.0, 0.5, 1.0] and told == [
        "t = 0 (rank 4)",
        "t = 0.5 (rank 8)",
        "t = 1 (rank 4)",
    ]
    for p in measured.points:
        answers = measured.predictions[p.t]
        expected = flip_metrics(*([q.prediction for q in side] for side in (old, answers)), [q.target for q in old])
        assert (p.accuracy.value, p.nfr.value) == pytest.approx((expected["acc_new"], expected["nfr"]))
        assert (p.nfr_mc.value, p.pfr.value) == pytest.approx((expected["nfr_mc"], expected["pfr"]))
    half = measured.point(0.5)
    assert half.change_of_nfr.value == pytest.approx(half.nfr.value - measured.new.nfr.value)
    with pytest.raises(MuscleError, match="the old model's predictions have no answer to 1 of 40"):
        walk(dial, TASK, ITEMS, old[1:], [0.5], progress=False)


def test_a_walk_that_was_stopped_goes_on(tmp_path):
    old_model, tokenizer = builders.with_lora(builders.llama(1), 10), builders.tokenizer(WORDS)
    old = evaluate_task(old_model, tokenizer, TASK, ITEMS, progress=False)
    told: list[str] = []

    def say(line: str) -> None:
        told.append(line.partition(" (")[0])
        if len(told) == 2:
            raise KeyboardInterrupt

    def go(model, items=ITEMS):
        dial = Dial(model, tokenizer, new="new", compat="compat")
        return walk(dial, TASK, items, old, [0.5], progress=False, say=say, keep=tmp_path)

    with pytest.raises(KeyboardInterrupt):
        go(two_adapters(builders.llama(2)))
    went_on = go(two_adapters(builders.llama(2)))
    assert told == ["t = 0", "t = 0.5", "t = 0.5", "t = 1"]
    alone = walk(Dial(two_adapters(builders.llama(2)), tokenizer, new="new", compat="compat"), TASK, ITEMS, old, [0.5],
                 progress=False)  # fmt: skip
    assert went_on.to_dict() == alone.to_dict() and went_on.predictions == alone.predictions
    every = ["t = 0", "t = 0.5", "t = 1"]
    for model, items in ((two_adapters(builders.llama(3)), ITEMS), (two_adapters(builders.llama(2)), ITEMS[1:]),
                         (two_adapters(builders.llama(2), {"lora_alpha": 7}), ITEMS)):  # fmt: skip
        told[:] = ["", "", ""]
        go(model, items)
        # v2's own adapter is the same where only the other one is scaled differently.
        assert told[3:] == (every if items is not ITEMS or model.peft_config["compat"].lora_alpha != 7 else every[1:])


def test_csv_and_json_hold_every_figure():
    measured = path(point(0, 0.8, 0.1), point(1, 0.8, 0.05))
    rows = list(csv.DictReader(io.StringIO(measured.to_csv())))
    assert [row["t"] for row in rows] == ["0", "1"] and rows[0]["change_of_nfr"] == ""
    assert float(rows[1]["nfr_low"]) == pytest.approx(0.04) and float(rows[1]["change_of_nfr"]) == -0.02
    data = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert data["points"][1]["nfr"]["value"] == 0.05 and "predictions" not in data


# ---- The page ----


def test_the_page_shows_the_path_and_trusts_nothing(tmp_path: Path):
    if find_chromium() is None:
        pytest.skip("no Chromium on the path; install it (Debian: apt-get install chromium)")
    measured = path(point(0, 0.8, 0.1), point(0.5, 0.82, 0.07, 16), point(1, 0.8, 0.06), task=HOSTILE)
    file = tmp_path / "path.html"
    file.write_text(report.page(measured, measured.point(1), "least_nfr_at_no_loss", 0.0, HOSTILE), encoding="utf-8")
    with Chromium() as browser:
        browser.resize(420, 900)
        browser.open(file)
        assert browser.evaluate("window.hacked") is None
        assert browser.evaluate("document.querySelectorAll('figure svg').length") == 3
        assert browser.evaluate("document.querySelectorAll('svg .ring').length") == 3
        assert browser.evaluate("document.querySelector('tr.chosen th').textContent") == "1 compat"
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert "measure it on test items" in browser.evaluate("document.body.innerText").lower()


# ---- The command ----


@pytest.fixture
def scene(tmp_path: Path, monkeypatch) -> Path:
    """A new base on disk, both adapters of it, the old model's answers, a task and its validation rows."""
    monkeypatch.chdir(tmp_path)
    tokenizer = builders.tokenizer(WORDS)
    base = builders.llama(2)
    base.save_pretrained("base")
    tokenizer.save_pretrained("base")
    trainer = builders.trainer(
        Path("compat"),
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), _saved(base), is_trainable=True),
        processing_class=tokenizer,
        learning_rate=0.05,
        max_steps=4,
    )
    trainer.train()
    trainer.save_model()
    old = evaluate_task(builders.with_lora(builders.llama(1), 10), tokenizer, TASK, ITEMS, progress=False)
    write_predictions("old.jsonl", old)
    rows = [{"prompt": item.prompt, "choices": list(item.choices), "answer": item.answers[0]} for item in ITEMS]
    Path("validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("tiny.py").write_text(
        "from muscle_hf.evaluation import Item, Task\n"
        "def item(row, i):\n"
        "    return Item(str(i), row['prompt'], choices=tuple(row['choices']), answers=(row['answer'],))\n"
        "TASK = Task('tiny', 'choice', item)\n"
    )
    return tmp_path


def _saved(base: nn.Module) -> str:
    model = builders.with_lora(builders.llama(2), 20)
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained("new")
    return "new"


COMMAND = (
    "dial --old old.jsonl --new new --compat compat --task tiny.py:TASK --data validation.jsonl --output out --quiet"
)


def dial_command(*more: str) -> int:
    return main([*COMMAND.split(), *more])


@pytest.mark.slow
def test_the_command_from_end_to_end(scene: Path, capsys):
    assert dial_command("--points", "0.5", "0.25", "--choose", "0.5") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "t = 0.5 (rank 8), chosen by hand" in said and "Measure it on test items that took no part" in said
    result = json.loads(Path("out/path.json").read_text())
    assert [p["t"] for p in result["points"]] == [0.0, 0.25, 0.5, 1.0] and result["choice"]["t"] == 0.5
    assert len(read_predictions("out/predictions/t=0.25.jsonl")) == 40
    assert {path.name for path in Path("out").iterdir()} == {
        "adapter",
        "predictions",
        "path.json",
        "path.csv",
        "path.html",
    }

    record = json.loads(Path("out/adapter/muscle_dial.json").read_text())
    provenance = json.loads(Path("out/adapter/muscle_provenance.json").read_text())
    parent = json.loads(Path("compat/muscle_provenance.json").read_text())
    assert record["t"] == provenance["dial"]["t"] == 0.5 and record["choice"]["items"] == 40
    assert record["compat"]["sha256"] == parent["adapter_sha256"] != provenance["adapter_sha256"]
    assert record["new"]["sha256"] == parent["new"]["adapter"]["sha256"]
    assert str(scene) not in Path("out/adapter/muscle_dial.json").read_text()
    assert provenance["metrics"] == {} and provenance["adapter_file_sha256"] == record["adapter_file_sha256"]

    model, tokenizer = load_compatible("out/adapter", base_model="base")
    answers = evaluate_task(model, tokenizer, TASK, ITEMS, progress=False)
    assert [a.to_dict() for a in answers] == [p.to_dict() for p in read_predictions("out/predictions/t=0.5.jsonl")]
    card = Path("out/adapter/README.md").read_text()
    assert "0.5 times that of v2's" in card.replace("\n", " ") and "Chosen by hand on 40 items" in card
    assert "--max-lora-rank 8" in card


@pytest.mark.slow
def test_the_command_saves_nothing_where_no_point_qualifies(scene: Path, capsys):
    shutil.rmtree("compat")
    shutil.copytree("new", "compat")  # no point can differ from v2
    assert dial_command() == 1
    assert "No point qualifies" in capsys.readouterr().out
    assert not Path("out/adapter").exists() and Path("out/path.html").is_file()
    assert dial_command() == 2
    assert "exists; choose another --output, or pass --overwrite" in capsys.readouterr().err
    assert dial_command("--overwrite", "--choose", "1") == 0
    one, other = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("out/adapter", "compat"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert not Path("out/adapter/muscle_provenance.json").exists()  # its parent has none
    assert json.loads(Path("out/adapter/muscle_dial.json").read_text())["t"] == 1


@pytest.mark.slow
def test_the_command_refuses_early(scene: Path, capsys):
    for more, says in (
        (["--points", "1.5"], "--extrapolate"),
        (["--max-loss", "-1"], "max_loss must be a number of at least 0"),
        (["--rule", "least_nfr", "--max-loss", "0.1"], "max_loss is for the rule"),
        (["--level", "95"], "level must lie between"),
        (["--compat", "base"], "is a whole model"),
        (["--compat", "."], "neither an adapter"),
        (["--old", "nothing.jsonl"], "there is no prediction file"),
    ):
        assert dial_command(*more) == 2
        assert says in capsys.readouterr().err
        assert not Path("out").exists()


# ---- Its page ----


@pytest.mark.slow
def test_the_documentation_runs(scene: Path, capsys):
    """The commands and snippets of docs/dial.md, on small models."""
    for source, target in {"new": "adapters/task-v2", "compat": "out"}.items():
        shutil.copytree(source, target)
    Path("task.yaml").write_text('name: tiny\nkind: choice\nprompt: "{prompt}"\nchoices: choices\nanswer: answer\n')
    Path("data").mkdir()
    rows = [{"prompt": item.prompt, "choices": list(item.choices), "answer": item.answers[0]} for item in ITEMS]
    for split in ("validation", "test"):
        Path("data", f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("old_test", "new_test"):
        shutil.copyfile("old.jsonl", f"{name}.jsonl")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    commands = [line.removeprefix("muscle-hf ") for kind, body in blocks if kind == "sh" for line in body.splitlines()]
    dial, evaluate, compare = (command.split() for command in commands)
    assert main([*dial, "--quiet"]) in (0, 1)
    by_hand = [word for word in dial if word not in ("--rule", "least_nfr_at_no_loss")]
    assert main([*by_hand, "--quiet", "--overwrite", "--choose", "0.75"]) == 0
    assert main([*evaluate, "--quiet"]) == 0
    assert main([*compare, "--quiet"]) in (0, 1, 3)
    namespace: dict = {}
    for kind, body in blocks:
        if kind == "python":
            exec(compile(body, DOCUMENT.name, "exec"), namespace)
    assert namespace["middle"].config.r == 8
    assert Path("adapters/chosen/adapter_model.safetensors").is_file()
