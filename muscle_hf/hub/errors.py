"""What can go wrong with the Hub, in words that say what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import get_token

from muscle_hf.errors import MuscleError

# What the client's words leave out, by the status of the answer.
_REMEDIES = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token that has write access.",
    403: "Use a token with write access to that namespace.",
    412: "Somebody else has pushed to the repository meanwhile.",
}


class HubError(MuscleError):
    """Something between this machine and the Hub failed; nothing local was changed."""


@contextlib.contextmanager
def hub_errors(doing: str, afterwards: str, token: str | bool | None = None) -> Iterator[None]:
    """Turn the client's exceptions into a :class:`HubError` that says what failed (``doing``: "uploading to
    user/name") and what holds now and how to go on (``afterwards``); ``token`` is blotted out.

    The original is not chained: its text could hold what a server echoes, the token among it.
    """
    try:
        yield
    except MuscleError as error:
        if redacted(str(error), token) != str(error):
            raise type(error)(redacted(str(error), token)) from None
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = _cause(error)
        if cause is None:
            raise
        message = f"{doing} failed: {_reason(cause)} {afterwards}"
        raise HubError(redacted(message, token)) from None


def redacted(text: str, token: str | bool | None = None) -> str:
    """A text without the token that was given or is stored on this machine."""
    for secret in (token, get_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return text


def _cause(error: Exception) -> Exception | None:
    """What the client wants to say by an exception; None if it is not the client's, but a mistake in a program."""
    if isinstance(error, (HTTPError, OSError, HFValidationError)):
        return error
    # The client wraps a broken upload in a RuntimeError, and metadata that the Hub refuses in a ValueError.
    if isinstance(error.__cause__, (HTTPError, OSError)):
        return error.__cause__ if isinstance(error, RuntimeError) else error
    return None


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The client puts the server's own words behind a line with the address.
    detail = " ".join(lines[:3])[:400] or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    status = 401 if isinstance(error, LocalTokenNotFoundError) else status
    return f"{detail.rstrip('.')}. {_REMEDIES.get(status or 0, '')}".strip()
