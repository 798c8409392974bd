"""The page of a comparison: pictures of what came, went and changed; nothing loaded, everything escaped."""

import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.history.diff import diff
from flows.report.diff import render_diff
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.snapshots import Snapshot
from stillroom.stored import hashes, with_hashes
from stillroom.stores import Store
from stillroom.tables import MemoryTable

NAMES = ["cat", "<b>dog</b>"]


class Held(Snapshot):
    """A snapshot whose table is in memory."""

    def __init__(self, rows: list[dict[str, Any]], number: int, recipe: str = "") -> None:
        names = [name for name in rows[0] if name not in ("sample_id", "image", "label", "split")]
        kinds = [pa.field(name, pa.array([row[name] for row in rows]).type) for name in names]
        schema = with_hashes(pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(NAMES), pa.field("split", pa.string()), *kinds]))
        images = pa.array([row["image"] for row in rows], pa.binary())
        columns = [hashes(images) if field.name == "image_hash" else pa.array([row[field.name] for row in rows], field.type) for field in schema]
        manifest = {
            "name": "pets", "number": number, "created": "2026-11-25T04:30:00+00:00", "rows": len(rows), "digest": str(number), "stages": [], "trial": False,
            "splits": dict(Counter(row["split"] for row in rows)), "table": {}, "seed": 7, "recipe": {"text": recipe, "overrides": []},
        }  # fmt: skip
        super().__init__(Store("/nowhere"), manifest)
        self.held = MemoryTable(pa.Table.from_arrays(columns, schema=schema))

    def table(self, split: str | None = None) -> Any:
        return self.held


def row(number: int, **more: Any) -> dict[str, Any]:
    image = encode_png(np.full((8, 8, 1), number, np.uint8))
    return {"sample_id": f"{number:032x}", "image": image, "label": number % 2, "split": "train", "source": f"{number}.png", "score": number / 10, **more}


def rendered(before: list[dict[str, Any]], after: list[dict[str, Any]], *recipes: str) -> str:
    sides = Held(before, 1, *recipes[:1]), Held(after, 2, *recipes[1:])
    return render_diff(diff(*sides), *sides)


def groups(page: str) -> list[str]:
    """Titles of the groups of pictures, with the number of pictures below each."""
    found = re.findall(r'<div class="room">.*?<h3>(.*?)</h3>.*?<div class="tiles.*?">(.*?)</div>\s*</div>\s*(?=<div class="room">|</section>)', page, re.DOTALL)
    return [f"{title}: {tiles.count('<img')}" for title, tiles in found]


def test_pictures_of_each_fate_stand_under_their_title():
    before = [row(1), row(2), row(3), row(4), row(5)]
    after = [row(1), row(3, label=0), row(4, split="test"), row(5, image=encode_png(np.zeros((8, 8, 1), np.uint8))), row(6), row(7)]
    assert groups(rendered(before, after)) == ["new: 2", "gone: 1", "moved from train to test: 1", "image changed: 2", "label changed: 1"]


def test_a_number_shows_the_largest_changes_first_with_both_values():
    page = rendered([row(number) for number in range(30)], [row(number, score=number / 10 + number) for number in range(30)])
    shown = re.findall(r"<span>([\d.]+ → [\d.]+)</span>", page)
    assert (len(shown), shown[0], shown[-1]) == (20, "2.9 → 31.9", "1 → 11")


def test_the_page_loads_nothing_and_runs_nothing():
    page = rendered([row(1)], [row(1, source="<script>alert(1)</script>"), row(2, source="\0")])
    assert "<script" not in page and "\0" not in page
    assert "<b>dog" not in page and "&lt;b&gt;dog" in page
    assert set(re.findall(r'(?:src|href)="(.*?)(?:[,#"])', page)) <= {"data:image/png;base64", ""}
    assert "default-src 'none'" in page


def test_every_tag_is_closed():
    class Open(HTMLParser):
        void, stack = {"meta", "img", "br", "line", "rect", "circle", "path"}, []

        def handle_starttag(self, tag, attrs):
            if tag not in self.void:
                self.stack.append(tag)

        def handle_endtag(self, tag):
            if tag not in self.void:
                assert self.stack.pop() == tag

    parser = Open()
    parser.feed(rendered([row(1), row(2), row(3)], [row(1, label=0), row(2, split="test"), row(9)], "name: a\n", "name: b\n"))
    assert parser.stack == []


def test_the_texts_of_the_recipes_are_compared_line_by_line():
    page = rendered([row(1)], [row(1)], "name: pets\nkeep: 10%\n", "name: pets\nkeep: 20%\n")
    assert '<span class="minus">-keep: 10%</span>' in page and '<span class="plus">+keep: 20%</span>' in page
    assert 'id="text"' not in rendered([row(1)], [row(1)])


def test_a_drift_beyond_chance_is_drawn_and_others_are_counted():
    many = [row(number, width=4) for number in range(100)]
    page = rendered(many, [one | {"score": one["score"] + 20} for one in many])
    assert re.findall(r'class="drift"><h3>(\w+)', page) == ["score"]
    assert "1 other did not drift" in page


@pytest.mark.parametrize("missing", ["image", "label"])
def test_rows_without_pictures_or_labels_have_a_page_too(missing):
    before, after = ([row(number) for number in numbers] for numbers in ((1, 2), (2, 3, 4)))
    sides = [Held(rows, place) for place, rows in enumerate((before, after), start=1)]
    for side in sides:
        side.held = MemoryTable(side.held.table.drop_columns([missing, *(["image_hash"] if missing == "image" else [])]))
    page = render_diff(diff(*sides), *sides)
    assert ('id="samples"' in page, 'id="classes"' in page) == (missing != "image", missing != "label")
