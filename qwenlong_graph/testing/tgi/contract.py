"""TGI's own description of its bodies, to check requests and answers by.

`openapi.json` is the OpenAPI document of Text Generation Inference (Hugging Face, Apache-2.0),
version 3.3.6-dev0 as release 3.3.7 ships it, unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, extend

__all__ = ["ContractError", "check", "misfit"]


class ContractError(AssertionError):
    """The double was about to send a body that TGI's own description does not allow."""


def check(body: Any, schema: str) -> None:
    """Raises `ContractError` unless an answer's `body` is what the document calls `schema`.

    What has no value of an enumeration in it is checked once for all bodies of the same shape:
    a stream has an event for every token.
    """
    shape = _shape(body)
    if (schema, shape) in _checked:
        return
    error = best_match(_answers(schema).iter_errors(body))
    if error is not None:
        raise ContractError(f"No {schema} at {error.json_path}: {error.message}")
    if shape is not None:
        _checked.add((schema, shape))


_checked: set[tuple[str, object]] = set()
# The one field of an event whose value, and not only its type, the document prescribes.
_ENUMERATED = "finish_reason"


def _shape(value: Any) -> object:
    """The types in a value, None where a value in it matters too."""
    if isinstance(value, dict):
        if value.get(_ENUMERATED) is not None:
            return None
        inner = [(name, _shape(entry)) for name, entry in value.items()]
        return None if any(shape is None for _, shape in inner) else tuple(inner)
    if isinstance(value, list):
        return None if len(value) > 1 else tuple(_shape(entry) for entry in value)
    # Numbers in the document are bounded by zero alone.
    return (type(value), value < 0) if isinstance(value, int | float) else type(value)


def misfit(body: Any, schema: str) -> str | None:
    """Why a request's `body` cannot be read as `schema` at all, None where it can.

    Only types count here, as for TGI's JSON reader; values out of range are another error.
    """
    error = best_match(_requests(schema).iter_errors(body))
    return None if error is None else f"{error.json_path.removeprefix('$.')}: {error.message}"


@cache
def _document() -> dict[str, Any]:
    text = files(__package__).joinpath("openapi.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


@cache
def _answers(schema: str) -> Validator:
    return _validator(schema, _modern(_document(), is_request=False))


@cache
def _requests(schema: str) -> Validator:
    return _validator(schema, _modern(_document(), is_request=True))


# A JSON reader of Rust does not take 1.0 for an integer, JSON Schema does.
_STRICT = extend(  # type: ignore[no-untyped-call]  # so it is in the stubs
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)

# What TGI checks only after it has read the body, in its own words.
_CHECKED_LATER = frozenset({"exclusiveMinimum", "maximum", "maxItems"})


def _validator(schema: str, document: Any) -> Validator:
    validator: Validator = _STRICT({**document, "$ref": f"#/components/schemas/{schema}"})
    return validator


def _modern(node: Any, *, is_request: bool) -> Any:
    """OpenAPI 3.0's dialect as JSON Schema: only `nullable` is said in another way."""
    if isinstance(node, list):
        return [_modern(entry, is_request=is_request) for entry in node]
    if not isinstance(node, Mapping):
        return node
    dropped = {"nullable", "example", "default", "format", "discriminator"}
    if is_request:
        dropped |= _CHECKED_LATER
    found = {
        # Serde takes the first alternative that fits, and does not mind a second.
        ("anyOf" if is_request and name == "oneOf" else name): (
            {key: _modern(entry, is_request=is_request) for key, entry in value.items()}
            if name == "properties"
            else _modern(value, is_request=is_request)
        )
        for name, value in node.items()
        if name not in dropped
    }
    return {"anyOf": [found, {"type": "null"}]} if node.get("nullable") else found
