"""stillroom ops: the operators that are installed, or one of them in full."""

import inspect
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from flows.cli.shared import Json, output, print_json, print_table

if TYPE_CHECKING:
    from stillroom.operators import Operator

BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "length >=", "max_length": "length <="}


def ops(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="An operator, to see its parameters.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="List the hidden ones too, which recipes don't name.")] = False,
    as_json: Json = False,
) -> None:
    """List the operators, or show one with its parameters."""
    from stillroom.registry import load, operators

    if name is not None:
        _print_operator(load(name), as_json)
        return
    found = [load(each) for each in operators()]
    fields = ("name", "shape", "gives", "version", "summary")
    lines = [{field: getattr(each, field) for field in fields} for each in found if everything or not each.hidden]
    print_table(lines, {"name": "operator", "shape": "shape", "gives": "gives", "summary": "what it does"}, as_json=as_json)


def _print_operator(operator: "Operator", as_json: bool) -> None:
    parameters = _parameters(operator)
    inputs = [_input(operator, name) for name in operator.inputs]
    if as_json:
        print_json(
            {
                "name": operator.name,
                "shape": operator.shape,
                "gives": operator.gives,
                "version": operator.version,
                "random": operator.random,
                "summary": operator.summary,
                "description": inspect.getdoc(operator.fn),
                "inputs": inputs,
                "adds": _adds(operator),
                "parameters": parameters,
            }
        )
        return
    console = output()
    console.print(f"{operator.name}  ({operator.shape}, version {operator.version}): {operator.summary}\n", soft_wrap=True)
    if inputs:
        print_table(inputs, {"name": "input", "kind": "kind", "requires": "requires", "optional": "optional"})
    if parameters:
        print_table(parameters, {"name": "parameter", "type": "type", "default": "default", "description": "meaning"})
    adds = _adds(operator)
    console.print("adds columns that depend on the parameters" if adds is None else f"adds {', '.join(adds) or 'no column'}", soft_wrap=True)


def _parameters(operator: "Operator") -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "type": " ".join([_type(field.annotation), *_bounds(field.metadata)]),
            "required": field.is_required(),
            "default": "required" if field.is_required() else _text(field.get_default(call_default_factory=True)),
            "description": field.description or "",
        }
        for name, field in operator.params.model_fields.items()
    ]


def _input(operator: "Operator", name: str) -> dict[str, Any]:
    from pydantic import ValidationError

    declared = operator.inputs[name]
    requires: str | list[str]
    try:
        requires = declared.columns(operator.params())
    except ValidationError:  # a parameter has no default, and the columns may depend on it
        requires = "depends on the parameters" if callable(declared.requires) else list(declared.requires)
    return {"name": "any name" if name == "*" else name, "kind": declared.kind, "requires": requires, "optional": declared.optional}


def _adds(operator: "Operator") -> list[str] | None:
    return None if callable(operator.adds) else list(operator.adds)


def _type(annotation: Any) -> str:
    """An annotation as people write it, without what pydantic needs beside the type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join(map(_type, arguments))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_type, arguments))}]"
    if annotation in (None, NoneType):
        return "none"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _bounds(constraints: list[Any]) -> list[str]:
    declared = ((sign, getattr(constraint, bound, None)) for constraint in constraints for bound, sign in BOUNDS.items())
    return [f"{sign} {value}" for sign, value in declared if value is not None]


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
