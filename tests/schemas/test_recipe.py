"""schemas.recipe: a recipe as read, overrides, secrets, and every fault at once with its way out."""

from pathlib import Path

import pytest

from schemas.checks import Between, Equals, In, NotNull, RowCount, Unique
from schemas.recipe import Edge, Recipe, examine, parse_recipe, read_recipe
from stillroom.errors import InputError, RecipeErrors

PHOTOS = """\
name: photos
seed: 7
stages:
  raw:     {op: ingest.image_folder, path: "${env:PHOTOS}", id: content}
  split:   {op: table.split, from: raw, validation: 5%, test: 10%}
  clean:   {op: filter.near_duplicates, from: split.train, seed: 3}
  extra:   {op: table.mix, from: [clean, split.train], weights: [1, 2]}
  reinforced:
    op: reinforce.teacher
    from: {samples: clean, teacher: [one, two], check_on: split.validation}
    views: {count: 16, policy: [identity, crop, flip]}
    run: {retries: 0, device: cuda:1}
publish:
  splits: {train: reinforced, validation: split.validation, test: split.test}
  require:
    max_rejects: 1%
    checks:
      - {column: label, between: [0, 9]}
      - {column: width, equals: 8}
      - {column: x, not_null: true}
      - {column: s, in: [a, b]}
      - {column: x, unique: true}
      - {rows: {min: 100, max: 500}}
  promote: {min_gain_over_control: 0, min_gain_over_current: -0.5%}
"""


@pytest.fixture
def photos(monkeypatch) -> Recipe:
    monkeypatch.setenv("PHOTOS", "/data/photos-7f3a")
    return parse_recipe(PHOTOS, Path("/here"))


def faults(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeErrors) as raised:
        parse_recipe(text, Path("/here"), overrides)
    return str(raised.value).splitlines()


def stage(entries: str) -> str:
    return f"name: photos\nstages:\n  raw: {{op: ingest.digits}}\n  core: {{{entries}}}\n"


def test_reads_names_seeds_and_where_it_stands(photos):
    assert (photos.name, photos.seed, photos.base, photos.text) == ("photos", 7, Path("/here"), PHOTOS)
    assert [(name, stage.seed, stage.line) for name, stage in photos.stages.items()] == [
        ("raw", None, 4), ("split", None, 5), ("clean", 3, 6), ("extra", None, 7), ("reinforced", None, 8),
    ]  # fmt: skip


def test_reads_every_way_to_write_from(photos):
    assert (photos.stages["raw"].inputs, photos.stages["raw"].bare) == ({}, False)
    assert (photos.stages["clean"].inputs, photos.stages["clean"].bare) == ({"": [Edge(stage="split", split="train")]}, True)
    assert photos.stages["extra"].inputs == {"0": [Edge(stage="clean")], "1": [Edge(stage="split", split="train")]}
    assert photos.stages["reinforced"].inputs == {
        "samples": [Edge(stage="clean")],
        "teacher": [Edge(stage="one"), Edge(stage="two")],
        "check_on": [Edge(stage="split", split="validation")],
    }


def test_parameters_are_all_that_is_not_reserved(photos):
    assert photos.stages["split"].params == {"validation": "5%", "test": "10%"}
    assert photos.stages["reinforced"].params == {"views": {"count": 16, "policy": ["identity", "crop", "flip"]}}
    assert photos.stages["reinforced"].run.model_dump() == {"retries": 0, "device": "cuda:1"}


def test_reads_publish_with_its_gates(photos):
    publish = photos.publish
    assert {split: str(edge) for split, edge in publish.splits.items()} == {"train": "reinforced", "validation": "split.validation", "test": "split.test"}
    assert (publish.require.max_leaks, publish.require.max_rejects) == (0, 0.01)
    assert (publish.promote.min_gain_over_control, publish.promote.min_gain_over_current) == (0, -0.005)
    assert [type(check) for check in publish.require.checks] == [Between, Equals, NotNull, In, Unique, RowCount]
    assert publish.require.checks[3].values == ("a", "b")


def test_a_secret_is_filled_for_use_and_stands_in_nothing_that_is_shown(photos):
    assert photos.stages["raw"].params["path"] == "/data/photos-7f3a"
    assert photos.stages["raw"].written["path"] == "${env:PHOTOS}"
    assert photos.secrets == {"/data/photos-7f3a"}
    assert "photos-7f3a" not in repr(photos) + photos.text


def test_a_secret_stands_in_no_error(monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret-token")
    assert "s3cret-token" not in "\n".join(faults(stage('op: a.b, key: "${env:TOKEN}", from: 3, Seed: "${env:TOKEN}"')))


def test_an_error_can_name_the_line_of_any_entry(photos):
    assert photos.stages["reinforced"].at("views.count") == "views.count (line 11)"
    assert photos.stages["reinforced"].at("views.kount") == "views.kount (line 11)"
    assert photos.stages["clean"].at("max_distance") == "max_distance (line 6)"
    assert photos.at("publish.splits.test") == "publish.splits.test (line 14)"


def test_overrides_mirror_the_text():
    recipe = parse_recipe(
        stage("op: prune.random, from: raw, keep: 30%"), Path("/here"),
        ["core.keep=20%", "core.views.count=3", "core.from=raw.train", "seed=9", "publish.splits.train=core", "publish.require.max_rejects=5%"],
    )  # fmt: skip
    core = recipe.stages["core"]
    assert core.params == {"keep": "20%", "views": {"count": 3}}
    assert core.inputs[""] == [Edge(stage="raw", split="train")]
    assert (recipe.seed, recipe.publish.require.max_rejects) == (9, 0.05)
    assert core.at("keep") == "keep (--set)"
    assert "30%" in recipe.text


def test_an_override_of_an_alias_changes_one_place():
    text = "name: x\nstages:\n  a: {op: a.b, views: &v {count: 3}}\n  b: {op: a.b, views: *v}\n"
    stages = parse_recipe(text, Path("/here"), ["b.views.count=5"]).stages
    assert (stages["a"].params["views"]["count"], stages["b"].params["views"]["count"]) == (3, 5)


def test_says_what_is_wrong_with_an_override():
    assert faults(stage("op: a.b, keep: 3"), "cor.keep=1", "core.keep", "core=1", "core.keep.at=1", "core.keep=[", "publish.splits.trian=core") == [
        "recipe: --set cor.keep: the recipe has no stage 'cor'; did you mean 'core'?",
        "recipe: --set core.keep: isn't an entry and a value; write --set stage.entry=value",
        "stage 'core': --set core: names a whole stage; name an entry of it: --set core.entry=value",
        "stage 'core': --set core.keep.at: 'core.keep' isn't a mapping; set the entry above it as a whole",
        "recipe: --set core.keep: isn't YAML: expected the node content, but found '<stream end>'",
        "recipe: publish.splits.trian (--set): unknown name; did you mean 'train'?",
    ]


def test_reports_every_fault_at_once_with_line_and_way_out(monkeypatch):
    monkeypatch.delenv("NOPE", raising=False)
    text = """\
name: Photos
sed: 7
stages:
  raw: {opp: ingest.digits, path: "${env:NOPE}", run: {retrys: 3, retries: x}}
  spl it: {op: table.split, from: raw.trian, test: 10%, test: 3}
  core: {op: 3, from: {x: [a.b.c, 3]}, seed: -1, From: raw}
publish:
  splits: {trian: core, test: split.tes}
  require: {max_leak: 0, max_rejects: 300%}
  promot: {}
"""
    assert faults(text) == [
        "stage 'spl it': test (line 5): is written twice, first on line 5; keep one",
        "recipe: sed (line 2): unknown word; did you mean 'seed'?",
        "recipe: name (line 1): 'Photos' isn't a name; names are a letter or digit, then letters, digits, dashes, underscores: all lower case, at most 64",
        "stage 'raw': path (line 4): the environment has no 'NOPE'; set it first: export NOPE=…",
        "stage 'raw': op (line 4): is missing; did you mean it by 'opp'?",
        "stage 'raw': run.retries (line 4): should be a valid integer, not 'x'",
        "stage 'raw': run.retrys (line 4): unknown word; did you mean 'retries'?",
        "stage 'spl it': line 5: 'spl it' isn't a name; names are a letter or digit, then letters, digits, dashes, underscores: all lower case, at most 64",
        "stage 'spl it': from (line 5): 'trian' of 'raw.trian' isn't a split; did you mean 'train'?",
        "stage 'core': from.x (line 6): 'b.c' of 'a.b.c' isn't a split; known: train, validation, test",
        "stage 'core': from.x (line 6): should name a stage, not 3",
        "stage 'core': From (line 6): unknown word; did you mean 'from'?",
        "stage 'core': op (line 6): should name an operator, not 3; `stillroom ops` lists them",
        "stage 'core': seed (line 6): should be a whole number from 0 to 2^63 - 1, not -1",
        "recipe: publish.splits.trian (line 8): unknown name; did you mean 'train'?",
        "recipe: publish.splits.test (line 8): 'tes' of 'split.tes' isn't a split; did you mean 'test'?",
        "recipe: publish.require.max_rejects (line 9): should be less than or equal to 1, not '300%'",
        "recipe: publish.require.max_leak (line 9): unknown word; did you mean 'max_leaks'?",
        "recipe: publish.promot (line 10): unknown word; did you mean 'promote'?",
    ]


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        ("{column: x, betwen: [0, 9]}", ": a check is 'column' with one of between, equals, not_null, in, unique, or 'rows'"),
        ("{column: x, unique: true, not_null: true}", ": a check is 'column' with one of between, equals, not_null, in, unique, or 'rows'"),
        ("{column: x, between: [9, 0]}", ": 9 is above 0, so no value fits"),
        ("{column: x, between: [null, null]}", ": both ends are open, so nothing would be checked"),
        ("{colum: x, unique: true}", ".column: is missing"),
        ("{column: x, unique: false}", ".unique: should be True, not False"),
        ("{column: x, in: []}", ".in: has 0 entries, at least 1 are needed"),
        ("{rows: {mn: 3}}", ".rows.mn: unknown word; did you mean 'min'?"),
        ("{rows: {min: 3, max: 2}}", ".rows: min 3 is above max 2, so no table fits"),
    ],
)
def test_says_what_is_wrong_with_a_check(check, problem):
    text = stage("op: a.b") + f"publish: {{splits: {{train: core}}, require: {{checks: [{check}]}}}}\n"
    assert faults(text)[0].replace(" (line 5)", "") == f"recipe: publish.require.checks.0{problem}"


@pytest.mark.parametrize("name", ["a.b", "A", "ä", "-a", "a--b", "a/b", "..", "", "a" * 65, "publish"])
def test_refuses_names_that_could_not_be_tables_or_tags(name):
    assert any(f"stage '{name}'" in fault or "''" in fault for fault in faults(f"name: x\nstages: {{'{name}': {{op: a.b}}}}"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "recipe: line 1: is empty; a recipe begins with 'name:' and 'stages:'"),
        ("- a", "recipe: line 1: holds no mapping; a recipe begins with 'name:' and 'stages:'"),
        ("name: x", "recipe: stages: is missing; name at least one stage under it"),
        ("name: x\nstages: {}", "recipe: stages (line 2): is empty; name at least one stage under it"),
        ("name: x\nstages: {a: b}", "stage 'a': line 2: should be a mapping, not 'b'; write a: {op: …, from: …}"),
        (stage("op: a.b, from: []"), "stage 'core': from (line 4): names no stage; write from: clean, or from: {samples: clean}"),
        (stage("op: !!python/object/apply:os.system [ls]"),
         "stage 'core': op (line 4): the tag '!!python/object/apply:os.system' is refused; nothing in a recipe is executed; "
         "write the plain value, in quotes where it is text"),
    ],
)  # fmt: skip
def test_one_fault_is_one_line(text, problem):
    assert faults(text) == [problem]


def test_examine_gives_what_could_be_read_beside_the_faults():
    recipe, found = examine(stage("op: a.b, form: raw") + "sed: 3\npublish: {}", Path("/here"))
    assert [str(fault) for fault in found] == ["recipe: sed (line 5): unknown word; did you mean 'seed'?", "recipe: publish.splits (line 6): is missing"]
    assert recipe.stages["core"].params == {"form": "raw"}
    assert recipe.publish is None


def test_reads_a_file_whose_paths_are_relative_to_it(tmp_path):
    (tmp_path / "größe.yaml").write_bytes(b"\xef\xbb\xbf" + stage("op: a.b").encode())
    assert read_recipe(tmp_path / "größe.yaml").base == tmp_path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such recipe; did you mean 'photos.yaml'?"),
        (b"\xff\xfe", "isn't text in UTF-8: byte 0; save it as UTF-8"),
        (b"a" * 1_000_001, "has 1,000,001 bytes, a recipe at most 1,000,000; a recipe names files, it doesn't hold them"),
    ],
)
def test_says_why_a_file_cannot_be_read(tmp_path, content, problem):
    (tmp_path / "photos.yaml").write_text(stage("op: a.b"))
    path = tmp_path / "photo.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_recipe(path)
    assert str(raised.value) == f"{path}: {problem}"
