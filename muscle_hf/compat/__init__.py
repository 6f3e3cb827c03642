"""What is imported from other libraries that their documentation does not promise: one module a library, with why.

Attributes with an underscore stay where they are needed; ``tests/test_compat.py`` lists them with why.
"""
