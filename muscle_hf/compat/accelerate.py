"""What is used of accelerate."""

from __future__ import annotations

# Streams that a process reads its share of.
from accelerate.data_loader import IterableDatasetShard

# A teacher is sharded as accelerate shards the student, without becoming a second model to train.
from accelerate.utils.fsdp_utils import fsdp2_prepare_model

# Which errors mean that memory ran out, on every kind of device.
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

__all__ = ["IterableDatasetShard", "clear_device_cache", "fsdp2_prepare_model", "should_reduce_batch_size"]
