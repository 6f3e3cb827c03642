"""Which architectures are trained, and with what: each cell of the table is a check on tiny random models.

    python benchmarks/architectures.py [NAME ...]

Writes the table of docs/reference/architectures.md; with names, checks those alone and prints. Everything runs on the
CPU and needs no Hub. "vLLM" is what ``muscle_hf.hub.serving`` says of the adapter and its base, and what a vLLM
answered when ``architectures_vllm.py`` asked it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn

from muscle_hf import MuscleConfig, MuscleError, MuscleTrainer
from muscle_hf.hub.serving import serving_problems
from muscle_hf.teachers import kind_of
from muscle_hf.teachers.loading import load_model
from muscle_hf.teachers.weights import base_of
from muscle_hf.training.data import PaddingCollator

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "architectures.md"
ASKED = ROOT / "benchmarks" / "results" / "architectures_vllm.json"
MARK = "<!-- table: written by benchmarks/architectures.py -->"
# A classifier has a few logits a row: nothing to cut into chunks or to keep on the disk.
NOT_APPLICABLE = "–"
SERVES = "yes"
NOT_RUN = "vLLM's build for CPUs could not load it"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")

VOCABULARY, CLASSES, STEPS = 48, 3, 3
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}


# ---- Architectures ----

# Far from uniform outputs, so that the models disagree.
WIDTHS: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**WIDTHS, "num_key_value_heads": 1}
HEADS = {**GROUPED, "head_dim": 32}
GEMMA = {**HEADS, "sliding_window": 8, "query_pre_attn_scalar": 32}
LINEAR = {
    "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 1, "linear_num_value_heads": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
PER_LAYER = {
    "sliding_window": 8, "global_head_dim": 32, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 8}
ENCODER = {**WIDTHS, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": CLASSES}
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 2,
}  # fmt: skip
QWEN_VISION = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 2, "out_hidden_size": 64,
    "num_position_embeddings": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """One row.

    Args:
        model: Class in ``transformers``.
        config: Class of its configuration.
        settings: Of the configuration; of its ``text_config`` where there is a ``vision``.
        vision: ``vision_config`` of a model that reads images too.
        more: Settings beside the two configurations.
        lora: Changes to a LoRA on all linear layers.
        not_quantized: Layers that QLoRA has to leave as they are.
    """

    model: str
    config: str
    settings: dict[str, Any]
    vision: dict[str, Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    not_quantized: tuple[str, ...] = ()

    def base(self, seed: int) -> nn.Module:
        settings = {**self.settings, **self.more}
        if self.vision is not None:
            settings = {"text_config": self.settings, "vision_config": dict(self.vision), **self.more}
        config = getattr(transformers, self.config)(**settings)
        torch.manual_seed(seed)
        return getattr(transformers, self.model)(config).eval()

    def with_adapter(self, base: nn.Module, seed: int) -> PeftModel:
        """A task model: random LoRA weights stand for a trained adapter."""
        torch.manual_seed(seed)
        settings = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False, **self.lora}
        return get_peft_model(base, LoraConfig(task_type=kind_of(base).task_type, **settings))


def text(name: str, settings: dict[str, Any], config: str | None = None, **more: Any) -> Architecture:
    return Architecture(f"{name}ForCausalLM", config or f"{name}Config", settings, **more)


def images(name: str, settings: dict[str, Any], vision: dict[str, Any], **more: Any) -> Architecture:
    """Trained on text alone, with adapters on the language model alone."""
    lora = {"target_modules": r".*language_model.*\.(q_proj|v_proj|in_proj_qkv|down_proj)"}
    return Architecture(f"{name}ForConditionalGeneration", f"{name}Config", settings, vision, more, lora)


ON_EXPERTS = {
    "target_modules": ["q_proj", "v_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}
ARCHITECTURES = {
    "Llama": text("Llama", HEADS),
    "Qwen 2": text("Qwen2", GROUPED),
    "Qwen 3": text("Qwen3", HEADS),
    "Qwen 3 MoE": text("Qwen3Moe", {**HEADS, **EXPERTS}, lora={"target_modules": ["q_proj", "v_proj", "o_proj"]}),
    "Qwen 3 MoE, adapter on the experts": text("Qwen3Moe", {**HEADS, **EXPERTS}, lora=ON_EXPERTS),
    "Qwen 3.5 (hybrid)": text("Qwen3_5", {**HEADS, **LINEAR}, "Qwen3_5TextConfig"),
    "Qwen 3.5 (hybrid), with vision": images("Qwen3_5", {**HEADS, **LINEAR}, QWEN_VISION),
    "Gemma 2": text("Gemma2", {**GEMMA, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0}),
    "Gemma 3": text("Gemma3", GEMMA, "Gemma3TextConfig"),
    "Gemma 3, with vision": images("Gemma3", GEMMA, VISION, mm_tokens_per_image=4, image_token_index=44),
    "Gemma 4": text("Gemma4", {**HEADS, **PER_LAYER}, "Gemma4TextConfig"),
    "Gemma 4, with vision": images(
        "Gemma4", {**HEADS, **PER_LAYER},
        {**VISION, "num_key_value_heads": 2, "head_dim": 16, "pooling_kernel_size": 2, "position_embedding_size": 16},
        image_token_id=44, audio_config=None,
    ),
    "Mistral": text("Mistral", HEADS),
    "Mistral 3, with vision": images(
        "Mistral3", {**HEADS, "model_type": "mistral"}, {**VISION, "model_type": "pixtral", "head_dim": 16},
        image_token_index=44, spatial_merge_size=2,
    ),
    "Phi": text("Phi", WIDTHS),
    "Phi 3": text("Phi3", GROUPED),
    "OLMo 2": text("Olmo2", GROUPED),
    "OLMo 3": text("Olmo3", {**GROUPED, "sliding_window": 8}),
    "SmolLM 3": text("SmolLM3", GROUPED),
    "Granite 4 (hybrid, MoE)": text(
        "GraniteMoeHybrid",
        {**GROUPED, **MAMBA2, "logits_scaling": 4.0, "num_local_experts": 4, "shared_intermediate_size": 64,
         "layer_types": ["mamba", "attention"]},
    ),
    "LFM 2 (hybrid)": text("Lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    "Nemotron-H (hybrid)": text(
        "NemotronH",
        {**HEADS, "layers_block_type": ["mamba", "attention", "mlp"], "ssm_state_size": 16, "mamba_num_heads": 4,
         "mamba_head_dim": 32, "n_groups": 1, "chunk_size": 8},
        lora={"target_modules": ["in_proj", "q_proj", "v_proj", "up_proj", "down_proj"]},
    ),
    "gpt-oss, adapter on the experts": text(
        "GptOss", {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}, lora=ON_EXPERTS
    ),
    "GPT-2": Architecture(
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0,
         "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2},
        lora={"fan_in_fan_out": True},
    ),
    # Its forward reads the weight of dt_proj past the layer.
    "Mamba": text(
        "Mamba", {**WIDTHS, "state_size": 8}, lora={"target_modules": ["in_proj", "x_proj"]},
        not_quantized=("dt_proj", "lm_head"),
    ),
    "T5": Architecture(
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 1, "num_heads": 2,
         "decoder_start_token_id": 0, "initializer_factor": 2.0, "dropout_rate": 0.0},
    ),
    "BART": Architecture(
        "BartForConditionalGeneration", "BartConfig",
        {"vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
         "max_position_embeddings": 64, "init_std": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
         "decoder_start_token_id": 2, "forced_eos_token_id": None},
    ),
    "BERT, classifier": Architecture(
        "BertForSequenceClassification", "BertConfig", ENCODER, not_quantized=("classifier",)
    ),
    "RoBERTa, classifier": Architecture(
        "RobertaForSequenceClassification", "RobertaConfig", ENCODER, not_quantized=("classifier",)
    ),
}  # fmt: skip


# ---- Rows and runs ----


def rows(model: PeftModel, count: int = 12) -> list[dict[str, Any]]:
    """Rows of unequal lengths, of which a model has about half right; the first tokens of a text are not trained."""
    kind = kind_of(model)
    random = torch.Generator().manual_seed(3)
    table = []
    for length in torch.randint(6, 16, (count,), generator=random).tolist():
        ids = torch.randint(3, 40, (length,), generator=random).tolist()
        labels = [-100, -100, *ids[2:]] if kind.shifts_labels else ids
        table.append({"input_ids": ids, "labels": labels if kind.generates_text else sum(ids) % CLASSES})
    with torch.no_grad():
        says = kind.logits_of(model.eval()(**collate(table))).argmax(-1).tolist()
    for index, (row, said) in enumerate(zip(table, says, strict=True)):
        if kind.generates_text:
            said = [0, *said] if kind.shifts_labels else said
            row["labels"] = [said[i] if i % 2 and label != -100 else label for i, label in enumerate(row["labels"])]
        elif index % 2:
            row["labels"] = said
    return table


def collate(table: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    labels = [row["labels"] for row in table]
    if isinstance(labels[0], list):
        return PaddingCollator()(table)
    batch = PaddingCollator()([{"input_ids": row["input_ids"]} for row in table])
    return {**batch, "labels": torch.tensor(labels)}


def run(folder: Path, old: Any, new: PeftModel, table: list[dict[str, Any]], **settings: Any) -> Run:
    """A few steps, and what they gave."""
    defaults = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": STEPS, "learning_rate": 3e-3,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "compatibility_weight": 0.6,
    }  # fmt: skip
    trainer = MuscleTrainer(
        new,
        MuscleConfig(str(folder), **{**defaults, **settings}),
        old_model=old,
        train_dataset=table,
        eval_dataset=table,
        data_collator=collate,
    )
    answered = 0

    def count(*_: Any) -> None:
        nonlocal answered
        answered += 1

    listening = trainer.teachers["old"].model.register_forward_hook(count)
    first = trainer.evaluate()
    before = {name: p.detach().clone() for name, p in new.named_parameters() if p.requires_grad}
    trainer.train()
    after = {name: p.detach().clone() for name, p in new.named_parameters() if p.requires_grad}
    last = trainer.evaluate()
    listening.remove()
    return Run(trainer, first, before, after, last, answered)


@dataclass
class Run:
    """The metrics and the adapter before and after."""

    trainer: MuscleTrainer
    first: dict[str, float]
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    last: dict[str, float]
    answered: int  # forward passes of v1

    def check(self) -> None:
        """It starts as v2, and every part of the adapter learns."""
        # Not 0 where torch takes other paths for what needs gradients: rows of Mamba's states.
        expect(self.first["eval_kl_new"] < 1e-6, f"starts {self.first['eval_kl_new']:.2g} from v2")
        still = [name for name, weight in self.before.items() if torch.equal(weight, self.after[name])]
        expect(not still, f"{len(still)} of {len(self.before)} parts of the adapter do not learn: {still[:1]}")
        expect(self.last["eval_loss"] < self.first["eval_loss"], "the loss does not fall")

    def same_as(self, other: Run) -> None:
        """The same adapter, within rounding."""
        for name, weight in other.after.items():
            difference = (self.after[name] - weight).abs().max().item()
            moved = (other.before[name] - weight).abs().max().item()
            expect(difference <= 0.02 * moved, f"another adapter: {name} differs by {difference:.2g} of {moved:.2g}")


class Failed(Exception):
    """A check did not hold."""


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failed(otherwise)


class Cells:
    """The checks of one architecture; the plain run is made once."""

    def __init__(self, name: str, folder: Path):
        architecture = ARCHITECTURES[name]
        self.name, self.architecture, self.folder = name, architecture, folder
        self.table = rows(architecture.with_adapter(architecture.base(2), 20))
        self._plain: Run | None = None

    def _run(self, name: str, old: Any = None, **settings: Any) -> Run:
        model = self.architecture
        old = model.with_adapter(model.base(1), 10) if old is None else old
        return run(self.folder / name, old, model.with_adapter(model.base(2), 20), self.table, **settings)

    @property
    def plain(self) -> Run:
        """On whole logits."""
        if self._plain is None:
            self._plain = self._run("plain", loss_chunk_size=0)
        return self._plain

    def trains(self) -> None:
        """Learns, and what is saved says the same on a fresh base."""
        self.plain.check()
        trainer = self.plain.trainer
        trainer.save_model(str(self.folder / "saved"))
        loaded = PeftModel.from_pretrained(self.architecture.base(2), str(self.folder / "saved")).eval()
        batch = collate(self.table[:4])
        trainer.student.eval()
        with torch.no_grad():
            difference = (loaded(**batch).logits - trainer.student(**batch).logits).abs().max().item()
        expect(difference < 1e-4, f"loads as another adapter: logits differ by {difference:.2g}")

    def chunked(self) -> str | None:
        """The same run without whole logits, the head taken apart."""
        if not self.plain.trainer.kind.generates_text:
            return NOT_APPLICABLE
        found = self._run("chunked", loss_chunk_size=5)
        expect(found.trainer._step.head is not None, "the head is not taken apart")
        found.same_as(self.plain)
        return None

    def cache(self) -> str | None:
        """The same run against v1's answers on the disk, without a forward pass of v1."""
        if not self.plain.trainer.kind.generates_text:
            return NOT_APPLICABLE
        base, adapter = self.folder / "base", self.folder / "adapter"
        self.architecture.base(1).save_pretrained(base)
        loaded = load_model(base, kind_of(self.architecture.base(1)), {}, whole=True)
        self.architecture.with_adapter(loaded, 10).save_pretrained(adapter)
        settings = {"teacher_cache": str(self.folder / "cache"), "old": str(adapter)}
        self._run("first", **settings)
        found = self._run("second", **settings)
        found.same_as(self.plain)
        expect(found.answered == 0, f"v1 answers {found.answered} batches in spite of the cache")
        return None

    def qlora(self) -> str | None:
        """Learns on a base in four bits."""
        left_out = list(self.architecture.not_quantized)
        self.architecture.base(2).save_pretrained(self.folder / "whole")
        kind = kind_of(self.architecture.base(2))

        def task_model(seed: int) -> PeftModel:
            config = transformers.BitsAndBytesConfig(**NF4, llm_int8_skip_modules=left_out or None)
            base = load_model(self.folder / "whole", kind, {"quantization_config": config}, whole=True)
            expect(any(type(m).__name__ == "Linear4bit" for m in base.modules()), "no layer is in four bits")
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
            return self.architecture.with_adapter(base, seed)

        run(self.folder / "qlora", task_model(10), task_model(20), self.table).check()
        return f"yes, with llm_int8_skip_modules={left_out}" if left_out else None

    def served(self) -> str | None:
        """What vLLM is known to take, and what it was found to do."""
        student = self.plain.trainer.student
        base = base_of(student)
        names = [name for name, _ in student.named_parameters() if "lora_" in name]
        described = {**base.config.to_dict(), "architectures": [type(base).__name__]}
        problems = serving_problems(student.peft_config["default"].to_dict(), names, described)
        expect(not problems, "; ".join(problems))
        asked = json.loads(ASKED.read_text(encoding="utf-8"))["answers"]
        said = asked.get(self.name, "vLLM has not been asked yet (architectures_vllm.py)")
        expect(said in (SERVES, NOT_RUN), said)
        return None if said == SERVES else f"untested, {said}; its list of models and its tests name it"


COLUMNS: dict[str, Callable[[Cells], str | None]] = {
    "trains": Cells.trains,
    "chunked loss": Cells.chunked,
    "teacher cache": Cells.cache,
    "QLoRA": Cells.qlora,
    "vLLM": Cells.served,
}


def check(name: str) -> dict[str, str]:
    """Column -> "yes", or why not."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        cells = Cells(name, Path(folder))
        for column, test in COLUMNS.items():
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    found[column] = test(cells) or "yes"
            except Exception as error:
                found[column] = str(error) if isinstance(error, (Failed, MuscleError)) else repr(error)
    return found


# ---- The page ----


def write(found: dict[str, dict[str, str]]) -> None:
    notes: list[str] = []

    def cell(said: str) -> str:
        if said in ("yes", NOT_APPLICABLE):
            return said
        if said not in notes:
            notes.append(said)
        word, note, _ = said.partition(", ")
        return f"{word if note and word in ('yes', 'untested') else 'no'} ({notes.index(said) + 1})"

    lines = [f"| | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
    lines += [f"| {name} | {' | '.join(cell(found[name][column]) for column in COLUMNS)} |" for name in found]
    listed = [
        f"{number}. {note.removeprefix('yes, ').removeprefix('untested, ')}" for number, note in enumerate(notes, 1)
    ]
    table = "\n".join([f"With {versions()}:", "", *lines, "", *listed])
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    PAGE.write_text(f"{before}{MARK}\n\n{table}\n\n{MARK}{after}", encoding="utf-8")


def versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name).partition('+')[0]}" for name in PACKAGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures; all by default")
    names = parser.parse_args().names
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    found = {}
    for name in names or ARCHITECTURES:
        start = time.perf_counter()
        found[name] = check(name)
        bad = {column: said for column, said in found[name].items() if said != "yes"}
        print(f"{name} ({time.perf_counter() - start:.1f} s): {bad or 'all'}", flush=True)
    if not names:
        write(found)


if __name__ == "__main__":
    main()
