"""Functions that an agent's process serves, for `watched`."""

from __future__ import annotations

from typing import Annotated

from opentelemetry import trace

import myna
from myna import Input, Output


@myna.function
def ask(question: Input, answer: Annotated[str, Output(max_tokens=4)]) -> None:
    """{{question}}{{answer}}"""


@myna.agent
async def traced(text: str) -> str:
    """The span that is current here, as `trace-span`, after a session of its own has asked a model."""
    here = trace.get_current_span().get_span_context()
    async with myna.session("inner", model="tiny-llama") as inner:
        await ask(text, session=inner).get()
    return f"{here.trace_id:032x}-{here.span_id:016x}"


@myna.agent
def broken(text: str) -> str:
    """Fails."""
    raise ValueError("it can't be done")
