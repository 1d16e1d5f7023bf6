"""What can go wrong inside an engine, as types.

Every error that a request can cause is a `RequestError` and fails that request alone; everything else is a defect or a
refusal to load a model.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""


class RequestError(EngineError):
    """A request that can't be served as it was asked. Fails that request, never the batch."""


class PromptTooLong(RequestError):
    """Prompt and requested output don't fit the model's context length or the KV pool."""

    def __init__(self, tokens: int, limit: int, what: str = "the model's context length") -> None:
        super().__init__(f"the prompt has {tokens} tokens, which leaves no room to generate: {what} is {limit} tokens")
        self.tokens = tokens
        self.limit = limit


class InvalidSampling(RequestError):
    """A sampling parameter outside its range; names the parameter, the value and the range."""


class InvalidConstraint(RequestError):
    """An output's format that can't be followed: no schema, an unknown keyword, too large. Says what and where."""


class ConstraintFailed(InvalidConstraint):
    """A format led to where nothing can follow, or became too complex on the way."""


class InvalidPrompt(RequestError):
    """A prompt that can't be rendered: an unknown role, a template that refuses the messages, an unknown token."""


class ContextFreed(RequestError):
    """A context was used after it had been freed."""


class ContextBusy(RequestError):
    """A context was forked while something is still being generated in it."""


class RequestCancelled(RequestError):
    """The request was cancelled by whoever submitted it."""


class StepFailed(RequestError):
    """The model failed in a step that the request was part of, or gave logits that are no numbers."""


class ModelRefused(EngineError):
    """A model that can't be batched by packing, or can't be loaded. Names the layer or the file and the reason."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"model {model!r} is refused: {reason}")
        self.model = model
        self.reason = reason


class NoRoom(ModelRefused):
    """A model that fits the device's memory with nothing left to work in."""


class OutOfPages(EngineError):
    """The KV pool has no free page and the prefix tree nothing to evict. The batcher answers by preemption."""
