"""The study's own bases: an early, weak v1, trained from nothing on a little text, a v2 with other tokens, and a pair
of five million parameters, which is kept in benchmarks/study/kept_bases.

    python benchmarks/study/bases.py [--runs runs/study] [NAME ...]

makes those of benchmarks/study/plan.yaml that are not there yet. ``run.py`` does so where a cell needs them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

READY = "model.safetensors"
KEPT = Path(__file__).with_name("kept_bases")
_ROWS, _LENGTH = 16, 256  # of a step


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
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    like = str(root / like)
    tokenizer = AutoTokenizer.from_pretrained(like, trust_remote_code=False)
    with gzip.open(root / text, "rt", encoding="utf-8") as file:
        # About three characters a token; what is over is not used.
        ids = tokenizer(file.read(steps * _ROWS * _LENGTH * 5))["input_ids"]
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(like, trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    _pretrain(model, ids, folder.with_name(f"{folder.name}-checkpoints"), steps, seed, learning_rate)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def larger_base(
    folder: Path,
    checkpoints: Path,
    root: Path,
    layers: int,
    width: int,
    texts: list[str],
    steps: int,
    seed: int,
    tokenizer: Any,
) -> Path:
    """The folder of a Llama with fresh weights, trained on texts from the first to the last, as often as the steps
    need; it goes on from its last checkpoint where it was stopped. Saved in bfloat16, a few megabytes.

    Args:
        folder: Where it is saved.
        checkpoints: Folder of what is kept until then, many times as large.
        root: What ``texts`` and ``tokenizer`` are below.
        layers: Blocks.
        width: Of the hidden states; heads have 32 dimensions.
        texts: Gzipped files; of ``novels`` the books whose place in the file is even or odd, as ``FILE:0`` or
            ``FILE:1`` says.
        steps: Of 16 rows of 256 tokens.
        seed: Of the weights and the order.
        tokenizer: Folder of the base whose tokenizer it has, or the size of a byte-level BPE that its texts train.
    """
    if (folder / READY).is_file():
        return folder
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    documents = [text for name in texts for text in _documents(root, name)]
    if isinstance(tokenizer, str):
        known = AutoTokenizer.from_pretrained(root / tokenizer, trust_remote_code=False)
    else:
        marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(
            documents, vocab_size=tokenizer, special_tokens=list(marks.values()), show_progress=False
        )
        known = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, clean_up_tokenization_spaces=False, **marks)
    ids = [token for text in known(documents)["input_ids"] for token in (*text, known.eos_token_id)]
    torch.manual_seed(seed)
    special = {f"{mark}_token_id": getattr(known, f"{mark}_token_id") for mark in ("pad", "bos", "eos")}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(known),
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            **special,
        )
    )
    needed = steps * _ROWS * _LENGTH
    _pretrain(model, ids * -(-needed // len(ids)), checkpoints, steps, seed, learning_rate=2e-3)
    known.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def _documents(root: Path, name: str) -> list[str]:
    """Stories and articles one by one; books in pieces that a tokenizer reads at once."""
    name, _, half = name.partition(":")
    with gzip.open(root / name, "rt", encoding="utf-8") as file:
        read = file.read()
    if half:
        books = [json.loads(line)["text"] for line in read.splitlines()][int(half) :: 2]
        read = "\n".join(books)
    return [read[start : start + 20_000] for start in range(0, len(read), 20_000)]


def _pretrain(model: Any, ids: list[int], checkpoints: Path, steps: int, seed: int, learning_rate: float) -> None:
    """Next-token prediction on the first tokens of a text, in an order of the seed."""
    import torch
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    needed = steps * _ROWS * _LENGTH
    if len(ids) < needed:
        raise ValueError(f"{len(ids)} tokens of text are too few for {steps} steps")
    blocks = torch.tensor(ids[:needed]).view(-1, _LENGTH)
    arguments = TrainingArguments(
        str(checkpoints), max_steps=steps, per_device_train_batch_size=_ROWS, learning_rate=learning_rate, seed=seed,
        lr_scheduler_type="cosine", warmup_steps=20, save_steps=200, save_total_limit=1, logging_steps=50,
        report_to="none", use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": block, "labels": block} for block in blocks])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)


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
    if "layers" in described:
        return larger_base(KEPT / name, runs / "bases" / f"{name}-checkpoints", root, **described)
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
