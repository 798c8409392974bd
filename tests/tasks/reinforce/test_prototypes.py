"""reinforce.prototypes against cosines of scikit-learn, and what a trainer gets of it."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics.pairwise import cosine_similarity

from stillroom.datasets import TorchSplit
from stillroom.errors import InputError, StageError
from stillroom.fields import image_field, label_field, vector_field
from stillroom.images import encode_png
from stillroom.operators import Draw
from stillroom.soft_labels import decode
from stillroom.tables import MemoryTable
from stillroom.views import label_of
from tasks.reinforce.prototypes import PrototypesParams, prototypes, setup
from tasks.reinforce.teacher import TeacherParams, adds
from tasks.reinforce.views import ViewsParams, views
from tests.tasks.reinforce.test_teacher import samples as taught_samples

NAMES = ["cat", "dog", "owl"]
VECTORS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
LABELS = [row % 3 for row in range(12)]


def samples(vectors: np.ndarray = VECTORS, labels: list[int | None] | None = None, names: list[str] | None = NAMES) -> MemoryTable:
    rows = len(vectors)
    pixels = np.random.default_rng(1).integers(0, 256, (rows, 4, 4, 1), dtype=np.uint8)
    label = label_field(names) if names else pa.field("label", pa.int64())
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label, vector_field("embedding", 5)])
    return MemoryTable(
        pa.table([[f"s{row}" for row in range(rows)], [encode_png(image) for image in pixels], labels or LABELS[:rows], vectors.tolist()], schema=schema)
    )


def run(table: MemoryTable, known: MemoryTable | None = None, part: slice = slice(None), **params: object) -> pa.RecordBatch:
    asked, inputs = PrototypesParams(**params), {"samples": table} | ({"known": known} if known else {})
    added = prototypes.added(asked, {name: each.schema for name, each in inputs.items()})
    batch = table.take(range(table.rows)[part]).combine_chunks().to_batches()[0]
    rows = prototypes(batch, asked, setup(inputs, asked))
    assert rows.dropped is None and all(rows.batch.schema.field(name).type == field.type for name, field in added.items())
    # As the engine writes it: with the declared fields.
    return rows.batch.cast(pa.schema([added.get(field.name, field) for field in rows.batch.schema]))


def by_hand(known: np.ndarray, labels: list[int], vectors: np.ndarray, temperature: float) -> np.ndarray:
    units = known / np.linalg.norm(known, axis=1, keepdims=True)
    means = np.stack([units[np.array(labels) == label].mean(axis=0) for label in range(3)])
    return softmax(cosine_similarity(vectors, means) / temperature, axis=1)


def soft(batch: pa.RecordBatch) -> np.ndarray:
    return np.array(batch["soft_label"].to_pylist())


def test_a_label_is_the_softmax_of_cosines_to_the_classes_means():
    assert soft(run(samples(), temperature=0.3)) == pytest.approx(by_hand(VECTORS, LABELS, VECTORS, 0.3), abs=1e-5)


def test_few_known_rows_label_many_that_need_no_label():
    many = np.random.default_rng(3).normal(size=(9, 5)).astype(np.float32)
    found = run(samples(many, [None] * 9), samples())
    assert soft(found) == pytest.approx(by_hand(VECTORS, LABELS, many, 0.1), abs=1e-5)
    # Of its own rows, those without a label have no part in the prototypes.
    both = run(samples(np.concatenate([VECTORS, many]), [*LABELS, *[None] * 9]))
    assert soft(both)[12:] == pytest.approx(soft(found), abs=1e-6)


def test_the_length_of_a_vector_has_no_say():
    scaled = VECTORS * np.geomspace(1e-3, 1e3, 12, dtype=np.float32)[:, None]
    assert soft(run(samples(scaled))) == pytest.approx(soft(run(samples())), abs=1e-4)


@given(st.integers(1, 11))
def test_a_row_does_not_depend_on_its_batch(cut):
    table = samples()
    parts = [run(table, part=part) for part in (slice(cut), slice(cut, None))]
    assert (np.concatenate([soft(part) for part in parts]) == soft(run(table))).all()


def with_views(table: MemoryTable) -> MemoryTable:
    params = ViewsParams(count=2, policy=["crop"])
    batch = table.take(range(table.rows)).combine_chunks().to_batches()[0]
    column = views(batch, params, (None, None), Draw(7, "reinforce.views")).batch["views"].to_pylist()
    field = views.added(params, {"samples": table.schema})["views"]
    return MemoryTable(table.table.append_column(field, pa.array([*column[:-1], []], field.type)))


def test_each_view_has_its_samples_label_and_trainers_get_it_with_or_without_views():
    found = run(with_views(samples()))
    expected = by_hand(VECTORS, LABELS, VECTORS, 0.1)
    assert label_of(found.schema.field("views")) == {"num_classes": 3, "top_k": 10, "temperature": 0.1}
    assert decode(found["views"].flatten().field("soft_label"), 3) == pytest.approx(np.repeat(expected[:11], 2, axis=0), abs=1e-3)
    table = MemoryTable(pa.Table.from_batches([found]))
    for shown in ("stored", None):
        items = TorchSplit(table, views=shown).__getitems__(list(range(11)))
        assert np.stack([item["soft_label"] for item in items]) == pytest.approx(expected[:11], abs=1e-3)
    assert found["views"].to_pylist()[11] == [] and TorchSplit(table)[11]["soft_label"].numpy() == pytest.approx(expected[11], abs=1e-6)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "is missing, or holds NaN or infinity"), (np.inf, "is missing, or holds NaN"), (0.0, "holds only zeros")])
def test_a_vector_that_points_nowhere_is_refused(value, said):
    vectors = VECTORS.copy()
    vectors[4] = value
    with pytest.raises(StageError, match=f"sample 's4': its vector 'embedding' {said}"):
        run(samples(vectors))
    with pytest.raises(StageError, match="sample 's4'"):
        run(samples(vectors), samples())


def test_what_cannot_be_labelled_is_refused():
    with pytest.raises(InputError, match="class 'owl': has no row in `known`"):
        run(samples(), samples(VECTORS[:2]))
    with pytest.raises(InputError, match="column 'label' of samples: is missing or has no class names"):
        run(samples(names=None))
    with pytest.raises(InputError, match=r"from.known: its classes are others than the samples'"):
        run(samples(), samples(names=["dog", "cat", "owl"]))
    taught = taught_samples().table.append_column(vector_field("embedding", 5), pa.array(VECTORS.tolist(), pa.list_(pa.float32(), 5)))
    schema = taught.schema.append(adds(TeacherParams(), {"samples": taught.schema})["views"])
    with pytest.raises(InputError, match="column 'views': holds a teacher's labels already"):
        prototypes.added(PrototypesParams(), {"samples": schema})
