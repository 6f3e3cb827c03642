"""The model card: valid, complete, current, and nothing from outside acts in it."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import paths
import pytest
from example_document import example_document
from hub_server import HubServer, card_errors, front_matter
from hub_world import NEW
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from muscle_hf import MuscleError
from muscle_hf.compare import compare
from muscle_hf.hub import CardState, render_card, write_card
from muscle_hf.hub.card import CARD_FILE, literal
from muscle_hf.hub.completing import complete_card, export_card
from muscle_hf.hub.licenses import inherited_license
from muscle_hf.hub.serving import serving_problems
from muscle_hf.hub.state import curve_points, load_metrics, trimmed_comparison
from muscle_hf.report.markup import code, markdown

HOSTILE = [
    "</details><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example) ![x](https://evil.example/x.png)",
    "https://evil.example www.evil.example <https://evil.example>",
    "x | y || z",
    "line one\n\n# A heading\n\n---\nlicense: mit\n---\n",
    "```\n`code` ``more``\n```",
    "---\nlicense: wtfpl\n---",
    "\u202eevil\u200b\x1b[31m\x00",
    "{{ 7 * 7 }} {% raw %} ${x}",
    "'\"); import os; os.system('x') #",
    "!!python/object/apply:os.system ['x']",
    "&lt;b&gt; \\*not\\* $$x$$ *a* __b__ ~~c~~ | d",
    "[x]: https://evil.example\n[^1]: note",
    "- item\n+ item\n1. item",
    "1. item",
    "===",
    "a" * 100_000,
]


@pytest.fixture
def measured(adapter: Path) -> Path:
    """A saved adapter with a recorded comparison."""
    complete_card(adapter, {"task": "routing"}, comparison=example_document(), label="muscle")
    return adapter


def tokens(text: str) -> list[Any]:
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    parsed = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    return [child for token in parsed for child in (token, *(token.children or []))]


def shape(text: str) -> Counter:
    """How many of each thing that acts there are: markup, not text."""
    counted = Counter(token.type for token in tokens(text) if token.type not in ("text", "softbreak"))
    counted.update(token.attrs["href"] for token in tokens(text) if token.type == "link_open")
    counted.update(token.attrs["src"] for token in tokens(text) if token.type == "image")
    counted.update(token.content.strip() for token in tokens(text) if token.type.startswith("html"))
    return counted


def test_the_front_matter_is_complete_and_valid(measured: Path, bases: HubServer):
    complete_card(
        measured,
        {"datasets": ["acme/tickets"], "language": ["en"], "tags": ["help-desk"], "license_new": "apache-2.0"},
    )
    text = render_card(measured, "tester/compat").text
    card = ModelCard(text)
    card.validate()  # by the Hub's own route
    assert card_errors(text) == []
    data = card.data.to_dict()
    assert data["library_name"] == "peft"
    assert (data["base_model"], data["base_model_relation"]) == (NEW, "adapter")
    assert data["old_model"] == "acme/base-v1"
    assert data["datasets"] == ["acme/tickets"]
    assert data["language"] == ["en"]
    assert data["license"] == "apache-2.0"
    assert {"muscle-hf", "model-update", "lora", "help-desk"} <= set(data["tags"])
    values = {metric["type"]: metric["value"] for metric in data["model-index"][0]["results"][0]["metrics"]}
    updates = {update.label: update for update in example_document().tasks[0].updates}
    for key in ("nfr", "pfr"):
        assert values[key] == pytest.approx(updates["muscle"].rates[key].value, abs=1e-6)
        assert values[f"{key}_v2"] == pytest.approx(updates["new"].rates[key].value, abs=1e-6)
    assert values["accuracy"] == pytest.approx(updates["muscle"].accuracy.value, abs=1e-6)
    assert {"accuracy_v1", "accuracy_v2"} <= values.keys()


def test_the_hubs_validation_is_asked_and_a_bad_card_fails_it(bases: HubServer, measured: Path):
    complete_card(measured, {"license_new": "apache-2.0"})
    text = render_card(measured).text
    with pytest.raises(ValueError, match="license"):
        ModelCard(text.replace("license: apache-2.0", "license: free-for-all")).validate()


def test_the_body_says_what_a_user_must_know(measured: Path):
    (measured / "report.html").write_text("<html></html>")
    text = render_card(measured, "tester/compat").text
    for heading in ("Which update it is for", "How to use it", "What the update breaks", "Training", "Provenance"):
        assert f"\n## {heading}" in text
    for heading in ("Limits", "Licence", "Environment", "Citation"):
        assert f"\n## {heading}" in text
    provenance = json.loads((measured / "muscle_provenance.json").read_text())
    for role in ("old", "new"):
        assert provenance[role]["base"]["sha256"] in text and provenance[role]["base"]["revision"] in text
    assert "14.5% of 200 items" in text and "7.5%" in text
    assert "card_quadrants_1.svg" in text and "card_curves.svg" in text
    assert "tone = calm" in text
    assert "| `learning_rate` | `0.01` |" in text and "| temperature | `2.0` |" in text
    assert "Biases of the old model can pass on" in text
    assert "`report.html`" in text


def test_no_item_is_shown_or_stored_unless_asked_for(adapter: Path):
    document = example_document()
    prompt = document.tasks[0].flips[0].prompt.split(":")[0]
    complete_card(adapter, comparison=document, label="muscle")
    texts = [path.read_text() for path in adapter.iterdir() if path.suffix in (".md", ".json") and path.is_file()]
    assert not any(prompt in text for text in texts)
    assert not any("runs/old.jsonl" in text for text in texts)
    complete_card(adapter, comparison=document, label="muscle", examples=2)
    card = (adapter / CARD_FILE).read_text()
    assert prompt in card and "because the publisher asked" in card
    assert "&lt;b&gt;never&lt;/b&gt;" in card


def test_what_was_left_out_is_told_in_counts(adapter: Path, tmp_path: Path):
    """A log without ids tells its items by their prompts, which the comparison's own warnings then name."""
    logs = []
    for name, wrong, asked in (("old", 5, "Name"), ("new", 3, "Tell"), ("muscle", 4, "Name")):
        rows = [f"{asked} {i}?,{'A' if i % wrong else 'B'},A" for i in range(20 - (name == "new"))]
        logs.append(tmp_path / f"{name}.csv")
        ids = [f"secret {i}" for i in range(20)]
        rows = [f"{key},{row}" for key, row in zip(ids, rows, strict=False)]
        logs[-1].write_text("\n".join(["id,prompt,prediction,target", *rows]))
    document = compare(*map(str, logs), missing="drop", ignore_prompts=True)
    assert any("secret 19" in text for text in document.warnings) and len(document.warnings) > 1
    complete_card(adapter, comparison=document)
    texts = [(adapter / name).read_text() for name in (CARD_FILE, "muscle_metrics.json")]
    assert not any(word in text for text in texts for word in ("secret", str(tmp_path)))
    assert "19 prompts of new differ" in texts[0] and "left out: 1 absent" in texts[0]


def test_figures_in_doubt_are_not_for_programs(adapter: Path):
    document = json.loads(example_document().to_json())
    complete_card(adapter, comparison=document, label="muscle")
    known = (adapter / CARD_FILE).read_text()
    for task in document["tasks"]:
        task["doubt"] = "texts were compared word by word"
    complete_card(adapter, comparison=document, label="muscle")
    doubted = (adapter / CARD_FILE).read_text()
    assert "model-index" in known and "model-index" not in doubted
    assert "word by word" in doubted


def test_the_card_of_a_v1_that_is_not_here(adapter: Path):
    file = adapter / "muscle_provenance.json"
    provenance = json.loads(file.read_text())
    assert "share one vocabulary" in render_card(adapter).text
    unknown = dict.fromkeys(("revision", "architecture", "dtype", "quantization"))
    provenance["old"]["base"] |= {**unknown, "name": "served", "on_hub": False}
    provenance["old"] |= {
        "adapter": None, "reading": {"level": "foreign", "rows_read": 1.0, "tokens_with_target": 0.9},
    }  # fmt: skip
    file.write_text(json.dumps(provenance))
    text = render_card(adapter).text
    assert "| old (v1) | `served` | unknown | unknown |" in text
    assert "share one vocabulary" not in text


def test_slices_without_flips_are_not_called_the_worst(adapter: Path):
    document = json.loads(example_document().to_json())
    for update in document["tasks"][0]["updates"]:
        for part in update["slices"]:
            part["nfr"]["value"] = 0.0
    document["tasks"][0]["updates"][0]["slices"][0]["nfr"]["value"] = 0.25
    kept = document["tasks"][0]["updates"][0]["slices"][0]
    complete_card(adapter, comparison=document, label="muscle")
    flips, _, _ = (adapter / CARD_FILE).read_text().partition("Errors of the old model")
    rows = re.findall(r"^\| (\w+ = .*?) \|", flips, re.MULTILINE)
    assert rows == [f"{kept['column']} = {kept['value']}"]


def test_the_snippets_are_valid_python(measured: Path):
    text = render_card(measured, "tester/compat").text
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        compile(snippet, "card", "exec")


def test_the_snippets_run(bases: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch):
    from hub_server import TOKEN

    from muscle_hf.hub import publish

    publish(adapter, "tester/compat", token=TOKEN)
    for snippet in re.findall(
        r"```python\n(.*?)```", bases.repo("tester/compat").files()[CARD_FILE].decode(), re.DOTALL
    ):
        namespace: dict[str, Any] = {}
        exec(snippet, namespace)
        assert namespace["model"].get_base_model() is not None


def fill(folder: Path, text: str) -> None:
    """Put a text wherever one from outside can stand."""
    document = json.loads(example_document().to_json())
    task = document["tasks"][0]
    task["name"] = task["metric"] = text
    task["missing"], task["reworded"] = {text: {text: 3}}, {text: 2}
    for update in task["updates"]:
        for part in update["slices"]:
            part["column"] = text
            part["value"] += text
    for flip in task["flips"]:
        flip.update(prompt=text, target=text, answers=dict.fromkeys(flip["answers"], text))
    provenance = json.loads((folder / "muscle_provenance.json").read_text())
    provenance["old"]["base"].update(name=text, revision=text)
    provenance["new"]["base"].update(name=text, revision=text, on_hub=False)
    provenance["new"]["adapter"]["name"] = text
    provenance["metrics"][text] = 1.0
    provenance["training"][text] = text
    provenance["objective"]["mask"] = text
    provenance["data"]["train"]["sha256"] = text
    provenance["packages"][text] = text
    provenance["created"] = text
    (folder / "muscle_provenance.json").write_text(json.dumps(provenance))
    words = ("title", "summary", "task", "base_note", "notes", "made_by", "hardware")
    state = dict.fromkeys(words, text) | {"datasets": [text], "tags": [text], "language": [text]}
    state |= {"license_old": text, "license_new": text, "emissions_kg": 0.5}
    complete_card(folder, state, comparison=document, label="muscle", examples=1)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_from_outside_acts_in_the_card(adapter: Path, tmp_path: Path, text: str):
    harmless = shutil.copytree(adapter, tmp_path / "harmless")
    fill(harmless, "quite harmless")
    fill(adapter, text)
    card, plain = (adapter / CARD_FILE).read_text(), (harmless / CARD_FILE).read_text()
    assert shape(card) == shape(plain)
    data, expected = front_matter(card), front_matter(plain)
    assert data.keys() == expected.keys()
    assert data["library_name"] == "peft" and isinstance(data["tags"][-1], str)
    assert ModelCard(card).data.to_dict().keys() == ModelCard(plain).data.to_dict().keys()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u200b\u202e]", card)
    assert len(card) < 60_000, "a long text is cut"
    for snippet in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        compile(snippet, "card", "exec")
    for picture in adapter.glob("card_*.svg"):
        drawing = ElementTree.fromstring(picture.read_text())
        assert {element.tag.rsplit("}", 1)[-1] for element in drawing.iter()} <= {
            *("svg", "title", "style", "rect", "text", "line", "polyline")
        }


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_escaping_keeps_the_text(text: str):
    rendered = MarkdownIt("commonmark", {"html": True}).renderInline(str(markdown(text)))
    shown = re.sub(
        r"&(lt|gt|amp|quot|#39);",
        lambda match: {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "#39": "'"}[match[1]],
        rendered,
    )
    assert "<" not in rendered
    assert shown.replace("…", "")[:20] == re.sub(r"[ \t]*\r?\n\s*", " ⏎ ", text.strip())[:20] or "⟨U+" in shown
    assert eval(literal(text)).replace("…", "")[:5] == re.sub(r"\s*\n\s*", " ⏎ ", text.strip())[
        :5
    ] or "⟨U+" in literal(text)
    assert "`" not in literal(text)


@pytest.mark.parametrize("text", ["plain", "a|b", "`", "``x`", "<b>", " x "])
def test_code_spans_show_their_text(text: str):
    table = MarkdownIt("commonmark").enable("table").parse(f"| a |\n|---|\n| {code(text)} |\n")
    spans = [child for token in table for child in token.children or [] if child.type == "code_inline"]
    assert [span.content for span in spans] == [text.strip()]


def test_the_same_state_gives_the_same_card(measured: Path):
    first = render_card(measured)
    write_card(measured)
    assert render_card(measured) == first
    assert (measured / CARD_FILE).read_text() == first.text
    for name, content in first.pictures.items():
        assert (measured / name).read_text() == content


def test_a_card_of_ones_own_is_set_aside_not_lost(adapter: Path):
    (adapter / CARD_FILE).write_text("# Mine\n")
    write_card(adapter)
    write_card(adapter)
    assert (adapter / "README.md.bak").read_text() == "# Mine\n"
    assert "# Mine" not in (adapter / CARD_FILE).read_text()


def test_the_card_without_a_comparison_says_so(adapter: Path):
    text = render_card(adapter).text
    assert "nothing is known" in text and "muscle-hf compare" in text
    assert "model-index" not in text


def test_the_card_says_where_the_student_started(adapter: Path):
    assert "started from the old model" not in render_card(adapter).text
    provenance = json.loads((adapter / "muscle_provenance.json").read_text())
    provenance["training"]["start_from"] = "old"
    (adapter / "muscle_provenance.json").write_text(json.dumps(provenance))
    text = render_card(adapter).text
    assert "started from the old model's adapter, put on the new base" in " ".join(text.split())
    assert "| `start_from` | `old` |" in text


def test_a_comparison_of_other_weights_is_not_shown(measured: Path):
    provenance = json.loads((measured / "muscle_provenance.json").read_text())
    provenance["adapter_sha256"] = "f" * 64
    (measured / "muscle_provenance.json").write_text(json.dumps(provenance))
    assert load_metrics(measured, "f" * 64) is None
    assert "nothing is known" in render_card(measured).text


def test_which_model_of_a_comparison_is_the_adapter_must_be_clear(adapter: Path):
    with pytest.raises(MuscleError, match="muscle, no-mask"):
        complete_card(adapter, comparison=example_document())
    with pytest.raises(MuscleError, match="holds no compatibility model 'x'"):
        complete_card(adapter, comparison=example_document(), label="x")
    with pytest.raises(MuscleError, match="no comparison"):
        trimmed_comparison({"some": "json"})
    assert not (adapter / "muscle_metrics.json").exists()


def render_card_of_choices(adapter: Path) -> str:
    complete_card(adapter, comparison=example_document(), label="muscle")
    return (adapter / CARD_FILE).read_text()


def test_similarity_tasks_are_shown_with_their_own_rates(adapter: Path):
    document = json.loads(example_document().to_json())
    task = document["tasks"][0]
    task.update(kind="score", metric="rouge1")
    for update in task["updates"]:
        update["counts"] = {"improved": 3, "unchanged": 190, "regressed": 7}
        update["rates"] = {"nfr_smooth": update["rates"]["nfr"], "pfr_smooth": update["rates"]["pfr"]}
    complete_card(adapter, comparison=document, label="muscle")
    text = (adapter / CARD_FILE).read_text()
    assert r"NFR\~" in text and "mean rouge1" in text and "card_quadrants" not in text
    assert "whose score is lower" in text and "that the old model has right" not in text
    # As many tables as with right and wrong answers: none has run into the next.
    assert sum(token.type == "table_open" for token in tokens(text)) == sum(
        token.type == "table_open" for token in tokens(render_card_of_choices(adapter))
    )
    assert card_errors(text) == []


@pytest.mark.parametrize(
    ("old", "new", "chosen", "identifier", "conflict"),
    [
        ("mit", "apache-2.0", None, "apache-2.0", False),
        ("llama2", "apache-2.0", None, "llama2", False),
        ("apache-2.0", "llama2", None, "llama2", False),
        ("llama2", "llama2", None, "llama2", False),
        ("llama2", "gemma", None, "other", True),
        ("cc-by-nc-4.0", "llama3.1", None, "other", True),
        ("llama2", "gemma", "llama2", "llama2", True),
        ("cc-by-nc-4.0", "mit", "mit", "mit", True),
        ("mit", "apache-2.0", "mit", "mit", False),
        (None, None, None, None, False),
        (None, "mit", None, "mit", False),
    ],
)
def test_the_licence_is_inherited_and_conflicts_are_told(
    old: str | None, new: str | None, chosen: str | None, identifier: str | None, conflict: bool
):
    found = inherited_license(old, new, chosen)
    assert (found.identifier, found.conflict) == (identifier, conflict)
    assert (old or "unknown") in found.explanation and (new or "unknown") in found.explanation


def test_a_licence_conflict_stands_in_the_card(adapter: Path):
    complete_card(adapter, {"license_old": "llama2", "license_new": "gemma"})
    text = (adapter / CARD_FILE).read_text()
    assert "each bind what is made from them" in text
    assert front_matter(text)["license"] == "other"
    assert card_errors(text) == []


def test_emissions_are_told_in_the_hubs_form(adapter: Path):
    complete_card(adapter, {"emissions_kg": 0.0123})
    assert front_matter((adapter / CARD_FILE).read_text())["co2_eq_emissions"]["emissions"] == 12.3


def test_curves_keep_every_evaluation():
    log = [{"loss": 1.0, "step": step} for step in range(5000)] + [{"eval_loss": 1.0, "step": s} for s in range(30)]
    log.append({"loss": float("nan"), "step": 5000})
    kept = curve_points(log)
    assert sum("eval_loss" in entry for entry in kept) == 30
    assert 100 < len(kept) < 300
    json.dumps(kept, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"rank_pattern": {"q_proj": 4}}, "older versions ignore"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base"),
        ({"init_lora_weights": "lora_ga"}, "changed the base"),
        ({"init_lora_weights": "future"}, "'future'"),
        ({"r": 513}, "up to 512"),
        ({"task_type": "SEQ_CLS"}, "classifier"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "decoder"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"layer_replication": [[0, 2]]}, "replicates"),
        ({"alora_invocation_tokens": [1]}, "switched on"),
        ({"trainable_token_indices": [3]}, "single tokens"),
        ({"target_modules": None}, "lacks target_modules"),
    ],
)
def test_what_servers_refuse_is_said(adapter: Path, change: dict[str, Any], says: str | None):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
    problems = serving_problems({**config, **change})
    text = render_card(adapter).text
    if says is None:
        assert problems == [] and "vllm serve" in text
    else:
        assert any(says in problem for problem in problems)
        assert "vllm serve" not in text


def test_architectures_that_vllm_puts_no_adapter_on_are_named(adapter: Path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    problems = [
        serving_problems(config, base={"architectures": [name]}) for name in ("LlamaForCausalLM", "GPT2LMHeadModel")
    ]
    assert [len(found) for found in problems] == [0, 1]
    provenance = json.loads((adapter / "muscle_provenance.json").read_text())
    provenance["new"]["base"]["architecture"] = "GPTNeoXForCausalLM"
    (adapter / "muscle_provenance.json").write_text(json.dumps(provenance))
    assert "vllm serve" not in render_card(adapter).text


def test_an_exported_card_renders_to_itself(measured: Path, tmp_path: Path):
    export_card(measured, tmp_path / "card")
    names = {path.name for path in (tmp_path / "card").iterdir()}
    assert "adapter_model.safetensors" not in names and "tokenizer.json" not in names
    assert render_card(tmp_path / "card").text == (tmp_path / "card" / CARD_FILE).read_text()


def test_broken_files_are_named(adapter: Path):
    (adapter / "muscle_card.json").write_text("{")
    with pytest.raises(MuscleError, match=r"muscle_card\.json"):
        render_card(adapter)
    with pytest.raises(MuscleError, match="has no muscle_provenance"):
        render_card(adapter.parent)


@pytest.mark.parametrize("task", [None, {}, {"name": 1, "updates": [{"role": "new"}, {"role": "compat"}]}])
def test_a_comparison_that_is_none_is_told(adapter: Path, task: Any):
    digest = json.loads((adapter / "muscle_provenance.json").read_text())["adapter_sha256"]
    content = {"format": 1, "adapter_sha256": digest, "comparison": {"models": [], "tasks": [task]}}
    (adapter / "muscle_metrics.json").write_text(json.dumps(content))
    with pytest.raises(MuscleError):
        render_card(adapter)


def test_state_of_another_version_keeps_what_is_known(tmp_path: Path):
    (tmp_path / "muscle_card.json").write_text(json.dumps({"format": 1, "title": "x", "from_the_future": 1}))
    assert CardState.load(tmp_path).title == "x"


CARDS = paths.ROOT / "model_cards"
REFERENCE = sorted(path.parent for path in CARDS.glob("*/muscle_provenance.json"))


@pytest.mark.parametrize("folder", REFERENCE, ids=lambda folder: folder.name)
def test_the_reference_cards_are_current(folder: Path):
    """Render them again with: python model_cards/render.py"""
    rendered = render_card(folder)
    assert (folder / CARD_FILE).read_text(encoding="utf-8") == rendered.text
    assert {path.name for path in folder.glob("card_*.svg")} == set(rendered.pictures)
    for name, content in rendered.pictures.items():
        assert (folder / name).read_text(encoding="utf-8") == content
    assert card_errors(rendered.text) == []
    front = front_matter(rendered.text)
    assert front["license"] and front["language"] and front["model-index"]
    for file in folder.iterdir():
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|work|Users|mnt)\b", file.read_text(encoding="utf-8")), (
            file.name
        )


def test_the_demos_reference_card_is_there():
    assert "demo-routing" in [folder.name for folder in REFERENCE]
