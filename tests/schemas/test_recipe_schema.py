"""schemas.recipe_schema: editors accept what stillroom accepts, and mark typos where they are."""

from dataclasses import replace
from pathlib import Path

import jsonschema
import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

from schemas.recipe_schema import recipe_json_schema
from schemas.yaml import read_yaml
from stillroom import registry
from stillroom.operators import Input, Operator, Params, Rows, SourcePath, measure, row, select, source


class FolderParams(Params):
    path: SourcePath = Field(description="The folder.")
    shard_rows: int = Field(default=10, gt=0, description="Rows a unit.")


class Views(BaseModel):
    model_config = {"extra": "forbid"}
    count: int = Field(description="Views a sample.")


class ReinforceParams(Params):
    views: Views = Field(description="Which views.")
    top_k: int | None = Field(default=None, description="Probabilities kept.")


def folder(unit, params: FolderParams):
    """Read a folder."""


def reinforce(batch, params: ReinforceParams) -> Rows:
    """Label views."""


def mix(frames):
    """Join tables."""


def proof(unit):
    """Judge."""


class StudentParams(Params):
    steps: int = Field(description="Steps.")
    labels: str = Field(default="hard", description="Set by the arm.")


def student(unit, params: StudentParams):
    """Train."""


def operators() -> list[Operator]:
    reinforced = {"samples": Input(), "teacher": Input(kind="model"), "check_on": Input(optional=True)}
    return [
        replace(source(version=1, units=list, adds={})(folder), name="ingest.folder"),
        replace(row(version=1, adds={"x": pa.int64()}, inputs=reinforced)(reinforce), name="reinforce.it"),
        replace(select(version=1, inputs={"*": Input()})(mix), name="table.mix"),
        replace(select(version=1)(mix), name="prune.one"),
        replace(measure(version=1, units=list, adds={}, inputs={"test": Input(), "*": Input(kind="model")})(proof), name="evaluate.student"),
        replace(measure(version=1, units=list, adds={}, inputs={"test": Input()}, hidden=True)(student), name="train.student"),
    ]


SCHEMA = recipe_json_schema(operators())
RECIPE = """\
name: photos
seed: 7
stages:
  raw: {op: ingest.folder, path: "${env:PHOTOS}", shard_rows: "${env:ROWS}", run: {retries: 0}}
  both: {op: table.mix, from: [raw, raw.train], seed: 3}
  named: {op: table.mix, from: {a: raw, b: both.test}}
  small: {op: prune.one, from: both}
  small_too: {op: prune.one, from: {samples: both}}
  views:
    op: reinforce.it
    from: {samples: small, teacher: raw, check_on: both.validation}
    views: {count: 3}
  in_order: {op: reinforce.it, from: [small, raw], views: {count: 3}}
  proof:
    op: evaluate.student
    from: {candidate: views, raw: small, tune: both.validation, test: both.test}
    control: {in_place_of: small, pool: both.train}
    ablations: [small]
    student: {steps: 400}
publish:
  splits: {train: views, test: both.test}
  require: {max_rejects: 1%, checks: [{column: label, between: [0, 9]}, {column: s, in: [a, 1]}, {rows: {min: 3}}]}
  promote: {min_gain_over_control: 0, min_gain_over_current: -0.5%}
"""


def complaints(text: str, schema: dict = SCHEMA) -> set[str]:
    validator = jsonschema.Draft202012Validator(schema)
    return {f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(read_yaml(text).value)}


def test_the_schema_is_valid_itself():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_accepts_a_right_recipe():
    assert complaints(RECIPE) == set()


@pytest.mark.parametrize(
    ("right", "wrong", "where"),
    [
        ("name: photos", "name: Photos", "name: "),
        ("seed: 7", "sed: 7", ": Additional properties are not allowed ('sed' was unexpected)"),
        ("op: ingest.folder", "op: ingest.foldr", "stages.raw.op: 'ingest.foldr' is not one of"),
        ("op: ingest.folder", "op: train.student", "stages.raw.op: 'train.student' is not one of"),
        ('path: "${env:PHOTOS}", ', "", "stages.raw: 'path' is a required property"),
        ('"${env:ROWS}"', "some", "stages.raw.shard_rows: "),
        ("shard_rows", "shard_row", "stages.raw: Additional properties are not allowed ('shard_row' was unexpected)"),
        ("op: ingest.folder,", "op: ingest.folder, from: raw,", "stages.raw: Additional properties are not allowed ('from' was unexpected)"),
        ("retries", "retry", "stages.raw.run: Additional properties are not allowed ('retry' was unexpected)"),
        ("seed: 3", "seed: -3", "stages.both.seed: -3 is less than the minimum of 0"),
        ("from: both}", "form: both}", "stages.small: 'from' is a required property"),
        ("from: both}", "from: [both, raw]}", "stages.small.from: "),
        ("[small, raw]", "[small]", "stages.in_order.from: "),
        ("candidate: views", "candidat: views", "stages.proof.from: 'candidate' is a required property"),
        ("in_place_of", "inplace_of", "stages.proof.control: 'in_place_of' is a required property"),
        ("{steps: 400}", "{stepz: 400}", "stages.proof.student: 'steps' is a required property"),
        ("{steps: 400}", "{steps: 400, labels: hard}", "stages.proof.student: Additional properties are not allowed ('labels' was unexpected)"),
        ("from: {samples: both}", "from: {sample: both}", "stages.small_too.from: "),
        ("raw.train]", "raw.trian]", "stages.both.from: "),
        ("teacher: raw, ", "", "stages.views.from: "),
        ("{count: 3}", "{cuont: 3}", "stages.views.views: "),
        ("splits: {train", "splits: {trian", "publish.splits: 'trian' is not one of"),
        ("max_rejects: 1%", "max_rejects: some", "publish.require.max_rejects: "),
        ("max_rejects", "max_reject", "publish.require: Additional properties are not allowed ('max_reject' was unexpected)"),
        ("between: [0, 9]", "betwen: [0, 9]", "publish.require.checks.0: "),
    ],
)
def test_marks_a_typo_where_it_is(right, wrong, where):
    assert right in RECIPE
    found = complaints(RECIPE.replace(right, wrong, 1))
    assert any(complaint.startswith(where) for complaint in found), found


def test_describes_operators_and_parameters():
    properties = SCHEMA["$defs"]["ingest.folder"]["properties"]
    assert (properties["op"]["description"], properties["path"]["description"], properties["shard_rows"]["default"]) == ("Read a folder.", "The folder.", 10)


def test_accepts_the_recipes_that_ship():
    schema = recipe_json_schema(registry.load(name) for name in registry.operators())
    jsonschema.Draft202012Validator.check_schema(schema)
    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert complaints(recipe.read_text(encoding="utf-8"), schema) == set()
