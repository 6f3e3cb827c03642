"""What is used of accelerate."""

# Streams that a process reads its share of.
from accelerate.data_loader import IterableDatasetShard as IterableDatasetShard

# A teacher is sharded as accelerate shards the student, without becoming a second model to train.
from accelerate.utils.fsdp_utils import fsdp2_prepare_model as fsdp2_prepare_model

# Which errors mean that memory ran out, on every kind of device.
from accelerate.utils.memory import clear_device_cache as clear_device_cache
from accelerate.utils.memory import should_reduce_batch_size as should_reduce_batch_size
