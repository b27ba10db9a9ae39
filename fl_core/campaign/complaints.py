"""What pydantic found wrong in a file, as one line for the person who wrote the file.

pydantic's own text has several lines, a web address, and no remedy. Campaigns, policies, site
configs, suites and parameters of parts all complain through this module, so a misspelt key reads
the same everywhere: field, value, remedy.
"""

import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SHOWN_CHARS = 200


def complaint_of(error: ValidationError, model: type[BaseModel], *, whole: str) -> str:
    """Return the complaint that helps most, with the number of the others.

    The text holds the field's value where that is text or a number, so this is for files that
    people write, not for rows and not for documents from another machine.

    Args:
        error: What validation found.
        model: The type that was expected; its fields are what a misspelt key is compared with.
        whole: What to call the file where no single field is wrong, such as ``campaign``.
    """
    found = [(detail, _field(detail["loc"], model)) for detail in error.errors()]
    # A misspelt key is also a missing one; the misspelling is what helps.
    found = sorted(_meant(found), key=lambda pair: pair[0]["type"] != "extra_forbidden")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    detail, field = found[0]
    return f"{_complaint(detail, field.parts, model=model, whole=whole)}{more}"


@dataclass(frozen=True, slots=True)
class _Field:
    """Where an error is: the keys as the file has them.

    Attributes:
        parts: Keys from the outside in, without the names of types that pydantic puts between.
        choice: How many keys lead to the field that may be of several types; None without one.
    """

    parts: tuple[str, ...]
    choice: int | None = None


def _field(loc: tuple[int | str, ...], model: type[BaseModel]) -> _Field:
    parts: list[str] = []
    choice: int | None = None
    annotation: object = model
    for part in loc:
        branches = _branches(annotation)
        if len(branches) > 1 and choice != len(parts):
            # Between a field of several types and what is wrong stands the type that was tried.
            choice = len(parts)
            annotation = next((b for b in branches if _name(b) == part), None)
            continue
        owner = _model_of(annotation)
        known = owner.model_fields.get(str(part)) if owner is not None else None
        annotation = None if known is None else known.annotation
        parts.append(str(part))
    return _Field(tuple(parts), choice)


def _meant(found: list[tuple[ErrorDetails, _Field]]) -> list[tuple[ErrorDetails, _Field]]:
    """Leave out complaints of types that a person did not write, where another fits better."""
    kept = [pair for pair in found if not _is_other_type(*pair)]
    told = {field.parts[: field.choice] for _, field in kept if field.choice is not None}
    for pair in found:
        choice = pair[1].parts[: pair[1].choice]
        if _is_other_type(*pair) and choice not in told:
            kept.append(pair)
            told.add(choice)
    return kept


def _is_other_type(detail: ErrorDetails, field: _Field) -> bool:
    return field.choice == len(field.parts) and detail["type"].endswith("_type")


def _branches(annotation: object) -> list[object]:
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return []
    return [b for b in typing.get_args(annotation) if b is not type(None)]


def _name(branch: object) -> str:
    return getattr(branch, "__name__", "")


def _complaint(
    detail: ErrorDetails, parts: Sequence[str], *, model: type[BaseModel], whole: str
) -> str:
    field = ".".join(parts) or whole
    if detail["type"] == "extra_forbidden":
        return f"unknown key {_short(field)}{_suggestion(parts, model)}"
    if detail["type"] == "missing":
        return f"{field} is missing and has no default{_example(parts, model)}"
    message = detail["msg"].removeprefix("Value error, ")
    shown = detail["input"]
    value = f" is {_short(shown)}" if isinstance(shown, str | int | float) else ""
    return f"{field}{value}: {message[:1].lower()}{message[1:]}"


def _short(value: object) -> str:
    # A campaign may come from another machine, and a line of a log is no place for its pages.
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}..."


def _suggestion(parts: Sequence[str], model: type[BaseModel]) -> str:
    owner = _owner(parts, model)
    if owner is None:
        return ""
    close = difflib.get_close_matches(parts[-1], list(owner.model_fields), n=1)
    known = ", ".join(owner.model_fields)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {known}"


def _example(parts: Sequence[str], model: type[BaseModel]) -> str:
    """What the field's own description says to write, where it has one."""
    owner = _owner(parts, model)
    field = None if owner is None else owner.model_fields.get(parts[-1])
    return f": {field.description}" if field is not None and field.description else ""


def _owner(parts: Sequence[str], model: type[BaseModel]) -> type[BaseModel] | None:
    owner = model
    for part in parts[:-1]:
        annotation = owner.model_fields[part].annotation if part in owner.model_fields else None
        inner = _model_of(annotation)
        if inner is None:
            return None
        owner = inner
    return owner


def _model_of(annotation: object) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
