"""A JSON-over-HTTP client that does not give up at the first broken connection."""

from __future__ import annotations

import http.client
import json
import logging
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from muscle_hf.errors import MuscleError

logger = logging.getLogger(__name__)

# Answers that may turn out well later: time-out, too early, too many requests, and the server's own troubles.
_WORTH_RETRYING = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 60.0


class JsonClient:
    """Posts JSON from several threads; waits and retries where that may help.

    Args:
        url: Address that paths are appended to.
        api_key: Sent as a bearer token; never logged.
        timeout: Seconds until an unanswered request counts as broken.
        retries: How often a request is sent again.
        first_wait: Seconds before the first retry; doubles each time. A server's ``Retry-After`` counts instead, for
            all threads.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 8,
        first_wait: float = 0.5,
    ):
        if not url.startswith(("http://", "https://")):
            raise MuscleError(f"the server's address must start with http:// or https://, not {url!r}")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.retries = retries
        self.first_wait = first_wait
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._lock = threading.Lock()
        self._closed_until = 0.0

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer.

        Raises:
            MuscleError: It refuses the request, or it still fails after all retries.
        """
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps(body).encode(), headers=self._headers, method="POST"
        )
        for attempt in range(self.retries + 1):
            self._wait_until_open()
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read(2000).decode('utf-8', 'replace')}"
                if error.code not in _WORTH_RETRYING:
                    raise MuscleError(f"{request.full_url} refuses the request, {problem}") from error
                asked = _retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                # No connection, a broken one, or half an answer.
                problem, asked = f"{type(error).__name__}: {error}", None
            if attempt == self.retries:
                break
            # Jitter of its own: the process's random state belongs to others.
            wait = self.first_wait * 2**attempt * random.Random().uniform(0.5, 1.0) if asked is None else asked
            wait = min(wait, _LONGEST_WAIT)
            logger.warning("%s: %s; next try in %.1f s", request.full_url, problem, wait)
            if asked is None:
                time.sleep(wait)
            else:
                self._close(wait)
        raise MuscleError(f"{request.full_url} still fails after {self.retries} retries, {problem}")

    def _close(self, seconds: float) -> None:
        with self._lock:
            self._closed_until = max(self._closed_until, time.monotonic() + seconds)

    def _wait_until_open(self) -> None:
        while (remaining := self._closed_until - time.monotonic()) > 0:
            time.sleep(remaining)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, as a number or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None
