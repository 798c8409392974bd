"""The drawing of a DAG beside its list, against drawings made by hand; the order and figures of its lines."""

from typing import Any

from flows.history.lineage import lanes, lineage


def drawn(**parents: str) -> list[str]:
    marks = dict.fromkeys(parents, "●")
    found = lanes([(name, [*its_parents]) for name, its_parents in parents.items()], marks)
    return [f"{found[name]} {name}" for name in parents]


def test_a_chain_is_one_lane():
    assert drawn(a="", b="a", c="b") == ["● a", "● b", "● c"]


def test_a_branch_leaves_its_lane_and_comes_back():
    assert drawn(a="", b="a", c="a", d="bc") == ["● a", "├─● b", "● │ c", "●─╯ d"]


def test_a_lane_that_ends_on_the_left_or_between_is_closed():
    assert drawn(a="", b="", c="ab", d="c") == ["● a", "│ ● b", "●─╯ c", "● d"]
    assert drawn(a="", b="", c="", d="abc") == ["● a", "│ ● b", "│ │ ● c", "●─┴─╯ d"]
    assert drawn(a="", b="", c="", d="ab", e="cd", f="a") == ["● a", "│ ● b", "│ │ ● c", "├─● │ d", "│ ●─╯ e", "● f"]


def test_an_edge_passes_behind_a_lane_that_it_has_nothing_to_do_with():
    assert drawn(a="", b="", c="a", d="ab", e="cd") == ["● a", "│ ● b", "├─│─● c", "●─╯ │ d", "●───╯ e"]


def test_lanes_that_go_on_are_crossed():
    assert drawn(a="", b="", c="", d="abc", e="abcd") == ["● a", "│ ● b", "│ │ ● c", "├─┼─┼─● d", "●─┴─┴─╯ e"]


def stage(name: str, *inputs: str, gives: str = "samples", hidden: bool = False) -> dict[str, Any]:
    edges = {str(place): {"stage": edge.partition(".")[0], "split": edge.partition(".")[2] or None} for place, edge in enumerate(inputs)}
    table = {"name": f"stages/pets.{name}", "version": 3}
    return {
        "name": name, "op": "table.any", "version": 1, "gives": gives, "hidden": hidden, "inputs": edges, "rows": 4, "counts": {"dropped": 2},
        "fingerprint": "f" * 64, "digest": "d", "table": table, "seconds": 1.5, "state": "Built",
    }  # fmt: skip


MANIFEST = {
    "name": "pets", "number": 2, "rows": 7, "digest": "e", "seconds": 9.0, "table": {"name": "pets", "version": 2, "fingerprint": "a" * 64},
    "published": {"train": {"stage": "core", "split": None}, "test": {"stage": "split", "split": "test"}},
    "stages": [
        stage("raw"), stage("split", "raw"), stage("teacher", "split.train", gives="model"), stage("core", "split.train", "teacher"),
        stage("core--random", "split.train", hidden=True), stage("proof", "core", gives="metrics"),
    ],
}  # fmt: skip


def test_the_snapshot_comes_last_and_each_stage_after_what_it_reads():
    found = lineage(MANIFEST)
    assert [(line.graph, line.name) for line in found] == [
        ("●", "raw"), ("●", "split"), ("├─○", "teacher"), ("├─●", "core"), ("│ ├─◇", "proof"), ("◆─╯", "pets@2"),
    ]  # fmt: skip
    assert [line.inputs for line in found] == [[], ["raw"], ["split.train"], ["split.train", "teacher"], ["core"], ["core", "split.test"]]


def test_a_line_has_the_figures_of_its_stage_and_counts_its_hidden_ones():
    core = next(line for line in lineage(MANIFEST) if line.name == "core")
    assert (core.rows, core.counts, core.table, core.table_version, core.hidden, core.seconds) == (
        4,
        {"dropped": 2},
        "stages/pets.core",
        3,
        ["core--random"],
        3.0,
    )
