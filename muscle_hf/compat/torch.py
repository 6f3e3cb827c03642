"""What is used of torch."""

from __future__ import annotations

# By owner: name -> why.
PRIVATE = {
    "torch": {"_dynamo": "the loss is compiled for any number of tokens, and runs uncompiled where that fails"},
    "Tensor": {
        "_make_subclass": "parameters of any class over the storage of others",
        "_version": "whether frozen weights were changed in place",
    },
    "Module": {"_buffers": "what a module holds itself", "_modules": "what a module holds itself"},
}
