"""A whole run: task adapters on both bases, the compatibility adapter, and what they answer."""
