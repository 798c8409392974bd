"""Sealed objects: what was sealed comes back, and not a byte of it can change unseen."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import StoreError
from stillroom.sealed import is_whole_text, seal, seal_text, unseal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
VALUES = st.dictionaries(st.text(max_size=6).filter(lambda name: name != "checksum"), JSON, min_size=1, max_size=4)


@given(VALUES)
def test_what_was_sealed_comes_back_and_is_json_for_others(value):
    raw = seal(value)
    assert unseal(raw, "k") == value
    assert {name: item for name, item in json.loads(raw).items() if name != "checksum"} == value


@given(VALUES, st.data())
def test_no_byte_changes_unseen(value, data):
    raw = seal(value)
    place, bit = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 7))
    with pytest.raises(StoreError, match="'k': (is damaged|has no checksum)"):
        unseal(raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :], "k")
    with pytest.raises(StoreError):
        unseal(raw[:place], "k")


@pytest.mark.parametrize("value", [{}, {"checksum": "mine"}, {"x": float("nan")}])
def test_what_cannot_be_sealed_is_refused(value):
    with pytest.raises(ValueError):
        seal(value)


def test_a_page_is_whole_or_not():
    page = seal_text("<p>naïve</p>\n")
    assert is_whole_text(page)
    assert page.startswith("<p>naïve</p>\n<!-- checksum ".encode())
    assert not any(is_whole_text(bad) for bad in (page[:-2], page.replace(b"p", b"q"), b"", b"<p></p>"))
