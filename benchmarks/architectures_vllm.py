"""Whether vLLM serves an adapter of each architecture as PEFT does, on the tiny models of ``architectures.py``.

    python benchmarks/architectures_vllm.py ENVIRONMENT [NAME ...]

Asks the vLLM that is installed in another environment, half a minute of one core for each, and writes
benchmarks/results/architectures_vllm.json, which ``architectures.py`` reads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from architectures import ARCHITECTURES, ASKED, NOT_RUN, SERVES, VOCABULARY, Architecture

from muscle_hf.teachers import kind_of
from muscle_hf.teachers.kinds import CAUSAL_LM

CLOSE = 1e-3
PROMPT = [5, 9, 3, 17, 30, 22, 8, 41]
ASKS = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
base, adapter, prompt, count = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
model = LLM(base, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=32, max_num_seqs=2,
            enable_lora=True, max_lora_rank=8, max_loras=1, max_logprobs=count)
one = SamplingParams(max_tokens=1, temperature=0, logprobs=count, detokenize=False)
found = []
for lora in (None, LoRARequest("one", 1, adapter)):
    said = model.generate([{"prompt_token_ids": prompt}], one, lora_request=lora, use_tqdm=False)[0].outputs[0]
    found.append({token: entry.logprob for token, entry in said.logprobs[0].items()})
print("\\n" + json.dumps({"found": found}))
"""


def ask_vllm(architecture: Architecture, environment: Path, folder: Path) -> str:
    """:data:`SERVES`, or what is wrong: the next token's log-probabilities, of the base and of a LoRA on it."""
    base, own = architecture.base(2), []
    base.save_pretrained(folder / "base")
    for make in (lambda: base, lambda: architecture.with_adapter(base, 20).eval()):
        model = make()
        with torch.no_grad():
            own.append(model(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1))
    model.save_pretrained(folder / "adapter")
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    words = [environment / "bin" / "python", "-c", ASKS, folder / "base", folder / "adapter", json.dumps(PROMPT)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*words, str(VOCABULARY)], env=clean | settings, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith('{"found"')), None)
    if line is None:
        print(done.stderr[-1500:])
        return NOT_RUN
    found = [{int(token): value for token, value in said.items()} for said in json.loads(line)["found"]]
    # Of the base, of the adapter, and of what is served as the adapter against the base.
    apart = [
        max(abs(value - expected[token].item()) for token, value in said.items())
        for said, expected in zip((*found, found[1]), (*own, own[0]), strict=True)
    ]
    print(f"  base {apart[0]:.1e}, adapter {apart[1]:.1e}, adapter from the base {apart[2]:.1e}")
    if apart[0] > CLOSE:
        return "vLLM answers otherwise than transformers for the base itself"
    if apart[1] <= CLOSE:
        return SERVES
    return "vLLM answers as the plain base" if apart[2] <= CLOSE else "vLLM answers otherwise than PEFT"


def record(names: list[str], environment: Path) -> None:
    """Asks vLLM about each, and keeps what it says."""
    shown = [environment / "bin" / "python", "-c", "import importlib.metadata as m; print(m.version('vllm'))"]
    version = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()
    answers = json.loads(ASKED.read_text(encoding="utf-8"))["answers"] if ASKED.is_file() else {}
    for name in names:
        # What else than causal models it takes is read alone.
        if kind_of(ARCHITECTURES[name].base(2)) is not CAUSAL_LM:
            continue
        with tempfile.TemporaryDirectory() as folder:
            answers[name] = ask_vllm(ARCHITECTURES[name], environment, Path(folder))
        print(f"{name}: {answers[name]}", flush=True)
        content = {"vllm": version, "answers": {key: answers[key] for key in ARCHITECTURES if key in answers}}
        ASKED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", type=Path, help="of vLLM")
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures; all by default")
    args = parser.parse_args()
    record(args.names or list(ARCHITECTURES), args.environment)


if __name__ == "__main__":
    main()
