"""The objective as plain functions of tensors: masks, divergences, and their sum over trained tokens."""

from muscle_hf.losses.divergence import kl_divergence
from muscle_hf.losses.masks import MASKS, Mask, resolve_mask
from muscle_hf.losses.objective import Objective, TokenTerms

__all__ = ["MASKS", "Mask", "Objective", "TokenTerms", "kl_divergence", "resolve_mask"]
