"""Whether training gives what it gave: losses and adapters of short runs on tiny models, bit for bit.

    python benchmarks/equal_runs.py record FILE    runs all and writes what came out
    python benchmarks/equal_runs.py compare FILE   runs all and says where it differs; exits with 1 if it does

For code that is moved and must give what it gave. ``results/equal_runs.json`` is such a record; another processor or
version of torch rounds differently, so a comparison says so where the record was made elsewhere. Only the public API
is used, so that the same file runs on another checkout (``PYTHONPATH=CHECKOUT``).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})

import datasets
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from muscle_hf import MuscleConfig, MuscleSFTConfig, MuscleSFTTrainer, MuscleTrainer, TransferPrompts

VOCABULARY, CLASSES, STEPS = 48, 3, 6
# Far from uniform outputs, so that the models disagree.
BODY = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
DECODER = {**BODY, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
# What a run logs that says how it went, under names that TrainingArguments' users know.
FIGURES = ("loss", "grad_norm", "eval_loss")


# ---- Models and rows ----


def made(model_class: type[nn.Module], config: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return model_class(config)


def llama(seed: int) -> nn.Module:
    return made(transformers.LlamaForCausalLM, transformers.LlamaConfig(**DECODER), seed)


def t5(seed: int) -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    config = transformers.T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, initializer_factor=2.0, **sizes)
    return made(transformers.T5ForConditionalGeneration, config, seed)


def bert(seed: int) -> nn.Module:
    config = transformers.BertConfig(
        **BODY, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return made(transformers.BertForSequenceClassification, config, seed)


def task_model(base: nn.Module, seed: int, **settings: Any) -> PeftModel:
    """A base with an adapter of random weights, which stands for a trained one."""
    torch.manual_seed(seed)
    names = {"Llama": "CAUSAL_LM", "T5": "SEQ_2_SEQ_LM", "Bert": "SEQ_CLS"}
    task_type = next(value for key, value in names.items() if type(base).__name__.startswith(key))
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
    return get_peft_model(base, LoraConfig(**{**defaults, "task_type": task_type, **settings}))


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = ["<pad>", "<bos>", "<eos>", *(f"w{index}" for index in range(3, VOCABULARY))]
    fast = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<pad>", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **special)


def rows(count: int = 16, seed: int = 3, context: int = 2) -> list[dict[str, Any]]:
    """Token rows of unequal lengths; the first ``context`` labels are not trained on."""
    random = torch.Generator().manual_seed(seed)
    table = []
    for length in torch.randint(5, 16, (count,), generator=random).tolist():
        ids = torch.randint(3, VOCABULARY, (length,), generator=random).tolist()
        table.append({"input_ids": ids, "labels": [-100] * context + ids[context:]})
    return table


def text(ids: list[int]) -> str:
    return " ".join(f"w{token}" for token in ids)


def half_right(table: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The rows with every second label changed to what a causal language model says there."""
    model.eval()
    changed = []
    for row in table:
        with torch.no_grad():
            says = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].argmax(-1).tolist()
        pairs = enumerate(zip(row["labels"], [0, *says], strict=False))
        changed.append({**row, "labels": [says if i % 2 and label != -100 else label for i, (label, says) in pairs]})
    return changed


def classes(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"input_ids": row["input_ids"], "labels": sum(row["input_ids"]) % CLASSES} for row in table]


def settings_of(folder: Path, **changed: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 2, "max_steps": STEPS, "learning_rate": 1e-2, "logging_steps": 1,
        "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, **changed,
    }  # fmt: skip


# ---- Runs ----


def causal(
    folder: Path,
    *,
    same_base: bool = False,
    by_path: bool = False,
    dropout: float = 0.0,
    transfer: Any = None,
    **settings: Any,
) -> MuscleTrainer:
    """Two Llamas: v1 on a base of its own, or on v2's."""
    old, student = task_model(llama(2 if same_base else 1), 10), task_model(llama(2), 20, lora_dropout=dropout)
    if by_path:
        llama(1).save_pretrained(folder / "base")
        base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", trust_remote_code=False)
        old = task_model(base, 10)
        old.save_pretrained(folder / "old")
        old = str(folder / "old")
    return trainer(folder, student, old, transfer_dataset=transfer, **settings)


def trainer(folder: Path, student: nn.Module, old: Any, transfer_dataset: Any = None, **settings: Any) -> Any:
    words = tokenizer()
    table = half_right(rows(), student)
    return MuscleTrainer(
        student,
        MuscleConfig(**settings_of(folder, **settings)),
        old_model=old,
        train_dataset=table,
        eval_dataset=table[:6],
        data_collator=transformers.DataCollatorForTokenClassification(words),
        processing_class=words,
        old_processing_class=words,
        transfer_dataset=transfer_dataset,
    )


def qlora(folder: Path) -> MuscleTrainer:
    llama(2).save_pretrained(folder / "base")

    def quantized(seed: int) -> PeftModel:
        config = transformers.BitsAndBytesConfig(**NF4)
        base = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "base", quantization_config=config, trust_remote_code=False
        )
        return task_model(prepare_model_for_kbit_training(base, use_gradient_checkpointing=False), seed)

    return trainer(folder, quantized(20), quantized(10))


def trl(folder: Path) -> MuscleSFTTrainer:
    words = tokenizer()
    halves = [(row["input_ids"][:3], row["input_ids"][3:]) for row in rows()]
    pairs = [{"prompt": text(prompt), "completion": f" {text(completion)}"} for prompt, completion in halves]
    return MuscleSFTTrainer(
        task_model(llama(2), 20),
        MuscleSFTConfig(**settings_of(folder, bf16=False, gradient_checkpointing=False, compatibility_weight=0.7)),
        old_model=task_model(llama(1), 10),
        train_dataset=Dataset.from_list(pairs),
        eval_dataset=Dataset.from_list(pairs[:6]),
        processing_class=words,
        old_processing_class=words,
    )


def completion(folder: Path) -> MuscleTrainer:
    table = [{key: values[:5] for key, values in row.items()} for row in rows(context=0)]
    table = [{**row, "completion_mask": [0, 0, 0, 1, 1]} for row in table]
    return MuscleTrainer(
        task_model(llama(2), 20),
        MuscleConfig(**settings_of(folder, trained_tokens="completion")),
        old_model=task_model(llama(1), 10),
        train_dataset=table,
        eval_dataset=table[:6],
        data_collator=transformers.default_data_collator,
        processing_class=tokenizer(),
        old_processing_class=tokenizer(),
    )


def seq2seq(folder: Path) -> MuscleTrainer:
    words, table = tokenizer(), rows(context=0)
    return MuscleTrainer(
        task_model(t5(2), 20),
        MuscleConfig(**settings_of(folder)),
        old_model=task_model(t5(1), 10),
        train_dataset=table,
        eval_dataset=table[:6],
        data_collator=transformers.DataCollatorForSeq2Seq(words),
        processing_class=words,
        old_processing_class=words,
    )


def classifier(folder: Path) -> MuscleTrainer:
    words, table = tokenizer(), classes(rows())
    return MuscleTrainer(
        task_model(bert(2), 20),
        MuscleConfig(**settings_of(folder)),
        old_model=task_model(bert(1), 10),
        train_dataset=table,
        eval_dataset=table[:6],
        data_collator=transformers.DataCollatorWithPadding(words),
        processing_class=words,
        old_processing_class=words,
    )


def prompts(folder: Path) -> MuscleTrainer:
    texts = [text(row["input_ids"]) for row in rows(6, seed=9)]
    return causal(folder, transfer=TransferPrompts(texts, answers="both", max_new_tokens=4), transfer_ratio=0.5)


def run(**settings: Any) -> Callable[[Path], MuscleTrainer]:
    return lambda folder: causal(folder, **settings)


def cached(**settings: Any) -> Callable[[Path], MuscleTrainer]:
    """The second of two trainers that share a cache."""

    def make(folder: Path) -> MuscleTrainer:
        settings["teacher_cache"] = str(folder / "cache")
        causal(folder, by_path=True, **settings).train()
        return causal(folder, by_path=True, **settings)

    return make


RUNS: dict[str, Callable[[Path], Any]] = {
    "student wrong (student_wrong)": run(same_base=True),
    "LL_L (old_likelier)": run(same_base=True, mask="old_likelier", compatibility_weight=0.7),
    "LL_S (old_likelier_sequence)": run(same_base=True, mask="old_likelier_sequence", compatibility_weight=0.7),
    "v1 right (old_right)": run(same_base=True, mask="old_right"),
    "everywhere (always_old)": run(same_base=True, mask="always_old"),
    "consensus": run(same_base=True, preset="consensus"),
    "own base for v1": run(),
    "own base for v1, whole logits": run(loss_chunk_size=0, compatibility_weight=0.7, label_smoothing_factor=0.1),
    "own base for v1, chunks of 5 tokens": run(loss_chunk_size=5, compatibility_weight=0.7),
    "own base for v1, calibrated": run(by_path=True, preset="calibrated_consensus"),
    "own base for v1, dropout": run(dropout=0.1),
    "own base for v1, recomputed activations": run(dropout=0.1, gradient_checkpointing=True),
    "trained on completions alone": completion,
    "from v1's adapter": run(start_from="old"),
    "logit difference": run(divergence="logit_difference", scale_by_temperature_squared=True),
    "cached, exact": cached(),
    "cached, compact": cached(teacher_cache_top_k=8),
    "QLoRA (NF4)": qlora,
    "TRL (MuscleSFTTrainer)": trl,
    "seq2seq (T5)": seq2seq,
    "classifier (BERT)": classifier,
    "transfer rows": run(transfer=rows(12, seed=9, context=4), transfer_mask="mean(0.65)", transfer_ratio=0.5),
    "transfer prompts": prompts,
    "two processes": run(compatibility_weight=0.7),
}


def train(name: str, folder: Path) -> dict[str, Any]:
    """What a run logs of :data:`FIGURES`, and the hash of the adapter that it saves."""
    transformers.set_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        made = RUNS[name](folder)
        made.train()
    made.save_model(str(folder / "saved"))
    entries = made.state.log_history
    figures = {key: [entry[key] for entry in entries if key in entry] for key in FIGURES}
    made.accelerator.wait_for_everyone()
    adapter = hash_of(load_file(folder / "saved" / "adapter_model.safetensors"))
    return {"processes": made.accelerator.num_processes, **figures, "adapter": adapter}


def hash_of(tensors: dict[str, torch.Tensor]) -> str:
    """Of names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def launched(name: str, folder: Path) -> dict[str, Any]:
    """:func:`train` in two processes."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0"]
    done = subprocess.run([*launch, __file__, "one", name, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return json.loads((folder / "one.json").read_text(encoding="utf-8"))


# ---- Records ----


def record(names: list[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found[name] = (launched if name == "two processes" else train)(name, Path(folder))
        print(f"{name}: loss {found[name]['loss'][-1]} ({time.perf_counter() - start:.1f} s)", flush=True)
    return {"where": where(), "runs": found}


def where() -> str:
    versions = [f"{module.__name__} {module.__version__}" for module in (torch, transformers)]
    return ", ".join([f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})", *versions])


def difference(before: dict[str, Any], now: dict[str, Any]) -> float:
    """The largest difference of two figures, as a share of the former; infinite where others were logged."""
    if any(len(before[key]) != len(now[key]) for key in FIGURES) or before["processes"] != now["processes"]:
        return math.inf
    pairs = [pair for key in FIGURES for pair in zip(before[key], now[key], strict=True)]
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)


def compare(before: dict[str, Any], now: dict[str, Any], within: float) -> int:
    """Print what differs; how many runs differ by more than ``within``."""
    if before["where"] != now["where"]:
        print(f"The record was made elsewhere, where rounding may differ: {before['where']}; here: {now['where']}")
    differing = {
        name: difference(before["runs"][name], found)
        for name, found in now["runs"].items()
        if found != before["runs"][name]
    }
    for name, largest in differing.items():
        adapter = "the same" if before["runs"][name]["adapter"] == now["runs"][name]["adapter"] else "another"
        print(f"{name}: {adapter} adapter; figures differ by up to {largest:.1e} of their size")
    print(f"{len(now['runs']) - len(differing)} of {len(now['runs'])} runs are equal")
    return sum(not 0 < largest <= within for largest in differing.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=["record", "compare", "one"], help="'one' is a run within a launched process")
    parser.add_argument("file", help="of the record; of 'one': the run")
    parser.add_argument("folder", nargs="?", type=Path, help="of 'one'")
    parser.add_argument("--only", help="runs whose names have this in them")
    parser.add_argument(
        "--within", type=float, default=0.0, metavar="SHARE", help="differences of figures that are let pass"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
    if given.verb == "one":
        found = train(given.file, given.folder)
        if int(os.environ["RANK"]) == 0:
            (given.folder / "one.json").write_text(json.dumps(found), encoding="utf-8")
        return 0
    names = [name for name in RUNS if given.only is None or given.only in name]
    if given.verb == "record":
        Path(given.file).write_text(json.dumps(record(names), indent=1) + "\n", encoding="utf-8")
        return 0
    before = json.loads(Path(given.file).read_text(encoding="utf-8"))
    return int(compare(before, record(names), given.within) > 0)


if __name__ == "__main__":
    sys.exit(main())
