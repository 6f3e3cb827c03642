"""The table of updates in docs/howto/which-update.md; levels are looked at where both tokenizers are at hand.

    python benchmarks/which_update.py [FOLDER]

FOLDER has a folder for each tokenizer named below, as `AutoTokenizer.from_pretrained` reads it. Of an update of which
one is missing the table says what is expected, and that it was not looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from muscle_hf.pipeline.config import load_settings
from muscle_hf.pipeline.recipes import recipes

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "howto" / "which-update.md"
MARK = "<!-- updates: written by benchmarks/which_update.py -->"
# Recipe: expected level, and v1's and v2's tokenizers by their folders.
UPDATES = {
    "updates/llama_2_7b_to_3_8b/piqa": ("foreign", "llama2", "llama3"),
    "updates/llama_3_to_3.1_8b/piqa": ("same", "llama3", "llama3_1"),
    "updates/llama_3.1_8b_to_3.2_3b/piqa": ("same", "llama3_1", "llama3_2"),
    "updates/llama_3.1_to_3.3_70b/gsm8k": ("same", "llama3_1", "llama3_3"),
    "updates/qwen_1.5_to_2/gsm8k": ("same", "qwen1_5", "qwen2"),
    "updates/qwen_2.5_7b_to_3_8b/gsm8k": ("renumbered", "qwen2_5", "qwen3"),
    "updates/qwen_3_to_3.5_4b/gsm8k": ("foreign", "qwen3", "qwen3_5"),
    "updates/qwen_3.5_to_3.6_27b/gsm8k": ("same", "qwen3_5", "qwen3_6"),
    "updates/gemma_2_9b_to_3_12b/piqa": ("foreign", "gemma2", "gemma3"),
    "updates/gemma_3_4b_to_4_e4b/piqa": ("renumbered", "gemma3", "gemma4"),
    "updates/mistral_0.1_to_0.3_7b/piqa": ("renumbered", "mistral_v1", "mistral_v3"),
    "updates/mistral_instruct_0.1_to_0.2_7b/samsum": ("same", "mistral_v1", "mistral_instruct_v2"),
    "updates/phi_3_to_3.5_mini/gsm8k": ("same", "phi3", "phi3_5"),
    "updates/phi_3.5_to_4_mini/gsm8k": ("foreign", "phi3_5", "phi4_mini"),
    "updates/pythia_1.4b/piqa": ("same", "pythia", "pythia"),
    "updates/smollm_1_to_2_360m/hellaswag": ("same", "smollm", "smollm2"),
    "updates/smollm_2_1.7b_to_3_3b/piqa": ("foreign", "smollm2", "smollm3"),
    "updates/olmo_2_to_3_7b/gsm8k": ("same", "olmo2", "olmo3"),
    "updates/olmo_2_to_3_7b_instruct/gsm8k": ("renumbered", "olmo2_instruct", "olmo3_instruct"),
    "updates/granite_3.3_2b_to_4_micro/gsm8k": ("foreign", "granite3_3", "granite4"),
}


def level_of(folder: Path | None, old: str, new: str) -> str | None:
    """The level of two tokenizers; None where one is not there."""
    if folder is None or not all((folder / name).is_dir() for name in (old, new)):
        return None
    from transformers import AutoTokenizer

    from muscle_hf.tokens import compare_vocabularies

    found = compare_vocabularies(
        *(AutoTokenizer.from_pretrained(folder / name, trust_remote_code=False) for name in (old, new))
    )
    return f"**{found.level}** ({found.shared:,} byte strings are tokens of both)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    folder = parser.parse_args().folder
    lines = ["| v1 | v2 | level | looked at | recipe |", "| --- | --- | --- | --- | --- |"]
    for name, (expected, *tokenizers) in UPDATES.items():
        settings, found = load_settings(recipes()[name]), level_of(folder, *tokenizers)
        cells = [f"`{settings.old.base}`", f"`{settings.new.base}`", found or expected, "yes" if found else "no"]
        lines.append(f"| {' | '.join([*cells, f'`{name}`'])} |")
        print(lines[-1], flush=True)
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    PAGE.write_text(f"{before}{MARK}\n\n{chr(10).join(lines)}\n\n{MARK}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
