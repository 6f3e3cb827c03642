"""Small models and a small tokenizer for the tests of evaluation; built in memory, nothing is downloaded."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from muscle_hf.evaluation import Item, Task

TEXT = [
    "a parcel that arrived late and was sent back to the shop",
    "the invoice shows the wrong amount for the second month",
    "where can a customer change the address of an order",
    "question and answer about refunds, delivery and accounts 0 1 2 3 4 5 6 7 8 9",
]
WORDS = " ".join(TEXT).split()


def make_tokenizer(
    *, bos: bool = True, pad: bool = False, closing: bool = False, size: int = 400
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about ``size`` tokens; with BOS, PAD, or an EOS that it appends to texts."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXT * 4,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if bos or closing:
        template = ("<s> " if bos else "") + "$A" + (" </s>" if closing else "")
        inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    names = {"bos_token": "<s>"} if bos else {}
    names |= {"pad_token": "<pad>"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", **names)


def make_model(kind: str = "llama", *, seed: int = 0, positions: int = 128) -> torch.nn.Module:
    """An untrained model with sharp, varied predictions (large initial weights)."""
    torch.manual_seed(seed)
    vocabulary = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": positions}
    llama = {**vocabulary, **size, "intermediate_size": 48, "num_key_value_heads": 2}
    makers = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=positions)
        ),
        "sliding": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**llama, sliding_window=12)),
        "alibi": lambda: transformers.BloomForCausalLM(
            transformers.BloomConfig(**vocabulary, hidden_size=32, n_layer=2, n_head=4)
        ),
        "recurrent": lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(**vocabulary, hidden_size=32, num_hidden_layers=2, state_size=4)
        ),
        "seq2seq": lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=400,
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=4,
                pad_token_id=2,
                eos_token_id=1,
            )
        ),
        "classifier": lambda: transformers.LlamaForSequenceClassification(
            transformers.LlamaConfig(**llama, num_labels=3)
        ),
    }
    model = makers[kind]()
    if kind == "seq2seq":
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 2
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "position" not in name:
                parameter.mul_(6)
    return model.eval()


def make_choice_task(count: int = 12, *, metric: str = "acc") -> tuple[Task, list[Item]]:
    """Choice items of uneven lengths and numbers of choices, one of them with single-token choices."""
    items = [
        Item(
            id=f"item-{i}",
            prompt="Question: " + " ".join(WORDS[i : i + 2 + 3 * (i % 4)]) + "\nAnswer:",
            choices=tuple(f" {' '.join(WORDS[j : j + 1 + (i + j) % 5])}" for j in range(i, i + 2 + i % 3)),
            answers=(i % 2,),
            columns={"length": i % 4},
        )
        for i in range(count)
    ]
    items.append(Item(id="digits", prompt="Question: 1 2 3 4\nAnswer:", choices=(" 5", " 6", " 7"), answers=(0,)))
    return Task("words", "choice", lambda row, index: items[index], metric=metric), items


def make_generation_task(count: int = 7, **options) -> tuple[Task, list[Item]]:
    """Prompts of uneven lengths with one reference each."""
    items = [
        Item(id=str(i), prompt=" ".join(WORDS[i : i + 3 + 2 * i]), references=(f" {WORDS[i]} {WORDS[i + 1]}",))
        for i in range(count)
    ]
    settings = {"metric": "rouge1", "max_new_tokens": 12, **options}
    return Task("continue", "generation", lambda row, index: items[index], **settings), items
