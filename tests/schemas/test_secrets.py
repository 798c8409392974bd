"""schemas.secrets: what is filled in, and that it can be taken out of any text again."""

import json

from hypothesis import given
from hypothesis import strategies as st

from schemas.secrets import fill, redact


def test_fills_references_at_any_depth_and_says_which_values_are_secret():
    filled, secrets, faults = fill({"url": ["https://${env:HOST}/${env:KEY}", 3], "plain": "x"}, {"HOST": "h.example", "KEY": "s3cret"})
    assert filled == {"url": ["https://h.example/s3cret", 3], "plain": "x"}
    assert (secrets, faults) == ({"h.example", "s3cret"}, [])


def test_names_a_variable_that_is_not_set_and_a_reference_that_is_none():
    filled, _, faults = fill("${env:NOPE} ${TOKEN}", {})
    assert filled == "${env:NOPE} ${TOKEN}"
    assert faults == [("the environment has no 'NOPE'", "set it first: export NOPE=…"), ("'${TOKEN}' isn't a reference", "write ${env:NAME}")]


def test_a_value_is_not_filled_twice():
    assert fill("${env:A}", {"A": "${env:B}", "B": "b"})[0] == "${env:B}"


def test_redacts_the_longest_first():
    assert redact("token=abcd-efgh, prefix=abcd", {"abcd", "abcd-efgh"}) == "token=***, prefix=***"


def test_leaves_values_too_short_to_be_told_from_text():
    assert redact("seed 1 of 10", {"1", ""}) == "seed 1 of 10"


@given(st.text(min_size=4).filter(lambda secret: "***" not in secret and not set(secret) <= set('{"key: }*')))
def test_no_secret_is_left_in_plain_text_or_json(secret):
    for text in (f"<{secret}>", json.dumps({"key": secret}), json.dumps({"key": secret}, ensure_ascii=False)):
        assert secret not in redact(text, {secret})
