"""``muscle-hf check-served``: a server over loopback, and a real vLLM (``MUSCLE_HF_VLLM`` names its environment)."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import paths
import pytest
import torch
import transformers
from evaluation_models import TEXT, make_tokenizer
from loopback import serving
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from vllm_server import vllm_server

from muscle_hf import MuscleError
from muscle_hf.cli.main import main
from muscle_hf.evaluation import Item, Task, evaluate_task
from muscle_hf.evaluation.loading import load_for_evaluation
from muscle_hf.evaluation.served import BASE, Served, check_served
from muscle_hf.hub.serving import adapter_problems
from muscle_hf.served.logprobs import NoLogProbs, ServedModel
from muscle_hf.served.server import Server


def make_base(folder: Path) -> None:
    """A Llama that vLLM's attention on a CPU takes (heads of 32)."""
    torch.manual_seed(0)
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=400, bos_token_id=0, eos_token_id=1, intermediate_size=192, max_position_embeddings=256, **size
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def make_adapter(base: Path, folder: Path, seed: int, *modules: str, scale: float = 0.05) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(modules), task_type="CAUSAL_LM")
    model = get_peft_model(transformers.LlamaForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, scale)
    model.save_pretrained(folder)


def as_wrapped(adapter: Path, folder: Path) -> None:
    """The same adapter with the names that its layers have in a model with images: a server of the text model finds
    none of them, as one of the wrapped model finds none of a text adapter's."""
    shutil.copytree(adapter, folder)
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("model.layers", "model.language_model.layers"): w for name, w in weights.items()}
    save_file(renamed, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    make_base(folder / "base")
    make_adapter(folder / "base", folder / "one", 1, "q_proj", "v_proj")
    make_adapter(folder / "base", folder / "two", 2, "up_proj", "down_proj")
    make_adapter(folder / "base", folder / "nothing", 3, "q_proj", scale=0.0)
    as_wrapped(folder / "one", folder / "wrapped")
    return folder


@pytest.fixture(scope="module")
def models(folder):
    base = transformers.LlamaForCausalLM.from_pretrained(folder / "base").eval()
    loaded = {
        name: PeftModel.from_pretrained(
            transformers.LlamaForCausalLM.from_pretrained(folder / "base"), folder / name
        ).eval()
        for name in ("one", "two")
    }
    return {"base": base, **loaded, "dropped": base, "nothing": base}


def test_each_name_is_what_it_answers_as(folder, models, capsys):
    one, two = str(folder / "one"), str(folder / "two")
    with serving(models, make_tokenizer(), greedy=True) as url:
        command = ["check-served", url, "--model", f"one={one}", "--model", f"two={two}"]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert f"one: the server answers as {one}" in said and "4 of 4 greedy" in said
        assert main([*command, "--model", f"dropped={one}"]) == 1
        assert f"dropped: the server answers as {BASE}" in capsys.readouterr().out
        found = {each.name: each for each in check_served(Server(url, ""), {"one": two, "two": one})}
        assert (found["one"].answers_as, found["two"].answers_as) == (one, two)
        assert not found["one"].as_adapter and found["one"].distances[one] < 1e-5
        # An adapter that changes nothing is the base.
        assert main(["check-served", url, "--model", "nothing", "--adapter", str(folder / "nothing")]) == 3
        assert main(["check-served", url, "--model", "one"]) == 2
        (folder / "prompts.txt").write_text("one prompt", encoding="utf-16")
        assert main(["check-served", url, "--model", f"one={one}", "--prompts", str(folder / "prompts.txt")]) == 2
        assert main(["check-served", url, "--model", "three", "--adapter", one]) == 2
        assert main(["check-served", url, "--model", "base", "--adapter", str(folder / "base")]) == 2


def test_a_server_without_log_probabilities_is_told_by_its_answers(folder, models, capsys):
    with serving(models, make_tokenizer(), greedy=True, ways=frozenset()) as url:
        for name, code in (("one", 0), ("dropped", 1)):
            assert main(["check-served", url, "--model", name, "--adapter", str(folder / "one")]) == code
    assert "gives no log-probabilities" in capsys.readouterr().out


def test_prompts_of_the_user(folder, models, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("where can a customer\n\na parcel that arrived\n")
    with serving(models, make_tokenizer(), greedy=True) as url:
        command = ["check-served", url, "--model", "one", "--adapter", str(folder / "one"), "--prompts", str(prompts)]
        assert main(command) == 0
        with pytest.raises(MuscleError):
            check_served(Server(url, ""), {"one": folder / "one"}, prompts=())
        with pytest.raises(MuscleError, match="two tokens"):
            check_served(Server(url, ""), {"one": folder / "one"}, prompts=[""])


def test_an_answer_of_another_form_is_no_answer(models):
    ids = make_tokenizer()(TEXT[0])["input_ids"][:8]
    reply = {"choices": [{"prompt_logprobs": [None, *[dict.fromkeys(range(5), -0.5)] * 7]}]}
    strange = (200, {"Content-Type": "application/json"}, json.dumps(reply))
    with serving(models, make_tokenizer()) as url:
        said = ServedModel(Server(url, "one", tokenizer=make_tokenizer()), 5, 400).along(ids)
    with serving(models, make_tokenizer(), mishaps=[strange]) as url:
        again = ServedModel(Server(url, "one", tokenizer=make_tokenizer()), 5, 400).along(ids)
    torch.testing.assert_close(again.own, said.own)


@pytest.mark.parametrize(
    ("own", "base", "expected"),
    [
        *[(0.0, 1.0, "own"), (0.02, 1.0, "own"), (1.0, 0.02, "base"), (1e-6, 0.01, "own"), (0.01, 1e-6, "base")],
        *[(0.5, 0.6, ""), (0.5, 1e3, ""), (0.02, 0.03, None), (0.0, 0.0, None)],
    ],
)
def test_what_distances_mean(own, base, expected):
    found = Served("name", "own", {"own": own, "base": base}, 0, 1, True, 0.05)
    assert found.answers_as == expected
    assert found.as_adapter is (None if expected is None else expected == "own")


def test_kinds_that_servers_drop_are_known(folder, tmp_path):
    assert adapter_problems(folder / "one") == []
    base = shutil.copytree(folder / "base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    for name, problems in (("one", 1), ("wrapped", 0)):
        adapter = shutil.copytree(folder / name, tmp_path / name)
        settings = json.loads((adapter / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = str(base)
        (adapter / "adapter_config.json").write_text(json.dumps(settings))
        assert len(adapter_problems(adapter)) == problems
    settings = settings | {"target_parameters": ["mlp.experts.down_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    assert "target_parameters" in adapter_problems(adapter)[0]


@pytest.fixture(scope="module")
def vllm(folder):
    """The address of a real vLLM with three adapters, one of which it drops."""
    venv = os.environ.get("MUSCLE_HF_VLLM")
    if not venv:
        pytest.skip("MUSCLE_HF_VLLM names no environment with vLLM")
    names = [f"{name}={folder / name}" for name in ("one", "two", "wrapped")]
    arguments = ["--served-model-name", "base", "--max-model-len", "256", "--enable-lora", "--max-loras", "3"]
    with vllm_server(venv, folder / "base", *arguments, "--lora-modules", *names, log=folder / "log") as url:
        yield url


@pytest.mark.slow
def test_a_real_vllm(folder, vllm, models):
    one, two = str(folder / "one"), str(folder / "two")
    found = {each.name: each for each in check_served(Server(vllm, ""), {"one": one, "two": two, "wrapped": one})}
    assert {name: each.answers_as for name, each in found.items()} == {"one": one, "two": two, "wrapped": BASE}
    assert found["one"].distances[one] < 1e-4 < 0.01 < found["one"].distances[BASE]
    assert found["one"].same_greedy == found["two"].same_greedy == 4 and found["wrapped"].same_greedy < 4
    assert main(["check-served", vllm, "--model", f"one={one}", "--model", f"two={two}"]) == 0
    assert main(["check-served", vllm, "--model", f"wrapped={one}"]) == 1
    # What a teacher would be told: the likeliest tokens along a text, and the greedy one among them.
    asked = ServedModel(Server(vllm, "one", concurrency=1, tokenizer=make_tokenizer()), 5, 400)
    ids = make_tokenizer()(TEXT[0])["input_ids"]
    with torch.no_grad():
        scores = models["one"](input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    top = scores[:-1].topk(5)
    answer = asked.check(ids)
    torch.testing.assert_close(answer.top, top.values, rtol=1e-4, atol=1e-4)
    assert torch.equal(answer.ids, top.indices)
    with pytest.raises(NoLogProbs, match="20"):
        ServedModel(asked.server, 21, 400).along(ids)


IN_PROCESS = """
import json, sys
sys.path.append(sys.argv[1])
from muscle_hf.evaluation import Item, Task, Vllm
prompts, found = json.loads(sys.argv[4]), {}
texts = Task("texts", "generation", lambda row, index: row, "exact_match", 12)
kinds = Task("kinds", "choice", lambda row, index: row)
base, one = sys.argv[2:4]
for name, task, model in (("texts", texts, base), ("texts of one", texts, one), ("kinds", kinds, base)):
    items = [Item(str(i), prompt, (" a", " the man"), (0,), (" a",)) for i, prompt in enumerate(prompts)]
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}
    answers = Vllm(model, options=options).evaluate(task, items)
    found[name] = [each.log_likelihoods or each.prediction for each in answers]
print("\\n" + json.dumps(found))
"""


@pytest.mark.slow
def test_vllm_in_the_process_answers_as_transformers(folder, tmp_path):
    venv = os.environ.get("MUSCLE_HF_VLLM")
    if not venv:
        pytest.skip("MUSCLE_HF_VLLM names no environment with vLLM")
    base, one = str(folder / "base"), str(folder / "one")
    code = tmp_path / "asks_vllm.py"
    code.write_text(IN_PROCESS)
    own = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    own |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONPATH": str(paths.ROOT)}
    words = [f"{venv}/bin/python", code, sysconfig.get_paths()["purelib"], base, one, json.dumps(TEXT)]
    done = subprocess.run(words, env=os.environ | own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"texts')))
    items = [Item(str(i), prompt, (" a", " the man"), (0,), (" a",)) for i, prompt in enumerate(TEXT)]
    texts = Task("texts", "generation", lambda row, index: row, "exact_match", 12)
    for name, folder_of in (("texts", base), ("texts of one", one)):
        expected = evaluate_task(*load_for_evaluation(folder_of, texts, dtype="float32"), texts, items)
        assert found[name] == [each.prediction for each in expected]
    kinds = Task("kinds", "choice", lambda row, index: row)
    expected = evaluate_task(*load_for_evaluation(base, kinds, dtype="float32"), kinds, items)
    for said, own_scores in zip(found["kinds"], expected, strict=True):
        assert said == pytest.approx(own_scores.log_likelihoods, abs=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_its_engine_says_so(folder, tmp_path, capsys):
    (tmp_path / "task.yaml").write_text("kind: generation\nprompt: '{q}'\nreference: '{a}'\nmetric: exact_match\n")
    (tmp_path / "rows.jsonl").write_text('{"q": "who", "a": "a man"}\n')
    words = ["evaluate", str(folder / "one"), "--task", str(tmp_path / "task.yaml")]
    words += [
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--output",
        str(tmp_path / "out.jsonl"),
        "--engine",
        "vllm",
        "--quiet",
    ]
    assert main(words) == 2 and "vLLM" in capsys.readouterr().err
