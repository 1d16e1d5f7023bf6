"""The OpenAPI document, made from the endpoints: what is written there is what is checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

import msgspec
from msgspec import Struct

from myna.actors.gateway.http import Endpoint

_REF = "#/components/schemas/{name}"
_PATH_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1 of `endpoints`."""
    listed = list(endpoints)
    types = [t for e in listed for t in (e.body, e.answer) if t is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    found = dict(zip(map(id, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in listed:
        operation = _operation(endpoint, found)
        paths.setdefault(_PATH_PARAMETER.sub(r"{\1}", endpoint.path), {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Myna", "version": metadata.version("myna"), "description": __doc__},
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": components | {"Error": {"type": "object"}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, schemas: dict[int, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": schemas.get(id(endpoint.answer), {"type": "object"})}}
    if endpoint.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    problem = {
        "description": "What is wrong",
        "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}},
    }
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()} {endpoint.path}").strip("_"),
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "parameters": [*_in_path(endpoint), *_in_query(endpoint)],
        "responses": {str(endpoint.status): {"description": "Done", "content": content}, "default": problem},
    }
    if endpoint.body is not None:
        schema = schemas[id(endpoint.body)]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _in_path(endpoint: Endpoint) -> Iterator[dict[str, Any]]:
    for name in _PATH_PARAMETER.findall(endpoint.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _in_query(endpoint: Endpoint) -> Iterator[dict[str, Any]]:
    if endpoint.query is None or not issubclass(endpoint.query, Struct):
        return
    for field in msgspec.structs.fields(endpoint.query):
        schema = _inline(field.type)
        yield {"name": field.encode_name, "in": "query", "required": field.required, "schema": schema}


def _inline(type_: Any) -> dict[str, Any]:
    """A schema without references: query parameters are plain."""
    (schema,), components = msgspec.json.schema_components([type_], ref_template=_REF)
    return dict(_resolve(schema, components))


def _resolve(schema: Any, components: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _resolve(components[schema["$ref"].rpartition("/")[2]], components)
        return {key: _resolve(value, components) for key, value in schema.items()}
    return [_resolve(item, components) for item in schema] if isinstance(schema, list) else schema
