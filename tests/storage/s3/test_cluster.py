"""A Ray cluster over an object store: two nodes simulated on this machine leave what one machine leaves in a folder."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stillroom
from flows.plan import make_plan
from stillroom.stores import Store
from tasks.engine import run_stage
from tasks.pool import Pool
from tasks.ray_pool import RayPool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:lance is not fork-safe"),  # starting nodes forks, to run another program at once
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray isn't installed: pip install 'stillroom[ray]'"),
]

RECIPE = """name: spread
stages:
  raw: {op: ingest.digits}
  few: {op: table.sample, from: raw, rows: 600}
  looks: {op: score.embed, from: few, net: pixels, side_px: 8, channels: 1}
  sound: {op: filter.decodable, from: looks}
"""


@pytest.fixture
def cluster(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one core, started with the object store's credentials in their environment."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(stillroom.__file__).parents[1]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    found = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    found.add_node(**node)
    yield found
    found.shutdown()


def digests(recipe: Path, store: str | Path, pool: Pool) -> dict[str, str]:
    plan = make_plan(recipe, store)
    tables: dict[str, Any] = {}
    for planned in plan.stages:
        tables[planned.name] = run_stage(plan.spec(planned, tables), pool).table
    pool.close()
    return {name: table.digest for name, table in tables.items()}


def test_nodes_leave_in_an_object_store_what_one_machine_leaves_in_a_folder(recipe, s3, cluster, tmp_path):
    path = recipe(RECIPE)
    there = digests(path, s3, RayPool(cluster.address, store=Store(s3)))
    assert there == digests(path, tmp_path / "store", Pool(1))
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in "".join(file.read_text(errors="replace") for file in Path("/tmp/ray/session_latest/logs").glob("*.*"))
