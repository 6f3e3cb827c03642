"""The study's own bases: an early, weak v1, trained from nothing on a little text, and a v2 with other tokens.

    python benchmarks/study/bases.py [--runs runs/study] [NAME ...]

makes those of benchmarks/study/plan.yaml that are not there yet. ``run.py`` does so where a cell needs them.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path
from typing import Any

READY = "model.safetensors"


def made_base(folder: Path, root: Path, like: str, text: str, steps: int, seed: int, learning_rate: float) -> Path:
    """The folder of a base with fresh weights, which is trained if it is not there yet.

    Args:
        folder: Where it is saved.
        root: What ``like`` and ``text`` are below.
        like: Base whose architecture and tokenizer it has.
        text: Gzipped text file, read from its beginning.
        steps: Of 16 rows of 256 tokens.
        seed: Of the weights and the order.
        learning_rate: Peak, cosine to zero.
    """
    if (folder / READY).is_file():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    rows, length, like = 16, 256, str(root / like)
    tokenizer = AutoTokenizer.from_pretrained(like, trust_remote_code=False)
    with gzip.open(root / text, "rt", encoding="utf-8") as file:
        # About three characters a token; what is over is not used.
        ids = tokenizer(file.read(steps * rows * length * 5))["input_ids"]
    if len(ids) < steps * rows * length:
        raise ValueError(f"{text} has too little text for {steps} steps")
    blocks = torch.tensor(ids[: steps * rows * length]).view(-1, length)
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(like, trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=rows, learning_rate=learning_rate, seed=seed,
        lr_scheduler_type="cosine", warmup_steps=20, save_strategy="no", report_to="none", use_cpu=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=[{"input_ids": block, "labels": block} for block in blocks]).train()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def retokenized_base(folder: Path, root: Path, body: str, vocabulary: int, digits: int, tokens: int) -> Path:
    """The folder of a base of the embedded world with another tokenizer: trained on as its v2 was, on the same text.

    A byte-level BPE that joins punctuation with words and writes numbers in groups of digits. A token's embedding is
    at first the mean of those of the body's own tokens that spell it (fast vocabulary transfer, Gee et al. 2022).

    Args:
        folder: Where it is saved.
        root: What ``body`` is below.
        body: Base that it starts from.
        vocabulary: Tokens.
        digits: At most in one token.
        tokens: To read, in steps of 8 rows of 128.
    """
    if (folder / READY).is_file():
        return folder
    sys.path.insert(0, str(root / "examples" / "embedded_world"))
    from itertools import islice

    import torch
    from corpus import Recipe, documents
    from pretrain import RECIPES, pretrain
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    from muscle_hf.tokens.vocabulary import ByteVocabulary

    read = RECIPES["v2"]
    marks = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    words = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,{digits}}}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(marks.values()), initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator(islice(documents(read), 10_000), trainer)
    begin = marks["bos_token"]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, bpe.token_to_id(begin))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False, **marks)

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(root / body, dtype=torch.float32, trust_remote_code=False)
    own = AutoTokenizer.from_pretrained(root / body, trust_remote_code=False)
    old, new = ByteVocabulary.of(own), ByteVocabulary.of(tokenizer)
    spelt = old.pieces([new.string(token) for token in range(new.size)])
    for role, token in new.roles.items():
        spelt[token] = [old.roles[role]]
    before = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(new.size)
    model.get_input_embeddings().weight.data.copy_(torch.stack([before[ids].mean(0) for ids in spelt]))
    for role, token in new.roles.items():
        setattr(model.config, f"{role}_id", token)
        setattr(model.generation_config, f"{role}_id", token)
    pretrain(model, Recipe("v2", tokens=tokens, spread=read.spread, shares=read.shares), tokenizer)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def repeated_base(folder: Path, root: Path, body: str, recipe: str, draw: str) -> Path:
    """The folder of a base of the embedded world that is pretrained as one of the package's, on text of another seed.

    Args:
        folder: Where it is saved.
        root: What ``body`` is below.
        body: Base that it starts from.
        recipe: Whose amount and kinds of text it reads.
        draw: Seeds what is popular in the text, and its order.
    """
    if (folder / READY).is_file():
        return folder
    sys.path.insert(0, str(root / "examples" / "embedded_world"))
    import dataclasses

    import torch
    from pretrain import RECIPES, pretrain
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / body, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(root / body, dtype=torch.float32, trust_remote_code=False)
    pretrain(model, dataclasses.replace(RECIPES[recipe], name=draw), tokenizer)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def study_base(name: str, plan: dict[str, Any], runs: Path, root: Path, seed: int) -> Path:
    """The folder of one of the plan's own bases, which is made if it is not there; one with a draw is of the seed."""
    described = plan["bases"][name]
    if "draw" in described:
        draw = described["draw"].format(seed=seed)
        return repeated_base(runs / "bases" / f"{name}-seed{seed}", root, **{**described, "draw": draw})
    make = retokenized_base if "body" in described else made_base
    return make(runs / "bases" / name, root, **described)


def main() -> None:
    from study import ROOT, load_plan

    plan = load_plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    args = parser.parse_args()
    for name in args.names or plan["bases"]:
        for folder in dict.fromkeys(study_base(name, plan, args.runs, ROOT, seed) for seed in plan["seeds"]):
            print(folder)


if __name__ == "__main__":
    main()
