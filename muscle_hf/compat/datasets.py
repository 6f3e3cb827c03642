"""What is used of datasets, which may be missing."""

from __future__ import annotations

# By owner: name -> why.
PRIVATE = {"Dataset": {"_fingerprint": "a hash of the rows and of what was done to them, without reading them"}}
