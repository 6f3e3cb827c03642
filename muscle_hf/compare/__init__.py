"""Comparing an old and a new model from their predictions, whoever produced them."""
