"""What is wrong in a file that a person wrote is one line: field, value, remedy."""

from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_core.campaign.complaints import complaint_of


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1)]


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner
    site: Annotated[str, Field(description="write a name")]
    other: Inner | None = None
    bound: Annotated[float, Field(gt=0)] | Inner = 1.0


def complaint(plain):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(plain)
    return complaint_of(caught.value, Outer, whole="file")


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (
            {"inner": {"steps": 0}, "site": "north"},
            "inner.steps is 0: input should be greater than or equal to 1",
        ),
        (
            {"inner": {"step": 1}, "site": "north"},
            "unknown key 'inner.step'; did you mean 'steps'? (and 1 more)",
        ),
        (
            {"inner": {"steps": 1}, "site": "north", "other": {"steps": 1, "zzz": 2}},
            "unknown key 'other.zzz'; known keys are steps",
        ),
        ({"inner": {"steps": 1}}, "site is missing and has no default: write a name"),
        ({"site": "north"}, "inner is missing and has no default"),
        (
            {"inner": {"steps": 1}, "site": "north", "bound": -1},
            "bound is -1: input should be greater than 0",
        ),
        (
            {"inner": {"steps": 1}, "site": "north", "bound": {"step": 1, "steps": 2}},
            "unknown key 'bound.step'; did you mean 'steps'?",
        ),
        (
            {"inner": {"steps": 1}, "site": "north", "bound": {}},
            "bound.steps is missing and has no default",
        ),
        (
            {"inner": {"steps": 1}, "site": "north", "bound": [1]},
            "bound: input should be a valid number",
        ),
        ([], "file: input should be a valid dictionary or instance of Outer"),
    ],
    ids=[
        "value",
        "misspelt",
        "unknown",
        "missing",
        "missing without words",
        "a number of two types",
        "misspelt in one of two types",
        "missing in one of two types",
        "neither of two types",
        "whole",
    ],
)
def test_complaint_names_field_value_and_remedy(plain, expected):
    assert complaint(plain) == expected
