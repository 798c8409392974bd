"""train.projector: a low-rank head on embeddings that gives a teacher's stored labels again, in a fraction of their bytes."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.special import xlogy

from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.operators import Draw, Input, Params, Table, Unit, Work, train
from stillroom.projector import TASK, Projector
from stillroom.scratch import memory_map
from stillroom.soft_labels import decode
from stillroom.views import label_of
from tasks.nets.models import ids_seen, model_batch, model_row
from tasks.nets.training import fit, index_batches, progress_of

if TYPE_CHECKING:
    from torch import Tensor, nn

# N = samples that have views, B = those of a batch, D = numbers of an embedding, R = rank, K = classes

READ_ROWS = 256
PROGRESS_STEPS = 50


class ProjectorParams(Params):
    """Parameters of `train.projector`."""

    vectors: str = Field(default="embedding", description="Vector column that labels are projected from, of a net that stays as it is.")
    rank: int = Field(default=32, ge=1, description="Rank of the map; what is stored grows with it. Never more than classes or numbers of a vector.")
    steps: int = Field(default=2000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(default=256, ge=1, description="Samples a step.")
    learning_rate: float = Field(default=1e-2, gt=0, description="Peak of the one-cycle schedule.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay.")
    torch_threads: int = Field(default=1, ge=1, description="Threads; part of what the last bits depend on.")


class _Labels(NamedTuple):
    """What is to be projected: embeddings and mean labels of the samples that have views, their ids, and facts of the stored labels.

    `neg_entropy` is the sum of p log p over all views: the part of KL that no projector changes.
    """

    vectors_ND: np.ndarray
    probs_NK: np.ndarray
    views_N: np.ndarray
    sample_ids: list[str]
    neg_entropy: float
    stored_bytes: int


def _units(params: ProjectorParams) -> list[Unit]:
    return [Unit("projector", threads=params.torch_threads)]


@train(version=1, units=_units, inputs={"samples": Input(requires=lambda params: [params.vectors, "views", "label"])})
def projector(unit: Unit, inputs: Mapping[str, Table], params: ProjectorParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Fit a low-rank head on frozen embeddings to the soft labels of stored views.

    After HeLlO (arXiv 2408.08201): instead of labels, the map that makes them is kept. softmax(U V x + b),
    with U [K, R] and V [R, D], is fitted by AdamW to the mean label of each sample's views, which is the
    best that one answer a sample can give: its gradient is that of KL(label || projector) over all of them.
    Embeddings are scaled to a mean of 0 and a deviation of 1 while it is trained; the weights take them as they are.

    Returns:
        One row of MODEL_COLUMNS, for `stillroom.projector.load`; `metrics` has `kl` (nats, the mean over all views of
        KL(stored label || projector's)), `kl_of_means`, the same to the mean labels, `agreement` of first choices with these,
        `projector_bytes`, and `label_bytes`, what the stored labels take before Lance packs them.

    Raises:
        InputError: no views with a teacher's labels; a vector that holds NaN or infinity; a loss that isn't finite.
    """
    import torch

    table = inputs["samples"]
    labels = _labels(table, params.vectors, work.scratch)
    size, classes = labels.vectors_ND.shape[1], labels.probs_NK.shape[1]
    rank = min(params.rank, size, classes)
    mean_D, std_D = _moments(labels.vectors_ND)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.draw.integer("init"))
        net = torch.nn.Sequential(torch.nn.Linear(size, rank, bias=False), torch.nn.Linear(rank, classes))

    fit(
        net,
        _batches(labels, mean_D, std_D, params, work.draw),
        steps=params.steps,
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        device=work.device,
        on_step=progress_of(work, PROGRESS_STEPS),
        checkpoint=work,
    )
    label = label_of(table.schema.field("views"))
    names = label_names(table.schema) or [str(number) for number in range(classes)]
    config = {"task": TASK, "vectors": params.vectors, "size": size, "rank": rank, "num_classes": classes, "label_names": names}
    config |= {"temperature": label["temperature"]}
    folded = _folded(net, mean_D, std_D)
    made = model_row(folded, config, work.draw.seed, {}, ids_seen(labels.sample_ids))
    tensors = {name: tensor.numpy() for name, tensor in folded.state_dict().items()}
    metrics = _measured(Projector(**tensors, config=config), labels) | {"projector_bytes": len(made["weights"]), "label_bytes": labels.stored_bytes}
    work.metrics |= metrics
    yield model_batch([model_row(folded, config, work.draw.seed, metrics, ids_seen(labels.sample_ids))])


def _labels(table: Table, vectors: str, scratch: Path) -> _Labels:
    """Read labels and vectors, a batch at a time; means and vectors lie in files under `scratch`."""
    classes = label_of(table.schema.field("views")).get("num_classes")
    if classes is None:
        raise InputError("column 'views'", "holds no teacher's labels", "reinforce.teacher stores them")
    size = table.schema.field(vectors).type.list_size
    vectors_ND = memory_map(scratch / "vectors", (table.rows, size), np.float32)
    probs_NK = memory_map(scratch / "labels", (table.rows, classes), np.float32)
    ids: list[str] = []
    views_N, neg_entropy, stored_bytes = np.zeros(table.rows, np.int64), 0.0, 0
    for batch in table.scan(["sample_id", vectors, "views"], READ_ROWS):
        counts_B = batch["views"].value_lengths().fill_null(0).to_numpy()
        has_B = counts_B > 0
        stored = batch["views"].flatten().field("soft_label")
        start, rows = 0, slice(len(ids), len(ids) + int(has_B.sum()))
        for place, count in zip(range(rows.start, rows.stop), counts_B[has_B], strict=True):
            probs_VK = decode(stored[start : start + count], classes).astype(np.float64)
            probs_NK[place], start = probs_VK.mean(axis=0), start + int(count)
            neg_entropy += float(xlogy(probs_VK, probs_VK).sum())
        kept = batch.filter(pa.array(has_B))
        vectors_ND[rows] = np.nan
        vectors_ND[rows][kept[vectors].is_valid().to_numpy(zero_copy_only=False)] = kept[vectors].flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
        odd = np.flatnonzero(~np.isfinite(vectors_ND[rows]).all(axis=1))
        if len(odd):
            problem = f"of sample '{kept['sample_id'][int(odd[0])]}' is missing, or holds NaN or infinity"
            raise InputError(f"column '{vectors}'", problem, "drop such rows before this stage")
        views_N[rows], stored_bytes = counts_B[has_B], stored_bytes + stored.nbytes
        ids += kept["sample_id"].to_pylist()
    if not ids:
        raise InputError("column 'views'", f"is empty in all of {table.rows} rows", "reinforce.teacher stores views")
    return _Labels(vectors_ND[: len(ids)], probs_NK[: len(ids)], views_N[: len(ids)], ids, neg_entropy, stored_bytes)


def _moments(vectors_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each number, float64 [D]; a deviation of 1 for one that never changes."""
    mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
    std_D = vectors_ND.std(axis=0, dtype=np.float64)
    return mean_D, np.where(std_D > 0, std_D, 1.0)


def _batches(labels: _Labels, mean_D: np.ndarray, std_D: np.ndarray, params: ProjectorParams, draw: Draw) -> "Callable[[int], tuple[Tensor, Tensor]]":
    """Scaled embeddings and mean labels of any step."""
    import torch

    order = index_batches(len(labels.sample_ids), params.batch_size, "order", draw)

    def batch(step: int) -> "tuple[Tensor, Tensor]":
        rows_B = order(step)
        scaled_BD = ((labels.vectors_ND[rows_B] - mean_D) / std_D).astype(np.float32)
        return torch.from_numpy(scaled_BD), torch.from_numpy(np.asarray(labels.probs_NK[rows_B]))

    return batch


def _folded(net: "nn.Module", mean_D: np.ndarray, std_D: np.ndarray) -> "nn.Module":
    """The same map for embeddings as they are: U V (x - mean) / std + b = U (V / std) x + (b - U (V / std) mean)."""
    import torch

    down_RD, up_KR, bias_K = (tensor.detach().cpu().double() for tensor in (net[0].weight, net[1].weight, net[1].bias))  # type: ignore[index]
    down_RD = down_RD / torch.from_numpy(std_D)
    folded = torch.nn.Module()
    for name, tensor in (("down_RD", down_RD), ("up_KR", up_KR), ("bias_K", bias_K - up_KR @ (down_RD @ torch.from_numpy(mean_D)))):
        folded.register_buffer(name, tensor.float())
    return folded


def _measured(fitted: Projector, labels: _Labels) -> dict[str, float]:
    """How far the projector's labels are from the stored ones."""
    cross = means = agree = 0.0
    for start in range(0, len(labels.sample_ids), READ_ROWS):
        rows = slice(start, start + READ_ROWS)
        probs_BK, views_B = labels.probs_NK[rows].astype(np.float64), labels.views_N[rows]
        given_BK = fitted.probs(labels.vectors_ND[rows]).astype(np.float64)
        cross_B = -xlogy(probs_BK, np.maximum(given_BK, np.finfo(np.float32).tiny)).sum(axis=1)
        cross += float((views_B * cross_B).sum())
        means += float((cross_B + xlogy(probs_BK, probs_BK).sum(axis=1)).sum())
        agree += float((given_BK.argmax(axis=1) == probs_BK.argmax(axis=1)).sum())
    rows_N = len(labels.sample_ids)
    kl = (labels.neg_entropy + cross) / int(labels.views_N.sum())
    return {"kl": round(kl, 6), "kl_of_means": round(means / rows_N, 6), "agreement": round(agree / rows_N, 6)}
