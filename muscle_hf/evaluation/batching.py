"""Work in batches: sorted by length, as large as memory allows, spread over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from muscle_hf.errors import MuscleError

Work = TypeVar("Work")

# Padded tokens of a batch when its size is left to us. On a CPU running out of memory kills the process, so the cache
# and the logits of a batch are bounded beforehand; an accelerator raises an error, which is answered by halving.
CPU_TOKENS = 32768
ACCELERATOR_TOKENS = 131072
_CPU_CACHE_BYTES = 2**29
_CPU_LOGITS = 2**27
_ACCELERATOR_LOGITS = 2**31

# A chunk may be a tenth padding; smaller ones than this many tokens are not worth a forward pass of their own. An
# accelerator needs more of them to be busy, a CPU's caches like fewer.
_MOST_PADDING = 0.1
_CPU_LEAST_CHUNK = 512
_ACCELERATOR_LEAST_CHUNK = 8192


def token_budget(device: torch.device, vocabulary: int, cache_bytes: int) -> int:
    """Padded tokens that a batch starts with; ``cache_bytes``: of keys and values of a token."""
    if device.type == "cpu":
        return max(256, min(CPU_TOKENS, _CPU_LOGITS // vocabulary, _CPU_CACHE_BYTES // cache_bytes))
    return max(1024, min(ACCELERATOR_TOKENS, _ACCELERATOR_LOGITS // vocabulary))


def plan_batches(
    work: Sequence[Work],
    length: Callable[[Work], int],
    *,
    key: Callable[[Work], int] | None = None,
    rows: Callable[[Work], int] = lambda _: 1,
    batch_size: int | None = None,
    tokens: int = CPU_TOKENS,
) -> list[list[int]]:
    """Indices into ``work`` in batches of similar length, the longest first (so that too little memory shows at once).

    ``length`` gives the tokens of the longest of a piece's ``rows`` sequences; pieces are sorted by ``key``, if not by
    that. A batch has up to ``batch_size`` sequences, or where that is None ``tokens`` padded tokens; a larger piece of
    work is a batch by itself.
    """
    if batch_size is not None and batch_size < 1:
        raise MuscleError(f"batch_size must be at least 1, not {batch_size}; None chooses it automatically")
    batches: list[list[int]] = []
    count = longest = 0
    for index in sorted(range(len(work)), key=lambda i: -(key or length)(work[i])):
        more = rows(work[index])
        widest = max(longest, length(work[index]))
        fits = count + more <= batch_size if batch_size is not None else widest * (count + more) <= tokens
        if not batches or not fits:
            batches.append([])
            count, widest = 0, length(work[index])
        batches[-1].append(index)
        count, longest = count + more, widest
    return batches


def chunks_of_similar_length(
    lengths: Sequence[int], device: torch.device, most_rows: int | None = None
) -> list[list[int]]:
    """Cut rows, by their lengths in tokens, into chunks of indices, longest first, of which little is padding."""
    chunks: list[list[int]] = []
    real = 0
    least = _CPU_LEAST_CHUNK if device.type == "cpu" else _ACCELERATOR_LEAST_CHUNK
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padded = lengths[chunks[-1][0]] * (len(chunks[-1]) + 1) if chunks else 0
        wasteful = real >= least and padded - real - lengths[index] > _MOST_PADDING * padded
        if not chunks or wasteful or len(chunks[-1]) == most_rows:
            chunks.append([])
            real = 0
        chunks[-1].append(index)
        real += lengths[index]
    return chunks


def run_batches(
    work: Sequence[Work],
    batches: Sequence[Sequence[int]],
    run: Callable[[list[Work]], list[Any]],
    *,
    may_split: bool = True,
) -> Iterator[tuple[int, Any]]:
    """Index and result of every piece of work, computed batch by batch (indices into ``work``).

    A batch that does not fit into memory is halved, and so are the later ones of its size, if it ``may_split`` (not
    where all processes must make the same calls).
    """
    from muscle_hf.compat.accelerate import clear_device_cache, should_reduce_batch_size

    waiting = [list(batch) for batch in reversed(batches)]
    most: int | None = None
    while waiting:
        batch = waiting.pop()
        if most is not None and len(batch) > most:
            waiting.append(batch[most:])
            batch = batch[:most]
        try:
            outcomes = run([work[index] for index in batch])
        except RuntimeError as error:
            if not (may_split and should_reduce_batch_size(error)):
                raise
            if len(batch) == 1:
                raise MuscleError(
                    "out of memory on a single item; use a smaller dtype, quantization, more devices, short prompts"
                ) from error
            outcomes = None
        if outcomes is None:
            # Outside the except block: the traceback would keep the failed batch's tensors alive.
            clear_device_cache(garbage_collection=True)
            most = (len(batch) + 1) // 2
            waiting.append(batch)
            continue
        yield from zip(batch, outcomes, strict=True)
