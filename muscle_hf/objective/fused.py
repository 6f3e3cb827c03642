"""The KL and its gradient by hand, in few passes over memory, which are compiled where a GPU would make many of them.

The readable twin, to which it is held, is :func:`~muscle_hf.objective.divergence.kl_divergence`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger(__name__)


# Below this many logits a pass over memory takes a GPU microseconds, and compiling does not pay.
_LEAST_ELEMENTS = 2**24


class Fused:
    """A function of rows that ``torch.compile`` makes into kernels of its own where its tensors are on CUDA.

    Elsewhere, and where that fails (no Triton, say), it runs as it is written: a CPU works on blocks that stay in its
    cache. The first argument, with one entry per row as all tensors, says where and how large.
    """

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self.plain = function
        self._broken = False

    @functools.cached_property
    def compiled(self) -> Callable[..., Any]:
        """The compiled function, for any device: for any number of rows, and anew for another width or plain value."""
        whole = torch.compile(self.plain)

        def call(*arguments: Any) -> Any:
            for argument in arguments:
                if isinstance(argument, torch.Tensor):
                    torch._dynamo.maybe_mark_dynamic(argument, 0)
            return whole(*arguments)

        return call

    def __call__(self, *arguments: Any) -> Any:
        first = arguments[0]
        if self._broken or first.device.type != "cuda" or first.numel() < _LEAST_ELEMENTS:
            return self.plain(*arguments)
        try:
            return self.compiled(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:  # pyright: ignore[reportAttributeAccessIssue]
            self._broken = True
            logger.warning(
                f"The loss could not be compiled for the GPU, so it runs in more passes over memory, with the same "
                f"result: {error}"
            )
            return self.plain(*arguments)


@Fused
def kl_and_slope(teacher: Tensor, student: Tensor, temperature: float, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """``kl_divergence``, and T times its derivative by the student's logits (if wanted).

    One exponential for each logit, and few passes over little memory: on a CPU both count.
    """
    width = min(teacher.size(-1), student.size(-1))
    teacher, student = teacher[:, :width], student[:, :width]
    difference = teacher - student
    teacher, highest_teacher, sum_teacher = _exponentiated(teacher, temperature)
    student, highest_student, sum_student = _exponentiated(student, temperature)
    ratio = sum_student / sum_teacher
    mean = difference.mul_(teacher).sum(dim=-1, keepdim=True) / sum_teacher
    values = (mean - (highest_teacher - highest_student)) / temperature + ratio.log()
    if not wanted:
        return values.squeeze(-1), None
    # Nothing is left of two equal rows: their ratio is 1.
    return values.squeeze(-1), student.addcmul_(teacher, ratio, value=-1).div_(sum_student)


def _exponentiated(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """exp((z - max z) / T) of logits (n, V), max z and the sum of the first, (n, 1) each."""
    highest = logits.amax(dim=-1, keepdim=True)
    raised = (logits - highest).div_(temperature).exp_()
    return raised, highest, raised.sum(dim=-1, keepdim=True)


class KlWithSlope(torch.autograd.Function):
    """``kl_divergence`` with its derivative made beside the value, from the same exponentials."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        values, slope = kl_and_slope(teacher, student, temperature, ctx.needs_input_grad[0])
        ctx.save_for_backward(slope)
        ctx.temperature, ctx.width = temperature, student.size(-1)
        return values

    @staticmethod
    def backward(ctx, of_values: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        # Ids that only the student has were not compared.
        gradient = functional.pad(slope * (of_values / ctx.temperature).unsqueeze(-1), (0, ctx.width - slope.size(-1)))
        return gradient, None, None
