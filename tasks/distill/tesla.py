"""distill.tesla: a few synthetic images whose training goes where training on the real ones goes."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import Field

from stillroom.errors import InputError
from stillroom.operators import Input, Table, Unit, Work, source
from tasks.distill._synthetic import CheckParams, distilled_fields, distilled_rows, load_start
from tasks.nets.whitening import Whitening, load_whitening

if TYPE_CHECKING:
    from torch import Tensor

# N = synthetic images, C S S = image, K = classes, P = weights of the net


class TeslaParams(CheckParams):
    """Parameters of `distill.tesla`."""

    iterations: int = Field(default=1000, ge=1, description="Updates of the images.")
    steps: int = Field(default=15, ge=1, description="Steps that the student takes in an iteration.")
    match_epochs: int = Field(default=1, ge=1, description="How many epochs of an expert these steps must come up with.")
    batch_size: int = Field(default=100, ge=1, description="Synthetic images of a step; all, where there are fewer.")
    first_last_start: int | None = Field(
        default=None, ge=0, description="Latest epoch that a segment starts at, at first: early epochs teach what is easy. Left out: half of last_start."
    )
    last_start: int | None = Field(
        default=None,
        ge=0,
        description="The same at half of the iterations and after. Left out: four times the root of the images per class.",
    )
    gradient: Literal["exact", "tesla", "unrolled"] = Field(
        default="exact", description="exact: of all that an image does. tesla: the published approximation. unrolled: as exact, in T times the memory."
    )
    image_learning_rate: float = Field(default=0.05, gt=0, description="Step of Adam on normalised pixels.")
    learning_rate: float | None = Field(
        default=None, gt=0, description="The student's, to start with; it is learnt. Left out: its steps together a third of the expert's."
    )
    rate_learning_rate: float = Field(default=0.01, ge=0, description="Step of the student's learning rate, on its logarithm; 0 keeps it.")
    labels: Literal["hard", "soft"] = Field(default="hard", description="soft: probabilities, learnt with the images from what the experts say of the start.")
    label_learning_rate: float = Field(default=0.02, gt=0, description="Step of Adam on the logits of soft labels.")
    max_loss: float = Field(default=2.0, gt=0, description="A loss above it, or none at all, changes nothing; ten in a row bring back the last good state.")
    torch_threads: int = Field(default=1, ge=1, description="Threads; part of what the images depend on.")


def _units(params: TeslaParams) -> list[Unit]:
    return [Unit("images", threads=params.torch_threads)]


def _adds(params: TeslaParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    return distilled_fields(params, schemas.get("samples"), soft=params.labels == "soft")


@source(
    version=1,
    units=_units,
    adds=_adds,
    inputs={
        "samples": Input(requires=["image", "label"]),
        "experts": Input(kind="model"),
        "tune": Input(requires=["image", "label"], optional=True, trains=False),
        "whitening": Input(kind="model", optional=True),
    },
    random=True,
)
def tesla(unit: Unit, inputs: Mapping[str, Table], params: TeslaParams, work: Work, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Distil: change images until a student's steps on them end where an expert's epochs on real images do.

    `samples` are the images to start from, and so the budget: a prune stage with images_per_class before.
    `experts` come from train.experts; images are normalised and augmented as theirs were, and whitened, if `whitening` is theirs. In each
    iteration a student starts at some expert's weights, takes `steps` steps on the synthetic images, and the images
    move against the gradient of how far it ends from the expert's weights `match_epochs` later. Trajectory
    matching is by Cazenavette et al. (arXiv 2203.11932), the memory of one step's graph by TESLA (Cui et al.,
    arXiv 2211.10586), whose gradient `exact` completes. Labels learnt as logits, and starts that move to later epochs,
    are DATM's (Guo et al., arXiv 2310.05773). The student's learning rate is learnt on its logarithm, so it stays positive.

    All that is random is keyed by the iteration, so a stopped distillation goes on to the same bits.

    Returns:
        Rows of images: `image` in 8 bits, `pixels` without loss (float32, normalised), `training` (JSON: mean, std, learning_rate,
        augment, labels, net, and `zca` of whitened ones), `parents`: the image that it started from; with `labels: soft` also `soft_label`.

    Raises:
        InputError: experts that can't be imitated so: other sizes or labels, too few epochs, a net with running statistics.
    """
    from tasks.distill._trajectories import Distillation

    experts = Experts(inputs["experts"], work.device)
    whitening = load_whitening(inputs.get("whitening"))
    experts.refuse_other(params, whitening)
    start = load_start(inputs["samples"], work.scratch, params, experts.config["mean"], experts.config["std"], whitening)
    if start.label_names != experts.config["label_names"]:
        raise InputError("experts", "know other labels than the samples have", "train them on the same table")
    run = Distillation(start, experts, params, work, inputs.get("tune"), whitening)
    run.finish()
    training = {
        "mean": experts.config["mean"],
        "std": experts.config["std"],
        "learning_rate": run.chosen_rate(),
        "augment": experts.augment,
        "labels": params.labels,
        "net": experts.config["net"],
    }
    soft_NK = run.chosen_targets() if params.labels == "soft" else None
    yield from distilled_rows(start, run.chosen_images(), training, schema, work.metrics, soft_NK, whitening)


class Experts:
    """Trainings that a store keeps, a row an epoch; weights are read when they are asked for.

    Args:
        models: what train.experts gives.
    """

    def __init__(self, models: Table, device: str) -> None:
        self._models, self._device = models, device
        frame = models.frame(["seed", "config"])
        self._rows: dict[tuple[int, int], int] = {}
        for row, (expert, config) in enumerate(zip(frame["seed"], frame["config"], strict=True)):
            self.config: dict[str, Any] = json.loads(config)
            if "expert" not in self.config:
                raise InputError("experts", f"the model in row {row} says nothing of epochs", "train.experts gives such models")
            self._rows[expert, self.config["expert"]["epoch"]] = row
        if not self._rows:
            raise InputError("experts", "the table is empty")
        self.numbers = sorted({expert for expert, _ in self._rows})
        epochs = [{epoch for expert, epoch in self._rows if expert == number} for number in self.numbers]
        self.first_epoch, self.last_epoch = min(epochs[0]), max(epochs[0])
        self.augment: list[Any] = self.config["expert"]["augment"]
        self.weights = lru_cache(maxsize=64)(self._read)

    def refuse_other(self, params: TeslaParams, whitening: Whitening | None = None) -> None:
        """See that these experts have the size and the epochs asked for, and saw images whitened so."""
        if self.config.get("zca") != (whitening.model_id if whitening else None):
            problem = "weren't trained on images whitened so" if whitening else "were trained on whitened images"
            raise InputError("experts", problem, "give distil and experts the same `whitening`, or neither any")
        for name in ("side_px", "channels"):
            if self.config[name] != getattr(params, name):
                raise InputError(name, f"the experts' images have {self.config[name]}, not {getattr(params, name)}", f"write {name}: {self.config[name]}")
        if self.first_epoch + params.match_epochs > self.last_epoch:
            kept = f"the experts keep epochs {self.first_epoch} to {self.last_epoch}"
            raise InputError("match_epochs", f"{params.match_epochs}, but {kept}", "train them longer, or match fewer")
        if params.last_start is not None and params.last_start + params.match_epochs > self.last_epoch:
            reach = f"{params.last_start} + match_epochs {params.match_epochs} is beyond epoch {self.last_epoch}, the experts' last"
            raise InputError("last_start", reach, f"write last_start: {self.last_epoch - params.match_epochs}")

    def _read(self, expert: int, epoch: int) -> "dict[str, Tensor]":
        """Weights of an expert after an epoch, by name."""
        from safetensors.torch import load

        (packed,) = self._models.take([self._rows[expert, epoch]], ["weights"])["weights"].to_pylist()
        return {name: tensor.to(self._device) for name, tensor in load(packed).items()}
