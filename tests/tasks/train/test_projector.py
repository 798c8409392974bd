"""train.projector: at full rank it recovers a linear teacher, its figures are those of a sum by hand, and a trainer can load it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.special import rel_entr, softmax

from stillroom import projector as reading
from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import label_field, vector_field
from stillroom.operators import Work
from stillroom.soft_labels import decode, encode, soft_label_type
from stillroom.tables import MemoryTable
from stillroom.views import ViewPolicy, draw_views, view_contract, views_field
from tasks.nets.models import load_classifiers
from tasks.train.projector import ProjectorParams, projector

SIZE, CLASSES = 6, 5
NAMES = [f"class-{index}" for index in range(CLASSES)]
RNG = np.random.default_rng(0)
CENTRE_D = np.array([5.0, 0, 0, -3, 0, 0])
MAP_KD = RNG.normal(size=(CLASSES, SIZE))
BIAS_K = -MAP_KD @ CENTRE_D + [0.5, 0, 0, -0.5, 0]


def samples(rows: int = 300, noise: float = 0.0, without: tuple[int, ...] = (), hard: bool = False) -> MemoryTable:
    """Embeddings far from standard ones, and two views each with the labels of a teacher that is linear in them, apart from noise on its logits."""
    rng = np.random.default_rng(1)
    vectors = (rng.normal(size=(rows, SIZE)) * [1, 2, 0.5, 1, 1, 1] + CENTRE_D).astype(np.float32)
    logits = np.repeat(vectors @ MAP_KD.T + BIAS_K, 2, axis=0) + noise * rng.normal(size=(2 * rows, CLASSES))
    policy = ViewPolicy(kinds=("flip",))
    drawn = draw_views(policy, [f"s{row}" for row in range(rows)], np.full((rows, 2), 8), Draw(0, "test"), 2).values
    structs = pa.StructArray.from_arrays([*drawn.flatten(), encode(softmax(logits, axis=1), None)], names=[*(field.name for field in drawn.type), "soft_label"])
    field = views_field(view_contract(policy), soft_label_type(CLASSES, None), {"num_classes": CLASSES, "top_k": CLASSES, "temperature": 1.0})
    views = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * 2, pa.int32()), structs).to_pylist()
    views = pa.array([[] if row in without else of_row for row, of_row in enumerate(views)], field.type)
    if hard:
        field = views_field(view_contract(policy))
        views = pa.nulls(rows, field.type)
    schema = pa.schema([pa.field("sample_id", pa.string()), label_field(NAMES), vector_field("embedding", SIZE), field])
    return MemoryTable(pa.table([[f"s{row}" for row in range(rows)], [0] * rows, vectors.tolist(), views], schema=schema))


def trained(table: MemoryTable, scratch: Path, saved: dict | None = None, **params: object) -> MemoryTable:
    torch.set_num_threads(1)  # as the engine does
    work = Work(device="cpu", threads=1, scratch=scratch, draw=Draw(7, "train.projector"), saved={} if saved is None else saved)
    asked = ProjectorParams(**{"steps": 1500, "learning_rate": 0.03} | params)
    (unit,) = projector.units(asked)
    return MemoryTable(pa.Table.from_batches(projector(unit, {"samples": table}, asked, work)))


def metrics_of(models: MemoryTable) -> dict[str, float]:
    return json.loads(models.table["metrics"][0].as_py())


def test_full_rank_recovers_a_linear_teacher(tmp_path):
    models = trained(samples(), tmp_path, rank=99)
    found = reading.load(models)
    assert found.config["rank"] == CLASSES and metrics_of(models)["kl"] < 1e-4 and metrics_of(models)["agreement"] == 1
    # Logits are told from probabilities up to a constant: the maps agree once their mean over classes is gone.
    ours, theirs = found.up_KR @ found.down_RD, MAP_KD
    assert ours - ours.mean(axis=0) == pytest.approx(theirs - theirs.mean(axis=0), abs=0.05)
    new = np.random.default_rng(5).normal(size=(50, SIZE)) * 0.5 + CENTRE_D  # embeddings that it never met
    assert found.probs(new) == pytest.approx(softmax(new @ MAP_KD.T + BIAS_K, axis=1), abs=0.01)


def test_a_lower_rank_is_further_away_and_smaller(tmp_path):
    told = [metrics_of(trained(samples(), tmp_path, rank=rank, steps=400)) for rank in (1, 2, 4)]
    assert told[0]["kl"] > told[1]["kl"] > told[2]["kl"]
    assert told[0]["projector_bytes"] < told[1]["projector_bytes"] < told[2]["projector_bytes"]


def test_figures_are_those_of_a_sum_by_hand(tmp_path):
    table = samples(noise=0.5, without=(3, 4))
    models = trained(table, tmp_path, steps=50)
    labels = table.table["views"].combine_chunks().flatten().field("soft_label")
    views = decode(labels, CLASSES).astype(np.float64).reshape(-1, 2, CLASSES)
    vectors = np.delete(table.vectors("embedding"), [3, 4], axis=0)
    given = reading.load(models).probs(vectors).astype(np.float64)
    told, means = metrics_of(models), views.mean(axis=1)
    assert told["kl"] == pytest.approx(rel_entr(views, given[:, None]).sum(axis=2).mean(), abs=1e-5)
    assert told["kl_of_means"] == pytest.approx(rel_entr(means, given).sum(axis=1).mean(), abs=1e-5)
    assert told["agreement"] == pytest.approx((given.argmax(axis=1) == means.argmax(axis=1)).mean())
    assert told["label_bytes"] == 298 * 2 * 2 * CLASSES  # float16
    assert told["projector_bytes"] == len(models.table["weights"][0].as_py())
    assert json.loads(models.table["saw"][0].as_py())["rows"] == 298


def test_it_is_the_same_again_and_goes_on_where_it_was_stopped(tmp_path):
    class Stopped(Exception):
        pass

    class Dying(dict):
        """Takes two checkpoints."""

        def __setitem__(self, name, value):
            super().__setitem__(name, value)
            self.taken = getattr(self, "taken", 0) + 1
            if self.taken == 2:
                raise Stopped

    kept = Dying()
    with pytest.raises(Stopped):
        trained(samples(), tmp_path, kept, steps=700)
    whole = trained(samples(), tmp_path, steps=700)
    assert trained(samples(), tmp_path, dict(kept), steps=700).table.equals(whole.table)


def test_what_it_is_not_made_for_is_refused(tmp_path):
    with pytest.raises(InputError, match="column 'views': holds no teacher's labels; reinforce.teacher stores them"):
        trained(samples(4, hard=True), tmp_path)
    with pytest.raises(InputError, match="column 'views': is empty in all of 4 rows"):
        trained(samples(4, without=(0, 1, 2, 3)), tmp_path)
    table = samples(4).table
    for odd in (None, [float("nan")] * 6):
        broken = table.set_column(2, table.schema.field(2), pa.array([[1.0] * 6, [1.0] * 6, odd, [1.0] * 6], table.schema.field(2).type))
        with pytest.raises(InputError, match="column 'embedding': of sample 's2' is missing, or holds NaN or infinity"):
            trained(MemoryTable(broken), tmp_path)
    models = trained(samples(4), tmp_path, steps=1)
    with pytest.raises(InputError, match="embeddings: are 3x4, the projector takes rows of 6; pass the column 'embedding'"):
        reading.load(models).probs(np.zeros((3, 4)))
    with pytest.raises(InputError, match="is made for the task 'project_labels', a classifier is needed"):
        load_classifiers(models, "cpu")
    other = models.table.set_column(models.table.schema.get_field_index("config"), "config", pa.array(['{"task": "classify"}']))
    with pytest.raises(InputError, match="projector: the models are made for the task 'classify'; pass the table of a train.projector"):
        reading.load(MemoryTable(other))
