"""What is used of other libraries that their documentation does not promise: one module a library, each name with why.

Undocumented functions and classes are imported from here. Attributes with an underscore stay where they are needed;
``PRIVATE`` lists them, and ``tests/test_compat.py`` fails where a version lacks one, or where one is not listed.
"""
