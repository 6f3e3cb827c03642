"""Work on whole rows of logits in few passes over memory: compiled where a GPU would run it operation by operation."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)


# Below this many logits a pass over memory takes a GPU microseconds, and compiling does not pay.
_LEAST_ELEMENTS = 2**24


class Fused:
    """A function of rows that ``torch.compile`` makes into kernels of its own where its tensors are on CUDA.

    Elsewhere, and where that fails (no Triton, say), it runs as it is written. A CPU gains nothing by it: there the
    work is done on blocks that stay in its cache.

    Args:
        function: Of tensors with one entry per row, of which the first says where and how large, and plain values.
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
