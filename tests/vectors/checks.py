"""One case: its kind, its call, and what is wrong with the answer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_core.errors import FedloomError
from tests.vectors.calls import CALLS
from tests.vectors.compare import faults

Case = Mapping[str, Any]
SCHEMAS = ("fedloom-privacy-vectors/1", 1)
# How a file of JSON writes numbers that JSON does not have.
WORDS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}


def read_cases(path: Path) -> list[Case]:
    """Return the cases of a file of one of the two schemas.

    Raises:
        ValueError: Another schema.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema") not in SCHEMAS:
        msg = f"{path}: schema is {document.get('schema')!r}, expected one of {SCHEMAS}"
        raise ValueError(msg)
    return [_with_numbers(case) for case in document["cases"]]


def _with_numbers(value: Any) -> Any:
    match value:
        case str():
            return WORDS.get(value, value)
        case list():
            return [_with_numbers(item) for item in value]
        case dict():
            return {name: _with_numbers(item) for name, item in value.items()}
        case _:
            return value


def kind_of(case: Case) -> str:
    """Return what the case is about; an error case is about the function that must refuse."""
    kind: str = case.get("kind") or case["op"]
    return case["inputs"]["function"] if kind == "error" else kind


def answers_of(case: Case) -> Any:
    """Return fl_core's answers to a case.

    Raises:
        FedloomError: It refuses.
        KeyError, TypeError: The inputs are not those of the kind.
    """
    inputs = {name: value for name, value in case["inputs"].items() if name != "function"}
    return CALLS[kind_of(case)](inputs)


def fault_of(case: Case) -> str | None:
    """Return what is wrong with fl_core's answer, or None."""
    expect = case.get("expect", {})
    must_refuse = bool(expect.get("error"))
    try:
        answers = answers_of(case)
    except FedloomError as error:
        may_refuse = must_refuse or expect.get("or") == "error"
        return None if may_refuse else f"refused: {error}"
    except (KeyError, TypeError) as error:
        return f"cannot be asked of fl_core: {type(error).__name__} {error}"
    if must_refuse:
        return f"gave {answers}, expected a named error"
    return "; ".join(faults(answers, case)) or None
