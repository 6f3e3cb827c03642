"""Every kind and option of PEFT's adapters, in every part: what it computes alone, it computes there, bit by bit."""

from __future__ import annotations

import copy
import json
import re
import shutil
from functools import partial
from itertools import product

import builders
import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RwkvConfig,
    RwkvForCausalLM,
)

from muscle_hf import MuscleError
from muscle_hf.dial import LoraAdapter
from muscle_hf.evaluation.harness import load_sides
from muscle_hf.teachers import AdapterTeacher, ModelTeacher
from muscle_hf.teachers.copies import copy_adapter
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.teachers.loading import load_model, load_task_model
from muscle_hf.teachers.pool import BasePool, keeping

TASK = {"task_type": "CAUSAL_LM"}
QV = {"target_modules": ["q_proj", "v_proj"], **TASK}
lora = partial(LoraConfig, r=4, lora_alpha=8, **TASK)
q_v = partial(lora, target_modules=["q_proj", "v_proj"])

# Share the base of a plain LoRA.
PLAIN = {
    "lora": q_v,
    "all linear": partial(lora, target_modules="all-linear"),
    "rslora": partial(q_v, use_rslora=True),
    "dora": partial(q_v, use_dora=True),
    "embeddings": partial(lora, target_modules=["q_proj", "embed_tokens"], use_dora=True),
    "head": partial(lora, target_modules=["q_proj", "lm_head"]),
    "lora_bias": partial(q_v, lora_bias=True),
    "gaussian": partial(q_v, init_lora_weights="gaussian"),
    "orthogonal": partial(q_v, init_lora_weights="orthogonal"),
    "eva": partial(q_v, init_lora_weights="eva"),
    "modules_to_save": partial(q_v, modules_to_save=["lm_head"]),
    "modules_to_save norm": partial(q_v, modules_to_save=["norm", "embed_tokens"]),
    "patterns": partial(q_v, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}, layers_to_transform=[0]),
}
# Have a base of their own beside a plain LoRA; as students they train beside their copies.
APART = {
    "mica": partial(q_v, init_lora_weights="mica"),
    "target_parameters": partial(lora, target_modules=[], target_parameters=["q_proj.weight"]),
    "target_parameters and modules": partial(q_v, target_parameters=["o_proj.weight"]),
    "trainable_token_indices": partial(q_v, trainable_token_indices=[3, 5]),
    "alora": partial(q_v, alora_invocation_tokens=[5]),
    "qalora": partial(q_v, use_qalora=True, qalora_group_size=4),
    "bdlora": partial(q_v, use_bdlora=BdLoraConfig(["q_proj"], ["v_proj"], nblocks=2)),
    "monteclora": partial(q_v, monteclora_config=MontecloraConfig()),
    "velora": partial(q_v, velora_config=VeloraConfig()),
    "adalora": partial(peft.AdaLoraConfig, init_r=4, target_r=2, total_step=10, tinit=1, tfinal=1, **QV),
    "adamss": partial(peft.AdamssConfig, r=4, num_subspaces=2, subspace_rank=1, **QV),
    "beft": partial(peft.BeftConfig, **QV),
    "boft": partial(peft.BOFTConfig, boft_block_size=4, **{**QV, "target_modules": ["q_proj"]}),
    "c3a": partial(peft.C3AConfig, block_size=8, **QV),
    "deft": partial(peft.DeftConfig, r=4, **QV),
    "delora": partial(peft.DeloraConfig, r=4, **QV),
    "fourierft": partial(peft.FourierFTConfig, n_frequency=10, **QV),
    "frod": partial(peft.FrodConfig, **QV),
    "glora": partial(peft.GloraConfig, r=4, **QV),
    "gralora": partial(peft.GraloraConfig, r=4, gralora_k=2, **{**QV, "target_modules": ["q_proj"]}),
    "hira": partial(peft.HiraConfig, r=4, **QV),
    "hra": partial(peft.HRAConfig, r=4, **QV),
    "ia3": partial(peft.IA3Config, target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK),
    "lily": partial(peft.LilyConfig, r=4, stride_A=1, num_B=2, **{**QV, "target_modules": ["q_proj"]}),
    "ln_tuning": partial(peft.LNTuningConfig, target_modules=["input_layernorm", "norm"], **TASK),
    "loha": partial(peft.LoHaConfig, r=4, **QV),
    "lokr": partial(peft.LoKrConfig, r=4, **QV),
    "miss": partial(peft.MissConfig, r=4, init_weights="bat", **QV),
    "oft": partial(peft.OFTConfig, r=0, oft_block_size=4, **QV),
    "oft coft": partial(peft.OFTConfig, r=0, oft_block_size=4, coft=True, **QV),
    "osf": partial(peft.OSFConfig, effective_rank=4, **QV),
    "peanut": partial(peft.PeanutConfig, r=4, **QV),
    "psoft": partial(peft.PsoftConfig, r=4, **QV),
    "pvera": partial(peft.PveraConfig, r=4, **QV),
    "randlora": partial(peft.RandLoraConfig, r=4, **QV),
    "road": partial(peft.RoadConfig, group_size=4, **QV),
    "shadow": partial(peft.ShadowConfig, **TASK),
    "shira": partial(peft.ShiraConfig, r=2, random_seed=3, **QV),
    "supertuning": partial(peft.SupertuningConfig, **QV),
    "tinylora": partial(peft.TinyLoraConfig, r=2, u=8, **QV),
    "trainable_tokens": partial(
        peft.TrainableTokensConfig, token_indices=[3, 5], target_modules=["embed_tokens"], **TASK
    ),
    "unilora": partial(peft.UniLoraConfig, r=2, theta_d_length=16, **QV),
    "vblora": partial(peft.VBLoRAConfig, r=2, num_vectors=8, vector_length=4, topk=2, **QV),
    "vera": partial(peft.VeraConfig, r=4, **QV),
    "vera without projections": partial(peft.VeraConfig, r=4, save_projection=False, **QV),
    "waveft": partial(peft.WaveFTConfig, n_frequency=10, **{**QV, "target_modules": ["q_proj"]}),
    # They change the base in the same way whenever they are put on it.
    "olora": partial(q_v, init_lora_weights="olora"),
    "pissa": partial(q_v, init_lora_weights="pissa"),
    "layer_replication": partial(q_v, layer_replication=[[0, 1], [0, 1]]),
}
# Teachers only: what the student would train or change is in the base that its teacher shares.
TEACHERS = {
    "bias all": partial(q_v, bias="all"),
    "bias lora_only": partial(q_v, bias="lora_only"),
    "boft bias": partial(peft.BOFTConfig, boft_block_size=4, bias="boft_only", **{**QV, "target_modules": ["q_proj"]}),
    "kasa": partial(q_v, kasa_config=KasaConfig()),
}
KINDS = PLAIN | APART | TEACHERS
QUICK = (
    *("modules_to_save", "bias lora_only", "olora", "layer_replication"),
    *("trainable_token_indices", "shadow", "vblora"),
)
EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in KINDS]
STUDENTS = [each for each in EACH if each.values[0] not in TEACHERS]

ROWS = builders.rows()
for _row in ROWS:
    _row["input_ids"][1] = 5  # which wakes aLoRA
BATCH = {key: value for key, value in builders.collate(ROWS).items() if key != "labels"}


def says(model):
    return builders.logits_without_trainer(model, BATCH)


class World:
    """A base and adapters of every kind on it, trained by chance, in folders."""

    def __init__(self, root):
        self.root = root
        self.said = {}
        base = builders.llama(2, attention_bias=True)
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_()
        base.save_pretrained(root / "base")
        builders.tokenizer().save_pretrained(root / "base")
        self.loaded = AutoModelForCausalLM.from_pretrained(root / "base")

    def base(self):
        return copy.deepcopy(self.loaded)

    def folder(self, kind, seed=7):
        folder = self.root / re.sub(r"\W", "_", f"{kind} {seed}")
        if not folder.exists():
            shaken(get_peft_model(self.base(), KINDS[kind]()), seed).save_pretrained(folder)
        return str(folder)

    def alone(self, folder, **given):
        return PeftModel.from_pretrained(self.base(), folder, **given)

    def says(self, folder):
        """What the adapter in a folder that stays as it is says alone."""
        if folder not in self.said:
            self.said[folder] = says(self.alone(folder))
        return self.said[folder]


def shaken(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("kinds"))


def names_of_trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained(folder, model, expected, **given):
    """A trainer whose teachers say what is expected, before and after training, and whose saved student is itself."""
    trainer = builders.trainer(folder, model, train_dataset=ROWS, **given)
    for _ in range(2):
        for role, teacher in trainer.teachers.items():
            assert torch.equal(teacher.logits(BATCH), expected[role]), role
        if not trainer.state.global_step:
            trainer.train()
    trainer.save_model()
    return trainer


@pytest.mark.parametrize("kind", EACH)
def test_teachers_of_any_kind_beside_a_plain_lora(kind, world, tmp_path):
    folders = {"old": world.folder(kind), "new": world.folder(kind, 8)}
    expected = {role: world.says(folder) for role, folder in folders.items()}
    model = world.alone(world.folder("all linear", 99))
    trainer = trained(tmp_path, model, expected, old_model=folders["old"], new_model=folders["new"])
    for teacher in trainer.teachers.values():
        assert isinstance(teacher, AdapterTeacher if kind in PLAIN else ModelTeacher)
    assert torch.equal(says(world.alone(str(tmp_path))), says(trainer.student))


@pytest.mark.parametrize("kind", EACH)
def test_a_base_that_stays_in_memory_stays_as_it_is(kind, world):
    with keeping(BasePool()):
        model = load_task_model(world.folder(kind), CAUSAL_LM, trainable=True)
        assert torch.equal(says(model), world.says(world.folder(kind)))
        shaken(model, 3)
        plain = load_model(world.root / "base", CAUSAL_LM, {"revision": "main"})
    assert torch.equal(says(plain), says(world.base()))


@pytest.mark.parametrize(("how", "kind"), product(["folder", "model"], QUICK))
def test_v1_of_another_kind_than_v2(kind, how, world, tmp_path):
    old, new = world.folder(kind), world.folder("all linear", 99)
    source = old if how == "folder" else world.alone(old)
    trained(tmp_path, world.alone(new), {"old": world.says(old), "new": world.says(new)}, old_model=source)


@pytest.mark.parametrize("kind", QUICK)
def test_another_teacher_for_v2(kind, world, tmp_path):
    folder, model = world.folder(kind), world.alone(world.folder("all linear", 99))
    expected = {"old": says(builders.llama(9)), "new": world.says(folder)}
    trained(tmp_path, model, expected, old_model=builders.llama(9), new_model=folder)


@pytest.mark.parametrize(
    ("old", "kind"),
    [
        *(pytest.param("itself", *each.values, marks=each.marks) for each in STUDENTS),
        *product(["lora", "base"], [kind for kind in QUICK if kind not in TEACHERS]),
    ],
)
def test_students_of_any_kind(kind, old, world, tmp_path):
    new = world.folder(kind)
    source = {"lora": world.folder("lora", 99), "itself": world.folder(kind, 8), "base": str(world.root / "base")}[old]
    expected = {"old": says(world.base()) if old == "base" else world.says(source), "new": world.says(new)}
    model = world.alone(new, is_trainable=old == "itself")
    peft_trains = names_of_trained(model)
    trainer = trained(tmp_path, model, expected, old_model=source)
    assert names_of_trained(trainer.student) == peft_trains or old != "itself"
    assert not torch.equal(says(trainer.student), expected["new"]), "it was trained"
    assert torch.equal(says(world.alone(str(tmp_path))), says(trainer.student))


@pytest.mark.parametrize("kind", EACH)
def test_fresh_students_leave_v2_as_it_is_or_are_refused(kind, world, tmp_path):
    given = {"old_model": world.folder("lora", 99), "peft_config": KINDS[kind]()}
    if kind in TEACHERS or kind in ("olora", "pissa", "layer_replication"):
        with pytest.raises(MuscleError):
            builders.trainer(tmp_path, world.base(), **given)
        return
    expected = {"old": world.says(given["old_model"]), "new": says(world.base())}
    trainer = trained(tmp_path, world.base(), expected, **given)
    assert torch.equal(says(world.alone(str(tmp_path))), says(trainer.student))


@pytest.mark.parametrize("kind", EACH)
def test_start_from_v1_is_what_its_folder_says_on_v2s_base(kind, world, tmp_path):
    new, old = world.folder(kind), world.folder(kind, 8)
    given = {"old_model": old, "start_from": "old"}
    if kind in TEACHERS or kind in ("olora", "pissa", "layer_replication"):
        with pytest.raises(MuscleError):
            builders.trainer(tmp_path, world.alone(new), **given)
        return
    trainer = builders.trainer(tmp_path, world.alone(new), **given)
    assert torch.equal(says(trainer.student), world.says(old))


@pytest.mark.parametrize(
    ("plain_first", "kind"),
    [*(pytest.param(True, *each.values, marks=each.marks) for each in EACH), *product([False], QUICK)],
)
def test_sides_of_an_evaluation_of_any_kind(kind, plain_first, world):
    folders = {"kind": world.folder(kind), "plain": world.folder("lora", 99)}
    order = sorted(folders, reverse=plain_first)
    sides = load_sides({side: folders[side] for side in order}, device="cpu", dtype=torch.float32)
    for side in (*order, *order):
        with sides[side].active():
            assert torch.equal(says(sides[side].model), world.says(folders[side])), side
    assert (sides["kind"].model is sides["plain"].model) == (kind in PLAIN)


def test_what_is_not_the_same_at_every_loading_is_refused(world, tmp_path):
    config = q_v(init_lora_weights="pissa_niter_4")
    model = shaken(get_peft_model(world.base(), config), 7)
    model.save_pretrained(tmp_path / "random")
    with pytest.raises(MuscleError, match="pissa_niter_4"):
        builders.trainer(tmp_path / "run", model, world.folder("lora"))
    with pytest.raises(MuscleError, match="pissa_niter_4"):
        builders.trainer(tmp_path / "run", None, str(tmp_path / "random"))


@pytest.mark.parametrize("start", ["corda", "lora_ga", "loftq", "newer than this PEFT"])
def test_what_peft_cannot_load_is_refused_with_its_reason(start, world, tmp_path):
    folder = shutil.copytree(world.folder("lora"), tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "init_lora_weights": start}))
    with pytest.raises(MuscleError):
        builders.trainer(tmp_path / "run", world.alone(world.folder("all linear", 99)), str(folder))


@pytest.mark.parametrize("kind", ["olora", "layer_replication"])
def test_an_adapter_whose_base_v2_changed_is_no_teacher(kind, world, tmp_path):
    model = PeftModel.from_pretrained(world.base(), world.folder("lora"), adapter_name="v1")
    model.load_adapter(world.folder(kind), "v2", is_trainable=True)
    model.set_adapter("v2")
    with pytest.raises(MuscleError, match="'v1'"):
        builders.trainer(tmp_path, model, model, old_model_kwargs={"adapter": "v1"})


def test_what_changed_its_base_cannot_be_interpolated(world):
    with pytest.raises(MuscleError, match="olora"):
        LoraAdapter.read(world.folder("olora"))


def test_prompts_are_no_adapters_of_the_bases_layers(world, tmp_path):
    for name, config in {
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=2, **TASK),
        "prefix": peft.PrefixTuningConfig(num_virtual_tokens=2, **TASK),
        "cartridge": peft.CartridgeConfig(num_virtual_tokens=2, **TASK),
    }.items():
        model = get_peft_model(world.base(), config)
        model.save_pretrained(tmp_path / name)
        for old in (model, str(tmp_path / name)):
            with pytest.raises(MuscleError, match=config.peft_type.value):
                builders.trainer(tmp_path / "run", None, old)


def test_a_file_that_lacks_what_was_trained_is_refused(world, tmp_path):
    """X-LoRA, of which PEFT saves all but the classifier."""
    base = world.base()
    base.config.use_cache = False
    base.save_pretrained(tmp_path / "base")
    experts = {str(place): world.folder("lora", seed) for place, seed in enumerate((7, 8))}
    config = peft.XLoraConfig(hidden_size=base.config.hidden_size, xlora_depth=1, adapters=experts, **TASK)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(MuscleError, match="weights"):
        load_task_model(tmp_path / "adapter", CAUSAL_LM, base_model=tmp_path / "base")


def test_a_model_that_changes_its_weights_in_eval_mode_is_refused_before_it_is_trained(tmp_path):
    shape = {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 4, "context_length": 32}
    for every in (2, 0):
        base = RwkvForCausalLM(RwkvConfig(vocab_size=builders.VOCABULARY, rescale_every=every, **shape))
        model = get_peft_model(base, lora(target_modules=["key", "value"], init_lora_weights=False))
        copy_adapter(model, "default", model, "old")
        model.set_adapter("default")
        trainer = builders.trainer(tmp_path, model, model, train_dataset=ROWS, old_model_kwargs={"adapter": "old"})
        if every:
            with pytest.raises(MuscleError, match="rescale_every"):
                trainer.train()
        else:
            trainer.train()


LAYOUTS = {
    "head": {"target_modules": ["query"], "task_type": "SEQ_CLS"},
    "dense": {"target_modules": ["dense"], "task_type": "SEQ_CLS"},
    "whole attention": {"target_modules": ["intermediate.dense"], "modules_to_save": ["attention"]},
    "no head": {"target_modules": ["query"]},
    "adapter in the head": {"target_modules": ["dense"]},
}


@pytest.mark.parametrize("old", LAYOUTS)
@pytest.mark.parametrize("new", [pytest.param("whole attention", marks=pytest.mark.slow), "adapter in the head"])
def test_what_one_adapter_replaces_and_the_other_adapts(new, old, tmp_path):
    """A head of several layers, in which another adapter may have its own."""
    settings = {**builders._BODY, **builders._NO_DROPOUT, **builders.LABELS}
    torch.manual_seed(2)
    RobertaForSequenceClassification(RobertaConfig(**settings, pad_token_id=0)).save_pretrained(tmp_path / "base")
    rows = builders.sequence_rows()
    batch = {key: value for key, value in builders.collate(rows).items() if key != "labels"}

    def base():
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")

    def alone(folder):
        return PeftModel.from_pretrained(base(), folder)

    def say(model):
        return builders.logits_without_trainer(model, batch)

    for seed, name in enumerate({new, old}):
        shaken(get_peft_model(base(), LoraConfig(r=4, **LAYOUTS[name])), seed).save_pretrained(tmp_path / name)
    trainer = builders.trainer(tmp_path / "run", alone(tmp_path / new), str(tmp_path / old), train_dataset=rows)
    trainer.train()
    for role, name in {"old": old, "new": new}.items():
        assert torch.equal(trainer.teachers[role].logits(batch), say(alone(tmp_path / name)))
    trainer.save_model()
    assert torch.equal(say(alone(tmp_path / "run")), say(trainer.student))


# ---- Tensors under many names ----

TIED = {
    "tokens": partial(q_v, trainable_token_indices=[3, 5]),
    "tokens, tied by PEFT": partial(q_v, trainable_token_indices={"embed_tokens": [3, 5]}, ensure_weight_tying=True),
    "embeddings, tied by PEFT": partial(q_v, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    **{name: APART[name] for name in ("vera", "vblora", "adalora", "pvera", "tinylora", "unilora")},
}


@pytest.mark.parametrize(
    "kind", [pytest.param(n, marks=() if n in ("tokens", "vblora") else pytest.mark.slow) for n in TIED]
)
def test_tied_and_shared_tensors_are_read_again(kind, tmp_path):
    builders.llama(2, tie_word_embeddings=True).save_pretrained(tmp_path / "base")

    def base():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base")

    folder = tmp_path / "adapter"
    given = shaken(get_peft_model(base(), TIED[kind]()), 7)
    given.save_pretrained(folder)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.1}
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "eval_dataset": ROWS}

    def trainer(**further):
        model = load_task_model(folder, CAUSAL_LM, trainable=True)
        assert torch.equal(says(model), says(given))
        return builders.trainer(tmp_path / "run", model, builders.llama(1), train_dataset=ROWS, **settings, **further)

    first = trainer(**best)
    first.train()
    kept = PeftModel.from_pretrained(base(), first.state.best_model_checkpoint)
    assert torch.equal(says(first.student), says(kept))
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    last = PeftModel.from_pretrained(base(), tmp_path / "run" / "checkpoint-4")
    torch.testing.assert_close(says(resumed.student), says(last))


# ---- Tokens that were added ----


@pytest.mark.parametrize(
    ("tied", "settings"),
    [
        (False, {}),
        (True, {}),
        (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (False, {"trainable_token_indices": [48, 49]}),
        pytest.param(True, {"trainable_token_indices": [48, 49]}, marks=pytest.mark.slow),
    ],
)
def test_an_adapter_that_was_saved_with_resized_embeddings(tied, settings, tmp_path):
    builders.llama(2, tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(builders.VOCABULARY + 3)
    given = shaken(get_peft_model(base, lora(target_modules=["q_proj"], **settings)), 7)
    given.save_pretrained(tmp_path / "adapter")
    assert torch.equal(says(load_task_model(tmp_path / "adapter", CAUSAL_LM)), says(given))
    known = {"processing_class": builders.tokenizer(), "old_processing_class": builders.tokenizer()}
    old = builders.trainer(tmp_path / "1", None, str(tmp_path / "adapter"), **known)
    assert torch.equal(old.teachers["old"].logits(BATCH), says(given))
    model = load_task_model(tmp_path / "adapter", CAUSAL_LM, trainable=True)
    trainer = trained(
        tmp_path / "2",
        model,
        {"old": says(builders.llama(1)), "new": says(given)},
        old_model=builders.llama(1),
        **known,
    )
    assert torch.equal(says(load_task_model(tmp_path / "2", CAUSAL_LM)), says(trainer.student))


def test_resized_embeddings_of_which_the_adapter_lacks_a_part(tmp_path):
    builders.llama(2).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(builders.VOCABULARY + 3)
    model = get_peft_model(base, lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(MuscleError, match="lm_head"):
        load_task_model(tmp_path / "adapter", CAUSAL_LM)


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_a_lora_on_tied_embeddings_is_refused_where_peft_does_not_load_what_it_trained(layer, tmp_path):
    model = builders.with_lora(
        builders.llama(2, tie_word_embeddings=True), 20, target_modules=[layer, "q_proj"], ensure_weight_tying=True
    )
    with pytest.raises(MuscleError, match="ensure_weight_tying=False"):
        builders.trainer(tmp_path, model)
