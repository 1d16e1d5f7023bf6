"""Settings of OpenAI's API as the wire has them."""

from __future__ import annotations

from collections.abc import Mapping

from myna.actors.gateway import problems
from myna.actors.gateway.openai.schemas import ChatRequest, CompletionRequest, Stops
from myna.actors.messages import Sampling


def sampling(request: ChatRequest | CompletionRequest, max_tokens: int, logprobs: int | None) -> Sampling:
    """How the outputs are drawn. Raises `Problem`."""
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k,
        min_p=request.min_p or 0.0,
        seed=request.seed,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        logit_bias=_bias(request.logit_bias or {}),
        stop=stops(request.stop),
        max_tokens=max_tokens,
        min_tokens=min(request.min_tokens or 0, max_tokens),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
    )


def stops(given: Stops) -> tuple[str, ...]:
    """Strings before which the text ends. Raises `Problem` for an empty one."""
    found = (given,) if isinstance(given, str) else tuple(given or ())
    if "" in found:
        raise problems.invalid("a stop string can't be empty", "stop")
    return found


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    try:
        found = {int(token): float(bias) for token, bias in given.items()}
    except ValueError:
        raise problems.invalid("the keys of `logit_bias` must be token ids", "logit_bias") from None
    if any(not 0 <= token < 2**31 for token in found):
        raise problems.invalid("a token id in `logit_bias` is out of range", "logit_bias")
    return found
