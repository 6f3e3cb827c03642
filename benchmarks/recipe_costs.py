"""Estimates of memory and time for every recipe, by the model of ``muscle-hf train --dry-run``; no Hub is needed.

    python benchmarks/recipe_costs.py [--data FOLDER]

Writes the table in recipes/README.md. Architectures are written down below; lengths of rows are those of the real
training sets in FOLDER (gsm8k, samsum, hellaswag, piqa), at four characters a token.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from muscle_hf.evaluation import load_items
from muscle_hf.pipeline import plan
from muscle_hf.pipeline.config import load_settings
from muscle_hf.pipeline.recipes import recipes
from muscle_hf.pipeline.table import COMPAT, NEW, OLD

ROOT = Path(__file__).parents[1]
MARK = "<!-- costs: written by benchmarks/recipe_costs.py -->"
# Rows of the whole training sets; the file of HellaSwag's training split may be missing beside the checkout.
ROWS = {"hellaswag": 39905, "piqa": 16113, "gsm8k": 7473, "samsum": 14732}
SPLIT = {"hellaswag": "validation", "piqa": "train", "gsm8k": "train", "samsum": "train"}
CHARACTERS = 4


def shape(
    cls: type, vocabulary: int, width: int, mlp: int, layers: int, heads: int, **more: object
) -> PreTrainedConfig:
    return cls(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **more,
    )


LLAMA_7B = shape(LlamaConfig, 32000, 4096, 11008, 32, 32)
LLAMA_3_8B = shape(LlamaConfig, 128256, 4096, 14336, 32, 32, num_key_value_heads=8)
LLAMA_3_70B = shape(LlamaConfig, 128256, 8192, 28672, 80, 64, num_key_value_heads=8)
OLMO_7B = shape(Olmo2Config, 100352, 4096, 11008, 32, 32)
PHI_3_MINI = shape(Phi3Config, 32064, 3072, 8192, 32, 32, pad_token_id=None)
BASES = {
    "huggyllama/llama-7b": LLAMA_7B,
    "meta-llama/Llama-2-7b-hf": LLAMA_7B,
    "lmsys/vicuna-7b-v1.3": LLAMA_7B,
    "lmsys/vicuna-7b-v1.5": LLAMA_7B,
    "meta-llama/Meta-Llama-3-8B": LLAMA_3_8B,
    "meta-llama/Llama-3.1-8B": LLAMA_3_8B,
    "meta-llama/Llama-3.2-3B": shape(LlamaConfig, 128256, 3072, 8192, 28, 24, num_key_value_heads=8),
    "meta-llama/Llama-3.1-70B-Instruct": LLAMA_3_70B,
    "meta-llama/Llama-3.3-70B-Instruct": LLAMA_3_70B,
    "microsoft/phi-1": shape(PhiConfig, 51200, 2048, 8192, 24, 32),
    "microsoft/phi-1_5": shape(PhiConfig, 51200, 2048, 8192, 24, 32),
    "microsoft/phi-2": shape(PhiConfig, 51200, 2560, 10240, 32, 32),
    "EleutherAI/pythia-1.4b-deduped": shape(GPTNeoXConfig, 50304, 2048, 8192, 24, 16),
    "HuggingFaceTB/SmolLM-360M": shape(LlamaConfig, 49152, 960, 2560, 32, 15, num_key_value_heads=5),
    "HuggingFaceTB/SmolLM2-360M": shape(LlamaConfig, 49152, 960, 2560, 32, 15, num_key_value_heads=5),
    "HuggingFaceTB/SmolLM2-1.7B": shape(LlamaConfig, 49152, 2048, 8192, 24, 32),
    "HuggingFaceTB/SmolLM3-3B-Base": shape(SmolLM3Config, 128256, 2048, 11008, 36, 16, num_key_value_heads=4),
    "allenai/OLMo-2-1124-7B": OLMO_7B,
    "allenai/Olmo-3-1025-7B": OLMO_7B,
    "allenai/OLMo-2-1124-7B-Instruct": OLMO_7B,
    "allenai/Olmo-3-7B-Instruct": OLMO_7B,
    "microsoft/Phi-3-mini-4k-instruct": PHI_3_MINI,
    "microsoft/Phi-3.5-mini-instruct": PHI_3_MINI,
    "microsoft/Phi-4-mini-instruct": shape(
        Phi3Config, 200064, 3072, 8192, 32, 24, num_key_value_heads=8, pad_token_id=None
    ),
    "google/gemma-2-9b": shape(Gemma2Config, 256000, 3584, 14336, 42, 16, num_key_value_heads=8, head_dim=256),
    "google/gemma-3-12b-pt": shape(Gemma3TextConfig, 262208, 3840, 15360, 48, 16, num_key_value_heads=8, head_dim=256),
    "ibm-granite/granite-3.3-2b-instruct": shape(GraniteConfig, 49159, 2048, 8192, 40, 32, num_key_value_heads=8),
    "ibm-granite/granite-4.0-micro": shape(GraniteConfig, 100352, 2560, 8192, 40, 40, num_key_value_heads=8),
    "Qwen/Qwen1.5-1.8B": shape(Qwen2Config, 151936, 2048, 5504, 24, 16),
    "Qwen/Qwen2-1.5B": shape(Qwen2Config, 151936, 1536, 8960, 28, 12, num_key_value_heads=2),
    "Qwen/Qwen2.5-7B": shape(Qwen2Config, 152064, 3584, 18944, 28, 28, num_key_value_heads=4),
    "Qwen/Qwen3-8B-Base": shape(Qwen3Config, 151936, 4096, 12288, 36, 32, num_key_value_heads=8, head_dim=128),
    "mistralai/Mistral-7B-v0.1": shape(MistralConfig, 32000, 4096, 14336, 32, 32, num_key_value_heads=8),
    "mistralai/Mistral-7B-v0.3": shape(MistralConfig, 32768, 4096, 14336, 32, 32, num_key_value_heads=8),
    "mistralai/Mistral-7B-Instruct-v0.1": shape(MistralConfig, 32000, 4096, 14336, 32, 32, num_key_value_heads=8),
    "mistralai/Mistral-7B-Instruct-v0.2": shape(MistralConfig, 32000, 4096, 14336, 32, 32, num_key_value_heads=8),
}


def lengths_of(task: str, folder: Path) -> list[int]:
    items = load_items(task, folder / task, SPLIT[task])
    return [(len(item.prompt) + len(item.target)) // CHARACTERS + 2 for item in items]


def row(name: str, file: Path, lengths: dict[str, list[int]]) -> list[str] | None:
    settings = load_settings(file)
    if settings.task not in ROWS or not {settings.old.base, settings.new.base} <= BASES.keys():
        return None
    old, new = (plan.size_of_config(BASES[side.base], settings.lora) for side in (settings.old, settings.new))
    same = (settings.old.base, settings.old.revision) == (settings.new.base, settings.new.revision)
    limit = settings.training.get("max_length", 1024)
    mean = sum(min(n, limit) for n in lengths[settings.task]) / len(lengths[settings.task])
    longest = min(limit, max(lengths[settings.task]))
    trained = (settings.data.train.limit or ROWS[settings.task]) * (1 - settings.data.validation_share)
    tokens = trained * mean * settings.training["num_train_epochs"]
    which = [OLD, NEW, *([COMPAT] if settings.compatibility else [])]
    cells = [f"`{name}`"]
    for model in (NEW, COMPAT):
        if model in which:
            bytes_ = plan.memory_of(model, old, new, settings, plan.Spread(), longest, same_base=same)
            cells.append(f"{bytes_ / plan.GIB:.0f}")
        else:
            cells.append("")
    fsdp = plan.memory_of(which[-1], old, new, settings, plan.Spread(8, True, True), longest, same_base=same)
    transfer = settings.data.transfer.limit / trained if settings.data.transfer else 0
    per_model = [tokens * (1 + transfer * (m == COMPAT)) for m in which]
    flops = [plan.flops_of(m, old, new, count, settings) for m, count in zip(which, per_model, strict=True)]
    seconds = [count / (plan.FLOPS * plan.UTILIZATION) for count in flops]
    cells += [f"{fsdp / plan.GIB:.0f}", f"{sum(seconds[:2]) / 60:.0f}"]
    cells.append(f"{seconds[2] / 60:.0f}" if len(seconds) > 2 else "")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    args = parser.parse_args()
    lengths = {task: lengths_of(task, args.data) for task in ROWS}
    heads = ["Recipe", "v2's task adapter, GiB", "Compatibility adapter, GiB", "The last on 8 GPUs by FSDP2, GiB each"]
    heads += ["Both task adapters, minutes", "Compatibility adapter, minutes"]
    lines = [heads, ["---", *["---:"] * 5]]
    lines += [cells for name, file in recipes().items() if (cells := row(name, file, lengths)) is not None]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    file = ROOT / "recipes" / "README.md"
    before, _, after = file.read_text(encoding="utf-8").split(MARK)
    file.write_text(f"{before}{MARK}\n\n{table}\n\n{MARK}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
