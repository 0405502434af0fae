"""What a method is: its name, who may call it, what it takes and gives. Dispatch and the schema come from it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from service.config_problems import describe

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


class Params(BaseModel):
    """What a method takes: an object with these members and no others."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class WrongParams(Exception):
    """The members of `params` are not those that the method takes."""


@dataclass(frozen=True)
class Method:
    """One method of the socket."""

    name: str
    admin: bool
    """Whether only the role `admin` may call it."""
    call: Callable[..., Awaitable[Any]]

    @cached_property
    def params(self) -> type[Params]:
        """Return the model of what it takes."""
        found: type[Params] = get_type_hints(self.call)["params"]
        return found

    @cached_property
    def result(self) -> TypeAdapter[Any]:
        """Return what it gives."""
        return TypeAdapter(get_type_hints(self.call)["return"])

    @property
    def description(self) -> str:
        """Return what it does, in the words of its docstring."""
        return inspect.getdoc(self.call) or ""

    def parse(self, params: dict[str, Any]) -> Params:
        """Return checked parameters. Raises WrongParams, which says what is wrong without repeating a value."""
        try:
            return self.params.model_validate(params)
        except ValidationError as error:
            raise WrongParams(describe(self.params, error, name=self.name, lines={})) from None

    def as_json(self, result: Any) -> Any:
        """Return a result as JSON values."""
        return self.result.dump_python(result, mode="json")

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of what it takes and gives."""
        return {
            "description": self.description,
            "role": "admin" if self.admin else "read",
            "params": self.params.model_json_schema(),
            "result": self.result.json_schema(mode="serialization"),
        }


def method(name: str, *, admin: bool = False) -> Callable[[F], F]:
    """Mark a function as a method of the socket."""

    def mark(function: F) -> F:
        function.rpc = (name, admin)  # type: ignore[attr-defined]
        return function

    return mark


def methods_of(*owners: object) -> dict[str, Method]:
    """Return the methods that some objects (or classes) have, by name."""
    found = {}
    for owner in owners:
        for attribute in dir(owner):
            function = getattr(owner, attribute)
            if marked := getattr(function, "rpc", None):
                name, admin = marked
                found[name] = Method(name, admin, function)
    return dict(sorted(found.items()))
