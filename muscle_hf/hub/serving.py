"""What servers of LoRA folders ask of an adapter's configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from muscle_hf.files import read_object
from muscle_hf.record import WEIGHTS_FILE
from muscle_hf.teachers.origin import local_model_folder
from muscle_hf.teachers.sharing import NEUTRAL_STARTS

# vLLM serves no larger one, whatever --max-lora-rank says.
MAX_RANK = 512
# Architectures that vLLM serves without adapters alone (its list of supported models, at 0046f77); what it does not
# serve at all is not its adapters' matter, but encoders with decoders are what people try.
_WITHOUT_LORA = (
    *("BloomForCausalLM", "FalconForCausalLM", "FalconMambaForCausalLM", "Gemma3nForCausalLM"),
    *("GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoXForCausalLM", "MambaForCausalLM", "Mamba2ForCausalLM"),
    *("MptForCausalLM", "OlmoeForCausalLM", "StableLmForCausalLM", "Zamba2ForCausalLM"),
)
# Settings that none takes, and what each is.
_REFUSED = {
    "modules_to_save": "it replaces whole modules",
    "trainable_token_indices": "it changes the embeddings of single tokens",
    "lora_bias": "it trains biases",
    "use_dora": "it uses DoRA",
    "use_qalora": "it uses QA-LoRA",
    "use_bdlora": "it uses BD-LoRA",
    "alora_invocation_tokens": "it is switched on by tokens in the text",
    "layer_replication": "it replicates layers of the base",
}


def adapter_problems(folder: str | os.PathLike, architecture: str | None = None) -> list[str]:
    """:func:`serving_problems` of an adapter's folder; of its base what lies on this disk, and its class if given."""
    config, weights = read_object(Path(folder, "adapter_config.json")), Path(folder, WEIGHTS_FILE)
    base = local_model_folder(config.get("base_model_name_or_path"), config.get("revision"))
    file = None if base is None else base / "config.json"
    names: list[str] = []
    if weights.is_file():
        with safe_open(weights, "pt") as tensors:
            names = list(tensors.keys())
    known = {} if architecture is None else {"architectures": [architecture]}
    found = read_object(file) if file is not None and file.is_file() else {}
    return serving_problems(config, names, {**found, **known})


def serving_problems(
    config: Mapping[str, Any], names: Iterable[str] = (), base: Mapping[str, Any] | None = None
) -> list[str]:
    """Why vLLM would refuse an adapter, or serve it wrongly; empty if it takes it. ``names`` are those of the
    adapter's weights and ``base`` the content of the base's ``config.json``, where these are known.

    vLLM reads ``r``, ``lora_alpha`` and ``target_modules`` from ``adapter_config.json`` and the weights from
    ``adapter_model.safetensors``; it ignores keys that it does not know, so those that change the result matter most.
    """
    problems = []
    if not set((base or {}).get("architectures") or ()).isdisjoint(_WITHOUT_LORA):
        problems.append("its base is of an architecture that vLLM serves without adapters alone")
    if names and (base or {}).get("text_config") and not any("language_model" in name for name in names):
        # vllm issues 34186, 48019
        problems.append(
            "it was trained on the language model alone of a base with images or sound, whose layers have other names "
            "there: vLLM finds none of them and answers as the plain base without a word. `muscle-hf check-served` "
            "tells whether yours does; a merged model is served as it is"
        )
    if config.get("target_parameters"):
        # vllm issues 41384, 41754, 50252
        problems.append(
            "it changes parameters that are in no layer of their own, such as experts side by side (target_parameters"
            f": {', '.join(sorted(config['target_parameters']))}), which some vLLM drop without a word"
        )
    if config.get("peft_type") != "LORA":
        problems.append(f"the adapter is of type {config.get('peft_type')}; only LoRA is served")
    missing = [key for key in ("r", "lora_alpha", "target_modules") if config.get(key) in (None, [], "")]
    if missing:
        problems.append(f"the configuration lacks {', '.join(missing)}")
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    rank = max((rank for rank in ranks if isinstance(rank, int)), default=0)
    if rank > MAX_RANK:
        problems.append(f"its rank is {rank}; vLLM serves ranks of up to {MAX_RANK}")
    if config.get("task_type") == "SEQ_2_SEQ_LM":
        problems.append("its base has an encoder and a decoder, which vLLM does not serve with adapters")
    elif config.get("task_type") != "CAUSAL_LM":
        problems.append("it is a classifier, whose head is not part of a LoRA")
    problems += [f"{words} ({key})" for key, words in _REFUSED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"it trains biases (bias={config['bias']!r})")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        problems.append(
            "its ranks or scalings differ between layers (rank_pattern, alpha_pattern), which older versions ignore, "
            "giving other answers without a word"
        )
    if (initialisation := config.get("init_lora_weights")) not in NEUTRAL_STARTS:
        # A server adds A and B to the original base.
        problems.append(
            f"its initialisation may have changed the base's weights (init_lora_weights={initialisation!r})"
        )
    return problems
