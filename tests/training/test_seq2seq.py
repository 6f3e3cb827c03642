"""MuscleSeq2SeqTrainer: the objective's figures and the metrics of what is generated, side by side."""

from __future__ import annotations

import builders
import pytest
import torch
from builders import with_lora
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

from muscle_hf import MuscleConfig, MuscleError, MuscleSeq2SeqConfig, MuscleSeq2SeqTrainer, MuscleTrainer
from muscle_hf.trainer import MuscleMixin

ROWS = builders.half_right(builders.without(builders.rows(), "completion_mask"), with_lora(builders.t5(2), 20))
QUIET = {
    "per_device_train_batch_size": 4, "per_device_eval_batch_size": 3, "max_steps": 2, "learning_rate": 1e-2,
    "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
}  # fmt: skip


class Mixed(MuscleMixin, Seq2SeqTrainer):
    """As users mix it themselves."""


class AskingTrainer(Trainer):
    """Evaluates by the loss that the model itself computes."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            outputs = model(**self._prepare_inputs(inputs))
        return outputs.loss, outputs.logits.argmax(-1), inputs["labels"]


class AskingMuscleTrainer(MuscleMixin, AskingTrainer):
    """The same with the objective."""


class OverridingMuscleTrainer(MuscleTrainer):
    """A script's own trainer, of which no more than the parent was changed."""

    prediction_step = AskingTrainer.prediction_step


def make(folder, trainer_class=MuscleSeq2SeqTrainer, config=MuscleSeq2SeqConfig, **settings):
    kept = {name: settings.pop(name) for name in ("compute_metrics", "eval_dataset") if name in settings}
    return trainer_class(
        with_lora(builders.t5(2), 20),
        config(str(folder), **{**QUIET, **settings}),
        old_model=with_lora(builders.t5(1), 10),
        train_dataset=ROWS,
        data_collator=builders.collate,
        processing_class=builders.tokenizer(),
        **{"eval_dataset": ROWS, **kept},
    )


def length(prediction):
    """Of the longest text that was generated, with its start and what pads it."""
    return int((prediction.predictions > 0).any(axis=0).nonzero()[0].max()) + 1


def figures(metrics):
    return {name: value for name, value in metrics.items() if builders.is_figure(name)}


@pytest.mark.parametrize("trainer_class", [MuscleSeq2SeqTrainer, Mixed])
def test_generation_changes_no_figure_of_the_objective(trainer_class, tmp_path):
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions)
        return {"length": length(prediction)}

    expected = make(tmp_path / "plain", MuscleTrainer, MuscleConfig).evaluate()
    settings = {"predict_with_generate": True, "generation_max_length": 17, "compute_metrics": compute_metrics}
    trainer = make(tmp_path / "generating", trainer_class, **settings)
    found = trainer.evaluate()
    assert figures(expected).keys() == {"eval_loss", *(f"eval_{name}" for name in builders.FIGURES)}
    assert figures(found) == pytest.approx(figures(expected), rel=1e-5)
    assert found["eval_length"] == 17, "what compute_metrics gets was generated"
    batch = builders.collate(ROWS[:3])
    generated = trainer.model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_length=17
    )
    assert seen[0][:3, : generated.size(1)].tolist() == generated.tolist()
    assert trainer.evaluate(max_length=13)["eval_length"] == 13
    predicted = trainer.predict(ROWS, metric_key_prefix="test", num_beams=2).metrics
    assert predicted["test_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)


def test_without_generation_it_is_muscle_trainer(tmp_path):
    runs = []
    for name, classes in {"plain": (MuscleTrainer, MuscleConfig), "seq2seq": ()}.items():
        trainer = make(tmp_path / name, *classes)
        trainer.train()
        runs.append([figures(entry) for entry in trainer.state.log_history] + [figures(trainer.evaluate())])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("trainer_class", [AskingMuscleTrainer, OverridingMuscleTrainer])
@pytest.mark.parametrize("loss_alone", [True, False])
def test_a_trainer_that_asks_the_model_for_its_loss_evaluates_the_objective(loss_alone, trainer_class, tmp_path):
    expected = make(tmp_path / "plain", MuscleTrainer, MuscleConfig).evaluate()
    metrics = {} if loss_alone else {"compute_metrics": lambda prediction: {"rows": len(prediction.predictions)}}
    trainer = make(tmp_path / "asking", trainer_class, MuscleConfig, **metrics)
    found = trainer.evaluate()
    assert figures(found) == pytest.approx(figures(expected), rel=1e-5)
    assert found.get("eval_rows") == (None if loss_alone else 8)


def test_what_would_be_ignored_is_refused(tmp_path):
    with pytest.raises(MuscleError, match="MuscleSeq2SeqTrainer"):
        make(tmp_path, MuscleTrainer, predict_with_generate=True)
    with pytest.raises(MuscleError, match="MuscleSeq2SeqConfig"):
        make(tmp_path, config=MuscleConfig)
    make(tmp_path, AskingMuscleTrainer, predict_with_generate=True)


def test_the_config_has_both_parents_fields_and_hides_tokens(tmp_path):
    args = MuscleSeq2SeqConfig(str(tmp_path), mask="old_right", generation_num_beams=3, hub_token="hf_secret")
    assert (args.mask, args.generation_num_beams) == ("old_right", 3)
    assert "hf_secret" not in repr(args) + str(args)
    with pytest.raises(MuscleError, match="temperature"):
        MuscleSeq2SeqConfig(str(tmp_path), temperature=0)
    plain = make(tmp_path, config=Seq2SeqTrainingArguments, predict_with_generate=True)
    assert plain.muscle_objective.mask.name == "student_wrong"


def test_a_generation_config_is_used_and_its_place_is_not_told(tmp_path):
    settings = {"predict_with_generate": True, "compute_metrics": lambda prediction: {"length": length(prediction)}}
    made = with_lora(builders.t5(2), 20).generation_config
    made.max_length = 15
    made.save_pretrained(tmp_path / "generation")
    trainer = make(tmp_path / "run", generation_config=tmp_path / "generation", **settings)
    assert trainer.evaluate()["eval_length"] == 15
    trainer.save_model()
    assert str(tmp_path) not in (tmp_path / "run" / "muscle_provenance.json").read_text()
