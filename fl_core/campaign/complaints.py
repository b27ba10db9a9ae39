"""What pydantic found wrong in a file, as one line for the person who wrote the file.

pydantic's own text has several lines, a web address, and no remedy. Campaigns, policies, site
configs, suites and parameters of parts all complain through this module, so a misspelt key reads
the same everywhere: field, value, remedy.
"""

import difflib

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def complaint_of(error: ValidationError, model: type[BaseModel], *, whole: str) -> str:
    """Return the complaint that helps most, with the number of the others.

    The text holds the field's value where that is text or a number, so this is for files that
    people write, not for rows and not for documents from another machine.

    Args:
        error: What validation found.
        model: The type that was expected; its fields are what a misspelt key is compared with.
        whole: What to call the file where no single field is wrong, such as ``campaign``.
    """
    # A misspelt key is also a missing one; the misspelling is what helps.
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{_complaint(details[0], model, whole=whole)}{more}"


def _complaint(detail: ErrorDetails, model: type[BaseModel], *, whole: str) -> str:
    parts = [str(part) for part in detail["loc"]]
    field = ".".join(parts) or whole
    if detail["type"] == "extra_forbidden":
        return f"unknown key {field!r}{_suggestion(parts, model)}"
    if detail["type"] == "missing":
        return f"{field} is missing and has no default{_example(parts, model)}"
    message = detail["msg"].removeprefix("Value error, ")
    shown = detail["input"]
    value = f" is {shown!r}" if isinstance(shown, str | int | float) else ""
    return f"{field}{value}: {message[:1].lower()}{message[1:]}"


def _suggestion(parts: list[str], model: type[BaseModel]) -> str:
    owner = _owner(parts, model)
    if owner is None:
        return ""
    close = difflib.get_close_matches(parts[-1], list(owner.model_fields), n=1)
    known = ", ".join(owner.model_fields)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {known}"


def _example(parts: list[str], model: type[BaseModel]) -> str:
    """What the field's own description says to write, where it has one."""
    owner = _owner(parts, model)
    field = None if owner is None else owner.model_fields.get(parts[-1])
    return f": {field.description}" if field is not None and field.description else ""


def _owner(parts: list[str], model: type[BaseModel]) -> type[BaseModel] | None:
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
