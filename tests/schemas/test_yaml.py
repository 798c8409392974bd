"""schemas.yaml: what is read as written, what is refused, and that refusing is quick."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read_yaml


def problems(text: str) -> list[str]:
    return [f"line {fault.line}: {fault.problem}" for fault in read_yaml(text).faults]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("true", True), ("FALSE", False),
        ("012", "012"), ("-07", "-07"), ("00.5", "00.5"), ("0", 0), ("-3", -3), ("0x1F", 31), ("0o17", 15), ("1_000", "1_000"),
        ("1e3", 1000.0), ("1.", 1.0), (".5", 0.5), ("-0.5", -0.5), ("1e400", "1e400"),
        ("20%", "20%"), ("-0.5%", "-0.5%"), ("2026-01-01", "2026-01-01"), ("12:30", "12:30"), ("~", None), ("", None),
        ("'12'", "12"), ('"true"', "true"), ("${env:TOKEN}", "${env:TOKEN}"),
    ],
)  # fmt: skip
def test_reads_scalars_as_yaml_1_2_and_keeps_leading_zeros(written, value):
    read = read_yaml(f"a: {written}").value["a"]
    assert (read, type(read)) == (value, type(value))


def test_the_version_directive_does_not_bring_back_yaml_1_1():
    assert read_yaml("%YAML 1.1\n---\na: no").value == {"a": "no"}


def test_an_integer_too_long_for_python_stays_text():
    assert read_yaml("a: " + "9" * 5000).value == {"a": "9" * 5000}


def test_keys_are_strings_as_written():
    assert read_yaml("{0: cat, 07: dog, on: x, ~: y}").value == {"0": "cat", "07": "dog", "on": "x", "~": "y"}


def test_knows_the_line_of_every_entry():
    document = read_yaml("stages:\n  core:\n    op: a.b\n    views: {count: 3,\n            kinds: [x,\n  y]}\n")
    assert document.lines == {
        (): 1, ("stages",): 1, ("stages", "core"): 2, ("stages", "core", "op"): 3, ("stages", "core", "views"): 4,
        ("stages", "core", "views", "count"): 4, ("stages", "core", "views", "kinds"): 5,
        ("stages", "core", "views", "kinds", "0"): 5, ("stages", "core", "views", "kinds", "1"): 6,
    }  # fmt: skip


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!str", "!custom", "!<tag:yaml.org,2002:set>"])
def test_refuses_every_tag(tag):
    document = read_yaml(f"a: 1\nb: {tag} [echo]")
    assert document.value is None
    assert [(fault.line, "is refused" in fault.problem) for fault in document.faults] == [(2, True)]


def test_a_tag_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    document = read_yaml(f"a: !!python/object/apply:os.system ['touch {mark}']")
    assert document.faults[0].problem == "the tag '!!python/object/apply:os.system' is refused"
    assert not mark.exists()


def test_names_every_duplicate_key_and_its_first_line():
    assert problems("a: 1\nb: {c: 1,\n    c: 2}\na: 3") == ["line 3: is written twice, first on line 2", "line 4: is written twice, first on line 1"]


def test_an_alias_shares_a_value():
    assert read_yaml("a: &x {b: [1, 2]}\nc: *x").value == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}


def test_a_bomb_of_aliases_is_refused_before_it_grows():
    lines = ["a: &a [lol]"] + [f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]" for n in range(10)]
    assert problems("\n".join(lines)) == [f"line 5: holds more than {MAX_VALUES:,} values, aliases included"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: *b", "line 1: the alias '*b' names no anchor before it"),
        ("a: &a [*a]", "line 1: the alias '*a' names no anchor before it"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins"),
        ("? [a, b]\n: 1", "line 1: a key must be a word or a number"),
        ("x: &x {a: 1}\ny:\n  <<: *x", "line 3: '<<' isn't YAML 1.2"),
        ("a: [1,", "line 1: isn't YAML: expected the node content, but found '<stream end>'"),
        ("a: b: c", "line 1: isn't YAML: mapping values are not allowed here"),
        ("a:\n\t- b", "line 2: isn't YAML: found character '\\t' that cannot start any token"),
        ("a: \x00", "line 1: isn't YAML: unacceptable character #x0000: special characters are not allowed"),
        ("[" * 100_000, f"line 1: is nested deeper than {MAX_DEPTH} levels"),
        ("a" * (MAX_BYTES + 1), f"line 1: is larger than {MAX_BYTES:,} bytes"),
    ],
)
def test_says_what_is_wrong_and_where(text, problem):
    assert problems(text) == [problem]


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%#?,\n \t0", max_size=40))
def test_never_raises(text):
    document = read_yaml(text)
    assert document.value is None or not any("isn't YAML:" in fault.problem for fault in document.faults)
