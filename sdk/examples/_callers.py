"""Two ways to run one application: with Myna, and as a client that waits for each call's inputs. For comparisons.

Law: both run the same functions on the same scheduler and engine, over one connection that is kept; both pay the same delay.
A simulated round trip of `r` seconds is `r / 2` for whatever the client sends and `r / 2` for whatever it then hears:

    Myna             r / 2 before all its calls (they are sent at once), r / 2 after its last result
    waiting client   r / 2 before each call, r / 2 after each result; native functions run at its own side, without delay
"""

from __future__ import annotations

import asyncio
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import myna
from myna.actors.messages import Usage
from myna.sdk.function import Function
from myna.sdk.timeline import CallTimes, collect

Result = Any
"""The result of a call, to be passed to other calls or read: a variable, or a task."""


class Calls(Protocol):
    """What an application makes its calls through."""

    def call(self, label: str, function: Function | myna.Agent, **arguments: Any) -> Result:
        """Call `function`; arguments are texts, results of other calls, or lists of these. Returns at once."""


Application = Callable[[Calls], Sequence[Result]]
"""Makes its calls, and returns those whose results are wanted. It awaits nothing itself."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run came to. `seconds`: from the first call's sending to the last wanted result. `usage` is of all its calls."""

    seconds: float
    start: float
    end: float
    texts: tuple[str, ...]
    calls: tuple[CallTimes, ...]
    usage: Usage


class Caller(ABC):
    """Runs one application in an open session. `on_end` hears of each call that ended. Used once."""

    def __init__(
        self, session: myna.Session, round_trip: float, *, cache_prefix: bool = True, on_end: Callable[[], None]
    ) -> None:
        self._session = session
        self._half = round_trip / 2
        self._cache_prefix = cache_prefix
        self._on_end = on_end
        self._watched: list[tuple[str, asyncio.Task[myna.Value]]] = []
        self._tasks: asyncio.TaskGroup

    async def run(self, application: Application) -> Run:
        """Run `application` to its end. Raises the first failure of a call, such as `CallFailed`."""
        failure: Exception
        try:
            return await self._run(application)
        except ExceptionGroup as group:
            failure = group.exceptions[0]
        raise failure

    async def _run(self, application: Application) -> Run:
        async with asyncio.TaskGroup() as self._tasks:
            start, began = time.time(), time.perf_counter()
            await self._depart()
            values = await self._arrive(application(self))
            seconds = time.perf_counter() - began
        ended = [(label, task.result()) for label, task in self._watched]
        usages = [value.usage for _, value in ended]
        usage = Usage(
            prompt_tokens=sum(u.prompt_tokens for u in usages),
            cached_tokens=sum(u.cached_tokens for u in usages),
            output_tokens=sum(u.output_tokens for u in usages),
        )
        return Run(seconds, start, start + seconds, tuple(v.text.strip() for v in values), collect(ended), usage)

    def call(self, label: str, function: Function | myna.Agent, **arguments: Any) -> Result:
        """See `Calls`."""
        if isinstance(function, Function) and not self._cache_prefix:
            function = function.with_options(cache_prefix=False)
        return self._call(label, function, arguments)

    def _watch(self, label: str, variable: myna.Variable) -> asyncio.Task[myna.Value]:
        """Keep a call's value, which comes to this process in any case."""
        task = self._tasks.create_task(variable.value())
        task.add_done_callback(lambda _: self._on_end())
        self._watched.append((label, task))
        return task

    @abstractmethod
    async def _depart(self) -> None: ...

    @abstractmethod
    def _call(self, label: str, function: Function | myna.Agent, arguments: dict[str, Any]) -> Result: ...

    @abstractmethod
    async def _arrive(self, wanted: Sequence[Result]) -> list[myna.Value]: ...


class MynaCaller(Caller):
    """Submits the whole graph, then reads what is wanted."""

    async def _depart(self) -> None:
        await asyncio.sleep(self._half)

    def _call(self, label: str, function: Function | myna.Agent, arguments: dict[str, Any]) -> Result:
        variable: myna.Variable = function(session=self._session, **arguments)
        self._watch(label, variable)
        return variable

    async def _arrive(self, wanted: Sequence[Result]) -> list[myna.Value]:
        values = [await variable.value() for variable in wanted]
        await asyncio.sleep(self._half)
        return values


class WaitingCaller(Caller):
    """Sends each call the moment its inputs have come back; what does not depend on each other runs at once."""

    async def _depart(self) -> None:
        """Each call pays for itself."""

    def _call(self, label: str, function: Function | myna.Agent, arguments: dict[str, Any]) -> Result:
        return self._tasks.create_task(self._send(label, function, arguments))

    async def _send(self, label: str, function: Function | myna.Agent, arguments: dict[str, Any]) -> myna.Value:
        texts = {name: await _text(argument) for name, argument in arguments.items()}
        if isinstance(function, myna.Agent):
            made = function.function(**texts)
            text = await made if inspect.isawaitable(made) else made
            self._on_end()
            return myna.Value(text=text)
        await asyncio.sleep(self._half)
        value = await self._watch(label, function(session=self._session, **texts))
        await asyncio.sleep(self._half)
        return value

    async def _arrive(self, wanted: Sequence[Result]) -> list[myna.Value]:
        return [await task for task in wanted]


async def _text(argument: Any) -> Any:
    """An argument with texts in place of results. All of a list are on their way already, so they are awaited in turn."""
    if isinstance(argument, list):
        return [await _text(item) for item in argument]
    return (await argument).text if isinstance(argument, asyncio.Task) else argument
