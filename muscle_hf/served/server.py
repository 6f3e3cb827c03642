"""Where a model is served, and the client that talks to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from muscle_hf.errors import MissingDependencyError, MuscleError

if TYPE_CHECKING:
    from openai import OpenAI
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Name = TypeVar("Name")


@dataclass(frozen=True)
class Server:
    """Where a model is served.

    Args:
        url: Up to and with the version, for example ``http://localhost:8000/v1``.
        model: The name under which the server has the model.
        api_key: Bearer token; kept out of ``repr`` and of every file.
        concurrency: Requests at a time.
        timeout: Seconds for one answer.
        retries: How often a failed request is sent again, with growing pauses or those of ``Retry-After``.
        options: Further fields of every request, for what is not in OpenAI's interface (``{"generation_config":
            '{"no_repeat_ngram_size": 2}'}`` for ``transformers serve``, ``{"top_k": 1}`` for vLLM, ...).
        tokenizer: The served model's tokenizer. Choices are then sent as token ids and counted exactly; without it
            the tokens of a choice are found by their text.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    timeout: float = 600.0
    retries: int = 16
    options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)

    def client(self) -> OpenAI:
        """A client for this server; needs openai."""
        try:
            from openai import OpenAI
        except ImportError as error:
            raise MissingDependencyError("openai", "server", "asking a served model") from error
        check_address(self.url)
        # The client insists on a key, which a server of one's own does not look at.
        return OpenAI(
            api_key=self.api_key or "none", base_url=self.url, timeout=self.timeout, max_retries=self.retries
        )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """What the client raises within the block becomes a MuscleError."""
        from openai import APIStatusError, OpenAIError

        try:
            yield
        except APIStatusError as error:
            text = error.response.text[:2000].replace(self.api_key or "\0", "***")
            raise MuscleError(f"{self} answers with HTTP {error.status_code}: {text}") from error
        except OpenAIError as error:
            raise MuscleError(
                f"{self} still fails after {self.retries} retries: {error.__cause__ or error}"
            ) from error

    def complete(self, client: OpenAI, prompt: str | Sequence[int], **fields: Any) -> tuple[Any, Any]:
        """The answer to one prompt, text or token ids, of the completions endpoint, and what it counted (None where it
        does not say); ``fields`` of any server. A MuscleError where it refuses or keeps failing."""
        ids: Any = prompt if isinstance(prompt, str) else list(prompt)
        with self.answering():
            reply = client.completions.create(model=self.model, prompt=ids, extra_body={**self.options, **fields})
        return first_choice(reply), reply.usage

    def side_by_side(self, ask: Callable[..., T], jobs: Mapping[Name, Sequence[Any]]) -> Iterator[tuple[Name, T]]:
        """The results of ``ask(*arguments)`` by the jobs' names, several at a time, as they come."""
        pool = ThreadPoolExecutor(max_workers=max(1, self.concurrency))
        pending = {pool.submit(ask, *arguments): name for name, arguments in jobs.items()}
        try:
            for done in as_completed(pending):
                yield pending[done], done.result()
        finally:
            # What is under way may finish; what has not begun must not.
            pool.shutdown(cancel_futures=True)

    def __str__(self) -> str:
        """The address without a user's name and password."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def check_address(url: str) -> None:
    """Refuse what is no address of a server, or would give a secret away where it is written down."""
    if not url.startswith(("http://", "https://")):
        raise MuscleError(f"the server's address must start with http:// or https://, not {url!r}")
    if "@" in urlsplit(url).netloc:
        raise MuscleError("the server's address has a name or password in it, and is written down; pass api_key")


def first_choice(reply: Any) -> Any:
    """The first of the answers in a reply; a MuscleError where it has none."""
    if not getattr(reply, "choices", None):
        raise MuscleError(f"the server's answer has no choices: {str(reply)[:500]}")
    return reply.choices[0]
