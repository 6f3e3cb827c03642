"""Pretrains the two embedded bases, v1 from nothing (tokenizer included) and v2 from v1.

    OMP_NUM_THREADS=1 python examples/embedded_world/pretrain.py --output muscle_hf/demo/bases

The bases in the package come from this command on one thread of a 2-core x86-64 machine (AVX2, no GPU), with the seed
in :data:`SEED`: about 0.15 s a step where the core is free, so 5 minutes for v1 and half a minute for v2. The same
machine and number of threads give the same bits; another processor may round differently.

v2 stands for a later release of the same family: v1 trained on with more text, from a crawl of its own in which other
products and other sayings are popular, so the two make different mistakes. How much more v2 reads was chosen by the
accuracy of the task adapters of both on validation rows of the routing task (three seeds), which is level at this
point; no compatibility adapter had been trained on these bases by then.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from corpus import Recipe, documents

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2048
CONTEXT = 256
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_TOKENIZER_DOCUMENTS = 20_000
_ROW, _ROWS_PER_STEP, _LEARNING_RATE = 128, 8, 3e-3

_SHARES = {
    "catalogue": 0.18,
    "thread": 0.32,
    "subject": 0.14,
    "glossary": 0.10,
    "who_does_what": 0.03,
    "sums": 0.11,
    "return": 0.12,
}
RECIPES = {
    "v1": Recipe("v1", tokens=1_800_000, spread=0.8, shares=_SHARES),
    "v2": Recipe("v2", tokens=200_000, spread=0.8, shares=_SHARES),
}
# The tokenizer was trained on both crawls, and on more office notes than either base came to read.
_TOKENIZER_RECIPES = (RECIPES["v1"], Recipe("v2", tokens=0, spread=1.0, shares={**_SHARES, "office": 0.35}))
SEED = 1


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the byte-level BPE that both bases share, on equal parts of both corpora."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Single digits, so that sums can be learned by place.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (text for recipe in _TOKENIZER_RECIPES for text in islice(documents(recipe), _TOKENIZER_DOCUMENTS // 2))
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def token_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[int]]:
    """The corpus as rows of equal length: documents, each with its begin and end, one after the other."""
    buffer: list[int] = []
    for text in documents(recipe):
        buffer += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        while len(buffer) >= _ROW:
            yield buffer[:_ROW]
            del buffer[:_ROW]


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A small Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(
    model: LlamaForCausalLM,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    *,
    log: Callable[[str], None] = print,
) -> LlamaForCausalLM:
    """Trains one base: AdamW, linear warm-up, cosine to a twentieth, one pass over the recipe's tokens.

    Args:
        model: Where to start from: :func:`new_model`, or the base of the version before.
        recipe: What to read; its name seeds the text.
        tokenizer: From :func:`train_tokenizer`.
        log: Called with a line every hundred steps.

    Returns:
        The model, in eval mode. The same arguments give the same bits on the same machine and number of threads.
    """
    import torch
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    steps = recipe.tokens // (_ROW * _ROWS_PER_STEP)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, min(100, steps // 10), steps, min_lr_rate=0.05)
    rows, start, running = token_rows(recipe, tokenizer), time.monotonic(), 0.0
    for step in range(1, steps + 1):
        batch = torch.tensor(list(islice(rows, _ROWS_PER_STEP)))
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        running += loss.item()
        if step % 100 == 0 or step == steps:
            log(
                f"{recipe.name} step {step}/{steps} loss {running / ((step - 1) % 100 + 1):.3f} "
                f"{time.monotonic() - start:.0f} s"
            )
            running = 0.0
    return model.eval()


def _readme(version: str, model: LlamaForCausalLM) -> str:
    recipe, parameters = RECIPES[version], sum(parameter.numel() for parameter in model.parameters())
    origin = f"pretrained from nothing (seed {SEED})" if version == "v1" else "v1, trained on further"
    return (
        f"# {version} of the embedded world\n\nA Llama-type model of {parameters:,} parameters, {origin} "
        f"on {recipe.tokens:,} tokens of generated help-desk text by "
        "`python examples/embedded_world/pretrain.py`. It knows invented products and sayings and nothing else: it "
        "serves to try out model updates in seconds.\n\nLicence: Apache-2.0, like the package.\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Writes ``OUTPUT/v1`` and ``OUTPUT/v2``."""
    parser = argparse.ArgumentParser(
        prog="python examples/embedded_world/pretrain.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="folder in which v1/ and v2/ are written")
    parser.add_argument("--only", choices=tuple(RECIPES), help="pretrain this base alone (v2 starts from OUTPUT/v1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options = parser.parse_args(arguments)

    import torch

    torch.set_num_threads(options.threads)
    from transformers import LlamaForCausalLM

    tokenizer = train_tokenizer()
    for version in [options.only] if options.only else RECIPES:
        start = (
            new_model(tokenizer, SEED)
            if version == "v1"
            else LlamaForCausalLM.from_pretrained(options.output / "v1", dtype=torch.float32, trust_remote_code=False)
        )
        model = pretrain(start, RECIPES[version], tokenizer)
        folder = options.output / version
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)
        (folder / "README.md").write_text(_readme(version, model), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
