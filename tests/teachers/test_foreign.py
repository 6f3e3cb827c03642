"""A v1 with other tokens or other words: what it says of v2's tokens, through the trainer."""

from __future__ import annotations

import copy

import builders
import pytest
import torch
from hub_world import files_in
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForSequenceClassification, PreTrainedTokenizerFast

from muscle_hf import MuscleError, TransferPrompts
from muscle_hf.callbacks import FlipMetricsCallback
from muscle_hf.evaluation import Item, Task
from muscle_hf.pipeline.caching import cache_teachers
from muscle_hf.training import sides
from muscle_hf.training.data import encode_answers

TEXTS = ["who wrote the book", "where is the old river", "a man and a woman", "the answer is a person", "over there"]
KINDS = ["person", "place", "person", "other", "place"]
PAIRS = [(f"{text}\nkind:", f" {kind}") for text, kind in zip(TEXTS, KINDS, strict=True)]


def tokenizer(size: int, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of its own merges; a BOS and an EOS."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    made.train_from_iterator([" ".join(pair) for pair in PAIRS] * 3 + TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=chat_template
    )


NEW, OLD = tokenizer(330), tokenizer(270)


model = builders.llama_of_tokens


def rows(**how):
    return encode_answers(NEW, PAIRS, **{"answers_only": True, **how})


def trainer(folder, old=None, **settings):
    defaults = {"processing_class": NEW, "old_processing_class": OLD, "train_dataset": rows(), "mask": "mean"}
    settings.setdefault("old_targets", "tokens")
    return builders.trainer(folder, model(2, 330), old or model(1, 270), **{**defaults, **settings})


def batch_of(trainer):
    return trainer.batch_of(builders.collate(list(trainer.train_dataset)))


def log_likelihoods(old, words, tokenizer=OLD):
    """v1's own log-likelihood of each answer behind its own words."""
    found = []
    for prompt, answer in words:
        row = encode_answers(tokenizer, [(prompt, answer)], answers_only=True)[0]
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logs = old(input_ids=ids).logits[0].log_softmax(-1)
        found.append(sum(float(logs[i - 1, ids[0, i]]) for i in range(len(labels)) if labels[i] != -100))
    return torch.tensor(found)


def test_the_target_of_an_answer_that_v1_has_a_token_for_is_its_own_likelihood_of_it(tmp_path):
    old = model(1, 270)
    made = trainer(tmp_path, old)
    batch = batch_of(made)
    stream = made.teachers["old"].targets(batch)
    with torch.no_grad():
        said = stream.logits(slice(0, len(batch.rows)), torch.randn(len(batch.rows), 330))
    of_labels = said.log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
    found = torch.zeros(len(batch)).index_add_(0, batch.rows, of_labels)
    exact = [number for number, (_, answer) in enumerate(PAIRS) if answer == " person"]
    torch.testing.assert_close(found[exact], log_likelihoods(old, PAIRS)[exact], rtol=1e-4, atol=1e-4)
    assert len(exact) == 2


def test_its_own_spelling_has_the_likelihood_of_the_answer(tmp_path):
    old = model(1, 270)
    made = trainer(tmp_path, old)
    spelt = made.teachers["old"].spelling(batch_of(made))
    with torch.no_grad():
        logs = old(**spelt.inputs).logits.log_softmax(-1)
    of_labels = spelt.of_trained(logs).gather(-1, spelt.targets[:, None]).squeeze(-1)
    found = torch.zeros(len(spelt)).index_add_(0, spelt.rows, of_labels)
    torch.testing.assert_close(found, log_likelihoods(old, PAIRS), rtol=1e-4, atol=1e-4)


def test_other_words_of_v1(tmp_path):
    """The same answers behind another prompt, with one tokenizer or two."""
    old, words = model(1, 270), [(f"Q: {prompt}\nA:", answer) for prompt, answer in PAIRS]
    asked = {tuple(row["input_ids"]): said for row, said in zip(rows(), words, strict=True)}
    made = trainer(tmp_path, old, old_formatting_func=lambda row: asked[tuple(row["input_ids"])])
    task = Task("kinds", "choice", lambda row, index: row)
    callback = FlipMetricsCallback(task, [Item(prompt, prompt, (said,), (0,)) for prompt, said in PAIRS], trainer=made)
    with pytest.raises(MuscleError, match="old_items"):
        callback.predictions("old", NEW)
    spelt = made.teachers["old"].spelling(batch_of(made))
    expected = encode_answers(OLD, words, answers_only=True)
    for row, ids in enumerate(spelt.inputs["input_ids"]):
        own = ids[spelt.inputs["attention_mask"][row] == 1].tolist()
        assert own == expected[row]["input_ids"][: len(own)] and len(own) >= len(expected[row]["input_ids"]) - 1


def test_other_words_of_v1_in_transfer_rows(tmp_path, monkeypatch):
    table, words = rows(), [(f"Q: {prompt}\nA:", answer) for prompt, answer in PAIRS]
    asked = {tuple(row["input_ids"]): said for row, said in zip(table, words, strict=True)}
    given = {"train_dataset": table[:4], "old_formatting_func": lambda row: asked[tuple(row["input_ids"])]}
    made = trainer(tmp_path, **given, transfer_dataset=table[4:])
    read = made.teachers["old"].reading(made.batch_of(builders.collate(table)))
    for ids, (prompt, _) in zip(read.inputs["input_ids"], words, strict=True):
        assert OLD.decode(ids, skip_special_tokens=True).startswith(prompt)
    warned = []
    monkeypatch.setattr(sides.logger, "warning_once", warned.append)
    trainer(tmp_path, **given, transfer_dataset=TransferPrompts(TEXTS, old_prompts=[f"Q: {text}" for text in TEXTS]))
    assert not warned
    trainer(tmp_path, **given, transfer_dataset=TransferPrompts(TEXTS))
    assert "old_prompts" in warned[0]


@pytest.mark.parametrize("asked", ["as v2", "in its own words"])
def test_by_default_the_likelihood_of_an_answer_is_what_is_followed(asked, tmp_path):
    """In its own tokens, however the rows are trained: with their contexts, at once or row by row."""
    old, words = model(1, 270), PAIRS
    table, settings = rows(answers_only=False), {}
    if asked == "in its own words":
        words = [(f"Q: {prompt}\nA:", answer) for prompt, answer in PAIRS]
        said = {tuple(row["input_ids"]): pair for row, pair in zip(table, words, strict=True)}
        settings["old_formatting_func"] = lambda row: said[tuple(row["input_ids"])]
    made = trainer(tmp_path, old, old_targets="auto", train_dataset=table, **settings)
    assert made.old_targets == "answer"
    batch = batch_of(made)
    stream = made._step.sources["old"].targets(batch)
    assert torch.equal(stream.spoken, batch.of_answers) and not bool(stream.spoken.all())
    expected = log_likelihoods(old, words)
    torch.testing.assert_close(stream.hidden[stream.spoken], expected[batch.rows[stream.spoken]], rtol=1e-4, atol=1e-4)
    made.train()


@pytest.mark.parametrize("mask", ["old_right", "more_confident_sequence"])
def test_tokens_are_followed_where_the_mask_reads_v1_or_answers_are_long(mask, tmp_path, monkeypatch):
    monkeypatch.setattr("muscle_hf.training.answer_targets.LONGEST_ANSWER", 7)
    assert trainer(tmp_path, old_targets="auto", mask=mask).old_targets == "tokens"
    whole = builders.without(rows(answers_only=False), "completion_mask")
    assert trainer(tmp_path, old_targets="auto", train_dataset=whole).old_targets == "tokens"


@pytest.mark.parametrize("mask", ["student_wrong", "mean", "old_right", "more_confident_sequence"])
def test_whole_and_chunked_and_cached_losses_agree(mask, tmp_path):
    old, found = model(1, 270), []
    for name, how in {"whole": {"loss_chunk_size": 0}, "chunks": {"loss_chunk_size": 3}, "cache": {}}.items():
        cache = {"teacher_cache": str(tmp_path / "cache")} if name == "cache" else {}
        for _ in range(1 + len(cache)):
            made = trainer(tmp_path / name, copy.deepcopy(old), mask=mask, **how, **cache)
            found.append(made.compute_loss(made.model, builders.collate(rows())).item())
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)


def test_its_likeliest_tokens_alone_are_not_kept(tmp_path):
    with pytest.raises(MuscleError, match=r"teacher_cache_top_k=4.*exact cache"):
        trainer(tmp_path, teacher_cache=str(tmp_path / "cache"), teacher_cache_top_k=4)


def test_rows_alone_and_padded_on_the_left_read_alike(tmp_path):
    made = trainer(tmp_path)
    table = rows()
    together = made.compute_loss(made.model, builders.collate(table), num_items_in_batch=1)
    apart = sum(made.compute_loss(made.model, builders.collate([row]), num_items_in_batch=1) for row in table)
    width = max(len(row["input_ids"]) for row in table)
    padded = {
        name: torch.tensor(
            [[fill] * (width - len(row["input_ids"])) + row.get(name, [1] * len(row["input_ids"])) for row in table]
        )
        for name, fill in {"input_ids": 0, "labels": -100, "attention_mask": 0}.items()
    }
    left = made.compute_loss(made.model, padded, num_items_in_batch=1)
    assert [apart.item(), left.item()] == pytest.approx([together.item()] * 2, rel=1e-4)


def test_a_format_with_another_answer_is_refused(tmp_path):
    with pytest.raises(MuscleError, match="reads only 0 of 5"):
        trainer(tmp_path, old_formatting_func=lambda row: ("Q:", " nothing of the kind"))


@pytest.mark.parametrize("targets", ["tokens", "answer"])
def test_what_lies_beyond_the_window_of_v1_follows_v2(targets, tmp_path):
    window = max(len(row["input_ids"]) for row in encode_answers(OLD, PAIRS))
    torch.manual_seed(1)
    old = GPT2LMHeadModel(GPT2Config(vocab_size=270, n_embd=32, n_layer=1, n_head=4, n_positions=window))
    table = [*rows() * 5, *encode_answers(NEW, [("over there " * window, " place")], answers_only=True)]
    made = trainer(tmp_path, old.eval(), train_dataset=table, old_targets=targets)
    assert made.teachers["old"].reader.share["rows_read"] == pytest.approx(25 / 26)
    assert made.compute_loss(made.model, builders.collate(table)).isfinite()


def test_packed_rows_are_refused(tmp_path):
    made = trainer(tmp_path)
    row = rows()[0]
    packed = {name: torch.tensor([values * 2]) for name, values in row.items()}
    packed["position_ids"] = torch.tensor([[*range(len(row["input_ids"]))] * 2])
    with pytest.raises(MuscleError, match="packs several rows"):
        made.compute_loss(made.model, packed)


def test_the_provenance_and_the_card_say_how_v1_reads(tmp_path):
    made = trainer(tmp_path, max_steps=1, logging_steps=1)
    read = made.provenance.old["reading"]
    assert read["level"] == "foreign" and read["rows_read"] == read["tokens_with_target"] == 1
    made.train()
    undecided = next(entry["old_undecided"] for entry in made.state.log_history if "old_undecided" in entry)
    assert 0 < undecided < 1
    made.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "another tokenizer" in card and f"{100 * undecided:.1f}%" in card


@pytest.mark.parametrize("settings", [{"mask": "student_wrong"}, {"mask": "more_confident"}, {"loss_chunk_size": 0}])
def test_v2_may_decide_what_v1_leaves_open(settings, tmp_path):
    """Before the first step the student is v2, so it makes no difference; afterwards it does."""
    by_reference = {}
    for reference in ("student", "new"):
        how = {"learning_rate": 0.1, "max_steps": 2, "logging_steps": 1, "old_reference": reference, **settings}
        made = trainer(tmp_path / reference, model(1, 270), **how)
        made.train()
        by_reference[reference] = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    first, second = zip(*by_reference.values(), strict=True)
    assert first[0] == pytest.approx(first[1], rel=1e-5) and second[0] != pytest.approx(second[1], rel=1e-4)


def test_a_foreign_teacher_is_calibrated(tmp_path):
    made = trainer(tmp_path, calibrate_teachers=True, eval_dataset=rows(), max_steps=1)
    made.train()
    assert 0.2 < made.teacher_temperatures["old"] < 17


@pytest.mark.parametrize("decoder", [False, True])
def test_classifiers_share_their_labels(decoder, tmp_path):
    """No token has a label: v1 reads the text in its own ids, and its class logits count as they are."""
    if decoder:
        config = model(2, 330).get_base_model().config
        config.update({"num_labels": 3, "pad_token_id": 1})
        bodies = (builders._built(LlamaForSequenceClassification, copy.deepcopy(config), seed) for seed in (2, 1))
        new, old = (builders.with_lora(body, seed) for body, seed in zip(bodies, (20, 10), strict=True))
        old.get_base_model().config.pad_token_id = None
    else:
        size = {"vocab_size": 330, "max_position_embeddings": 96}
        new = builders.with_lora(builders.bert_sequences(2, **size), 20, target_modules=["query", "value"])
        old = builders.with_lora(builders.bert_sequences(1, **size), 10, target_modules=["query", "value"])
    table = [{"input_ids": NEW(text)["input_ids"], "labels": index % 3} for index, text in enumerate(TEXTS)]
    collate = lambda rows: {  # noqa: E731
        **NEW.pad({"input_ids": [row["input_ids"] for row in rows]}, return_tensors="pt"),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
    NEW.pad_token = NEW.eos_token
    given = {"processing_class": NEW, "old_processing_class": OLD, "train_dataset": table, "data_collator": collate}
    made = builders.trainer(tmp_path, new, old, mask="always_old", **given)
    batch = collate(table)
    with torch.no_grad():
        said = torch.cat([old(input_ids=OLD(text, return_tensors="pt")["input_ids"]).logits for text in TEXTS])
        student = new(**{name: value for name, value in batch.items() if name != "labels"}).logits
    logs = [logits.div(2).log_softmax(-1) for logits in (said, student)]
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()
    assert made.compute_loss(made.model, batch).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("targets", ["tokens", "answer"])
def test_from_a_full_cache_it_is_not_asked_and_its_own_tokenizer_is_found(targets, tmp_path):
    base = model(1, 270).unload()
    base.save_pretrained(tmp_path / "base")
    OLD.save_pretrained(tmp_path / "base")
    old = model(1, 270)
    old.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    old.save_pretrained(tmp_path / "old")
    given = {"teacher_cache": str(tmp_path / "cache"), "old_processing_class": None, "old_targets": targets}
    first = trainer(tmp_path / "first", str(tmp_path / "old"), **given)
    cache_teachers(first, tmp_path / "cache")
    expected = trainer(tmp_path / "alone", str(tmp_path / "old"), old_processing_class=None, old_targets=targets)
    second = trainer(tmp_path / "second", str(tmp_path / "old"), **given)
    losses = [made.compute_loss(made.model, builders.collate(rows())).item() for made in (expected, second)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert second.teachers["old"]._device is not None, "v1 was asked"


def published(hub, folder, tokenizer_with):
    """alice/v1, an adapter on alice/base1, which has as many embeddings as v2, and another tokenizer."""
    v1 = model(1, 330)
    v1.peft_config["default"].base_model_name_or_path = "alice/base1"
    v1.save_pretrained(folder / "v1")
    v1.unload().save_pretrained(folder / "base1")
    OLD.save_pretrained(folder / tokenizer_with)
    for name in ("v1", "base1"):
        hub.add(f"alice/{name}", files_in(folder / name))


@pytest.mark.parametrize("where", ["v1", "base1"])
def test_its_own_tokenizer_is_fetched_from_the_hub(where, hub, tmp_path):
    published(hub, tmp_path, where)
    made = trainer(tmp_path / "out", "alice/v1", old_processing_class=None)
    assert made.teachers["old"].reader.level == "foreign"
    assert made.teachers["old"].tokenizer.get_vocab() == OLD.get_vocab()


def test_its_own_tokenizer_is_of_its_own_revision(hub, tmp_path):
    published(hub, tmp_path, "v1")
    hub.repo("alice/v1").branches["then"] = hub.repo("alice/v1").branches["main"]
    NEW.save_pretrained(tmp_path / "v1")
    hub.add("alice/v1", files_in(tmp_path / "v1"))
    given = {"old_processing_class": None}
    assert trainer(tmp_path / "now", "alice/v1", **given).teachers["old"].reader is None
    then = trainer(tmp_path / "then", "alice/v1", **given, old_model_kwargs={"revision": "then"})
    assert then.teachers["old"].tokenizer.get_vocab() == OLD.get_vocab()


def chat_template(begin, turn):
    said = "{% generation %} {{ m.content }}{{ eos_token }}{% endgeneration %}"
    turns = f"{turn}{{% if m.role == 'assistant' %}}{said}{{% else %}}{{{{ m.content }}}}{{% endif %}}"
    return f"{{{{ bos_token }}}}{begin}{{% for m in messages %}}{turns}{{% endfor %}}"


def test_of_a_conversation_v1_is_asked_what_the_assistant_says(tmp_path):
    """In its own chat template, with the row's tools and settings; what users say between is nobody's answer."""
    pytest.importorskip("trl")
    from datasets import Dataset

    from muscle_hf import MuscleSFTConfig, MuscleSFTTrainer

    new = tokenizer(330, chat_template("{{ tools[0].name }}", "[{{ m.role }}]"))
    old = tokenizer(270, chat_template("{{ tools[0].name }} {{ mood }}:", "{{ m.role }}>"))
    new.pad_token = new.eos_token
    said = [("user", TEXTS[0]), ("assistant", "a"), ("user", "who"), ("assistant", "b")]
    turns = [{"role": role, "content": text} for role, text in said]
    row = {"messages": turns, "tools": [{"name": "look"}], "chat_template_kwargs": {"mood": "glad"}}
    # Of the second nothing is left that is trained on.
    long = {**row, "messages": [{"role": "user", "content": "over " * 40}, *turns[1:]]}
    settings = {"max_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False, "mask": "mean", "max_length": 80}
    given = {"old_model": model(1, 270), "old_processing_class": old, "processing_class": new}
    args = MuscleSFTConfig(str(tmp_path), assistant_only_loss=True, old_targets="answer", **settings)
    made = MuscleSFTTrainer(model(2, 330), args, train_dataset=Dataset.from_list([row, long, row]), **given)
    assert len(made.train_dataset) == 2
    batch = made.batch_of(made.data_collator([made.train_dataset[0]]))
    spelt = made.teachers["old"].spelling(batch.answers())
    assert old.decode(spelt.targets) == " a</s> b</s>"
    read = old.decode(spelt.inputs["input_ids"][0])
    assert read.startswith(f"<s>look glad:user>{TEXTS[0]}assistant> a</s>user>whoassistant> b")
    made.train()

    # v2's template ends in a line break, which is trained as well, and which v1's has not.
    new.chat_template += "{% if add_generation_prompt %}[assistant]{% else %}{{ '\\n' }}{% endif %}"
    table = Dataset.from_list([{"prompt": turns[:1], "completion": turns[1:2], "tools": row["tools"]}] * 2)
    made = MuscleSFTTrainer(model(2, 330), MuscleSFTConfig(str(tmp_path), **settings), train_dataset=table, **given)
    assert made.old_targets == "tokens"
    batch = made.batch_of(made.data_collator([made.train_dataset[0]]))
    assert new.decode(batch.own_tokens) == " a</s>\n"
    assert made.teachers["old"].silent(batch).tolist() == [False, False, True]


class Stream(IterableDataset):
    def __iter__(self):
        yield from rows()


def test_a_stream_is_read_from_its_first_batch_on_as_rows_are(tmp_path):
    """Whether v1 cuts its texts otherwise, and how long its answers are, is not known before."""
    losses = []
    for name, table in {"rows": rows(), "stream": Stream()}.items():
        settings = {"train_dataset": table, "train_sampling_strategy": "sequential", "max_steps": 1}
        made = trainer(tmp_path / name, old_targets="auto" if name == "stream" else "tokens", **settings)
        made.train()
        losses.append(made.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[0] > 0.01
    assert made.teachers["old"].reader.share["rows_read"] == 1


def test_its_tokenizer_may_be_one_of_tokenizers_and_its_words_token_ids(tmp_path):
    bare, plain = trainer(tmp_path, old_processing_class=OLD.backend_tokenizer), trainer(tmp_path)
    losses = [made.compute_loss(made.model, builders.collate(rows())).item() for made in (bare, plain)]
    assert losses[0] == pytest.approx(losses[1])
    words = iter(torch.tensor([*OLD(prompt + answer)["input_ids"], 1]) for prompt, answer in PAIRS)
    assert (
        trainer(tmp_path, old_formatting_func=lambda row: next(words)).teachers["old"].reader.share["rows_read"] == 1
    )


def test_a_text_of_its_own_begins_once(tmp_path):
    """A chat template writes the BOS that the tokenizer puts before a text."""
    begins = copy.deepcopy(OLD)
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    read = []
    for begin in ("", "<s>"):
        words = iter(begin + prompt + answer for prompt, answer in PAIRS)
        made = trainer(tmp_path, old_processing_class=begins, old_formatting_func=lambda row, words=words: next(words))
        read.append(made.teachers["old"].reading(batch_of(made)).inputs["input_ids"])
    assert torch.equal(*read) and bool((read[0][:, 1] != 0).all())


def test_its_adapter_is_no_start_for_other_tokens(tmp_path):
    with pytest.raises(MuscleError, match="start_from"):
        trainer(tmp_path, start_from="old")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        *[(said, "old_formatting_func gives") for said in (None, [], ["Q:"], ("Q:", " person", ""))],
        ([{"role": "user", "content": "Q:"}], "chat template"),  # of which v1's tokenizer has none
    ],
)
def test_words_that_are_no_words_are_refused(said, message, tmp_path):
    with pytest.raises(MuscleError, match=message):
        trainer(tmp_path, old_formatting_func=lambda row: said)


@pytest.mark.parametrize("given", [OLD, NEW])
def test_a_tokenizer_that_is_another_models_is_refused(given, tmp_path):
    with pytest.raises(MuscleError, match="200 embeddings"):
        trainer(tmp_path, model(1, 200), old_processing_class=given)


def test_equal_rows_with_different_words_of_v1_are_refused(tmp_path):
    numbers = iter(range(100))
    with pytest.raises(MuscleError, match="cannot be told apart"):
        trainer(
            tmp_path,
            train_dataset=rows() + rows()[:1],
            old_formatting_func=lambda row: (f"Q {next(numbers)}:", NEW.decode(row["input_ids"][-2:-1])),
        )
