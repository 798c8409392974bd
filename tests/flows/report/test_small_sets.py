"""Small sets in the report: what stands where, and the images class by class."""

import numpy as np
import pyarrow as pa

from flows.report.small_sets import distilled_grids, judged_sets
from stillroom.tables import MemoryTable
from tests.flows.report.conftest import samples

COMMON = {"set": "tesla", "net": "convnet3", "labels": "soft", "augmented": True, "main": True, "protocol": "dc_bench", "seeds": 5, "test_rows": 100}


def line(kind: str, **more) -> dict:
    return {"kind": kind, **COMMON, **more}


def arm(name: str, accuracy: float, **more) -> dict:
    return line("arm", arm=name, rows=10, accuracy=accuracy, low=accuracy - 0.1, high=accuracy + 0.1, **more)


JUDGED = {
    "judged": [
        {
            "stage": "proof",
            "sets": {"tesla": "distilled"},
            "lines": [
                arm("candidate", 0.7),
                arm("candidate", 0.6, labels="hard"),
                arm("candidate", 0.1, augmented=False, main=False),
                arm("random", 0.5, labels="hard"),
                arm("candidate", 0.4, net="mlp"),
                arm("random", 0.45, net="mlp", labels="hard"),
                line("difference", arm="candidate", against="random.hard", gain=0.2, low=0.1, high=0.3),
                line("difference", arm="candidate", against="random.hard", gain=-0.05, low=-0.1, high=0.0, net="mlp"),
                line("ranking", metric="IOR", value=0.2, low=0.1, high=0.3),
                line("ranking", metric="LRS", value=0.3, low=0.25, high=0.35),
                line("ranking", metric="IOR", value=-0.05, low=-0.1, high=0.0, net="mlp"),
            ],
        }
    ]
}


def test_the_first_net_has_its_arms_gains_and_figures_and_others_a_line_each():
    (found,) = judged_sets(JUDGED)
    assert found.said == "10 samples, 5 nets convnet3, soft labels, protocol dc_bench, with augmentation"
    assert [(one.label, one.detail, one.figure) for one in found.arms.lines] == [
        ("this set", "soft labels, 10 samples", "70.0\u00a0%"),
        ("this set", "hard labels, 10 samples", "60.0\u00a0%"),
        ("random", "hard labels, 10 samples", "50.0\u00a0%"),
    ]
    assert [(one.label, one.detail, one.figure, one.note) for one in found.gains.lines] == [("over random", "soft labels against hard ones", "+20.0", "better")]
    assert [(metric, value, bounds) for metric, _, value, bounds in found.ranking] == [("IOR", "+20.0", "[+10.0, +30.0]"), ("LRS", "0.300", "[0.250, 0.350]")]
    assert (found.other_arms, [net for net, _ in found.others]) == (["this set", "random"], ["mlp"])
    assert [cell[:4] for cell in found.others[0][1]] == ["40.0", "45.0"]


def test_a_manifest_from_before_has_none():
    assert judged_sets({}) == []


def test_images_stand_class_by_class_and_say_where_they_come_from():
    labels = np.array([1, 0, 1, 0])
    table = samples(np.zeros((4, 8, 8), np.uint8), labels, synthetic=True).append_column("parents", pa.array([["a"], ["b"], ["b", "c"], ["a"]]))
    stage = {"name": "distilled", "op": "distill.tesla", "metrics": {"uint8_rms_levels": 1.5, "uint8_clipped": 0.25}}
    (grid,) = distilled_grids([stage, {"name": "raw", "op": "ingest.digits"}], lambda name: MemoryTable(table), 40)
    assert [[picture.label for picture in of_class] for of_class in grid.classes] == [["0", "0"], ["1", "1"]]
    assert grid.said == "from 3 real images; shown in 8 bits, off by 1.5 levels (root mean square), 25.0\u00a0% of their pixels lie outside"
    assert (grid.rows, grid.shown, grid.few) == (4, 4, True)


def test_of_many_images_each_class_shows_as_many():
    table = samples(np.zeros((300, 8, 8), np.uint8), np.repeat([0, 1], 150), synthetic=True)
    (grid,) = distilled_grids([{"name": "d", "op": "distill.dm"}], lambda name: MemoryTable(table), 40)
    assert ([len(of_class) for of_class in grid.classes], grid.rows, grid.said) == ([50, 50], 300, "")
    assert not grid.few
