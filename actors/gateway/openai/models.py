"""`GET /v1/models`, and what there is none of: embeddings."""

from __future__ import annotations

from typing import Any

from myna.actors.gateway.http import Answer, Incoming, Json
from myna.actors.gateway.problems import Problem


async def every(incoming: Incoming) -> Answer:
    """The models that engines serve now."""
    return Json({"object": "list", "data": [_model(name) for name in await incoming.tenancy.models()]})


async def one(incoming: Incoming) -> Answer:
    """One of them."""
    name = incoming.path["model"]
    if name not in await incoming.tenancy.models():
        raise Problem(404, "model_not_found", f"the model {name!r} is not served", "model")
    return Json(_model(name))


async def embeddings(_incoming: Incoming) -> Answer:
    """Refused."""
    message = "this server has no embeddings: its engines generate text. Use /v1/chat/completions or /v1/completions"
    raise Problem(400, "unsupported_endpoint", message)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "myna"}
