"""Estimates of memory and time for every recipe, by the model of ``muscle-hf train --dry-run``; no Hub is needed.

    python benchmarks/recipe_costs.py [--data FOLDER]

Writes the table in recipes/README.md. Architectures are written down below; lengths of rows are those of the real
training sets in FOLDER (gsm8k, samsum, hellaswag, piqa), at four characters a token.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import (
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
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
BASES = {
    "huggyllama/llama-7b": LLAMA_7B,
    "meta-llama/Llama-2-7b-hf": LLAMA_7B,
    "lmsys/vicuna-7b-v1.3": LLAMA_7B,
    "lmsys/vicuna-7b-v1.5": LLAMA_7B,
    "meta-llama/Meta-Llama-3-8B": shape(LlamaConfig, 128256, 4096, 14336, 32, 32, num_key_value_heads=8),
    "microsoft/phi-1": shape(PhiConfig, 51200, 2048, 8192, 24, 32),
    "microsoft/phi-1_5": shape(PhiConfig, 51200, 2048, 8192, 24, 32),
    "microsoft/phi-2": shape(PhiConfig, 51200, 2560, 10240, 32, 32),
    "EleutherAI/pythia-1.4b-deduped": shape(GPTNeoXConfig, 50304, 2048, 8192, 24, 16),
    "HuggingFaceTB/SmolLM-360M": shape(LlamaConfig, 49152, 960, 2560, 32, 15, num_key_value_heads=5),
    "HuggingFaceTB/SmolLM2-360M": shape(LlamaConfig, 49152, 960, 2560, 32, 15, num_key_value_heads=5),
    "allenai/OLMo-2-1124-7B": shape(Olmo2Config, 100352, 4096, 11008, 32, 32),
    "allenai/Olmo-3-1025-7B": shape(Olmo2Config, 100352, 4096, 11008, 32, 32),
    "Qwen/Qwen1.5-1.8B": shape(Qwen2Config, 151936, 2048, 5504, 24, 16),
    "Qwen/Qwen2-1.5B": shape(Qwen2Config, 151936, 1536, 8960, 28, 12, num_key_value_heads=2),
    "mistralai/Mistral-7B-Instruct-v0.1": shape(MistralConfig, 32000, 4096, 14336, 32, 32, num_key_value_heads=8),
    "mistralai/Mistral-7B-Instruct-v0.2": shape(MistralConfig, 32000, 4096, 14336, 32, 32, num_key_value_heads=8),
}


def lengths_of(task: str, folder: Path) -> list[int]:
    items = load_items(task, folder / task, SPLIT[task])
    return [(len(item.prompt) + len(item.target)) // CHARACTERS + 2 for item in items]


def row(name: str, file: Path, lengths: dict[str, list[int]]) -> list[str] | None:
    settings = load_settings(file)
    if settings.task not in ROWS or settings.old.base not in BASES:
        return None
    old, new = (
        plan.size_of_config(side.base, BASES[side.base], settings.lora) for side in (settings.old, settings.new)
    )
    same = (settings.old.base, settings.old.revision) == (settings.new.base, settings.new.revision)
    limit = settings.training.get("max_length", 1024)
    mean = sum(min(n, limit) for n in lengths[settings.task]) / len(lengths[settings.task])
    longest = min(limit, max(lengths[settings.task]))
    trained = ROWS[settings.task] * (1 - settings.data.validation_share)
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
    seconds = [plan.flops_of(m, old, new, tokens, settings) / (plan.FLOPS * plan.UTILIZATION) for m in which]
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
