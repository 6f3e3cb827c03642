"""Tokenizers of real model families against each other: how far they agree, and what v1 has a say in.

    python benchmarks/real_tokenizers.py FOLDER [NAME ...]    # writes benchmarks/results/real_tokenizers.md

FOLDER has a folder for each tokenizer, as `AutoTokenizer.from_pretrained` reads it. For every pair: the level, the
byte strings that are tokens of both, v1's tokens that leave the student's open, the share of the rows below whose
answers v1 spells alike, the share of their trained tokens that have a place, and the processor seconds that the table
takes, beside those for what either tokenizer does with its own tokens. Of tokenizers with one vocabulary the first is
compared with the others.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from reporting import publish, timed, where
from tqdm import tqdm
from transformers import AutoTokenizer

from muscle_hf.tokens import Aligner, ByteVocabulary, CellTable, compare_vocabularies

# Prompts and answers: English, figures, code, other languages and scripts, odd blanks, accents of both kinds.
ROWS = [
    ("Classify the question: What is the capital of Peru? Type of answer:", " location"),
    ("Was the review positive?\nThe staff were friendly, but our room smelled of smoke.\nAnswer:", " negative"),
    ("Summarize:\nAnna moved the meeting to Thursday because the projector broke.\nSummary:", " The meeting moved."),
    ("How much is 17 times 23? Think step by step.\n", "17 * 20 = 340 and 17 * 3 = 51, so it is 391."),
    ("Total the invoice: 1,299.00 + 42.50 + 7.25.\n", "The sum is 1,348.75 EUR (VAT of 19% included)."),
    ("Refund request #48213, paid on 2024-11-03.\nDecision:", " approve; refund 89.90 within 14 days"),
    ("def area(width, height):\n", '    """Of a rectangle."""\n    return width * height\n'),
    ("for (int i = 0; i < n; ++i) {\n", "\t\tsum += values[i] * weights[i];\n\t}\n"),
    ("SELECT name, COUNT(*) FROM orders\n", "WHERE total > 100 GROUP BY name ORDER BY 2 DESC;"),
    ('{"user": "m.ortiz@example.com",', ' "roles": ["admin", "editor"], "active": true}'),
    ("Übersetze ins Deutsche: The shop opens at eight.\n", "Das Geschäft öffnet um acht Uhr, außer montags."),
    ("Traduis en français : Where did you leave the keys?\n", "Où as-tu laissé les clés, près de la fenêtre ?"),
    ("Traduce: She would rather walk.\n", "¿Preferiría caminar? Sí, mañana también."),
    ("Переведи: The lake was frozen.\n", "Озеро замёрзло ещё в ноябре."),
    ("翻译:The train is late.\n", "火车晚点了,请在三号站台等候。"),
    ("日本語で:Thank you for waiting.\n", "お待たせいたしました。こちらへどうぞ。"),
    ("한국어로: It rained all day.\n", "하루 종일 비가 내렸습니다."),
    ("بالعربية: Good morning.\n", "صباح الخير، كيف حالك اليوم؟"),
    ("हिन्दी में: The book is on the table.\n", "किताब मेज़ पर है।"),
    ("Which emoji fits?\n", "Party: 🎉🎂, sad: 😢, family: 👩‍👩‍👧"),
    ("Spell it with a combining accent:\n", "cafe\u0301 and nai\u0308ve"),
    ("Keep the  two   blanks\n\n\n", "one  two   three\n\n  four"),
    ("Answer in capitals:\n", "DON'T FORGET THE iPhone, O'Neill's E-MAIL!"),
    ("URL:", " https://example.org/a_b/c-d?q=1&lang=en#top"),
]
HEADER = [
    "| v1 | v2 | level | shared byte strings | open tokens of v1 | rows aligned | tokens with a place | table, s |",
    "|---|---|---|---|---|---|---|---|",
]


def row_of(old_name: str, new_name: str, tokenizers: dict) -> str:
    """One line of the table."""
    old, new = tokenizers[old_name], tokenizers[new_name]
    found = compare_vocabularies(old, new)
    if found.level == "same":
        return f"| {old_name} | {new_name} | same | {found.shared:,} | | | | |"
    one, other = ByteVocabulary.of(old), ByteVocabulary.of(new)
    table, seconds = timed(lambda: CellTable.build(one, other))
    aligner, aligned, trained, placed = Aligner(old, new), 0, 0, 0
    for prompt, answer in ROWS:
        row = new(prompt + answer)["input_ids"] + ([new.eos_token_id] if new.eos_token_id is not None else [])
        begun = len(new(prompt)["input_ids"])
        view = aligner.view(row, range(begun, len(row)))
        aligned, trained = aligned + view.aligned, trained + len(view.places)
        placed += sum(place is not None for place in view.places)
    several = f"{len(table.layout.cell_of):,} of {one.size:,}"
    shares = f"{aligned / len(ROWS):.0%} | {placed / trained:.0%}"
    return f"| {old_name} | {new_name} | {found.level} | {found.shared:,} | {several} | {shares} | {seconds:.1f} |"


def main() -> None:
    """Print the table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="folders in it; all by default")
    asked = parser.parse_args()
    folder = asked.folder
    names = asked.names or sorted(path.name for path in folder.iterdir() if (path / "tokenizer.json").is_file())
    tokenizers = {name: AutoTokenizer.from_pretrained(folder / name, trust_remote_code=False) for name in names}
    vocabularies = {name: tokenizer.get_vocab() for name, tokenizer in tokenizers.items()}
    first = {name: next(one for one in names if vocabularies[one] == vocabularies[name]) for name in names}
    pairs = [(first[name], name) for name in names if first[name] != name]
    pairs += itertools.permutations([name for name in names if first[name] == name], 2)
    publish(
        "real_tokenizers",
        [
            "# Real tokenizers against each other",
            "",
            "    python benchmarks/real_tokenizers.py FOLDER",
            "",
            f"{len(ROWS)} rows of English, figures, code and nine other languages, written in the script. {where()}.",
            "",
            *HEADER,
            *(row_of(*pair, tokenizers) for pair in tqdm(pairs)),
        ],
    )


if __name__ == "__main__":
    main()
