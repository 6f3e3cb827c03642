"""Tiny random models that read texts with images, and rows for them: of text alone, or with an image or two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import builders
import numpy as np
import torch
import transformers
from torch import Tensor, nn

IMAGE, VIDEO, START, END = 44, 45, 46, 47
# Tokens an image stands for: four by four patches, of which two by two are one token.
TOKENS = 4
_SIDE, _PATCH = 8, 2
_GRID = _SIDE // _PATCH
_TEXT: dict[str, Any] = {
    "vocab_size": builders.VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "initializer_range": 0.4,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": _SIDE, "patch_size": _PATCH, "initializer_range": 0.4,
}  # fmt: skip
_QWEN_VISION: dict[str, Any] = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": _PATCH,
    "temporal_patch_size": 1, "spatial_merge_size": 2, "out_hidden_size": 16, "initializer_range": 0.4,
}  # fmt: skip
_QWEN_TOKENS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
}  # fmt: skip


def _mrope(*section: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)}
    return {"rope_parameters": rope}


def _whole(images: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": images}


def _sized(images: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": images, "image_sizes": torch.tensor([[_SIDE, _SIDE]] * len(images))}


def _patches(images: Tensor) -> Tensor:
    """(images, patches, values of a patch)."""
    cut = images.unfold(2, _PATCH, _PATCH).unfold(3, _PATCH, _PATCH)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(len(images), _GRID**2, -1)


def _flat_patches(images: Tensor) -> dict[str, Tensor]:
    grid = torch.tensor([[1, _GRID, _GRID]] * len(images))
    return {"pixel_values": _patches(images).flatten(0, 1), "image_grid_thw": grid}


def _placed_patches(images: Tensor) -> dict[str, Tensor]:
    places = torch.tensor([[x, y] for y in range(_GRID) for x in range(_GRID)])
    return {"pixel_values": _patches(images), "image_position_ids": places.expand(len(images), -1, -1)}


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        model: Class in ``transformers``.
        config: Class of its configuration.
        text: Settings of the language model.
        vision: Of the rest.
        more: Of the whole.
        images: (n, 3, H, W) -> inputs of the model.
        types: Name of the input that says which tokens stand for images, if the model takes one.
    """

    model: str
    config: str
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=lambda: _VISION)
    more: dict[str, Any] = field(default_factory=dict)
    images: Callable[[Tensor], dict[str, Tensor]] = _whole
    types: str | None = None

    def build(self, seed: int, **text: Any) -> nn.Module:
        """A model in eval mode."""
        config = getattr(transformers, self.config)(
            text_config={**_TEXT, **self.text, **text}, vision_config=dict(self.vision), **self.more
        )
        torch.manual_seed(seed)
        return getattr(transformers, self.model)(config).eval()

    def collate(self, table: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A padded batch of :func:`rows`."""
        rows = [{key: row[key] for key in ("input_ids", "labels")} for row in table]
        batch = builders.PaddingCollator()(rows)
        if self.types:
            batch[self.types] = (batch["input_ids"] == IMAGE).long()
        images = [image for row in table for image in row["images"]]
        return {**batch, **(self.images(torch.tensor(np.array(images))) if images else {})}


def rows(images: tuple[int, ...] = (), count: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with as many images each as ``images`` says, over and over; the answers after them are trained."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(count):
        pictures = random.random((images[index % len(images)] if images else 0, 3, _SIDE, _SIDE), dtype=np.float32)
        shown = [token for _ in pictures for token in (START, *[IMAGE] * TOKENS, END)]
        text, answer = (random.integers(3, 40, random.integers(1, 5)).tolist() for _ in range(2))
        labels = [-100] * len(shown + text) + answer
        made.append({"input_ids": shown + text + answer, "labels": labels, "images": list(pictures)})
    return made


def _qwen(name: str, rope: dict[str, Any], vision: dict[str, Any], **text: Any) -> Family:
    return Family(
        f"{name}ForConditionalGeneration", f"{name}Config", {**rope, **text}, {**_QWEN_VISION, **vision},
        _QWEN_TOKENS, _flat_patches, "mm_token_type_ids",
    )  # fmt: skip


_PIXTRAL = {**_VISION, "model_type": "pixtral", "head_dim": 8}
_LLAMA = {"model_type": "llama"}
_GEMMA = {"sliding_window": 8, "query_pre_attn_scalar": 8}
_LINEAR = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 1, "linear_num_value_heads": 2,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip

FAMILIES = {
    "gemma3": Family(
        "Gemma3ForConditionalGeneration", "Gemma3Config", _GEMMA, more={"mm_tokens_per_image": TOKENS,
        "image_token_index": IMAGE, "boi_token_index": START, "eoi_token_index": END}, types="token_type_ids",
    ),
    "gemma4": Family(
        "Gemma4ForConditionalGeneration", "Gemma4Config",
        {"sliding_window": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 4,
         "vocab_size_per_layer_input": builders.VOCABULARY, "use_bidirectional_attention": "vision"},
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 8, "patch_size": _PATCH, "pooling_kernel_size": 2,
         "position_embedding_size": 16, "initializer_range": 0.4},
        {"image_token_id": IMAGE, "video_token_id": VIDEO, "boi_token_id": START, "eoi_token_id": END,
         "audio_token_id": 43, "boa_token_id": 42, "eoa_token_index": 41, "audio_config": None},
        _placed_patches, "mm_token_type_ids",
    ),
    "qwen2_5_vl": _qwen("Qwen2_5_VL", _mrope(1, 1, 2), {"window_size": 8, "fullatt_block_indexes": [0]}),
    "qwen3_vl": _qwen("Qwen3VL", _mrope(2, 1, 1), {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}),
    "qwen3_5": _qwen("Qwen3_5", _mrope(2, 1, 1), {"num_position_embeddings": 16}, **_LINEAR),
    "llava": Family(
        "LlavaForConditionalGeneration", "LlavaConfig", _LLAMA,
        {**_VISION, "model_type": "clip_vision_model", "patch_size": 4, "projection_dim": 16},
        {"image_token_index": IMAGE, "vision_feature_layer": -1},
    ),
    "mistral3": Family(
        "Mistral3ForConditionalGeneration", "Mistral3Config", {"model_type": "mistral"}, _PIXTRAL,
        {"image_token_index": IMAGE, "spatial_merge_size": 2}, _sized,
    ),
}  # fmt: skip
