"""Training a compatibility adapter: the trainer, its step and its data."""
