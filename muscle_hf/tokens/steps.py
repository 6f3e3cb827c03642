"""What one of v1's distributions says of the student's next token: equation (X1) at one boundary of v1's tokens.

Most tokens of v1 do the same thing at a boundary, so a :class:`Part` lists those that do not: at a common boundary the
table without residue and carry holds but for tokens that would have changed what the student has read; behind the
student's place the student's token is known but for tokens of v1 that a longer one joins.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muscle_hf.tokens.align import Aligner, Step
from muscle_hf.tokens.cells import CellTable, load_table

_KEPT = 16_384
_JOINED = 64  # tokens of v1 that are tried behind a carry, beside those that v1 itself would say there
