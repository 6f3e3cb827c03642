"""The objective as plain functions of tensors: masks, divergences, and their sum over trained tokens."""

from muscle_hf.objective.divergence import kl_divergence
from muscle_hf.objective.masks import Mask
from muscle_hf.objective.named import MASK_NAMES, MASKS, resolve_mask
from muscle_hf.objective.objective import Objective, TokenTerms

__all__ = ["MASKS", "MASK_NAMES", "Mask", "Objective", "TokenTerms", "kl_divergence", "resolve_mask"]
