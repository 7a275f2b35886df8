"""A request as plain JSON data, held against the contract; and what is wrong with it in one sentence."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from ..contract import EmbeddingRequest, GenerationRequest, RerankRequest
from ..contract.conversation import Asked, json_type
from ..errors import InvalidRequestError
from ..shown import printable

Request: TypeAlias = EmbeddingRequest | GenerationRequest | RerankRequest
MOST_LEVELS = 190
"""Of lists and objects in a field: workers read 200, those of the job around it included."""
_MAX_NAME_CHARACTERS = 100
_MAX_COMPLAINTS = 1000
_PROBLEMS = {
    "missing": "this field is required",
    "extra_forbidden": "there is no such field",
    "none_required": "is not supported: leave it out",
}
"""By pydantic's names of them, where it says less itself."""
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "none_required": "unsupported_parameter",
    "literal_error": "unsupported_value",
}
"""OpenAI's, by the same: clients leave out what is unknown or unsupported, and ask again."""
_NO_FIELDS = ("function-", "choice-")
"""What stands among the names of fields and is none: pydantic's validators, and which of several forms a value has."""
RequestT = TypeVar("RequestT", bound=BaseModel)


def parse_request(kind: type[RequestT], payload: Any) -> RequestT:
    """The request in `payload`, or an `InvalidRequestError` of one sentence that names the field."""
    if not isinstance(payload, dict):
        raise InvalidRequestError(f"the request must be a JSON object, not {json_type(payload)}")
    known = kind.model_fields.keys()
    if not payload.keys() <= known:
        if issubclass(kind, Asked):  # as it does itself of fields that there are
            payload = kind.what_says_something(payload)
        if unknown := payload.keys() - known:  # before pydantic writes a complaint about each
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            field = _shown(min(unknown))
            raise InvalidRequestError(f"{field}: there is no such field{more}", field=field, code="unknown_parameter")
    for name, value in payload.items():
        if is_deeper(value, MOST_LEVELS):
            raise InvalidRequestError(f"{name}: is nested more than {MOST_LEVELS} levels deep", field=name)
    try:
        return kind.model_validate(payload)
    except ValidationError as error:
        field, problem, code = first_complaint(error)
        raise InvalidRequestError(f"{field}: {problem}" if field else problem, field=field, code=code) from None


def first_sentence(error: ValidationError) -> str:
    """The first of pydantic's complaints as `field: what is wrong with it`."""
    field, problem, _ = first_complaint(error)
    return f"{field}: {problem}" if field else problem


def first_complaint(error: ValidationError) -> tuple[str, str, str]:
    """The field, empty where it is the whole, what is wrong with it, and OpenAI's code for that."""
    if (count := error.error_count()) > _MAX_COMPLAINTS:
        # To look at one is to have all of them written, which takes a kilobyte each.
        return "", f"{count:,} things are wrong with it", "invalid_value"
    errors = error.errors(include_url=False, include_input=False)
    # A field misspelt is a field missing too, and the misspelling says more.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    inner = str(first.get("ctx", {}).get("field", "")).split(".")
    parts = [str(part) for part in first["loc"] if not str(part).startswith(_NO_FIELDS)]
    field = ".".join(_shown(part) for part in (*parts, *filter(None, inner)))
    problem = _PROBLEMS.get(first["type"], first["msg"])
    code = _CODES.get(first["type"], "invalid_type" if first["type"].endswith("_type") else "invalid_value")
    return field, f"{problem} (and {count - 1} more)" if count > 1 else problem, code


def is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    within = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(is_deeper(each, levels - 1) for each in within if isinstance(each, dict | list))


def _shown(name: str) -> str:
    """A name that a request chose."""
    return printable(name[:_MAX_NAME_CHARACTERS])
