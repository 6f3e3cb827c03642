"""Models of every kind: which kind they are, how their labels are read, and what their outputs may look like."""

from __future__ import annotations

import functools
import itertools

import builders
import datasets
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import DataCollatorWithPadding, Trainer

from muscle_hf import MuscleError
from muscle_hf.teachers.kinds import CAUSAL_LM, QUESTION_ANSWERING, SEQ2SEQ_LM, SEQUENCE_CLASSIFICATION, kind_of

ENCODER_DECODER = {
    "vocab_size": builders.VOCABULARY, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "dropout": 0.0, "init_std": 0.4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3,
}  # fmt: skip
BERT = {
    "vocab_size": builders.VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.4,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def of_two_berts():
    decoder = transformers.BertConfig(**BERT, is_decoder=True, add_cross_attention=True)
    return transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**BERT), decoder, pad_token_id=0, decoder_start_token_id=3
    )


# Models that make their decoder's inputs in their forward, or whose class's name says nothing.
SEQ2SEQ = {
    "M2M100ForConditionalGeneration": lambda: transformers.M2M100Config(**ENCODER_DECODER),
    "BlenderbotForConditionalGeneration": lambda: transformers.BlenderbotConfig(**ENCODER_DECODER),
    "WhisperForConditionalGeneration": lambda: transformers.WhisperConfig(
        **ENCODER_DECODER, num_mel_bins=8, max_source_positions=10, max_target_positions=32
    ),
    "MarianMTModel": lambda: transformers.MarianConfig(**ENCODER_DECODER),
    "EncoderDecoderModel": of_two_berts,
}


def task_model(model_class, config, seed, adapter_seed, **settings):
    torch.manual_seed(seed)
    model = model_class(config).eval()
    torch.manual_seed(adapter_seed)
    # PEFT's own wrapper of seq2seq models asks for input_ids, which Whisper does not have.
    defaults = {"r": 4, "target_modules": r".*(q_proj|v_proj|query|value)", "init_lora_weights": False}
    return get_peft_model(model, LoraConfig(**{**defaults, **settings}))


def heard(rows):
    """Rows of a speech model."""
    torch.manual_seed(0)
    return [{"input_features": torch.randn(8, 20), "labels": row["labels"]} for row in rows]


def collate(rows):
    if "input_features" not in rows[0]:
        return builders.collate(rows)
    labels = builders.collate([{"input_ids": row["labels"], "labels": row["labels"]} for row in rows])["labels"]
    return {"input_features": torch.stack([row["input_features"] for row in rows]), "labels": labels}


@pytest.mark.parametrize("chunk", [None, 0])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_decoder_inputs_are_what_the_model_makes_of_the_labels(name, chunk, tmp_path):
    model_class, config = getattr(transformers, name), SEQ2SEQ[name]()
    rows = builders.without(builders.rows(4), "completion_mask")
    rows = heard(rows) if "Whisper" in name else rows
    student, old = task_model(model_class, config, 2, 20), task_model(model_class, config, 1, 10)
    with torch.no_grad():
        own = student(**collate(rows)).loss.item()
    trainer = builders.trainer(
        tmp_path, student, old, train_dataset=rows, eval_dataset=rows, data_collator=collate, loss_chunk_size=chunk
    )
    assert trainer.kind is SEQ2SEQ_LM
    assert trainer.evaluate()["eval_ce"] == pytest.approx(own, rel=1e-5)
    trainer.train()
    assert trainer.state.log_history[0]["kl_old"] > 0


def test_a_speech_model_is_loaded_from_a_folder(tmp_path):
    model_class, config = transformers.WhisperForConditionalGeneration, SEQ2SEQ["WhisperForConditionalGeneration"]()
    torch.manual_seed(1)
    model_class(config).save_pretrained(tmp_path / "old")
    rows = heard(builders.without(builders.rows(4), "completion_mask"))
    student = task_model(model_class, config, 2, 20)
    trainer = builders.trainer(
        tmp_path / "run", student, str(tmp_path / "old"), train_dataset=rows, eval_dataset=rows, data_collator=collate
    )
    assert isinstance(trainer.teachers["old"].model, model_class)
    assert trainer.evaluate()["eval_kl_old"] > 0


@pytest.mark.parametrize("same", [True, False])
def test_a_classifier_of_sound_with_running_statistics(same, tmp_path):
    """What a training forward leaves in the base would change both teachers, and is in no adapter."""
    config = transformers.Wav2Vec2ConformerConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,),
        conv_kernel=(10,), conv_stride=(5,), num_feat_extract_layers=1, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, conv_depthwise_kernel_size=3, classifier_proj_size=8, num_labels=3,
        mask_time_prob=0.0, layerdrop=0.0,
    )  # fmt: skip

    model_class = transformers.Wav2Vec2ConformerForSequenceClassification
    model = functools.partial(task_model, model_class, config, target_modules=["linear_q", "linear_v"])
    table = [{"input_values": torch.randn(200).tolist(), "labels": index % 3} for index in range(8)]
    sound = torch.tensor([row["input_values"] for row in table])
    old, new = model(2 if same else 1, 10).eval(), model(2, 20).eval()
    with torch.no_grad():
        expected = {"old": old(sound).logits, "new": new(sound).logits}
    trainer = builders.trainer(
        tmp_path, new, old, train_dataset=table, data_collator=transformers.default_data_collator
    )
    trainer.train()
    for role, teacher in trainer.teachers.items():
        assert torch.equal(teacher.logits({"input_values": sound}), expected[role])
    trainer.save_model()
    torch.manual_seed(2)
    base = model_class(config)
    with torch.no_grad():
        again = PeftModel.from_pretrained(base, tmp_path).eval()(sound).logits
        assert torch.equal(again, trainer.student.eval()(sound).logits)


class Router(transformers.BertForSequenceClassification):
    """A class of the user's own, derived from one that is known."""


def test_the_kind_is_that_of_the_nearest_known_class():
    assert kind_of(Router(transformers.BertConfig(**BERT, num_labels=3))) is SEQUENCE_CLASSIFICATION
    assert kind_of(transformers.ReformerModelWithLMHead.__new__(transformers.ReformerModelWithLMHead)) is CAUSAL_LM
    with pytest.raises(MuscleError, match="BertForMaskedLM"):
        kind_of(transformers.BertForMaskedLM(transformers.BertConfig(**BERT)))


# ---- Extractive question answering ----


def answered(count=8):
    rows = builders.rows(count)
    # The last answer was cut off.
    return [
        {"input_ids": row["input_ids"], "start_positions": i % 3, "end_positions": 50 if i == count - 1 else 2 + i % 2}
        for i, row in enumerate(rows)
    ]


def collate_answers(rows):
    batch = builders.PaddingCollator()([{"input_ids": row["input_ids"]} for row in rows])
    names = [name for name in ("start_positions", "end_positions") if name in rows[0]]
    return {**batch, **{name: torch.tensor([row[name] for row in rows]) for name in names}}


def test_the_two_positions_of_an_answer_are_two_labels(tmp_path):
    def make(seed, adapter_seed):
        config = transformers.BertConfig(**BERT)
        return task_model(transformers.BertForQuestionAnswering, config, seed, adapter_seed, task_type="QUESTION_ANS")

    rows = answered()
    student, old = make(2, 20), make(1, 10)
    with torch.no_grad():
        logits = [student(**collate_answers(rows)), old(**collate_answers(rows))]
    starts, ends = ([getattr(of, f"{end}_logits") for of in logits] for end in ("start", "end"))
    trainer = builders.trainer(
        tmp_path, student, old, train_dataset=rows, eval_dataset=rows, data_collator=collate_answers,
        per_device_eval_batch_size=8, mask="always_old", temperature=1.0,
    )  # fmt: skip
    assert trainer.kind is QUESTION_ANSWERING
    found = trainer.evaluate()
    divergences = [
        torch.nn.functional.kl_div(new.log_softmax(-1), old.softmax(-1), reduction="none").sum(-1)
        for new, old in (starts, ends)
    ]
    assert found["eval_loss"] == pytest.approx(
        (divergences[0].sum() + divergences[1][:-1].sum()).item() / 15, rel=1e-5
    )
    trainer.train()
    unlabelled = [{"input_ids": row["input_ids"]} for row in rows]
    predicted = trainer.predict(unlabelled)
    assert [part.shape[0] for part in predicted.predictions] == [8, 8]
    assert not any(builders.is_figure(name) for name in predicted.metrics)
    with pytest.raises(MuscleError, match="start_positions and end_positions"):
        builders.trainer(tmp_path, make(2, 20), make(1, 10), train_dataset=unlabelled, data_collator=collate_answers)


# ---- Outputs that are no ModelOutput ----


def returning(model, change):
    """The model with another kind of output."""
    forward = type(model).forward

    @functools.wraps(forward)
    def changed(self, *args, **kwargs):
        return change(forward(self, *args, **kwargs))

    model.__class__ = type(type(model).__name__, (type(model),), {"forward": changed})
    return model


class Bare:
    """Knows its logits, and is neither a dictionary nor a tuple."""

    def __init__(self, outputs):
        self.logits = outputs.logits


@pytest.mark.parametrize("change", [lambda outputs: outputs.to_tuple(), Bare, lambda outputs: outputs.logits])
@pytest.mark.parametrize("build", [builders.llama, builders.bert_sequences])
def test_predictions_behind_the_loss_whatever_a_model_returns(build, change, tmp_path):
    rows = (
        builders.sequence_rows()
        if build is builders.bert_sequences
        else builders.without(builders.rows(), "completion_mask")
    )

    def evaluated(change):
        seen = []
        models = [returning(build(seed), change) for seed in (2, 1)]
        trainer = builders.trainer(
            tmp_path, builders.with_lora(models[0], 20), builders.with_lora(models[1], 10), train_dataset=rows,
            eval_dataset=rows, compute_metrics=lambda prediction: seen.append(prediction.predictions) or {},
        )  # fmt: skip
        found = trainer.evaluate()
        return found, seen[0], trainer.predict(rows).predictions

    expected, *arrays = evaluated(lambda outputs: outputs)
    found, *others = evaluated(change)
    for name in filter(builders.is_figure, expected):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    for one, other in zip(arrays, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_model_whose_config_says_return_dict_false(tmp_path):
    rows, models = builders.sequence_rows(), []
    for seed in (2, 1):
        models.append(builders.with_lora(builders.bert_sequences(seed, return_dict=False), 10 * seed))
    plain = Trainer(
        builders.with_lora(builders.bert_sequences(2), 20), builders.config(tmp_path), data_collator=builders.collate
    )
    trainer = builders.trainer(tmp_path, *models, train_dataset=rows)
    np.testing.assert_allclose(trainer.predict(rows).predictions, plain.predict(rows).predictions, rtol=1e-5)


# ---- Labels of classifiers ----

GOOD = builders.sequence_rows()


def labelled(labels):
    return [{"input_ids": row["input_ids"], "labels": label} for row, label in zip(GOOD, labels, strict=True)]


def raw(rows):
    """A collator of the user's own."""
    batch = builders.PaddingCollator()([{"input_ids": row["input_ids"]} for row in rows])
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


PADDING = DataCollatorWithPadding(builders.tokenizer())
WRONG_LABELS = {
    "several classes, as floats": (raw, labelled([[0.0, 1.0, 1.0]] * 8), "float32"),
    "several classes, as numbers": (raw, labelled([[0, 1, 1]] * 8), "int64"),
    "regression": (raw, labelled([0.5] * 8), "float32"),
    "out of range at once": (raw, labelled([3] * 8), "3"),
    "out of range at the end": (PADDING, labelled([*[0] * 7, 3]), "row 7"),
    "below zero": (PADDING, labelled([*[0] * 7, -1]), "-1"),
    "words": (
        PADDING,
        datasets.Dataset.from_list(labelled(["refund"] * 8)).rename_column("labels", "label"),
        "'label'",
    ),
    "a gap": (PADDING, datasets.Dataset.from_list(labelled([0, 1, 2, 0, None, 1, 2, 0])), "row 4"),
    "floats of a dataset": (PADDING, datasets.Dataset.from_list(labelled([0.0] * 8)).with_format("torch"), "row 0"),
}


# Rows of a collator of one's own are seen when they are collated.
READ_AT_ONCE = [(case, "eval") for case, (collator, *_) in WRONG_LABELS.items() if collator is PADDING]


@pytest.mark.parametrize(("case", "split"), [*((case, "train") for case in WRONG_LABELS), *READ_AT_ONCE])
def test_labels_that_are_no_classes_are_refused_before_training(case, split, tmp_path):
    collate, rows, names = WRONG_LABELS[case]
    models = builders.with_lora(builders.bert_sequences(2), 20), builders.with_lora(builders.bert_sequences(1), 10)
    sets = {"train_dataset": rows} if split == "train" else {"train_dataset": GOOD, "eval_dataset": {"late": rows}}
    with pytest.raises(MuscleError, match=names):
        builders.trainer(tmp_path, *models, data_collator=collate, **sets)


def test_unusual_labels_that_are_classes_work(tmp_path):
    words = {"refund": 0, "repair": 1, "other": 2}

    def number(batch):
        return {**batch, "labels": [words[label] for label in batch["labels"]]}

    def endless():
        yield from itertools.cycle(GOOD)

    cases = {
        "words that the collator maps": (
            lambda rows: raw([{**row, "labels": words[row["labels"]]} for row in rows]),
            labelled([*words, *words, "refund", "other"]),
        ),
        "some ignored": (PADDING, labelled([-100, *[1] * 7])),
        "one column": (raw, labelled([[0], [1]] * 4)),
        "numpy": (PADDING, labelled(list(np.arange(8) % 3))),
        "tensors": (PADDING, datasets.Dataset.from_list(labelled([0, 1] * 4)).with_format("torch")),
        "words that the dataset maps": (
            PADDING,
            datasets.Dataset.from_list(labelled([*words, *words, "refund", "other"])).with_transform(number),
        ),
        "a stream without an end": (PADDING, datasets.IterableDataset.from_generator(endless)),
        "a stream of known columns": (PADDING, datasets.Dataset.from_list(GOOD).to_iterable_dataset()),
    }
    for name, (collate, rows) in cases.items():
        models = builders.with_lora(builders.bert_sequences(2), 20), builders.with_lora(builders.bert_sequences(1), 10)
        trainer = builders.trainer(tmp_path / name, *models, train_dataset=rows, data_collator=collate)
        trainer.train()
        assert trainer.state.log_history[1]["loss"] > 0, name
