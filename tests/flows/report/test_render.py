"""The whole page: it loads nothing, escapes everything, stays small, and does without a proof or labels."""

import copy
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from flows.report.render import render
from stillroom.fields import image_field
from stillroom.images import encode_png
from stillroom.tables import MemoryTable
from tests.flows.report.conftest import judged

HOSTILE = "<script>alert(1)</script>\"'><img src=https://example.org/x onerror=alert(2)>{{ 7 * 6 }}\0"
VOID = {"meta", "img", "br", "link", "input", "base"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that don't nest."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        """All text, with plain spaces, one between words."""
        return " ".join(" ".join(self.texts).split())


def rendered(build):
    return render(build.manifest, build.tables, build.removed)


def assert_loads_nothing(page, html):
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video"} & set(page.tags)
    assert not [attribute for attribute in page.attributes if attribute[1].startswith("on")]
    for _, name, value in page.attributes:
        if name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            assert value.startswith(("#", "data:image/png;base64,"))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    (policy,) = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "default-src" in value]
    assert "default-src 'none'" in policy and "img-src data:" in policy


def test_the_page_is_self_contained(build):
    html = rendered(build)
    assert_loads_nothing(Page(html), html)


def test_every_link_leads_to_a_place_on_the_page(build):
    page = Page(rendered(build))
    places = {value for _, name, value in page.attributes if name == "id"}
    links = {value.removeprefix("#") for _, name, value in page.attributes if name == "href"}
    assert links == places and "proof" in links


def test_the_first_screen_says_what_was_gained_at_what_cost(build):
    page = Page(rendered(build)).text
    first = page[: page.index("From raw data to")]
    rows = build.manifest["proof"]["arms"][0]["rows"]
    for said in (
        f"Train on 108 of {rows:,} images and 496 synthetic ones: 98.2 % [97.8, 98.6]",
        "beats its control",
        "2 min 41 s",
        "diffusion 1 min 21 s",
        "Worst classes 8 93.0 %",
    ):
        assert said in first


@pytest.mark.parametrize(("low", "high", "said"), [(-0.003, 0.013, "no gain shown"), (-0.02, -0.004, "worse than its control")])
def test_the_first_screen_is_honest_where_nothing_was_gained(build, low, high, said):
    build.manifest["proof"]["differences"][0] |= {"gain": (low + high) / 2, "low": low, "high": high}
    page = Page(rendered(build)).text
    assert said in page and "beats its control" not in page


def test_without_a_proof_a_judged_set_has_the_first_screen(build):
    build.manifest |= {"proof": None, "judged": judged()}
    build.manifest["judged"][0]["sets"]["tesla"] = "reinforced"
    page = Page(rendered(build)).text
    first = page[: page.index("From raw data to")]
    for said in (
        "beats a random choice",
        "Train on 108 of",
        "70.0 % [68.0, 72.0] test accuracy",
        "Gain in points +20.0 over random better [+19.0, +21.0] +10.0 over herding better [+9.0, +11.0]",
    ):
        assert said in first
    assert "not measured" not in first.lower()


def test_every_stage_shows_its_counts_reasons_and_pictures(build):
    html = rendered(build)
    text = Page(html).text
    for said in (
        "1 rejected",
        "scans/blank 7.png",
        "952 dropped not a medoid of its class",
        "near duplicate of …, distance …",
        "600 made",
        "teacher sees …",
        "8 views of each sample",
    ):
        assert said in text
    for gate in build.manifest["gates"]:
        assert gate["name"] in text
    for stage in build.manifest["stages"]:
        assert stage["fingerprint"] in text and stage["digest"] in text
    assert "in_place_of: core" in text
    # kept rows and up to ten of each group of leavers, a seventh dropped twin fewer; views and their samples
    pictures = [20 + 0, 20 + 7, 20 + 10, 20, 20 + 10 + 10, 20]
    assert html.count("<img") == sum(pictures) + 6 * (1 + 5)


def test_the_same_build_gives_the_same_page(build):
    assert rendered(build) == rendered(build)


def test_a_text_from_outside_is_never_markup(build, digits_tables):
    manifest = build.manifest
    hostile = {name: table for name, table in digits_tables.tables.items()}
    for name, table in hostile.items():
        for column in ("source", "label_name"):
            table = table.set_column(table.schema.names.index(column), column, pa.array([f"{HOSTILE}{row % 3}" for row in range(table.num_rows)]))
        hostile[name] = table
    gone = {
        name: table.set_column(2, "reason", pa.array([HOSTILE] * table.num_rows)).set_column(1, "source", pa.array([HOSTILE] * table.num_rows))
        for name, table in digits_tables.removed.items()
    }
    manifest |= {"name": HOSTILE, "created": HOSTILE, "digest": HOSTILE}
    manifest["recipe"] |= {"path": HOSTILE, "overrides": [HOSTILE], "text": manifest["recipe"]["text"] + HOSTILE}
    manifest["environment"]["packages"][HOSTILE] = HOSTILE
    manifest["gates"][0] |= {"ok": False, "name": HOSTILE, "column": HOSTILE, "examples": [HOSTILE]}
    manifest["proof"]["arms"][2]["per_class"][0]["label_name"] = HOSTILE
    for stage in manifest["stages"]:
        stage["params"] = {HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}}
        stage["metrics"] = {HOSTILE: HOSTILE}
        stage["op"] = HOSTILE
    html = render(manifest, lambda name: MemoryTable(hostile[name]), lambda name: MemoryTable(gone[name]))
    assert_loads_nothing(Page(html), html)
    assert "<script" not in html and "\0" not in html and "{{ 7 * 6 }}" in html


def test_without_a_proof_it_says_so(build):
    build.manifest["proof"] = None
    page = Page(rendered(build))
    assert "this recipe has no proof, so what they are worth was not measured" in page.text
    assert "proof" not in {value for _, name, value in page.attributes if name == "id"}


def test_without_labels_images_views_or_removed_rows(build, digits_tables):
    bare = {name: table.select([column for column in ("sample_id", "split") if column in table.schema.names]) for name, table in digits_tables.tables.items()}
    for stage in build.manifest["stages"]:
        stage["removed"], stage["counts"], stage["metrics"] = None, None, None
    html = render(build.manifest | {"proof": None, "gates": []}, lambda name: MemoryTable(bare[name]), build.removed)
    page = Page(html)
    assert "img" not in page.tags
    assert {"classes", "views", "proof"}.isdisjoint(value for _, name, value in page.attributes if name == "id")
    assert "This recipe declares no checks" in page.text and "604 of 1,067 samples" in page.text


def test_a_hundred_thousand_rows_make_a_page_as_small_as_a_thousand(build):
    count = 100_000
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8)
    images = pa.array([encode_png(pixels_HWC) for pixels_HWC in pixels], pa.binary()).take(pa.array(np.arange(count) % 50))
    ids = pa.array([f"folder/{row:06d}.png" for row in range(count)])
    labels = pa.array([f"class {row % 1_000}" for row in range(count)])
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), pa.field("label_name", pa.string()), pa.field("source", pa.string())])
    table = MemoryTable(pa.table([ids, images, labels, ids], schema=schema))
    reasons = pa.array([f"worse than sample {row}, {'abcdefghij'[row % 10] * 40}" for row in range(count)])
    removed = MemoryTable(pa.table({"sample_id": ids, "source": ids, "reason": reasons, "kind": ["dropped"] * count}))
    for stage in build.manifest["stages"]:
        stage["removed"] = {"rows": count} if stage["name"] in ("clean", "core") else None
    html = render(build.manifest, lambda name: table, lambda name: removed)
    assert len(html.encode()) < 1_000_000
    assert Page(html).text.count("10,000 dropped") == 12


def test_many_stages_of_noise_stay_below_five_megabytes(build):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 30, 3), np.uint8)
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), pa.field("label_name", pa.string())])
    ids = [f"s{row}" for row in range(40)]
    table = MemoryTable(pa.table([ids, [encode_png(pixels_HWC) for pixels_HWC in pixels], ["a", "b"] * 20], schema=schema))
    removed = MemoryTable(pa.table({"sample_id": ids, "source": ids, "reason": [f"reason {'xyzw'[row % 4]}" for row in range(40)], "kind": ["dropped"] * 40}))
    template = build.manifest["stages"][2]
    build.manifest["stages"] = [
        copy.deepcopy(template)
        | {"name": f"s{index}", "inputs": {"samples": {"stage": f"s{index - 1}", "split": None}} if index else {}, "removed": {"rows": 40}}
        for index in range(16)
    ]
    html = render(build.manifest | {"proof": None}, lambda name: table, lambda name: removed)
    assert 3_000_000 < len(html.encode()) < 5_000_000
    assert len(re.findall("<img", html)) == 16 * (20 + 40)


class Watched(MemoryTable):
    """A table that writes down what is read of it."""

    def __init__(self, table, scanned, taken):
        super().__init__(table)
        self.scanned, self.taken, self.scanning = scanned, taken, False

    def scan(self, columns=None, batch_size=1024, start=0, stop=None):
        self.scanned.update(self.schema.names if columns is None else columns)
        yield from MemoryTable(self.table).scan(columns, batch_size, start, stop)

    def take(self, rows, columns=None):
        self.taken.append(len(rows))
        return super().take(rows, columns)


def test_pictures_are_read_a_few_rows_at_a_time_and_never_scanned(build, digits_tables):
    scanned, taken = set(), []
    render(build.manifest, lambda name: Watched(digits_tables.tables[name], scanned, taken), build.removed)
    assert scanned == {"sample_id", "label", "label_name", "synthetic", "split"}
    assert max(taken) <= 4 and sum(taken) < 250
