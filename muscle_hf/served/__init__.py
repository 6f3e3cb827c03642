"""A model behind an OpenAI-compatible server: who it is and what it says of given texts.

``server``: where it is; ``logprobs``: what it says of token ids.
"""
