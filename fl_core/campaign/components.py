"""Parts that a campaign names, and the registries that hold them.

A part is a frozen pydantic model whose fields are its parameters; a misspelt parameter is an
error, which a plain dataclass parsed by pydantic would swallow. Registering is one decorator; from
outside the project it is an entry point in the group ``fedloom.components``.
"""

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
)

from fl_core.artifacts.documents import Document
from fl_core.campaign.complaints import complaint_of
from fl_core.errors import UnknownComponent

ENTRY_POINTS = "fedloom.components"


class Part(Document):
    """Base of all parts; ``kind`` is set by the registry."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ComponentSpec(Document):
    """A part by name, with its parameters; people may write the name alone.

    Attributes:
        kind: Name in the registry.
        params: Parameters, checked by the part when it is built; plain and finite values, each
            of which has a form of its own in canonical JSON, or two campaigns would share a digest.
    """

    kind: Annotated[str, Field(max_length=100)]
    params: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("params")
    @classmethod
    def _finite(cls, params: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            json.dumps(params, allow_nan=False)
        except ValueError as error:
            msg = "a parameter is inf or nan, expected finite numbers"
            raise ValueError(msg) from error
        return params


def _from_name(value: object) -> object:
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, dict) and "params" not in value and "kind" in value:
        rest = {k: v for k, v in value.items() if k != "kind"}
        return {"kind": value["kind"], "params": rest}
    return value


Component = Annotated[ComponentSpec, BeforeValidator(_from_name)]

P = TypeVar("P")


class Registry(Generic[P]):
    """Parts of one protocol, by kind.

    Args:
        name: What the parts are, as a campaign's field says it (``aggregation``, ``codec``).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._parts: dict[str, type[Any]] = {}
        self._outside_loaded = False

    def register(self, kind: str) -> Callable[[type[Any]], type[Any]]:
        """Return a decorator that adds a part under ``kind``; a second of a kind is refused."""

        def add(part: type[Any]) -> type[Any]:
            if kind in self._parts:
                raise ValueError(f"{self.name} {kind!r} is registered twice")
            self._parts[kind] = part
            return part

        return add

    def kinds(self) -> list[str]:
        """Return all registered kinds, sorted."""
        self._load_outside()
        return sorted(self._parts)

    def build(self, spec: ComponentSpec) -> P:
        """Return the part that ``spec`` names, with its parameters.

        Raises:
            UnknownComponent: No such kind, or a parameter that the part does not take.
        """
        self._load_outside()
        part = self._parts.get(spec.kind)
        if part is None:
            raise UnknownComponent(
                f"{self.name} {spec.kind!r} is not known; use one of {', '.join(self.kinds())}"
            )
        try:
            built: P = part(**spec.params)
        except ValidationError as error:
            complaint = complaint_of(error, part, whole="parameters")
            raise UnknownComponent(f"{self.name} {spec.kind!r}: {complaint}") from error
        return built

    def _load_outside(self) -> None:
        if not self._outside_loaded:
            self._outside_loaded = True
            for point in entry_points(group=ENTRY_POINTS):
                point.load()
