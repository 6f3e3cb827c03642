"""Along a text, do v1's targets in the student's tokens multiply to v1's own likelihood of the text?

    python benchmarks/token_likelihood.py    # writes benchmarks/results/token_likelihood.md

Small models of the shared folder, on the second parts of stories that they were not trained on. The student's
probabilities decide within cells; "uniform" shows what is left of the targets without them.

What differs has three causes. v1 spells a letter also by its byte (SentencePiece's fallback), and the targets have
both spellings, as the text's probability does: "with twins" is v1's likelihood with the tokens of the same bytes
summed. A text's last token is less likely in the student's tokens where v1's next one may still be joined to it. And
behind a token that v1 may have ended within the student's text, off its path, the reference's share of that token is
not known any more, since it was said at an earlier place: all in the cell count alike there.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import os
import tempfile
from pathlib import Path

import torch
from reporting import publish, timed, where
from transformers import AutoModelForCausalLM, AutoTokenizer

from muscle_hf.tokens import Aligner, ForeignTargets

SHARED = Path(os.environ.get("MUSCLE_HF_SHARED", Path(__file__).parents[2] / "shared"))
PAIRS = [
    ("stories260k", "stories290k_bpe"),
    ("stories290k_bpe", "stories260k"),
    ("stories260k", "aidreams260k"),
    ("aidreams260k", "stories260k"),
]


def stories(count: int) -> list[str]:
    """Whole sentences from the beginnings of the last stories."""
    with gzip.open(SHARED / "data" / "text" / "tinystories_cased.txt.gz", "rt", encoding="utf-8") as file:
        texts = file.read().split("<|endoftext|>")[-count:]
    texts = [" ".join(text.split())[:250] for text in texts]
    return [text.rsplit(".", 1)[0] + "." for text in texts if "." in text[80:]]


def measure(old: str, new: str, count: int) -> str:
    """One line of the table."""
    tokenizers = [
        AutoTokenizer.from_pretrained(SHARED / "models" / name, trust_remote_code=False) for name in (old, new)
    ]
    models = [
        AutoModelForCausalLM.from_pretrained(SHARED / "models" / name, trust_remote_code=False).eval()
        for name in (old, new)
    ]
    with tempfile.TemporaryDirectory() as folder:
        targets = ForeignTargets(Aligner(*tokenizers), folder)
    sums = torch.zeros(7, dtype=torch.float64)
    # Of each token the first one with the same bytes.
    strings = targets.aligner.old.strings
    twin = torch.tensor([id if string is None else strings.index(string) for id, string in enumerate(strings)])
    seconds = 0.0
    for text in stories(count):
        row = tokenizers[1](text)["input_ids"]
        lengths = targets.aligner.new.ends(row) - (targets.aligner.new.ends(row)[-1] - len(text.encode()))
        trained = [index for index, end in enumerate(lengths) if end > 50 + text[50:].index(" ")]
        view, aligning = timed(lambda row=row, trained=trained: targets.aligner.view(row, trained))
        with torch.no_grad():
            logits, own = (
                model(torch.tensor([ids])).logits[0] for model, ids in zip(models, (view.old_ids, row), strict=True)
            )
        student = own[[index - 1 for index in trained]]
        found, taken = timed(lambda: targets.target(logits, view.places, student, least=0.0))  # noqa: B023
        bare = targets.target(logits, view.places, torch.zeros_like(student), least=0.0)
        labels = torch.tensor(row)[trained]
        mapped = [one.log_q.gather(1, labels[:, None]).sum() for one in (found, bare)]
        begun = view.places[0].first + max(sum(step.kind <= 0 for step in view.places[0].steps) - 1, 0)
        behind, p = torch.tensor(view.old_ids[1:]), logits[:-1].softmax(-1)
        of_twins = torch.zeros_like(p).index_add_(1, twin, p)
        said = (
            q.gather(1, ids[:, None])[begun:].log().sum() - found.compatible[0].log()
            for q, ids in ((p, behind), (of_twins, twin[behind]))
        )
        low = (found.compatible < 0.01).sum()
        sums += torch.stack([*mapped, *said, found.undecided.sum(), low, torch.tensor(len(trained))])
        seconds += aligning + taken
    spelt, uniform, own, with_twins, undecided, low = (sums[:6] / sums[6]).tolist()
    figures = [
        f"{-own:.3f}",
        f"{-with_twins:.3f}",
        f"{-spelt:.3f}",
        f"{spelt - own:+.3f}",
        f"{spelt - with_twins:+.3f}",
    ]
    figures.append(f"{-uniform:.3f} ({uniform - own:+.3f})")
    shares = [f"{undecided:.0%}", f"{low:.1%}", f"{int(sums[6]):,}", f"{1000 * seconds / sums[6]:.2f}"]
    return f"| {old} | {new} | {' | '.join(figures + shares)} |"


def main() -> None:
    """Print the table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=60)
    count = parser.parse_args().stories
    torch.set_num_threads(1)
    lines = list(itertools.starmap(lambda old, new: measure(old, new, count), PAIRS))
    header = [
        "| v1 | student | own, nats a token | with twins | targets | log-likelihood over own | over own with twins | "
        "with uniform cells | mass undecided | places below 1 % compatible mass | places | ms a place |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    title = ["# v1's likelihood, from its targets", "", "    python benchmarks/token_likelihood.py", ""]
    note = "Nats per token of the student. Processor time of one core, models apart."
    publish("token_likelihood", [*title, f"{note} {where()}.", "", *header, *lines])


if __name__ == "__main__":
    main()
