"""Every path, and what answers it. What an endpoint takes and gives is told here by types, nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from myna.actors.gateway import parrot, problems
from myna.actors.gateway.http import Endpoint, Handler, Tell
from myna.actors.gateway.native import calls, fleet, pictures, sessions, variables
from myna.actors.gateway.native import schemas as native
from myna.actors.gateway.openai import chat, completions, models, replies, responses, schemas


@dataclass(frozen=True, slots=True)
class _Api:
    """Endpoints that begin with one path and tell what is wrong in one form. `lenient`: see `Endpoint`."""

    tag: str
    root: str
    tell: Tell
    lenient: bool = False

    def get(
        self,
        path: str,
        handler: Handler,
        summary: str,
        query: Any = None,
        answer: Any = None,
        *,
        streams: bool = False,
        method: str = "GET",
    ) -> Endpoint:
        """One that takes a query."""
        given = {"query": query, "answer": answer, "streams": streams, "lenient": self.lenient}
        return Endpoint(method, self.root + path, handler, summary, self.tag, self.tell, **given)

    def delete(self, path: str, handler: Handler, summary: str, query: Any = None, answer: Any = None) -> Endpoint:
        """One that takes a query and ends something."""
        return self.get(path, handler, summary, query, answer, method="DELETE")

    def post(
        self,
        path: str,
        handler: Handler,
        summary: str,
        body: Any,
        answer: Any = None,
        *,
        status: int = 200,
        streams: bool = False,
        method: str = "POST",
    ) -> Endpoint:
        """One that takes a body."""
        given = {"body": body, "answer": answer, "status": status, "streams": streams}
        return Endpoint(method, self.root + path, handler, summary, self.tag, self.tell, **given)

    def put(self, path: str, handler: Handler, summary: str, body: Any, answer: Any = None) -> Endpoint:
        """One that takes a body, and does no more if it is asked twice."""
        return self.post(path, handler, summary, body, answer, method="PUT")


_OPENAI = _Api("openai", "/v1/", replies.error)
_PARROT = _Api("parrot", "/v1/", parrot.tell, lenient=True)
_MYNA = _Api("myna", "/myna/v1/", problems.plain)
_S = "sessions/{session}"
_VS = _S + "/variables"
_V = _VS + "/{variable}"

ENDPOINTS = (
    _OPENAI.post("chat/completions", chat.create, "Answer a chat", schemas.ChatRequest, streams=True),
    _OPENAI.post("completions", completions.create, "Complete text", schemas.CompletionRequest, streams=True),
    _OPENAI.post("responses", responses.create, "Answer items", schemas.ResponseRequest, streams=True),
    _OPENAI.get("models", models.every, "The models that are served"),
    _OPENAI.get("models/{model:path}", models.one, "One model"),
    _OPENAI.post("embeddings", models.embeddings, "Refused", schemas.EmbeddingRequest),
    _PARROT.post("session", parrot.open_session, "Open a session", parrot.NewSession, parrot.SessionMade),
    _PARROT.delete("session/{session_id}", parrot.close_session, "End a session", parrot.Ending, parrot.Nothing),
    _PARROT.post("semantic_call", parrot.semantic_call, "Submit a call", parrot.SemanticCall, parrot.CallMade),
    _PARROT.post("py_native_call", parrot.native_call, "Refused", parrot.NativeCall),
    _PARROT.post("semantic_var", parrot.make_variable, "Make a variable", parrot.NewVariable, parrot.VariableMade),
    _PARROT.get("semantic_var", parrot.list_variables, "A session's variables", parrot.Listing, parrot.VariableList),
    _PARROT.post("semantic_var/{var_id}", parrot.set_variable, "Set a variable", parrot.NewContent, parrot.Nothing),
    _PARROT.get("semantic_var/{var_id}", parrot.get_variable, "Its text, awaited", parrot.Reading, parrot.Content),
    _MYNA.post("sessions", sessions.open_session, "Open a session", native.OpenSession, native.SessionMade, status=201),
    _MYNA.get("sessions", sessions.list_sessions, "The open sessions", answer=native.SessionList),
    _MYNA.delete(_S, sessions.close_session, "End a session", answer=native.Nothing),
    _MYNA.get(f"{_S}/graph", sessions.graph, "The graph of a session", answer=native.Graph),
    _MYNA.get(f"{_S}/picture", pictures.picture, "The graph, drawn", answer=pictures.Picture),
    _MYNA.get(f"{_S}/progress", pictures.progress, "How far the graph is", answer=pictures.Progress),
    _MYNA.post(f"{_S}/cancel", sessions.cancel, "Cancel calls", native.Cancelling, native.Nothing),
    _MYNA.post(f"{_S}/calls", calls.submit, "Submit calls", native.Submission, native.Submitted, status=201),
    _MYNA.get(f"{_S}/calls/{{call}}/why", sessions.why, "Why a call is where it is", answer=native.Reasons),
    _MYNA.get(_VS, variables.list_variables, "The variables", answer=native.VariableList),
    _MYNA.post(_VS, variables.make_variable, "Make a variable", native.NewVariable, native.VariableMade, status=201),
    _MYNA.put(_V, variables.set_variable, "Set a variable", native.NewValue, native.VariableMade),
    _MYNA.get(_V, variables.get_variable, "A variable, awaited", native.Reading, native.Ending),
    _MYNA.get(f"{_V}/stream", variables.stream_variable, "Its text as it comes", native.Streaming, streams=True),
    _MYNA.get("fleet", fleet.look, "What engines do", fleet.Looking, fleet.Fleet),
)
