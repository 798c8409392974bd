"""The JSON Schema of recipes, made from the operators, so that editors complete and check them."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from schemas.recipe import EDGE_SCHEMA, NAME_PATTERN, RESERVED, Publish, Run
from stillroom.operators import ANY, Input, Operator

__all__ = ["recipe_json_schema"]

Schema = dict[str, Any]

PROOF, STUDENT = "evaluate.student", "train.student"
_PROOF_INPUTS = {
    "candidate": "The samples that should be worth more.",
    "raw": "All samples, as they were.",
    "tune": "What learning rates are chosen on: split.validation.",
    "test": "What is judged on, once: split.test.",
}
# Anything may come from the environment, so a number may be text that says from where.
_FROM_ENVIRONMENT = {"type": "string", "pattern": r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}"}
_SEED = {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**63}


def recipe_json_schema(operators: Iterable[Operator]) -> Schema:
    """The JSON Schema (2020-12) of recipes that use these operators; hidden ones aren't offered.

    It knows words, types, bounds and the names of inputs. Whether stages on edges exist, splits may
    go where they go, and columns are there, is for `stillroom plan`.
    """
    operators = list(operators)
    shown = sorted((operator for operator in operators if not operator.hidden), key=lambda operator: operator.name)
    defs: Schema = {"edge": EDGE_SCHEMA, "stage": _stage(shown)}
    defs["run"] = _model(Run, "run", defs)
    defs["publish"] = _model(Publish, "publish", defs)
    student = next((operator for operator in operators if operator.name == STUDENT), None)
    for operator in shown:
        defs[operator.name] = _proof(operator, student, defs) if operator.name == PROOF else _operator(operator, defs)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A stillroom recipe",
        "type": "object",
        "required": ["name", "stages"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "pattern": f"^{NAME_PATTERN}$", "description": "Snapshots are called by it: photos gives photos@1, photos@2 …"},
            "seed": {**_SEED, "default": 0, "description": "What every random choice is made from; a stage may have its own."},
            "stages": {
                "type": "object",
                "description": "The stages by name, in any order.",
                "minProperties": 1,
                "propertyNames": {"pattern": f"^{NAME_PATTERN}$"},
                "additionalProperties": {"$ref": "#/$defs/stage"},
            },
            "publish": {"$ref": "#/$defs/publish", "description": "What becomes a snapshot, and the gates before it."},
        },
        "$defs": defs,
    }


def _stage(operators: list[Operator]) -> Schema:
    """A stage: `op` chooses which parameters and inputs stand beside it."""
    names = [operator.name for operator in operators]
    return {
        "type": "object",
        "required": ["op"],
        "properties": {"op": {"enum": names, "enumDescriptions": [operator.summary for operator in operators], "description": "The operator."}},
        # if-then, not oneOf: a typo is then reported as itself, not as a misfit to every operator.
        "allOf": [{"if": {"properties": {"op": {"const": name}}, "required": ["op"]}, "then": {"$ref": f"#/$defs/{name}"}} for name in names],
    }


def _operator(operator: Operator, defs: Schema) -> Schema:
    """The schema of a stage that runs this operator: its parameters flat beside the reserved words."""
    params = _model(operator.params, operator.name, defs)
    from_ = _from(operator.inputs)
    properties: Schema = {
        "op": {"const": operator.name, "description": operator.summary},
        **({"from": from_} if from_ else {}),
        "seed": {**_SEED, "description": "A seed of this stage's own; left out, the recipe's."},
        "run": {"$ref": "#/$defs/run", "description": "How the stage runs: nothing that changes what it makes."},
    } | {name: _or_environment(schema) for name, schema in params.get("properties", {}).items() if name not in RESERVED}
    needs_input = from_ and any(not declared.optional for declared in operator.inputs.values())
    return {
        "type": "object",
        "description": operator.summary,
        "properties": properties,
        "required": ["op", *(["from"] if needs_input else []), *params.get("required", [])],
        "additionalProperties": False,
    }


def _from(inputs: Mapping[str, Input]) -> Schema | None:
    """The ways to write `from`: a stage, a list in the order of the inputs, inputs by name; None for no inputs."""
    if not inputs:
        return None
    named = {name: declared for name, declared in inputs.items() if name != ANY}
    required = [name for name, declared in named.items() if not declared.optional]
    listed: Schema = {"type": "array", "items": {"$ref": "#/$defs/edge"}, "minItems": max(1, len(required))}
    by_name = {
        "type": "object",
        "minProperties": 1,
        "required": required,
        "properties": {name: _named_edge(_input_description(declared)) for name, declared in named.items()},
        "additionalProperties": {"$ref": "#/$defs/edge"} if ANY in inputs else False,
    }
    if ANY not in inputs:
        listed["maxItems"] = len(named)
    ways: list[Schema] = [{"$ref": "#/$defs/edge"}] if len(required) <= 1 else []
    return {"anyOf": [*ways, listed, by_name], "description": "The stages that this one reads."}


def _proof(operator: Operator, student: Operator | None, defs: Schema) -> Schema:
    """The schema of a proof: a recipe writes it in its own way, and the resolver makes a student an arm of it."""
    schema = _operator(operator, defs)
    trained: Schema = _model(student.params, student.name, defs) if student else {"type": "object"}
    trained.get("properties", {}).pop("labels", None)  # each arm has its own
    stage = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
    schema["properties"] |= {
        "from": {
            "type": "object",
            "description": "What is judged, against what, tuned and judged on what.",
            "required": list(_PROOF_INPUTS),
            "properties": {name: _named_edge(meaning) for name, meaning in _PROOF_INPUTS.items()},
            "additionalProperties": False,
        },
        "control": {
            "type": "object",
            "description": "An arm in which a random choice of equal size stands in for a stage.",
            "required": ["in_place_of"],
            "properties": {
                "in_place_of": {**stage, "description": "The stage that chooses."},
                "pool": _named_edge("What is chosen from; left out, what that stage reads."),
            },
            "additionalProperties": False,
        },
        "ablations": {"description": "Stages to leave out, an arm each.", "anyOf": [stage, {"type": "array", "items": stage}]},
        "student": {**trained, "description": "The student, the same on every arm."},
    }
    return schema


def _named_edge(description: str) -> Schema:
    return {"$ref": "#/$defs/edge", "description": description}


def _input_description(declared: Input) -> str:
    what = {"samples": "A stage that gives samples", "model": "A stage that gives models", "metrics": "A stage that gives metrics"}[declared.kind]
    return what + (", if any." if declared.optional else ".")


def _or_environment(schema: Schema) -> Schema:
    """A parameter's schema that also takes `${env:NAME}`, where it doesn't take all text anyway."""
    if schema.get("type") == "string" and not {"enum", "pattern", "const"} & schema.keys():
        return schema
    outside: Schema = {key: schema[key] for key in ("description", "default", "title") if key in schema}
    inside = {key: value for key, value in schema.items() if key not in outside}
    return {**outside, "anyOf": [*(inside["anyOf"] if set(inside) == {"anyOf"} else [inside]), _FROM_ENVIRONMENT]}


def _model(model: type[BaseModel], prefix: str, defs: Schema) -> Schema:
    """A model's JSON Schema; those inside it go to `defs` under names of their own."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}:{{model}}")
    for name, inner in schema.pop("$defs", {}).items():
        defs[f"{prefix}:{name}"] = inner
    return schema
