"""What a target across tokenizers costs at the size of real vocabularies: tables, alignment, and the target itself.

    python benchmarks/token_tables.py FOLDER llama2:llama3 llama3:qwen3    # writes benchmarks/results/token_tables.md

FOLDER has a folder for each tokenizer. The text is wikitext's, from the shared data sets; v1's logits and the
student's probabilities are random, which takes as long. Processor seconds of one core.
"""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

import torch
from reporting import publish, timed, tokenizer_pairs, where
from transformers import AutoTokenizer

from muscle_hf.tokens import Aligner, ByteVocabulary, CellTable, ForeignTargets, spread
from muscle_hf.tokens.cells import load_table

SHARED = Path(os.environ.get("MUSCLE_HF_SHARED", Path(__file__).parents[2] / "shared"))
CHARACTERS, ROWS = 600, 12


def texts() -> list[str]:
    """Paragraphs of wikitext."""
    with gzip.open(SHARED / "data" / "text" / "wikitext2_valid.txt.gz", "rt", encoding="utf-8") as file:
        lines = [line.strip().replace("<unk>", "Smith") for line in file]
    return [line[:CHARACTERS] for line in lines if len(line) > CHARACTERS][:ROWS]


def measure(old_folder: Path, new_folder: Path) -> str:
    """One line of the table."""
    tokenizers = [
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False) for folder in (old_folder, new_folder)
    ]
    old, new = (ByteVocabulary.of(tokenizer) for tokenizer in tokenizers)
    table, build = timed(lambda: CellTable.build(old, new))
    log_p, reference = torch.rand(16, old.size).log_softmax(-1), torch.rand(16, new.size)
    spread(log_p.clone(), table, reference)
    _, spreading = timed(lambda: spread(log_p, table, reference))
    with tempfile.TemporaryDirectory() as folder:
        load_table(old, new, folder)
        _, loading = timed(lambda: load_table(old, new, folder))
        targets = ForeignTargets(Aligner(*tokenizers), folder)
        places = count = 0
        aligning, making, asking = 0.0, 0.0, 0.0
        for text in texts():
            row = tokenizers[1](text)["input_ids"]
            view, seconds = timed(lambda row=row: targets.aligner.view(row, range(len(row) // 2, len(row))))
            aligning += seconds
            logits = torch.randn(len(view.old_ids), old.size)
            student = torch.randn(len(view.places), new.size)
            steps, seconds = timed(lambda view=view: targets.steps(view.places))
            making += seconds
            arguments = (logits, steps, student)
            asking += timed(lambda arguments=arguments: targets.target(*arguments))[1]
            places += len(view.places)
            count += sum(len(place.steps) for place in view.places)
    sizes = f"{old_folder.name} ({old.size:,})", f"{new_folder.name} ({new.size:,})"
    cells = [
        *sizes,
        f"{len(table.layout.cell_of):,}",
        f"{build:.1f}",
        f"{loading:.2f}",
        f"{1000 * spreading / 16:.2f}",
        f"{count / places:.1f}",
    ]
    cells += [f"{1000 * seconds / places:.2f}" for seconds in (aligning, making, asking)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, and keep it."""
    pairs = tokenizer_pairs(__doc__)
    torch.set_num_threads(1)
    lines = [measure(*pair) for pair in pairs]
    header = [
        "| v1 | v2 | open tokens of v1 | table built, s | from disk, s | (X1), ms a place | steps a place | "
        "alignment, ms a place | tables of steps, ms a place (first time) | target, ms a place |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    note = f"{ROWS} paragraphs of wikitext, {CHARACTERS} characters each, their second halves trained. {where()}."
    title = ["# Cost of targets across tokenizers", "", "    python benchmarks/token_tables.py FOLDER OLD:NEW ...", ""]
    publish("token_tables", [*title, note, "Processor seconds of one core.", "", *header, *lines])


if __name__ == "__main__":
    main()
