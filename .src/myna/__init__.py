"""Myna: a serving system for LLM applications.

These names are the SDK's. They are loaded when first used, so that `import myna.engine` loads no SDK, and `import myna` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from myna.actors.bus import Unavailable as Unavailable
    from myna.actors.codec import TooLarge as TooLarge
    from myna.actors.messages import ErrorCode as ErrorCode
    from myna.actors.messages import FormatKind as FormatKind
    from myna.actors.messages import Objective as Objective
    from myna.actors.messages import ObjectiveKind as ObjectiveKind
    from myna.actors.messages import ResponseFormat as ResponseFormat
    from myna.actors.messages import Sampling as Sampling
    from myna.actors.messages import StreamMode as StreamMode
    from myna.actors.messages import Tool as Tool
    from myna.actors.messages import Transform as Transform
    from myna.actors.messages import Usage as Usage
    from myna.actors.messages import Value as Value
    from myna.sdk import format as format
    from myna.sdk import sync as sync
    from myna.sdk import transforms as transforms
    from myna.sdk.agent import Agent as Agent
    from myna.sdk.agent import agent as agent
    from myna.sdk.agent import current_session as current_session
    from myna.sdk.agent import native as native
    from myna.sdk.chat import Conversation as Conversation
    from myna.sdk.client import Client as Client
    from myna.sdk.client import attach as attach
    from myna.sdk.client import connect as connect
    from myna.sdk.client import session as session
    from myna.sdk.errors import AlreadySet as AlreadySet
    from myna.sdk.errors import CallFailed as CallFailed
    from myna.sdk.errors import Cancelled as Cancelled
    from myna.sdk.errors import FunctionError as FunctionError
    from myna.sdk.errors import InvalidValue as InvalidValue
    from myna.sdk.errors import MynaError as MynaError
    from myna.sdk.errors import NoSession as NoSession
    from myna.sdk.errors import NotReady as NotReady
    from myna.sdk.errors import RecordingError as RecordingError
    from myna.sdk.errors import SessionClosed as SessionClosed
    from myna.sdk.errors import StreamBroken as StreamBroken
    from myna.sdk.errors import SubmitFailed as SubmitFailed
    from myna.sdk.errors import TemplateError as TemplateError
    from myna.sdk.errors import TimedOut as TimedOut
    from myna.sdk.errors import WrongLoop as WrongLoop
    from myna.sdk.function import Function as Function
    from myna.sdk.function import function as function
    from myna.sdk.objectives import deadline as deadline
    from myna.sdk.outputs import Outputs as Outputs
    from myna.sdk.parameters import Input as Input
    from myna.sdk.parameters import Output as Output
    from myna.sdk.recording import Recording as Recording
    from myna.sdk.replaying import export as export
    from myna.sdk.replaying import replay as replay
    from myna.sdk.replaying import replayed as replayed
    from myna.sdk.session import Session as Session
    from myna.sdk.session import gather as gather
    from myna.sdk.variable import Variable as Variable

_NAMES = {
    "myna.actors.bus": ("Unavailable",),
    "myna.actors.codec": ("TooLarge",),
    "myna.actors.messages": (
        "ErrorCode",
        "FormatKind",
        "Objective",
        "ObjectiveKind",
        "ResponseFormat",
        "Sampling",
        "StreamMode",
        "Tool",
        "Transform",
        "Usage",
        "Value",
    ),
    "myna.sdk.agent": ("Agent", "agent", "current_session", "native"),
    "myna.sdk.chat": ("Conversation",),
    "myna.sdk.client": ("Client", "attach", "connect", "session"),
    "myna.sdk.errors": (
        "AlreadySet",
        "CallFailed",
        "Cancelled",
        "FunctionError",
        "InvalidValue",
        "MynaError",
        "NoSession",
        "NotReady",
        "RecordingError",
        "SessionClosed",
        "StreamBroken",
        "SubmitFailed",
        "TemplateError",
        "TimedOut",
        "WrongLoop",
    ),
    "myna.sdk.function": ("Function", "function"),
    "myna.sdk.objectives": ("deadline",),
    "myna.sdk.outputs": ("Outputs",),
    "myna.sdk.parameters": ("Input", "Output"),
    "myna.sdk.recording": ("Recording",),
    "myna.sdk.replaying": ("export", "replay", "replayed"),
    "myna.sdk.session": ("Session", "gather"),
    "myna.sdk.variable": ("Variable",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = ("format", "sync", "transforms")

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found: Any = importlib.import_module(f"myna.sdk.{name}")
    elif name in _HOME:
        found = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'myna' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
