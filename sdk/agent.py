"""Agents: Python functions that are nodes of the graph, served by any number of processes. Code is never shipped.

    @myna.agent
    async def search(query: str) -> str: …

Calling `search(query=…)` in a session submits a native call and returns its variable. `myna agent module:search` serves it.
Inside, the session that is served is the current one: the function may submit calls of its own there.

What a parameter gets is said by its annotation: text (`str`, or none), a list of texts (`list[str]`, for a list of variables),
the whole `Value`, or else JSON that fits the annotation. What is returned may be text, JSON data, a variable, or nothing;
a generator's pieces are streamed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, overload

from myna.actors import messages as wire
from myna.actors.plain import is_plain
from myna.sdk import ids
from myna.sdk.current import CURRENT, choose_session
from myna.sdk.errors import FunctionError, NoSession
from myna.sdk.function import Prepared, Result, placeholders
from myna.sdk.objectives import as_objective
from myna.sdk.parameters import DEFAULT_JOINER
from myna.sdk.variable import Placeholder


class Native:
    """A caller of a function that agents serve by this name; made by `native`."""

    def __init__(
        self,
        name: str,
        *,
        stream: bool = False,
        retries: int = 2,
        priority: int = 0,
        objective: wire.Objective | str | None = None,
        transforms: tuple[wire.Transform, ...] = (),
        joiner: str = DEFAULT_JOINER,
    ) -> None:
        if not name or len(name) > 200:
            raise FunctionError(f"agent function {name!r}: a name has 1 to 200 characters")
        if stream and transforms:
            raise FunctionError(f"agent function {name!r}: a transformed result can't be streamed live")
        if not 0 <= retries <= 100:
            raise FunctionError(f"agent function {name!r}: retries={retries!r} must be from 0 to 100")
        self.name = name
        self._stream = wire.StreamMode.LIVE if stream else wire.StreamMode.BUFFERED
        self._retries = retries
        self._priority = priority
        self._objective = as_objective(objective)
        self._transforms = transforms
        self._joiner = joiner

    def __call__(self, *, session: Any = None, **arguments: Any) -> Any:
        """Submit a call to `session`, or the current one; returns its variable. Arguments by name: variables, lists of
        variables, or JSON data. Raises `FunctionError`, `NoSession`."""
        return self._submit(session, arguments)

    def _submit(self, session: Any, arguments: dict[str, Any]) -> Any:
        return choose_session(session, self.name).submit(self.prepare(arguments))

    def prepare(self, arguments: dict[str, Any]) -> Prepared:
        """The call that these arguments make, not submitted."""
        variable = ids.new(self.name)
        call = wire.NativeCall(
            id=ids.new(self.name),
            function=self.name,
            variable=variable,
            arguments=tuple(self._argument(name, value) for name, value in arguments.items()),
            objective=self._objective,
            priority=self._priority,
            retries=self._retries,
            stream=self._stream,
            transforms=self._transforms,
        )
        used = tuple(p for value in arguments.values() for p in placeholders(value))
        return Prepared(call, (Result(self.name, (variable,), True),), used)

    def _argument(self, name: str, value: Any) -> wire.Argument:
        found: list[Placeholder] = placeholders(value)
        if not found:
            if not is_plain(value):
                raise FunctionError(
                    f"agent function {self.name!r}: argument {name!r} is a {type(value).__name__}: "
                    "give a variable, a list of variables, or JSON data"
                )
            return wire.Argument(name=name, constant=value)
        if isinstance(value, list | tuple) and len(found) != len(value):
            raise FunctionError(
                f"agent function {self.name!r}: argument {name!r} mixes variables and other things: "
                "declare variables for those with session.variable(), and set them"
            )
        return wire.Argument(
            name=name, input=wire.Input(variables=tuple(p.id for p in found), joiner=self._joiner, name=name)
        )


def native(name: str, **options: Any) -> Native:
    """A caller of the function that agents serve as `name`. Options: `stream` (the function yields pieces, and they are wanted
    live), `retries`, `priority`, `objective`, `transforms`, `joiner` (between the texts of a list of variables)."""
    return Native(name, **options)


class Agent(Native):
    """A function that can be served, and called from anywhere; made by `agent`. `function` is the Python function itself."""

    def __init__(self, function: Callable[..., Any], name: str, concurrency: int, **options: Any) -> None:
        generates = inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)
        super().__init__(name, **{"stream": generates and not options.get("transforms"), **options})
        if not isinstance(concurrency, int) or concurrency < 1:
            raise FunctionError(f"agent function {name!r}: concurrency={concurrency!r} must be a whole number from 1")
        self.function = function
        self.concurrency = concurrency
        self.__name__ = name
        self.__doc__ = function.__doc__
        self._signature = inspect.signature(function)

    def __call__(self, *args: Any, session: Any = None, **kwargs: Any) -> Any:
        """Submit a call, wherever it will be served; returns its variable. Raises `FunctionError`, `NoSession`."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise FunctionError(f"agent function {self.name!r}: {error}; its signature is {self._signature}") from None
        return self._submit(session, dict(bound.arguments))


_REGISTRY: dict[str, Agent] = {}


def registered() -> dict[str, Agent]:
    """All agents of this process by name."""
    return dict(_REGISTRY)


@overload
def agent(function: Callable[..., Any], /) -> Agent: ...


@overload
def agent(
    *, name: str | None = ..., concurrency: int = ..., **options: Any
) -> Callable[[Callable[..., Any]], Agent]: ...


def agent(
    function: Callable[..., Any] | None = None, /, *, name: str | None = None, concurrency: int = 8, **options: Any
) -> Agent | Callable[[Callable[..., Any]], Agent]:
    """Make an agent of an async or plain function (plain ones run in threads) or a generator of text. One process runs at most
    `concurrency` of its calls at once. Other options as for `native`. Raises `FunctionError`."""

    def declare(target: Callable[..., Any]) -> Agent:
        made = Agent(target, name or target.__name__, concurrency, **options)
        there = _REGISTRY.get(made.name)
        if there is not None and there.function.__qualname__ != target.__qualname__:
            raise FunctionError(
                f"two agents are named {made.name!r} ({there.function.__qualname__} and {target.__qualname__}): "
                "give one of them another name="
            )
        _REGISTRY[made.name] = made
        return made

    return declare(function) if function is not None else declare


def current_session() -> Any:
    """The session whose block is open here, or which the agent serves; in a plain function a synchronous one.
    Raises `NoSession`."""
    session = CURRENT.get()
    if session is None:
        raise NoSession("no session is open here: use `async with myna.session():`")
    return session
