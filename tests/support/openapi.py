"""What the service takes and answers, as an OpenAPI document for fuzzers."""

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_ANSWERS = Path(__file__).with_name("openai_schema.json")


def document() -> Json:
    """OpenAPI 3.1 of every route but health."""
    answers = _ANSWERS.read_text().replace("#/$defs/", "#/components/schemas/")
    return {
        "openapi": "3.1.0",
        "info": {"title": "adapter", "version": "1"},
        "paths": {
            "/v1/completions": {"post": _generation("completion", _COMPLETION)},
            "/v1/chat/completions": {"post": _generation("chat", _CHAT)},
            "/v1/models": {"get": {"responses": _responses("models")}},
            "/v1/models/{name}": {
                "get": {
                    "parameters": [
                        {"name": "name", "in": "path", "required": True, "schema": _NAME}
                    ],
                    "responses": _responses("model"),
                }
            },
        },
        "components": {"schemas": json.loads(answers)["$defs"]},
    }


def body_schema(path: str) -> Json:
    """The schema of what a path takes."""
    content = document()["paths"][path]["post"]["requestBody"]["content"]
    schema: Json = content["application/json"]["schema"]
    return schema


def _generation(kind: str, body: Json) -> Json:
    responses = _responses(kind)
    responses["200"]["content"]["text/event-stream"] = {}
    content = {"application/json": {"schema": body}}
    return {"requestBody": {"required": True, "content": content}, "responses": responses}


def _responses(kind: str) -> Json:
    return {"200": _answer(kind), "4XX": _answer("error")}


def _answer(kind: str) -> Json:
    schema = {"$ref": f"#/components/schemas/{kind}"}
    return {"description": kind, "content": {"application/json": {"schema": schema}}}


def _number(low: float, high: float) -> Json:
    return {"type": "number", "minimum": low, "maximum": high}


def _integer(low: int, high: int) -> Json:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(items: Json, most: int) -> Json:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


_TEXT = {"type": "string", "minLength": 1, "maxLength": 40}
_MODEL = {"enum": ["m", "org/other"]}
_NAME = {"anyOf": [_MODEL, _TEXT]}
_IDS = _list(_integer(0, 300), 20)
_NONE = {"type": "null"}
_STEERING = {
    "type": "object",
    "properties": {
        "alpha": _number(0, 4),
        "lookahead": {"anyOf": [_integer(1, 256), {"enum": ["auto", "stream"]}]},
        "trace": {"enum": [True, False, "candidates"]},
    },
    "additionalProperties": False,
}
_SHARED = {
    "model": _MODEL,
    "max_tokens": {"anyOf": [_integer(1, 100), _NONE]},
    "temperature": _number(0, 2),
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": _integer(1, 3),
    "seed": {"anyOf": [_integer(-(2**63), 2**63 - 1), _NONE]},
    "stop": {"anyOf": [_TEXT, _list(_TEXT, 4), _NONE]},
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,4}$"},
        "additionalProperties": _number(-100, 100),
        "maxProperties": 300,
    },
    "stream": {"type": "boolean"},
    "user": {"type": "string"},
    "steering": _STEERING,
}
_COMPLETION: Json = {
    "type": "object",
    "required": ["model", "prompt"],
    "properties": _SHARED
    | {
        "prompt": {"anyOf": [_TEXT, _IDS, _list(_TEXT, 4), _list(_IDS, 4)]},
        "logprobs": {"anyOf": [_integer(0, 5), _NONE]},
    },
    "additionalProperties": False,
}
_TURN = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                _list(
                    {
                        "type": "object",
                        "required": ["type", "text"],
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "additionalProperties": False,
                    },
                    3,
                ),
            ]
        },
    },
    "additionalProperties": False,
}
_CHAT: Json = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": _SHARED | {"messages": _list(_TURN, 4), "logprobs": {"type": "boolean"}},
    "additionalProperties": False,
}
