"""One example of every message, and how its golden bytes are added.

`golden.json` holds the exact MessagePack bytes, in hexadecimal, of each example. Bytes that are there never change: other
versions of Myna have sent them and stored them. For a new message or field, add an example under a new name here, then run

    python -m tests.actors.golden

which adds the bytes of examples that have none, and touches nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

from myna.actors import codec
from myna.actors import messages as m
from myna.actors.messages import Frozen

FILE = Path(__file__).parent / "golden.json"

_OBJECTIVE = m.Objective(kind=m.ObjectiveKind.DEADLINE, seconds=2.5)
_SAMPLING = m.Sampling(
    temperature=0.0,
    top_k=40,
    top_p=0.9,
    min_p=0.05,
    seed=7,
    presence_penalty=0.1,
    frequency_penalty=0.2,
    repetition_penalty=1.1,
    logit_bias={1: 0.5, 50256: -100.0},
    stop=("\n\n", "END"),
    stop_token_ids=(2,),
    max_tokens=64,
    min_tokens=1,
    ignore_eos=True,
    logprobs=3,
)
_TRANSFORM = m.Transform(kind=m.TransformKind.REGEX, argument=r"<b>(.*)</b>")
_FORMAT = m.ResponseFormat(kind=m.FormatKind.JSON_SCHEMA, definition={"required": ["a"], "type": "object"})
_INPUT = m.Input(variables=("a", "b"), joiner="; ", name="parts")
_OUTPUT = m.Output(
    variables=("c",),
    name="summary",
    sampling=_SAMPLING,
    transforms=(_TRANSFORM,),
    stream=m.StreamMode.BUFFERED,
    format=_FORMAT,
)
_MESSAGE = m.Message(
    segments=(m.Text(text="Summarize: "), _INPUT, _OUTPUT),
    role="user",
    name="ann",
    tool_call_id="t1",
    tool_calls=[{"arguments": {"q": "x"}, "name": "search"}],
)
_TOOL = m.Tool(name="search", description="Searches.", parameters={"type": "object"})
_MODEL_CALL = m.ModelCall(
    id="call-1",
    messages=(_MESSAGE,),
    function="summarize",
    models=("tiny", "small"),
    tools=(_TOOL,),
    tool_choice="auto",
    objective=_OBJECTIVE,
    priority=3,
    retries=1,
    cache_prefix=False,
)
_ARGUMENT = m.Argument(name="text", input=_INPUT)
_NATIVE_CALL = m.NativeCall(
    id="call-2",
    function="count_words",
    variable="d",
    arguments=(_ARGUMENT, m.Argument(name="limit", constant=[1, None, "é"])),
    objective=m.Objective(kind=m.ObjectiveKind.LATENCY),
    priority=-1,
    retries=0,
    stream=m.StreamMode.BUFFERED,
    transforms=(_TRANSFORM,),
)
_USAGE = m.Usage(prompt_tokens=100, cached_tokens=64, output_tokens=12)
_LOGPROB = m.TokenLogprob(token=5, logprob=-0.25, top=((5, -0.25), (9, -1.5)))
_TIMING = m.Timing(worker="w1", received=1.0, began=1.5, first=2.0, ended=2.5)
_FAILURE = m.Failure(
    code=m.ErrorCode.NATIVE_ERROR,
    message="ValueError: no",
    call="call-2",
    function="count_words",
    variable="d",
    retryable=True,
    attempt=2**20 + 1,
)
_RUNNING = m.Running(tenant="acme", session="s1", call="call-1", attempt=2**20)
_CALL_SIGHT = m.CallSight(
    tenant="acme",
    session="s1",
    call="call-1",
    attempt=2**20 + 1,
    function="f",
    phase=m.Phase.DECODE,
    since=1750000000.0,
    produced=3,
    tokens=40,
    computed=39,
    cached=16,
    prefix=2,
)
_SPAN_SIGHT = m.SpanSight(
    tenant="acme",
    session="s1",
    call="call-1",
    attempt=2**20 + 1,
    function="f",
    received=1.0,
    began=1.25,
    first=1.5,
    ended=2.0,
    usage=_USAGE,
)
_STEP_SIGHT = m.StepSight(at=1.0, seconds=0.25, steps=3, drawn=6, prefilled=64, running=2, waiting=1, pages=9)
_PREFIX_SIGHT = m.PrefixSight(id=2, parent=1, cache="acme", begin=16, tokens=32, hits=5, holders=2, text="You are")
_WORKER_STATUS = m.WorkerStatus(
    worker="w1",
    kind=m.WorkerKind.ENGINE,
    serves=("tiny",),
    capacity=8,
    running=2,
    draining=False,
    silent_seconds=0.5,
)
_SESSION_STATUS = m.SessionStatus(
    tenant="acme", session="s1", name="demo", calls=10, waiting=4, ready=3, running=2, done=1
)

_REASONS = m.CallReasons(
    tenant="acme",
    session="s1",
    call="call-1",
    function="summarize",
    state="running",
    worker="w1",
    seconds=1.5,
    reasons=("it runs on 'w1': it has the prefix",),
)

_CALL_VIEW = m.CallView(
    id="call-1",
    function="sum",
    state="running",
    inputs=("a",),
    outputs=("c",),
    worker="w1",
    produced=7,
    seconds=0.5,
)
_VARIABLE_VIEW = m.VariableView(id="c", state="pending", producer="call-1")

_POLICY = m.TenantPolicy(
    tenant="acme", weight=2.0, sessions=10, calls=100, running=4, bytes=2**30, tokens=60000, cache="team", removed=True
)
_CALL_USAGE = m.CallUsage(call="call-1", function="f", usage=_USAGE)
_TENANT_STATUS = m.TenantStatus(
    tenant="acme", sessions=1, calls=2, bytes=3, tokens=4, used=_USAGE, used_by=5, policy=_POLICY
)

EXAMPLES: dict[str, Frozen] = {
    "Objective": _OBJECTIVE,
    "Sampling": _SAMPLING,
    "Sampling.default": m.Sampling(),
    "Transform": _TRANSFORM,
    "ResponseFormat": _FORMAT,
    "Text": m.Text(text="Grüße, 世界 🙂"),
    "Input": _INPUT,
    "Output": _OUTPUT,
    "Output.partial": m.Output(variables=("v1",), format=_FORMAT, partial=True),
    "Message": _MESSAGE,
    "Tool": _TOOL,
    "ModelCall": _MODEL_CALL,
    "ModelCall.memoise": m.ModelCall(id="call-3", messages=(_MESSAGE,), memoise=True),
    "ModelCall.parallel": m.ModelCall(id="call-4", messages=(_MESSAGE,), parallel_tool_calls=False),
    "Argument": _ARGUMENT,
    "NativeCall": _NATIVE_CALL,
    "Open": m.Open(protocol=1, lazy=True, ttl=60.0, priority=2, name="demo"),
    "Open.default": m.Open(protocol=1),
    "Open.keep": m.Open(protocol=1, keep=60.0),
    "Open.objective": m.Open(protocol=1, objective=_OBJECTIVE),
    "Declare": m.Declare(variables=("a", "b")),
    "Submit": m.Submit(calls=(_MODEL_CALL, _NATIVE_CALL)),
    "Want": m.Want(variables=("c",), objective=_OBJECTIVE),
    "Want.reader": m.Want(variables=("c",), reader="ann"),
    "Unwant": m.Unwant(variables=("c", "d"), reader="ann"),
    "Cancel": m.Cancel(calls=("call-1",), reason="enough"),
    "Cancel.upstream": m.Cancel(calls=("call-1",), upstream=True),
    "Close": m.Close(reason="done"),
    "Tried": m.Tried(call="call-1", tries=2),
    "Usage": _USAGE,
    "Usage.cost": m.Usage(prompt_tokens=100, output_tokens=12, cost=250),
    "TokenLogprob": _LOGPROB,
    "TokenLogprob.texts": m.TokenLogprob(token=5, logprob=-0.25, top=((5, -0.25),), text=" a", top_texts=(" a",)),
    "Timing": _TIMING,
    "Value": m.Value(
        text="hello",
        json={"a": [1, 2.5, None, True]},
        tokens=(1, 2, 3),
        tokenizer="0af1",
        finish=m.FinishReason.LENGTH,
        usage=_USAGE,
        logprobs=(_LOGPROB,),
        model="tiny",
        attempt=2**20 + 1,
        call="call-1",
        timing=_TIMING,
    ),
    "Value.set": m.Value(text=""),
    "Failure": _FAILURE,
    "Cancellation": m.Cancellation(reason="closed", call="call-1"),
    "Chunk": m.Chunk(attempt=2**20 + 1, text="he", tokens=(1,), last=True, finish=m.FinishReason.LENGTH),
    "Chunk.at": m.Chunk(attempt=2**20 + 1, text="lo", at=2, chain="0af1"),
    "Chunk.tokenizer": m.Chunk(attempt=2**20 + 1, text="he", tokens=(1,), tokenizer="9c2e"),
    "Running": _RUNNING,
    "Announce": m.Announce(
        protocol=1,
        worker="w1",
        kind=m.WorkerKind.ENGINE,
        incarnation="i1",
        serves=("tiny",),
        capacity=8,
        tokens=4096,
        context_length=2048,
        resumable=True,
        draining=True,
        tenant="acme",
        running=(_RUNNING,),
    ),
    "Announce.paused": m.Announce(
        protocol=1,
        worker="w1",
        kind=m.WorkerKind.ENGINE,
        incarnation="i1",
        serves=("tiny",),
        capacity=8,
        paused="the endpoint limits its rate",
        named_only=True,
    ),
    "Beat": m.Beat(worker="w1", incarnation="i1", running=(_RUNNING,), load={"pages": 0.5}),
    "Leave": m.Leave(worker="w1", incarnation="i1"),
    "Leave.reason": m.Leave(worker="w1", incarnation="i1", reason="its engine hangs"),
    "Hello": m.Hello(protocol=1, scheduler="sched-1", lease=5),
    "Hello.pulse": m.Hello(protocol=1, scheduler="sched-1", lease=5, pulse=True),
    "Run": m.Run(tenant="acme", session="s1", call=_NATIVE_CALL, attempt=2**20 + 1, lease=1, resume=True),
    "Stop": m.Stop(tenant="acme", session="s1", call="call-1", attempt=2**20 + 1, lease=1),
    "Source": m.Source(session="s0", call="call-9", variables=("x", "y")),
    "Run.source": m.Run(
        tenant="acme",
        session="s1",
        call=_MODEL_CALL,
        attempt=2**20 + 1,
        lease=1,
        source=m.Source(session="s0", call="call-9", variables=("x",)),
    ),
    "Anticipate": m.Anticipate(
        tenant="acme", session="s1", call=_MODEL_CALL, awaits="question", lease=5, cache="team", order=1.5
    ),
    "Retain": m.Retain(tenant="acme", session="s1", id="keep-1", call=_MODEL_CALL, lease=5, distance=2.5),
    "Release": m.Release(ids=("keep-1", "keep-2"), lease=5),
    "Drain": m.Drain(lease=5),
    "Cordon": m.Cordon(lease=5, lift=True),
    "CordonRequest": m.CordonRequest(worker="w1", lift=True),
    "LogRequest": m.LogRequest(session="s1", after=7),
    "LogLine": m.LogLine(sequence=8, at=1750000000.25, entry=b"\x80"),
    "LogPage": m.LogPage(lines=(m.LogLine(sequence=8, at=1750000000.25, entry=b"\x80"),), more=True),
    "StreamStatus": m.StreamStatus(name="MYNA_LOG", messages=3, bytes=700),
    "DrainRequest": m.DrainRequest(worker="w1"),
    "Event": m.Event(
        worker="w1",
        kind=m.EventKind.FAILED,
        tenant="acme",
        session="s1",
        call="call-2",
        attempt=2**20 + 1,
        failure=_FAILURE,
        usage=_USAGE,
    ),
    "Event.final": m.Event(
        worker="w1",
        kind=m.EventKind.FAILED,
        tenant="acme",
        session="s1",
        call="call-1",
        attempt=2**20 + 1,
        failure=_FAILURE,
        final=True,
    ),
    "CallSight": _CALL_SIGHT,
    "SpanSight": _SPAN_SIGHT,
    "StepSight": _STEP_SIGHT,
    "PrefixSight": _PREFIX_SIGHT,
    "Sight": m.Sight(
        worker="w1",
        incarnation="i1",
        at=1750000000.25,
        kind=m.WorkerKind.ENGINE,
        serves=("m",),
        capacity=8,
        load={"pages": 64.0},
        calls=(_CALL_SIGHT,),
        ended=(_SPAN_SIGHT,),
        steps=(_STEP_SIGHT,),
        prefixes=(_PREFIX_SIGHT,),
        left_out=1,
    ),
    "TenantPolicy": _POLICY,
    "TenantPolicy.plain": m.TenantPolicy(tenant="acme"),
    "CallUsage": _CALL_USAGE,
    "SessionUsage": m.SessionUsage(tenant="acme", session="s1", used=_USAGE, calls=(_CALL_USAGE,), name="demo"),
    "TenantStatus": _TENANT_STATUS,
    "Status.tenants": m.Status(scheduler="s", lease=5, workers=(), sessions=(), queued=0, tenants=(_TENANT_STATUS,)),
    "Failure.over_quota": m.Failure(code=m.ErrorCode.OVER_QUOTA, message="too much", retryable=True, retry_after=2.5),
    "Open.cache": m.Open(protocol=1, cache="user-7"),
    "Run.order": m.Run(tenant="acme", session="s1", call=_NATIVE_CALL, attempt=1, lease=1, order=12.5),
    "Run.cache": m.Run(tenant="acme", session="s1", call=_NATIVE_CALL, attempt=1, lease=1, cache="team"),
    "Retain.cache": m.Retain(tenant="acme", session="s1", id="keep-1", call=_MODEL_CALL, lease=5, cache="team"),
    "WorkerStatus.paused": m.WorkerStatus(
        worker="w1",
        kind=m.WorkerKind.ENGINE,
        serves=("tiny",),
        capacity=8,
        running=0,
        draining=False,
        silent_seconds=0.5,
        paused="the endpoint limits its rate",
    ),
    "WorkerStatus.tenant": m.WorkerStatus(
        worker="a1",
        kind=m.WorkerKind.AGENT,
        serves=("f",),
        capacity=1,
        running=0,
        draining=False,
        silent_seconds=0.5,
        tenant="acme",
    ),
    "Alive": m.Alive(),
    "StatusRequest": m.StatusRequest(),
    "Why": m.Why(call="call-1", session="s1"),
    "Why.anywhere": m.Why(call="call-1"),
    "CallReasons": _REASONS,
    "Explanation": m.Explanation(calls=(_REASONS,)),
    "GraphRequest": m.GraphRequest(session="s1", tenant="acme"),
    "CallView": _CALL_VIEW,
    "VariableView": _VARIABLE_VIEW,
    "GraphView": m.GraphView(session="s1", name="demo", calls=(_CALL_VIEW,), variables=(_VARIABLE_VIEW,), left_out=1),
    "GraphView.none": m.GraphView(session="s2", found=False),
    "WorkerStatus": _WORKER_STATUS,
    "SessionStatus": _SESSION_STATUS,
    "Status": m.Status(
        scheduler="sched-1", lease=5, workers=(_WORKER_STATUS,), sessions=(_SESSION_STATUS,), queued=3, rejected=1
    ),
}
"""By name: the class's, with a suffix for further examples of it."""


def load() -> dict[str, bytes]:
    """The golden bytes by the name of their example."""
    return {name: bytes.fromhex(text) for name, text in json.loads(FILE.read_text()).items()}


def add_missing() -> list[str]:
    """Write the bytes of examples that have none; returns their names."""
    known = load() if FILE.exists() else {}
    missing = [name for name in EXAMPLES if name not in known]
    added = known | {name: codec.encode(EXAMPLES[name]) for name in missing}
    FILE.write_text(json.dumps({name: data.hex() for name, data in added.items()}, indent=1) + "\n")
    return missing


if __name__ == "__main__":
    print("added:", ", ".join(add_missing()) or "nothing")
