"""evaluate_task: the same answers in any batch, in any way of computing them, and no trace left in the model."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from evaluation_models import make_choice_task, make_generation_task, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

from muscle_hf.compat.transformers import CACHE
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import (
    Item,
    Task,
    choice_log_likelihoods,
    encode_pair,
    evaluate_task,
    load_items,
    load_task,
)
from muscle_hf.evaluation.batching import chunks_of_similar_length, plan_batches, run_batches

KINDS = ("llama", "gpt2", "sliding", "alibi", "recurrent", "seq2seq")


def plain_log_likelihood(model, tokenizer, prompt: str, continuation: str) -> float:
    """One sequence at a time, no padding, no cache, all logits: the definition."""
    context, rest = encode_pair(tokenizer, prompt, continuation)
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            context = tokenizer(prompt)["input_ids"]
            rest = tokenizer(continuation, add_special_tokens=False)["input_ids"]
            start = model.generation_config.decoder_start_token_id
            logits = model(
                input_ids=torch.tensor([context]), decoder_input_ids=torch.tensor([[start, *rest[:-1]]])
            ).logits[0]
        else:
            logits = model(torch.tensor([context + rest[:-1]])).logits[0, len(context) - 1 :]
    return logits.log_softmax(-1)[range(len(rest)), rest].sum().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_log_likelihoods_are_those_of_single_sequences(kind, batch_size):
    model, tokenizer = make_model(kind), make_tokenizer(closing=kind == "seq2seq")
    task, items = make_choice_task(8)
    predictions = evaluate_task(model, tokenizer, task, items, batch_size=batch_size, progress=False)
    assert [p.id for p in predictions] == [item.id for item in items]
    for item, prediction in zip(items, predictions, strict=True):
        expected = [plain_log_likelihood(model, tokenizer, item.prompt, choice) for choice in item.choices]
        assert prediction.log_likelihoods == pytest.approx(expected, abs=2e-4)
        assert prediction.prediction == int(np.argmax(expected))
        assert prediction.correct == (prediction.prediction in item.answers)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding"])
def test_sharing_a_prompt_is_used_and_exact(kind):
    model, tokenizer = make_model(kind), make_tokenizer()
    _, items = make_choice_task()
    pairs = [(item.prompt, choice) for item in items for choice in item.choices]
    shared = choice_log_likelihoods(model, tokenizer, pairs, share=True)
    whole = choice_log_likelihoods(model, tokenizer, pairs, share=False)
    assert shared == pytest.approx(whole, abs=2e-4)
    tokens = {True: 0, False: 0, None: 0}
    for share in tokens:
        hook = model.register_forward_pre_hook(
            lambda _, args, kwargs, share=share: tokens.update({share: tokens[share] + kwargs["input_ids"].numel()}),
            with_kwargs=True,
        )
        choice_log_likelihoods(model, tokenizer, pairs, share=share)
        hook.remove()
    assert tokens[True] < 0.7 * tokens[False]


def test_prompts_are_shared_by_default_where_that_is_exact():
    """Forward passes with a cache happen for plain attention, and are given up for a recurrent state."""
    _, items = make_choice_task()
    pairs = [(item.prompt, choice) for item in items for choice in item.choices]
    for kind, expected in (("llama", True), ("recurrent", False), ("alibi", True)):
        model, cached = make_model(kind), []
        model.register_forward_pre_hook(
            lambda _, args, kwargs, cached=cached: cached.append(kwargs.get(CACHE) is not None),
            with_kwargs=True,
        )
        choice_log_likelihoods(model, make_tokenizer(), pairs)
        assert cached[-1] is expected, kind


def test_too_long_prompts_lose_their_beginning():
    model, tokenizer = make_model(positions=24), make_tokenizer()
    task, items = make_choice_task(1)
    long = replace(items[0], prompt="where can a customer " * 20 + "Answer:")
    prediction = evaluate_task(model, tokenizer, task, [long], progress=False)[0]
    for choice, found in zip(long.choices, prediction.log_likelihoods, strict=True):
        context, rest = encode_pair(tokenizer, long.prompt, choice)
        sequence = (context + rest)[-25:]
        with torch.no_grad():
            logits = model(torch.tensor([sequence[:-1]])).logits[0, -len(rest) :]
        assert found == pytest.approx(logits.log_softmax(-1)[range(len(rest)), rest].sum().item(), abs=2e-4)


def test_normalised_choices_divide_by_the_length_of_the_text():
    model, tokenizer = make_model(), make_tokenizer()
    for metric, length in (("acc_norm", len), ("acc_bytes", lambda text: len(text.encode()))):
        task, items = make_choice_task(metric=metric)
        items[0] = replace(items[0], choices=(" ééé", " the invoice shows the wrong amount"))
        for item, p in zip(items, evaluate_task(model, tokenizer, task, items, progress=False), strict=True):
            lengths = [length(choice[1:]) for choice in item.choices]
            assert p.prediction == int(np.argmax(np.array(p.log_likelihoods) / lengths))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "alibi", "seq2seq"])
def test_generation_does_not_depend_on_the_batch(kind):
    model, tokenizer = make_model(kind), make_tokenizer()
    task, items = make_generation_task(no_repeat_ngram_size=2)
    one = evaluate_task(model, tokenizer, task, items, batch_size=1, progress=False)
    many = evaluate_task(model, tokenizer, task, items, progress=False)
    assert [p.prediction for p in one] == [p.prediction for p in many]
    assert any(p.prediction for p in one)


def test_generation_is_greedy_whatever_the_model_is_set_to():
    model, tokenizer = make_model(), make_tokenizer()
    task, items = make_generation_task()
    plain = [p.prediction for p in evaluate_task(model, tokenizer, task, items, progress=False)]
    settings = model.generation_config
    settings.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=3)
    assert [p.prediction for p in evaluate_task(model, tokenizer, task, items, progress=False)] == plain
    assert model.generation_config is settings and settings.do_sample

    ids = tokenizer(items[0].prompt)["input_ids"]
    for _ in range(task.max_new_tokens):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    answer = ids[-task.max_new_tokens :]
    answer = answer[: answer.index(1)] if 1 in answer else answer
    assert plain[0] == tokenizer.decode(answer, skip_special_tokens=True).strip()


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_generation_puts_virtual_tokens_in_once_or_is_refused(config):
    torch.manual_seed(0)
    model = peft.get_peft_model(make_model(), config(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    tokenizer, (task, items) = make_tokenizer(), make_generation_task(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    if CACHE != "past_key_values":
        with pytest.raises(MuscleError, match=model.active_peft_config.peft_type.value):
            evaluate_task(model, tokenizer, task, items, progress=False)
        return
    found = evaluate_task(model, tokenizer, task, items, progress=False)[0].prediction
    ids = tokenizer(items[0].prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(task.max_new_tokens):
        with torch.no_grad():
            chosen = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, chosen], dim=1)
    answer = ids[0, start:].tolist()
    answer = answer[: answer.index(1)] if 1 in answer else answer
    assert found == tokenizer.decode(answer, skip_special_tokens=True).strip() != ""


def test_generation_stops_at_stop_strings_and_saves_the_steps():
    model, tokenizer = make_model(), make_tokenizer()
    task, items = make_generation_task(1, max_new_tokens=40)
    free = evaluate_task(model, tokenizer, task, items, progress=False)[0].prediction
    stop = free[4:6]
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    stopped = evaluate_task(model, tokenizer, replace(task, stop=("never", stop)), items, progress=False)[0]
    assert stopped.prediction == free[: free.index(stop)].strip()
    assert len(steps) < 40


def test_exact_match_compares_the_extracted_answer():
    task = Task("sums", "generation", lambda row, i: None, metric="exact_match", extract="gsm8k", max_new_tokens=4)
    items = [Item(id="a", prompt="1 + 1 =", references=(" so 2\n#### 2",))]
    found = evaluate_task(make_model(), make_tokenizer(), task, items, progress=False)[0]
    assert found.correct is False and found.score is None and found.target == "so 2\n#### 2"


def test_own_similarity():
    task, items = make_generation_task(similarity=lambda text, references: len(text) / 100, metric="length")
    for p in evaluate_task(make_model(), make_tokenizer(), task, items, progress=False):
        assert p.score == len(p.prediction) / 100 and p.correct is None and p.metric == "length"


def test_classification_heads():
    tokenizer, model = make_tokenizer(), make_model("classifier")
    _, items = make_choice_task()
    items = [replace(item, choices=(), answers=(i % 3,)) for i, item in enumerate(items)]
    task = Task("heads", "classification", lambda row, i: None)
    for p, item in zip(evaluate_task(model, tokenizer, task, items, progress=False), items, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(item.prompt, return_tensors="pt")).logits[0]
        assert p.log_likelihoods == pytest.approx(logits.log_softmax(-1).tolist(), abs=1e-4)
        assert p.correct == (int(logits.argmax()) in item.answers)
    assert model.config.pad_token_id is None
    with pytest.raises(MuscleError, match="3 classes"):
        evaluate_task(model, tokenizer, task, [replace(items[0], answers=(3,))], progress=False)


def test_roberta_reads_as_many_tokens_as_it_has_places_for():
    """Its table of positions has two more, since they begin behind that of padding."""
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=34, num_labels=2, pad_token_id=1, **sizes
    )
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(config).eval()
    task = Task("long", "classification", lambda row, i: None)
    item = replace(make_choice_task()[1][0], prompt="w3 " * 60, choices=(), answers=(0,))
    (prediction,) = evaluate_task(model, tokenizer, task, [item], progress=False)
    ids = tokenizer(item.prompt, truncation=True, max_length=32, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(ids).logits[0].log_softmax(-1).tolist()
    assert ids.shape == (1, 32) and prediction.log_likelihoods == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("make", [make_choice_task, make_generation_task])
def test_the_model_is_left_as_it_was(make):
    base, tokenizer = make_model(), make_tokenizer()
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules="all-linear", lora_dropout=0.5, r=2))
    model.add_adapter("other", peft.LoraConfig(target_modules="all-linear", r=2))
    model.train()
    model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    config = model.config.to_dict()
    draws = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    task, items = make(5)
    first = evaluate_task(model, tokenizer, task, items, progress=False)
    assert first == evaluate_task(model, tokenizer, task, items, progress=False)
    assert [module.training for module in model.modules()] == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert model.active_adapter == "default" and model.config.to_dict() == config
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert after[0] == draws[0] and after[1] == draws[1] and torch.equal(after[2], draws[2])


def test_the_active_adapter_answers():
    base, tokenizer = make_model(), make_tokenizer()
    task, items = make_choice_task(4)
    plain = evaluate_task(base, tokenizer, task, items, progress=False)
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False))
    adapted = evaluate_task(model, tokenizer, task, items, progress=False)
    assert [p.log_likelihoods for p in adapted] != [p.log_likelihoods for p in plain]
    with model.disable_adapter():
        off = evaluate_task(model, tokenizer, task, items, progress=False)
    for a, b in zip(plain, off, strict=True):
        assert b.log_likelihoods == pytest.approx(a.log_likelihoods, abs=1e-4)


def test_bfloat16_gives_nearly_the_same():
    tokenizer = make_tokenizer()
    task, items = make_choice_task()
    exact = evaluate_task(make_model(), tokenizer, task, items, progress=False)
    half = evaluate_task(make_model().bfloat16(), tokenizer, task, items, progress=False)
    for a, b in zip(exact, half, strict=True):
        assert b.log_likelihoods == pytest.approx(a.log_likelihoods, rel=0.1, abs=1.0)


def test_running_out_of_memory_halves_the_batch():
    sizes: list[int] = []

    def run(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [2 * value for value in batch]

    results = dict(run_batches(list(range(12)), [list(range(10)), [10, 11]], run))
    assert results == {i: 2 * i for i in range(12)}
    assert sizes == [10, 5, 3, 2, 3, 2, 2]
    with pytest.raises(MuscleError, match="single item"):
        list(run_batches([0], [[0]], lambda batch: run([0] * 4)))
    with pytest.raises(RuntimeError, match="something else"):
        list(run_batches([0], [[0]], lambda batch: (_ for _ in ()).throw(RuntimeError("something else"))))


def test_batches_hold_similar_lengths_within_the_budget():
    lengths = [random.Random(i).randint(1, 90) for i in range(200)]
    batches = plan_batches(lengths, lambda n: n, tokens=300)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 300 for batch in batches)
    assert batches[0][0] == int(np.argmax(lengths))
    chunks = chunks_of_similar_length(lengths * 40, torch.device("cpu"), most_rows=64)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(8000))
    assert max(map(len, chunks)) <= 64
    with pytest.raises(MuscleError, match="batch_size"):
        plan_batches(lengths, lambda n: n, batch_size=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": ()}, "no choices"),
        ({"answers": ()}, "no answers"),
        ({"answers": (7,)}, "do not index"),
        ({"id": "item-1"}, "occurs twice"),
    ],
)
def test_bad_items_are_refused_before_anything_is_computed(changes, message):
    task, items = make_choice_task(3)
    model = make_model()
    model.forward = None
    with pytest.raises(MuscleError, match=message):
        evaluate_task(model, make_tokenizer(), task, [replace(items[0], **changes), *items[1:]], progress=False)
    with pytest.raises(MuscleError, match="no items"):
        evaluate_task(model, make_tokenizer(), task, [], progress=False)
    with pytest.raises(MuscleError, match="chat template"):
        evaluate_task(model, make_tokenizer(), task, items, chat=True, progress=False)


def test_nan_is_refused():
    model = make_model()
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(MuscleError, match=r"nan for item 'item-0'"):
        evaluate_task(model, make_tokenizer(), *make_choice_task(1), progress=False)


def test_chat_templates():
    model, tokenizer = make_model(), make_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[bot]"
    task, items = make_choice_task(3)
    chat = evaluate_task(model, tokenizer, task, items, chat=True, progress=False)
    written = [replace(item, prompt=f"<s>[user] {item.prompt}\n[bot]") for item in items]
    plain = evaluate_task(model, tokenizer, task, written, progress=False)
    assert [p.log_likelihoods for p in chat] == [p.log_likelihoods for p in plain]
    assert [p.hash for p in chat] == [p.hash for p in evaluate_task(model, tokenizer, task, items, progress=False)]
    tokenizer.chat_template = "{{ 1 // 0 }}"
    with pytest.raises(MuscleError, match="zero"):
        evaluate_task(model, tokenizer, task, items, chat=True, progress=False)


@pytest.mark.shared_data
def test_an_answer_longer_than_the_model_is_scored_by_its_end(shared_dir):
    """As the harness does it: the last tokens that the model takes, after the one token before them."""
    folder = shared_dir / "models" / "stories260k"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    (item,) = load_items("piqa", shared_dir / "data" / "piqa", "test", start=314, limit=1)
    (prediction,) = evaluate_task(model, tokenizer, load_task("piqa"), [item], progress=False)
    for choice, score in zip(item.choices, prediction.log_likelihoods, strict=True):
        prompt, continuation = encode_pair(tokenizer, item.prompt, choice)
        ids = (prompt + continuation)[-513:]
        with torch.no_grad():
            log_probabilities = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        expected = sum(row[token].item() for row, token in zip(log_probabilities, ids[1:], strict=True))
        assert score == pytest.approx(expected, rel=1e-5)
