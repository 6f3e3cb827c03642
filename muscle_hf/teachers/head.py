"""A language model in two parts: the body, which makes hidden states, and the output head, which makes logits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from muscle_hf.compat.peft import AuxiliaryTrainingWrapper, BaseTunerLayer
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.weights import base_of

# What causal and seq2seq LMs do with the output layer's result, by the names they give it (in the configuration, or,
# for `logit_scale` and the bias, also on the model).
_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_DIVISORS = ("logits_scaling",)
_CAPS = ("final_logit_softcapping", "output_logit_soft_cap")
_BIAS = "final_logits_bias"


class HeadNotApart(Exception):
    """The forward of a model's class does more with its output layer's result than :class:`Head` knows of."""

    def __init__(self, model: type):
        super().__init__(
            f"{model.__name__} does more behind its output layer than is known here, so whole logits are held "
            "(the result is the same; it takes more time and memory)."
        )


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module's parameters are."""
    return sum(parameter.numel() for parameter in module.parameters())


class Head:
    """The output head of a language model: from last hidden states to logits, as the model's own forward makes them.

    Args:
        model: A language model, or a ``PeftModel`` of one.
        autocast: Makes the context in which the model's forward runs.

    Attributes:
        base: The model whose head this is.
        module: The output layer.
        autocast: As given; may be set anew.
        dtype: In which the layer computed last, so that small gradients can be kept from float16; None before.

    Raises:
        MuscleError: The model has no output layer that can be called apart, or an adapter changes it.
    """

    def __init__(
        self,
        model: nn.Module,
        autocast: Callable[..., contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        base = base_of(model)
        module = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        if module is None:
            raise MuscleError(f"{type(base).__name__} has no output layer of its own")
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            raise MuscleError("an adapter changes the output layer")
        self.module = module
        self.autocast = autocast
        self.dtype: torch.dtype | None = None
        self.base = base
        self._confirmed = False

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (..., V), float32 (float64 for a model in float64), of hidden states (..., d), as :meth:`captured`
        gives them; differentiable."""
        with self.autocast():
            logits = self.module(hidden)
            self.dtype = logits.dtype
            logits = self._finished(logits)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @property
    def vocabulary(self) -> int:
        """V, with padding."""
        return self.module.out_features if hasattr(self.module, "out_features") else self.module.weight.size(0)

    def _finished(self, logits: Tensor) -> Tensor:
        for name in _FACTORS:
            if (factor := self._setting(name)) is not None:
                logits = logits * factor
        for name in _DIVISORS:
            if (divisor := self._setting(name)) is not None:
                logits = logits / divisor
        bias = getattr(self.base, _BIAS, None)
        if isinstance(bias, Tensor):
            logits = logits + bias.view(-1).to(logits.device)
        for name in _CAPS:
            if (cap := self._setting(name)) is not None:
                logits = torch.tanh(logits / cap) * cap
        return logits

    def _setting(self, name: str) -> float | Tensor | None:
        own = getattr(self.base, name, None)
        if own is not None:
            return own
        return getattr(self.base.config.get_text_config(), name, None)

    @contextlib.contextmanager
    def captured(self) -> Iterator[list[Tensor]]:
        """Within the block the model's forward leaves its last hidden states, (B, L, d), in the list.

        The model's own logits are then those of the first position only: the rest is not computed.
        """
        found: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            found.append(inputs[0])
            return inputs[0][:, :1], *inputs[1:]

        handle = self.module.register_forward_pre_hook(keep)
        try:
            yield found
        finally:
            handle.remove()

    def explains(self, found: list[Tensor], logits: Tensor) -> bool:
        """Whether a captured forward's own logits, (B, 1, V), are what this head makes; looked at until it is so."""
        if not self._confirmed:
            if len(found) != 1 or logits.dim() != 3 or logits.size(1) != 1:
                return False
            with torch.no_grad():
                own = self(found[0][:, :1].detach())
            self._confirmed = torch.equal(own, logits.to(own))
        return self._confirmed

    def hidden_of(self, forward: Callable[[], Tensor]) -> Tensor:
        """The last hidden states, (B, L, d), of a forward of the model, which returns its logits; HeadNotApart where
        hidden states alone do not give these."""
        with self.captured() as found:
            logits = forward()
        if not self.explains(found, logits):
            raise HeadNotApart(type(self.base))
        return found[0]
