"""The form an answer is asked for in: a pydantic model or a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from qwenlong_graph.errors import SettingsError
from qwenlong_graph.reading.replies import parse_json

__all__ = ["AnswerForm", "answer_form"]


@dataclass(frozen=True)
class AnswerForm:
    """A JSON schema, and a check that turns an answer's text into plain JSON values.

    `validate` raises ValueError with a message that a model can act on; it holds no text of the
    answer.
    """

    schema: dict[str, Any]
    validate: Callable[[str], Any]

    @property
    def request(self) -> str:
        """The form in words, for models whose server cannot constrain them to it."""
        return (
            "Reply with one JSON value that follows this JSON schema, and with nothing else:\n"
            + json.dumps(self.schema, ensure_ascii=False)
        )


def answer_form(response_format: type[BaseModel] | dict[str, Any] | None) -> AnswerForm | None:
    """The form that `response_format` describes; None for a free answer.

    Raises:
        SettingsError: it is neither a pydantic model nor a valid JSON schema.
    """
    if response_format is None:
        return None
    if isinstance(response_format, type) and issubclass(response_format, BaseModel):
        return _pydantic_form(response_format)
    if isinstance(response_format, dict):
        return _schema_form(response_format)
    raise SettingsError(
        f"response_format is a {type(response_format).__name__}: give a pydantic model class or "
        f"a JSON schema as a dict."
    )


def _pydantic_form(model: type[BaseModel]) -> AnswerForm:
    def validate(text: str) -> Any:
        try:
            return model.model_validate(parse_json(text)).model_dump(mode="json")
        except ValidationError as error:
            raise ValueError(
                "; ".join(
                    f"{'.'.join(str(part) for part in problem['loc']) or 'value'}: {problem['msg']}"
                    for problem in error.errors(include_input=False, include_url=False)
                )
            ) from error

    return AnswerForm(model.model_json_schema(), validate)


def _schema_form(schema: dict[str, Any]) -> AnswerForm:
    import jsonschema

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise SettingsError(
            f"response_format is not a valid JSON schema: {error.message}."
        ) from error
    validator = kind(schema)

    def validate(text: str) -> Any:
        value = parse_json(text)
        problems = [
            f"{'.'.join(str(part) for part in problem.absolute_path) or 'value'}: "
            f"{problem.validator} must be {str(problem.validator_value)[:80]}"
            for problem in validator.iter_errors(value)
        ]
        if problems:
            raise ValueError("; ".join(problems[:5]))
        return value

    return AnswerForm(schema, validate)
