"""Bad input gets an error before anything is trained; the message says what is wrong and what to do."""

from __future__ import annotations

import json
import shutil

import builders
import pytest
import torch
from builders import with_lora
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainingArguments

from muscle_hf import MuscleConfig, MuscleError, MuscleTrainer
from muscle_hf.teachers import ModelTeacher, TeacherOutputError
from muscle_hf.teachers.weights import base_of


def refused(message, folder, *args, **settings):
    """Assert that construction fails with a message, and that nothing was written."""
    with pytest.raises(MuscleError, match=message):
        builders.trainer(folder / "run", *args, **settings)
    assert not list((folder / "run").glob("*"))


# ---- Models ----


def test_no_old_model(tmp_path):
    with pytest.raises(MuscleError, match=r"no old_model.*pass it as old_model="):
        MuscleTrainer(with_lora(builders.llama(2), 20), builders.config(tmp_path))


def test_model_without_an_adapter_and_without_peft_config(tmp_path):
    refused("without an adapter.*peft_config=LoraConfig", tmp_path, builders.llama(2))


def test_model_with_an_adapter_and_peft_config(tmp_path):
    refused("already has an adapter.*drop one", tmp_path, peft_config=LoraConfig(task_type="CAUSAL_LM"))


def test_old_model_of_another_kind(tmp_path):
    old = with_lora(builders.bert_sequences(1), 10)
    refused("old_model is a sequence classification, but model is a causal LM", tmp_path, None, old)


def test_model_of_no_kind(tmp_path):
    from transformers import LlamaModel

    body = LlamaModel(builders.llama(1).config)
    refused("LlamaModel is not a kind of model", tmp_path, None, body)


def test_regression_head(tmp_path):
    model = with_lora(builders.bert_sequences(2, num_labels=1, id2label={0: "score"}, label2id={"score": 0}), 20)
    refused("problem_type", tmp_path, model, model, train_dataset=builders.sequence_rows())


def test_old_model_of_a_strange_type(tmp_path):
    refused("old_model is a dict; pass a model, a folder or a Hub id", tmp_path, None, {"v1": 1})


def test_loading_arguments_for_a_model_that_is_loaded(tmp_path):
    refused("revision would have no effect", tmp_path, old_model_kwargs={"revision": "main"})


def test_model_itself_as_old_model_without_the_name_of_an_adapter(tmp_path):
    model = with_lora(builders.llama(2), 20)
    refused("name its adapter: old_model_kwargs", tmp_path, model, model)


def test_several_active_adapters(tmp_path):
    model = with_lora(builders.llama(2), 20)
    model.add_adapter("mine", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "mine"])
    refused("2 active adapters.*activate exactly one", tmp_path, model)


def test_default_is_taken_by_another_adapter(tmp_path):
    model = with_lora(builders.llama(2), 20, "v2")
    model.add_adapter("default", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.set_adapter("v2")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".v2." in name
    refused("'default'.*is taken by another.*delete_adapter", tmp_path, model)


def test_two_adapters_of_one_name_around_one_base_object(tmp_path):
    base = builders.llama(2)
    old = with_lora(base, 10)
    with pytest.warns(UserWarning):
        model = with_lora(base, 20)
    refused("both call their adapter 'default'.*different names", tmp_path, model, old)


def test_default_is_the_old_models_adapter_on_the_same_base_object(tmp_path):
    base = builders.llama(2)
    old = with_lora(base, 10)
    with pytest.warns(UserWarning):
        model = with_lora(base, 20, "v2")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".v2." in name
    refused("'default'.*is taken by another", tmp_path, model, old)


def test_merged_adapter(tmp_path):
    model = with_lora(builders.llama(2), 20)
    model.merge_adapter()
    refused("merged into its base; call unmerge_adapter", tmp_path, model)


def test_prompt_tuning_and_trained_biases(tmp_path):
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    refused("PROMPT_TUNING.*use LoRA", tmp_path, get_peft_model(builders.llama(2), prompt))
    refused("bias='all'.*train it with bias='none'", tmp_path, with_lora(builders.llama(2), 20, bias="all"))


# ---- Files ----


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """v1 and v2 of one shape, a deeper and a wider base, with an adapter on each."""
    root = tmp_path_factory.mktemp("models")
    shapes = {"v1": (1, {}), "v2": (2, {}), "deeper": (3, {"num_hidden_layers": 2}), "wider": (4, {"hidden_size": 32})}
    for name, (seed, shape) in shapes.items():
        builders.llama(seed, **shape).save_pretrained(root / name)
        base = AutoModelForCausalLM.from_pretrained(root / name)
        # By short names, which every layer has.
        task = with_lora(base, 10 * seed, target_modules=["q_proj", "o_proj"])
        task.save_pretrained(root / f"{name}-task")
    return root


def loaded(root, adapter, base):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root / base), root / adapter)


def test_adapter_of_another_base_of_the_same_shape(folders, tmp_path):
    misfit = loaded(folders, "v1-task", "v2")
    refused("trained for the base .*v1, but it sits on .*v2. Load the base that it records", tmp_path, misfit)
    refused("trained for the base .*v1, but it sits on .*v2", tmp_path, loaded(folders, "v2-task", "v2"), misfit)
    trainer = builders.trainer(tmp_path, misfit, folders / "v1-task", check_base=False)
    assert trainer.teachers["old"]
    named = {"old_model_kwargs": {"base_model": str(folders / "v2")}}
    refused("trained for the base .*v1, but is to be put on .*v2", tmp_path, None, folders / "v1-task", **named)
    assert builders.trainer(tmp_path, None, folders / "v1-task", check_base=False, **named).teachers["old"]
    shutil.copytree(folders / "v1", tmp_path / "moved")
    moved = {"old_model_kwargs": {"base_model": str(tmp_path / "moved")}}
    assert builders.trainer(tmp_path, None, folders / "v1-task", **moved).teachers["old"]


def test_base_that_has_only_moved_is_no_other_base(folders, tmp_path):
    for name in ("v2", "v2-task"):
        shutil.copytree(folders / name, tmp_path / "here" / name)
    trainer = builders.trainer(tmp_path, loaded(tmp_path / "here", "v2-task", "v2"), folders / "v1-task")
    assert trainer.teachers["old"]


@pytest.mark.parametrize("base", ["wider", "deeper", "v1"])
def test_adapter_put_on_a_base_of_another_shape(base, folders, tmp_path):
    adapter = "deeper-task" if base == "v1" else "v1-task"
    arguments = {"old_model_kwargs": {"base_model": str(folders / base)}, "check_base": False}
    message = f"the adapter .*{adapter} was trained for another base"
    refused(message, tmp_path, None, folders / adapter, **arguments)


def test_adapter_folder_without_safetensors(folders, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(folders / "v1-task", folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")
    refused("no adapter_model.safetensors. Pickled weights are never loaded.*save_pretrained", tmp_path, None, folder)


def test_model_folder_without_safetensors(folders, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(folders / "v1", folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refused("cannot be loaded", tmp_path, None, folder)


def test_folder_that_holds_nothing_or_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    refused("neither an adapter .* nor a model", tmp_path, None, tmp_path / "empty")
    refused("nowhere", tmp_path, None, str(tmp_path / "nowhere"))


def test_adapter_whose_base_has_gone(folders, tmp_path):
    shutil.copytree(folders / "v1-task", tmp_path / "task")
    settings = json.loads((tmp_path / "task" / "adapter_config.json").read_text())
    for gone, message in ((str(tmp_path / "gone"), "gone"), (None, "does not record its base.*base_model=")):
        settings["base_model_name_or_path"] = gone
        (tmp_path / "task" / "adapter_config.json").write_text(json.dumps(settings))
        refused(message, tmp_path, None, tmp_path / "task")
    builders.trainer(tmp_path, None, tmp_path / "task", old_model_kwargs={"base_model": str(folders / "v1")})


def test_no_code_of_a_repository_is_run(folders, tmp_path):
    arguments = {"old_model_kwargs": {"trust_remote_code": True}}
    refused("trust_remote_code cannot be chosen here", tmp_path, None, folders / "v1", **arguments)


# ---- Vocabularies and labels ----


WORDS = [f"w{index}" for index in range(builders.VOCABULARY)]


def test_vocabularies_of_other_words(tmp_path):
    others = [WORDS[0], *(f"x{index}" for index in range(1, builders.VOCABULARY))]
    tokenizers = {"processing_class": builders.tokenizer(WORDS), "old_processing_class": builders.tokenizer(others)}
    refused("not byte strings", tmp_path, **tokenizers)


def test_vocabulary_saved_beside_the_old_base_is_found(folders, tmp_path):
    for part in ("v1", "v1-task"):
        shutil.copytree(folders / part, tmp_path / part)
    settings = json.loads((tmp_path / "v1-task" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "v1")
    (tmp_path / "v1-task" / "adapter_config.json").write_text(json.dumps(settings))
    builders.tokenizer([WORDS[0], *WORDS[2:]]).save_pretrained(tmp_path / "v1")  # no row has the second
    mine = {"processing_class": builders.tokenizer(WORDS)}
    trainer = builders.trainer(tmp_path / "other", None, tmp_path / "v1-task", **mine)
    assert len(trainer.teachers["old"].tokenizer) == builders.VOCABULARY - 1
    builders.tokenizer(WORDS).save_pretrained(tmp_path / "v1")
    builders.trainer(tmp_path / "fine", None, tmp_path / "v1-task", **mine)


@pytest.mark.parametrize("padded", ["old", "new"])
def test_padded_embeddings_with_equal_tokens_work(padded, tmp_path):
    widths = {"old": builders.VOCABULARY, "new": builders.VOCABULARY, padded: 64}
    model, old = (
        with_lora(builders.llama(seed, vocab_size=widths[role]), 10 * seed) for role, seed in (("new", 2), ("old", 1))
    )
    words = {"processing_class": builders.tokenizer(WORDS), "old_processing_class": builders.tokenizer(WORDS)}
    refused("64 embeddings|48 embeddings", tmp_path, model, old)
    trainer = builders.trainer(tmp_path, with_lora(builders.llama(2, vocab_size=widths["new"]), 20), old, **words)
    result = trainer.train()
    assert 0 < result.training_loss < 100


def test_different_label_sets(tmp_path):
    names = {0: "refund", 1: "other", 2: "repair"}
    old = builders.bert_sequences(1, id2label=names, label2id={name: index for index, name in names.items()})
    settings = {"train_dataset": builders.sequence_rows()}
    model = with_lora(builders.bert_sequences(2), 20)
    refused("different label sets.*same id2label", tmp_path, model, with_lora(old, 10), **settings)
    fewer = builders.bert_sequences(1, id2label={0: "refund", 1: "repair"}, label2id={"refund": 0, "repair": 1})
    model = with_lora(builders.bert_sequences(2), 20)
    refused("different label sets", tmp_path, model, with_lora(fewer, 10), **settings)


# ---- Data ----


def test_dataset_without_labels(tmp_path):
    rows = builders.without(builders.rows(), "labels")
    from muscle_hf.training.data import PaddingCollator

    refused("no labels", tmp_path, train_dataset=rows, data_collator=PaddingCollator())


def test_all_labels_ignored(tmp_path):
    rows = [{**row, "labels": [-100] * len(row["labels"])} for row in builders.rows()]
    refused(r"every label .*8 rows.* is ignored \(-100\)", tmp_path, train_dataset=rows)


def test_only_the_first_token_is_labelled_which_nothing_predicts(tmp_path):
    rows = [{**row, "labels": [3] + [-100] * (len(row["labels"]) - 1)} for row in builders.rows()]
    refused("every label", tmp_path, train_dataset=rows)


def test_empty_dataset(tmp_path):
    refused("the training set is empty", tmp_path, train_dataset=[])


def test_stream_with_nothing_to_train_on(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([{**row, "labels": [-100] * len(row["labels"])} for row in builders.rows()])

    trainer = builders.trainer(tmp_path, train_dataset=Stream())
    with pytest.raises(MuscleError, match="every label"):
        trainer.train()


def test_missing_mask_column(tmp_path):
    rows = builders.without(builders.rows(), "completion_mask")
    refused("needs the column 'completion_mask'", tmp_path, train_dataset=rows, trained_tokens="completion")


# ---- Settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": builders.rows}, r"mask is a function.*MuscleTrainer\(mask="),
        ({"mask": "wrong"}, "unknown mask 'wrong'; choose one of student_wrong"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"compatibility_weight": 1.1}, r"lambda\) is 1.1"),
        ({"compatibility_weight": -0.1}, r"lambda\) is -0.1"),
        ({"compatibility_weight": 0.0}, "use transformers.Trainer"),
        ({"compatibility_weight": float("nan")}, r"lambda\) is nan"),
        ({"trained_tokens": "prompt"}, "trained_tokens is 'prompt'; choose one of labels, completion, assistant"),
        ({"label_smoothing_factor": 0.1}, "no cross-entropy to smooth; lower compatibility_weight"),
        ({"label_smoothing_factor": 1.5, "compatibility_weight": 0.5}, "label_smoothing_factor is 1.5"),
    ],
)
def test_settings_out_of_range(settings, message, tmp_path):
    with pytest.raises(MuscleError, match=message):
        MuscleConfig(str(tmp_path), **settings)


@pytest.mark.parametrize("mask", ["old_likelier", "old_likelier_sequence"])
def test_likelihood_mask_without_cross_entropy_warns(mask, tmp_path):
    with pytest.warns(UserWarning, match="unstable without the auxiliary cross-entropy.*below 1"):
        builders.config(tmp_path, mask=mask)


def test_likelihood_mask_with_cross_entropy_does_not_warn(tmp_path, recwarn):
    builders.config(tmp_path, mask="old_likelier", compatibility_weight=0.5)
    assert not [warning for warning in recwarn if "unstable" in str(warning.message)]


def test_label_smoothing_in_plain_arguments(tmp_path):
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to="none")
    refused("no cross-entropy to smooth", tmp_path, args=arguments)


def test_loss_function_of_ones_own_where_there_is_no_cross_entropy(tmp_path):
    refused("compute_loss_func.*lower compatibility_weight", tmp_path, compute_loss_func=lambda *a, **k: 0)


def test_loss_function_of_ones_own_with_label_smoothing(tmp_path):
    settings = {"compatibility_weight": 0.5, "label_smoothing_factor": 0.1, "compute_loss_func": lambda *a, **k: 0}
    refused("use one of them", tmp_path, **settings)


def test_mask_of_ones_own_with_the_wrong_signature(tmp_path):
    refused("must be a function", tmp_path, mask=lambda logits, labels: None)


# ---- While training ----


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ["old", "new"])
@pytest.mark.parametrize("chunk", [0, 3])
def test_teacher_that_is_not_finite_stops_training_and_keeps_the_checkpoint(role, value, chunk, tmp_path):
    model, old = with_lora(builders.llama(2), 20), with_lora(builders.llama(1), 10)
    new = builders.llama(3) if role == "new" else None
    trainer = builders.trainer(
        tmp_path,
        model,
        old,
        new_model=new,
        # Every row has tokens that follow the one model and tokens that follow the other.
        train_dataset=builders.half_right(builders.rows(), model),
        save_strategy="steps",
        save_steps=1,
        train_sampling_strategy="sequential",
        loss_chunk_size=chunk,
        skip_unneeded_teachers=False,
    )
    broken = trainer.teachers[role]
    assert isinstance(broken, ModelTeacher)

    def from_the_second_step_on(module, inputs, hidden):
        if trainer.state.global_step == 1:
            hidden[2] = value

    base_of(broken.model).model.norm.register_forward_hook(from_the_second_step_on)
    with pytest.raises(TeacherOutputError, match=rf"the {role} model's logits are .* step 2, in rows \[2\]"):
        trainer.train()
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").is_file()
    assert trainer.model.active_adapter == "default"


def test_optimizer_made_before_the_student(tmp_path):
    model = with_lora(builders.llama(2), 20, "v2")
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    trainer = builders.trainer(tmp_path, model, optimizers=(optimizer, None))
    with pytest.raises(MuscleError, match=r"lacks 14 of the 14 parameters .* optimizer_cls_and_kwargs"):
        trainer.train()


def test_optimizer_of_the_adapter_that_becomes_the_student(tmp_path):
    model = with_lora(builders.llama(2), 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert builders.trainer(tmp_path, model, optimizers=(optimizer, None)).train().global_step == 2


def test_foreign_trainable_parameters(tmp_path):
    trainer = builders.trainer(tmp_path)
    trainer.model.get_base_model().model.norm.weight.requires_grad = True
    with pytest.raises(MuscleError, match="outside the compatibility adapter are trainable"):
        trainer.train()
