"""generate.class_diffusion: new images of every class, drawn from a diffusion net that this store trained."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3
from pydantic import Field

from stillroom.digests import canonical_json
from stillroom.errors import InputError
from stillroom.fields import label_names
from stillroom.operators import Draw, Input, Params, Table, Unit, Work, source
from tasks.nets.diffusion import load_unet, make_scheduler, noise_of, sample
from tasks.synthetic import synthetic_fields, synthetic_row

# B = rows of a batch, C H W = an image


class ClassDiffusionParams(Params):
    """Parameters of `generate.class_diffusion`."""

    per_class: int = Field(ge=1, description="Images drawn of each class.")
    steps: int = Field(default=20, ge=1, le=1000, description="Denoising steps of an image.")
    guidance: float = Field(
        default=1.5, ge=1, le=20, description="1: what the net takes for the class. Above: more typical and less varied; for training sets 1 to 2."
    )
    batch: int = Field(default=64, ge=1, description="Images drawn at once. The last batch is filled up; another number may change a pixel by one level.")
    rows_per_unit: int = Field(default=512, ge=1, description="Images between two points from which a stopped build goes on. Changes no image.")
    torch_threads: int = Field(default=1, ge=1, description="Threads of a unit.")


def _units(inputs: Mapping[str, Table], params: ClassDiffusionParams) -> list[Unit]:
    """Ranges of rows; row r is image r mod `per_class` of class r div `per_class`."""
    _, config = _model(inputs["model"])
    rows = config["num_classes"] * params.per_class
    starts = range(0, rows, params.rows_per_unit)
    return [Unit(f"rows-{start}", start, min(start + params.rows_per_unit, rows), threads=params.torch_threads) for start in starts]


def _adds(params: ClassDiffusionParams, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.DataType | pa.Field]:
    # The resolver puts the label names that the model was trained on onto the field `model_id`.
    names = label_names(schemas["model"], "model_id") if "model" in schemas else None
    return synthetic_fields(names) | {
        "model_id": pa.string(),
        "seed": pa.int64(),
        "scheduler": pa.string(),
        "steps": pa.int32(),
        "guidance": pa.float32(),
    }


@source(version=1, units=_units, adds=_adds, inputs={"model": Input(kind="model")}, random=True)
def class_diffusion(unit: Unit, inputs: Mapping[str, Table], params: ClassDiffusionParams, work: Work, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Draw images of each class from a trained class-conditional diffusion net.

    DDIM with eta 0 (Song et al., arXiv 2010.02502), with classifier-free guidance (Ho and Salimans,
    arXiv 2207.12598). Image i of a class starts from noise of a generator of its own, whose seed stands
    in the row; batches have one shape, and the last is filled up: no image depends on the rows drawn
    with it, on how rows are cut into units, or on `per_class`. `label` is the class asked for: whether the image
    shows it is for filter.teacher_agreement to say.

    Raises:
        InputError: the table holds several models, or one of another task.
    """
    models = inputs["model"]
    model_id, config = _model(models)
    unet = load_unet(config, models.take([0], ["weights"])["weights"][0].as_py(), work.device)
    scheduler = make_scheduler(config)
    told = {"class": "DDIMScheduler", "eta": 0, **{name: value for name, value in scheduler.config.items() if not name.startswith("_")}}
    made_with = {"scheduler": canonical_json(told).decode(), "steps": params.steps, "guidance": params.guidance}
    for start in range(unit.start, unit.stop, params.batch):
        positions = range(start, min(start + params.batch, unit.stop))
        drawn = [divmod(position, params.per_class) for position in positions]
        seeds = [_seed(work.draw, label, index) for label, index in drawn]
        empty = params.batch - len(drawn)
        noise_BCHW = noise_of(seeds + [0] * empty, config)
        labels = [label for label, _ in drawn] + [0] * empty
        pixels_BCHW = sample(unet, scheduler, noise_BCHW, labels, config, steps=params.steps, guidance=params.guidance)
        rows = [_row(pixels_BCHW[slot], model_id, label, index, seeds[slot], config) for slot, (label, index) in enumerate(drawn)]
        yield pa.RecordBatch.from_pylist([row | made_with for row in rows], schema)
        work.progress(positions.stop - unit.start, unit.stop - unit.start)


def _seed(draw: Draw, label: int, index: int) -> int:
    return draw.integer(f"{label}/{index}")


def _row(pixels_CHW: np.ndarray, model_id: str, label: int, index: int, seed: int, config: Mapping[str, Any]) -> dict[str, Any]:
    name = config["label_names"][label]
    sample_id = blake3(canonical_json([model_id, label, index, seed])).hexdigest(length=16)
    row = synthetic_row(sample_id, pixels_CHW.transpose(1, 2, 0), label, name, f"generated:{name}/{index}")
    return row | {"model_id": model_id, "seed": seed}


def _model(models: Table) -> tuple[str, dict[str, Any]]:
    """Id and configuration of the one model."""
    if models.rows != 1:
        raise InputError("model", f"the table holds {models.rows} models, one is needed to generate", "train.class_diffusion gives one")
    (row,) = models.take([0], ["model_id", "config"]).to_pylist()
    return row["model_id"], json.loads(row["config"])
