"""train.student: the students of one arm of a proof, at the learning rate that suits that arm."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from stillroom.operators import Input, Params, Table, Unit, Work, train
from tasks.nets.models import Classifier, ids_seen, model_batch, model_row
from tasks.nets.recipe import refuse_untunable
from tasks.nets.samples import load_images, load_labels
from tasks.nets.training import channel_stats, fit, progress_of, seeded_net
from tasks.nets.zoo import NetName
from tasks.train._arm import Arm, load_hard, load_stored, weighed

# N = samples, M = those of the tune split, K = classes, C = channels, S = side

PREDICT_BATCH = 256


class StudentParams(Params):
    """Parameters of `train.student`, the same for every arm of a proof."""

    net: NetName = Field(default="cnn", description="A net: cnn, convnet3, mlp, resnet18 (each with a width, as in cnn:32), or timm/<name>.")
    side_px: int | None = Field(default=None, ge=1, description="Resize images to this square. Left out, all must have one size.")
    channels: Literal[1, 3] | None = Field(default=None, description="1 grey, 3 colour. Left out, all images must agree.")
    steps: int = Field(default=400, ge=1, description="Optimizer steps of a student, however many samples its arm has.")
    batch_size: int = Field(default=64, ge=1, description="Images a step.")
    learning_rates: tuple[float, ...] = Field(
        default=(1e-3, 3e-3, 1e-2), min_length=1, description="Peaks of the one-cycle schedule that each arm tries on `tune`."
    )
    tune_seeds: int = Field(default=2, ge=1, description="Students a learning rate is judged by: the first of the seeds.")
    seeds: int = Field(default=5, ge=1, description="Students of an arm. Seed s starts from the same weights in every arm.")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW's decoupled weight decay.")
    labels: Literal["hard", "stored"] = Field(
        default="hard", description="hard: images and their class. stored: their stored views, with the teacher's soft labels if it gave some."
    )
    weighted: bool = Field(default=False, description="Multiply each sample's loss by its column `weight`, in arms that have one.")
    torch_threads: int = Field(default=1, ge=1, description="Threads of an arm; part of what its weights depend on.")

    @model_validator(mode="after")
    def _tuned_by_its_own(self) -> Self:
        refuse_untunable(self.seeds, self.tune_seeds, self.learning_rates)
        return self


def _units(inputs: Mapping[str, Table], params: StudentParams) -> list[Unit]:
    return [Unit("arm", threads=params.torch_threads)]


def _requires(params: StudentParams) -> list[str]:
    return ["image", "label", *(["views"] if params.labels == "stored" else [])]


@train(
    version=1,
    units=_units,
    inputs={"samples": Input(requires=_requires, also=["weight"], trains=True), "tune": Input(requires=["image", "label"], trains=False)},
    hidden=True,
)
def student(unit: Unit, inputs: Mapping[str, Table], params: StudentParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Tune the learning rate of an arm on `tune`, and train a student a seed with it.

    Every student of a proof has the same net, steps, batch size and schedule. A learning rate is
    judged by the mean accuracy of `tune_seeds` students on `tune`; of equal ones the lower
    cross-entropy wins, then the one named first. Students are kept as they finish.

    Returns:
        A row of MODEL_COLUMNS a seed; `metrics` has `learning_rate`, `validation_accuracy`, and
        `tried`: accuracy and cross-entropy at each learning rate.

    Raises:
        InputError: samples that can't be trained on, or a loss that isn't finite.
    """
    samples = inputs["samples"]
    epochs = -(-params.steps * params.batch_size // max(1, samples.rows))
    if params.labels == "stored":
        arm = load_stored(samples, work.scratch, params.side_px, params.channels, epochs)
    else:
        arm = load_hard(samples, work.scratch, params.side_px, params.channels)
    trainer = _Trainer(weighed(arm, samples) if params.weighted else arm, inputs["tune"], params, work)
    tried = [trainer.tried(rate) for rate in params.learning_rates]
    best = max(tried, key=lambda one: (one["accuracy"], -one["cross_entropy"]))["learning_rate"]
    saw = ids_seen(samples.frame(["sample_id"])["sample_id"].to_list())
    for seed in range(params.seeds):
        classifier = trainer.student(best, seed)
        metrics = {"learning_rate": best, "tried": tried, "validation_accuracy": round(trainer.judged(classifier)[0], 6)}
        yield model_batch([model_row(classifier.net, trainer.config, seed, metrics, saw)])


class _Trainer:
    """Trains and judges the students of one arm."""

    def __init__(self, arm: Arm, tune: Table, params: StudentParams, work: Work) -> None:
        self.arm, self.params, self.work = arm, params, work
        channels, side_px = arm.pixels_VNCSS.shape[2:4]
        mean, std = channel_stats(arm.pixels_VNCSS.reshape(-1, *arm.pixels_VNCSS.shape[2:]))
        self.shape = {"num_classes": len(arm.label_names), "channels": channels, "side_px": side_px}
        self.config: dict[str, Any] = {"task": "classify", "net": params.net, **self.shape, "label_names": arm.label_names, "mean": mean, "std": std}
        self.tune_MCSS = load_images(tune, work.scratch, side_px=side_px, channels=channels, name="tune")
        self.labels_M, self.tune_names = load_labels(tune)
        # Students trained here, by (learning rate, seed): those that tuned are the first of the arm.
        self.trained: dict[tuple[float, int], Classifier] = {}
        self.planned = (len(params.learning_rates) * params.tune_seeds + params.seeds - params.tune_seeds) * params.steps

    def tried(self, rate: float) -> dict[str, float]:
        """Mean accuracy and cross-entropy of the tuning students at a learning rate."""
        judged = np.array([self.judged(self.student(rate, seed)) for seed in range(self.params.tune_seeds)])
        # Rounded, so that equal counts of right answers are equal means.
        accuracy, cross_entropy = judged.mean(axis=0).round(6).tolist()
        return {"learning_rate": rate, "accuracy": accuracy, "cross_entropy": cross_entropy}

    def student(self, rate: float, seed: int) -> Classifier:
        """The student of a seed at a learning rate: trained now, or found as a checkpoint left it."""
        if (rate, seed) not in self.trained:
            self.trained[rate, seed] = self._train(rate, seed)
        return self.trained[rate, seed]

    def judged(self, classifier: Classifier) -> tuple[float, float]:
        """Accuracy and cross-entropy on the tune split."""
        probs_MK = classifier.with_labels(self.tune_names).probs(self.tune_MCSS, PREDICT_BATCH)
        right_M = probs_MK.argmax(1) == self.labels_M
        of_label_M = probs_MK[np.arange(len(self.labels_M)), self.labels_M].astype(np.float64)
        return float(right_M.mean()), float(-np.log(np.maximum(of_label_M, 1e-12)).mean())

    def _train(self, rate: float, seed: int) -> Classifier:
        params, work, before = self.params, self.work, len(self.trained) * self.params.steps
        net = seeded_net(params.net, f"init/{seed}", work.draw, **self.shape)

        fit(
            net,
            self.arm.batches(params.batch_size, f"order/{seed}", work.draw),
            steps=params.steps,
            lr=rate,
            weight_decay=params.weight_decay,
            device=work.device,
            on_step=progress_of(work, 50, before, self.planned),
            checkpoint=work,
            mean=self.config["mean"],
            std=self.config["std"],
            name=f"student-{rate}-{seed}",
        )
        return Classifier(net, self.config, f"student-{seed}", work.device)
