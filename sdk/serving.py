"""Serving agents: a worker for each function, on one connection, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import inspect
import json
import signal
import types
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import msgspec
import structlog

from myna.actors import config
from myna.actors.agents.host import AgentBackend, NativeFailure, Result
from myna.actors.bus import Bus
from myna.actors.health import Health
from myna.actors.messages import ErrorCode, Failure, Input, NativeCall, Tenant, Value, VarId, WorkerId
from myna.actors.telemetry.instruments import instruments
from myna.actors.worker.backend import Job
from myna.actors.worker.shell import Worker
from myna.sdk import ids, spans
from myna.sdk.agent import Agent, registered
from myna.sdk.client import Client
from myna.sdk.current import CURRENT
from myna.sdk.errors import CallFailed, NotReady
from myna.sdk.session import Session
from myna.sdk.sync import SyncSession, SyncVariable
from myna.sdk.variable import Variable, as_value

if TYPE_CHECKING:
    from myna.actors.telemetry.watch import WorkerWatch

_log = structlog.get_logger(__name__)

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Performance:
    """Runs one agent's calls, each in the session that it belongs to."""

    def __init__(self, agent: Agent, client: Client) -> None:
        self._agent = agent
        self._client = client
        self._annotations = _annotations(agent.function)
        self._threads = ThreadPoolExecutor(agent.concurrency, thread_name_prefix=f"agent-{agent.name}")

    @property
    def name(self) -> str:
        """By which the function is called."""
        return self._agent.name

    @property
    def concurrency(self) -> int:
        """How many of its calls may run at once."""
        return self._agent.concurrency

    def close(self) -> None:
        """Let the threads end with their calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def perform(self, job: Job) -> AsyncGenerator[str | Result, None]:
        """See `host.Performer`."""
        assert isinstance(job.call, NativeCall)
        arguments = self._arguments(job.call, job.inputs)
        try:
            async with (
                self._client.attach(job.key[1]) as session,
                contextlib.aclosing(self._run(arguments, session)) as pieces,
            ):
                with spans.of_call():
                    async for piece in pieces:
                        yield piece
        except CallFailed as error:  # of a call that the function made: the first cause stays the first cause
            raise NativeFailure(error.failure) from error

    async def _run(self, arguments: dict[str, Any], session: Session) -> AsyncGenerator[str | Result, None]:
        function = self._agent.function
        if inspect.isasyncgenfunction(function):
            async for piece in function(**arguments):
                yield await _piece(piece, self.name)
        elif inspect.isgeneratorfunction(function):
            async for piece in self._iterate(function(**arguments), session):
                yield await _piece(piece, self.name)
        elif inspect.iscoroutinefunction(function):
            yield await _result(await function(**arguments), self.name)
        else:
            yield await _result(await self._in_thread(session, lambda: function(**arguments)), self.name)

    async def _iterate(self, pieces: Iterator[Any], session: Session) -> AsyncIterator[Any]:
        end = object()
        while (piece := await self._in_thread(session, lambda: next(pieces, end))) is not end:
            yield piece

    async def _in_thread(self, session: Session, work: Callable[[], Any]) -> Any:
        """Run `work` in a thread whose current session is a synchronous view of `session`."""
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        context.run(CURRENT.set, SyncSession.of(session, loop))
        return await loop.run_in_executor(self._threads, context.run, work)

    def _arguments(self, call: NativeCall, inputs: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for argument in call.arguments:
            try:
                arguments[argument.name] = self._value(argument.name, argument.input, argument.constant, inputs)
            except ValueError as error:
                message = f"argument {argument.name!r} is not what the function takes: {error}"
                raise NativeFailure(_invalid(call, message)) from error
        try:
            inspect.signature(self._agent.function).bind(**arguments)
        except TypeError as error:
            raise NativeFailure(_invalid(call, str(error))) from None
        return arguments

    def _value(self, name: str, source: Input | None, constant: Any, inputs: Any) -> Any:
        if source is None:
            return constant
        return fit([inputs[VarId(v)] for v in source.variables], source.joiner, self._annotations.get(name, str))


def fit(values: Sequence[Value], joiner: str, annotation: Any) -> Any:
    """`values`, an argument's variables, as a parameter with `annotation` takes them. Raises ValueError if they don't fit."""
    if annotation in (str, inspect.Parameter.empty, object) or _may_be_text(annotation):
        return joiner.join(value.text for value in values)
    if annotation is Value:
        if len(values) != 1:
            raise ValueError(f"one variable is taken, not {len(values)}")
        return values[0]
    if get_origin(annotation) is list or annotation is list:
        inner = (get_args(annotation) or (str,))[0]
        if len(values) > 1 or inner is Value:
            return [fit([value], joiner, inner) for value in values]
    if len(values) != 1:
        raise ValueError(f"one variable is taken, not {len(values)}")
    data = json.loads(values[0].text) if values[0].json is None else values[0].json
    return data if annotation is Any else msgspec.convert(data, annotation)


def _may_be_text(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType) and str in get_args(annotation)


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return inspect.get_annotations(function, eval_str=True)
    except Exception as error:
        raise NotReady(f"agent {function.__qualname__}: its annotations can't be evaluated: {error}") from error


def _invalid(call: NativeCall, message: str) -> Failure:
    return Failure(code=ErrorCode.INVALID_CALL, message=message, call=call.id, function=call.function)


async def _piece(piece: Any, name: str) -> str:
    if not isinstance(piece, str):
        raise TypeError(f"agent {name!r} yields {type(piece).__name__}: a stream's pieces are texts")
    return piece


async def _result(returned: Any, name: str) -> Result:
    if returned is None:
        return Result("")
    if isinstance(returned, SyncVariable):
        returned = returned.variable
    value = await returned.value() if isinstance(returned, Variable) else as_value(returned, f"the result of {name!r}")
    return Result(value.text, value.json)


# --- Processes --------------------------------------------------------------------------------------------------------


class Host:
    """The workers of some agents, on `bus`, for one tenant. Run by `run`, or inside `hosting`."""

    def __init__(self, bus: Bus, agents: Sequence[Agent], tenant: Tenant, watches: Sequence[WorkerWatch] = ()) -> None:
        client = Client(bus=bus, tenant=tenant)
        self._performances = [Performance(agent, client) for agent in agents]
        self.workers = [
            Worker(bus, WorkerId(ids.new(f"agent-{p.name}")), AgentBackend(p, tenant), watches)
            for p in self._performances
        ]

    async def run(self) -> None:
        """Serve until drained or cancelled. Raises what ends a worker."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for worker in self.workers:
                    tasks.create_task(worker.run())
        finally:
            for performance in self._performances:
                performance.close()

    async def ready(self) -> None:
        """Wait until all have announced themselves."""
        for worker in self.workers:
            await worker.ready.wait()

    def drain(self) -> None:
        """Take no new calls, and end when the last one has."""
        for worker in self.workers:
            worker.drain()


@contextlib.asynccontextmanager
async def hosting(bus: Bus, *agents: Agent, tenant: str = "default") -> AsyncIterator[Host]:
    """Serve `agents` in this process for as long as the block lasts; it begins when they have announced themselves."""
    host = Host(bus, agents, Tenant(tenant))
    running = asyncio.create_task(host.run(), name="agents")
    ready = asyncio.create_task(host.ready())
    try:
        await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
        yield host
    finally:
        ready.cancel()
        running.cancel()
        await asyncio.gather(running, ready, return_exceptions=True)


async def serve_targets(targets: Sequence[str], settings: config.Settings | None = None) -> None:
    """Serve the agents that `targets` name (`module`: all in it; `module:name`) until a signal: the first drains, a second ends.
    Raises `NotReady` for a target that is none, `bus.Unavailable`."""
    agents = find_agents(targets)
    settings = settings or config.read()
    with instruments(settings, "agents") as watching:
        bus = await config.connect_bus(settings, "myna-agent")
        try:
            await _serve(Host(bus, agents, Tenant(settings.tenant), watching.worker()), settings, bus, agents)
        finally:
            await bus.close()


async def _serve(host: Host, settings: config.Settings, bus: Bus, agents: Sequence[Agent]) -> None:
    running, ready = asyncio.ensure_future(host.run()), asyncio.ensure_future(host.ready())
    health = Health(settings.health, lambda: ready.done() and bus.connected)
    with _drained_by_signals(host, running):
        async with health.told():
            await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                _log.info("serving", agents=[agent.name for agent in agents])
            ready.cancel()
            await asyncio.wait([running])
    if not running.cancelled():
        running.result()


def find_agents(targets: Sequence[str]) -> list[Agent]:
    """The agents that `targets` name, each once. Raises `NotReady`."""
    found: dict[str, Agent] = {}
    for target in targets:
        module_name, _, name = target.partition(":")
        before = registered()
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise NotReady(f"the module of {target!r} can't be imported: {error}") from error
        if name:
            agent = getattr(module, name, None) or registered().get(name)
            if not isinstance(agent, Agent):
                raise NotReady(f"{target!r} is no agent: decorate the function with @myna.agent")
            found[agent.name] = agent
            continue
        inside = {a.name: a for a in vars(module).values() if isinstance(a, Agent)}
        inside |= {n: a for n, a in registered().items() if n not in before}
        if not inside:
            raise NotReady(f"module {module_name!r} has no agents: decorate functions with @myna.agent")
        found |= inside
    return list(found.values())


@contextlib.contextmanager
def _drained_by_signals(host: Host, running: asyncio.Future[None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = 0

    def stop() -> None:
        nonlocal signals
        signals += 1
        if signals == 1 and all(worker.ready.is_set() for worker in host.workers):
            host.drain()
        else:
            running.cancel()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
