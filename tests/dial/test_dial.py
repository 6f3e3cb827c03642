"""The dial's exact mixtures of two adapters: saved and loaded by plain PEFT, and in memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import builders
import pytest
import torch
from dial_world import ITEMS, TASK, WORDS, batch, ends, layers, two_adapters
from peft import PeftModel, get_peft_model

from muscle_hf import MuscleError
from muscle_hf.dial import Dial, LoraAdapter, interpolate, walk
from muscle_hf.evaluation import evaluate_task
from muscle_hf.hub.serving import serving_problems

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


def test_what_changed_its_base_is_refused():
    plain = LoraAdapter.of(builders.with_lora(builders.llama(2), 20, "new"), "new")
    with pytest.raises(MuscleError, match="'pissa'"):
        LoraAdapter(dataclasses.replace(plain.config, init_lora_weights="pissa"), plain.weights)


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
