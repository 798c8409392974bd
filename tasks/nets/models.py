"""Models as rows of a table: how one is written, and how it is read back and asked. Importing this loads no torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from blake3 import blake3

from stillroom.digests import canonical_json
from stillroom.draws import Draw
from stillroom.errors import InputError, StageError
from stillroom.fields import with_meaning
from stillroom.images import resize
from stillroom.operators import MODEL_COLUMNS, Table
from stillroom.transforms import COUNTS, Transforms, transformed
from tasks.nets.samples import load_images, load_labels
from tasks.nets.training import normalise

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Classifier",
    "Judges",
    "accuracy",
    "ensemble_probs",
    "folds_of",
    "ids_seen",
    "judges_of",
    "load_classifiers",
    "measured_on",
    "model_batch",
    "model_row",
    "refuse_below",
]

# B = images, C H W = image, K = classes, D = features, M = members of an ensemble

Saw = Mapping[str, Any] | str
Judges = Literal["all", "unseen"]


@dataclass(frozen=True)
class Classifier:
    """A classifier as a row of a table of models holds it, ready to be asked.

    Images come as uint8 [B, C, H, W], as `stillroom.images.decode_batch` gives them. Another size than
    the model's is resized by `stillroom.images.resize` (squares, whatever the aspect), one channel is
    repeated for a model of three; a model of one channel refuses colour. Whitened ones come as float32, of the
    model's own size. The net runs on batches of one
    fixed shape, the last padded with zeros, so that a row's numbers depend on that row and on `batch` only.

    Args:
        config: what the row's `config` says: net, channels, side_px, mean, std, label_names; and, for a
            model that came with more or other classes, `head_classes` and `outputs`: the net's output of each label. `joint`:
            the net has an output for each of the head's classes in each of M transforms, and its answer is the mean over them.
        saw: what the row says of the samples that it was trained on.
    """

    net: "nn.Module"
    config: Mapping[str, Any]
    model_id: str
    device: str
    saw: Saw = "unknown"

    @classmethod
    def from_row(cls, row: Mapping[str, Any], device: str) -> "Classifier":
        """Rebuild the classifier of one row (with the columns `model_id`, `config`, `saw`, `weights`).

        Raises:
            InputError: the row holds another kind of model.
        """
        import torch
        from safetensors.torch import load

        from tasks.nets.zoo import build

        config = json.loads(row["config"])
        if config.get("task") != "classify":
            raise InputError(f"model {row['model_id'][:12]}", f"is made for the task '{config.get('task')}', a classifier is needed")
        if config.get("zca"):
            problem = "was trained on whitened images, which it can't be given here"
            raise InputError(f"model {row['model_id'][:12]}", problem, "leave `whitening` out of the stage that trains it")
        outputs = config.get("head_classes", config["num_classes"]) * COUNTS.get(config.get("joint"), 1)
        with torch.random.fork_rng(devices=[]):  # the initial weights that `build` draws are thrown away
            net = build(config["net"], num_classes=outputs, channels=config["channels"], side_px=config["side_px"])
        net.load_state_dict(load(row["weights"]))
        return cls(net.to(device).eval(), config, row["model_id"], device, json.loads(row["saw"]))

    @property
    def label_names(self) -> list[str]:
        """The K class names, in the order of `probs`."""
        return list(self.config["label_names"])

    def probs(self, pixels_BCHW: np.ndarray, batch: int) -> np.ndarray:
        """Class probabilities, float32 [B, K], rows that sum to 1; over the labels only, where the net knows more classes.

        Of a net of joint labels the softmax of its aggregated logits: each image is shown to it in all M transforms.
        """
        outputs, joint = self.config.get("outputs"), self.config.get("joint")
        if joint is not None:
            return self._aggregated_probs(pixels_BCHW, batch, joint, outputs)

        def ask(images: "Tensor") -> "Tensor":
            logits_BK = self.net(images)
            return (logits_BK if outputs is None else logits_BK[:, outputs]).softmax(1)

        return self.run(ask, pixels_BCHW, batch)

    def _aggregated_probs(self, pixels_BCHW: np.ndarray, batch: int, joint: Transforms, outputs: Sequence[int] | None) -> np.ndarray:
        import torch

        from stillroom.train import aggregated

        fitted_BCSS = self._fitted(pixels_BCHW)
        logits = [self.run(self.net, transformed(fitted_BCSS, joint, transform), batch) for transform in range(COUNTS[joint])]
        logits_BK = aggregated(torch.from_numpy(np.stack(logits)))
        return (logits_BK if outputs is None else logits_BK[:, outputs]).softmax(1).numpy()

    def single(self) -> "Classifier":
        """The same net without the aggregate: it sees an image as it is, and its outputs for transform 0 are the answer."""
        config = dict(self.config)
        transforms = COUNTS[config.pop("joint")]
        classes = config.get("outputs") or range(config["num_classes"])
        more = {"head_classes": transforms * config.get("head_classes", config["num_classes"]), "outputs": [transforms * own for own in classes]}
        return replace(self, config=config | more)

    def features(self, pixels_BCHW: np.ndarray, batch: int) -> np.ndarray:
        """What the last layer sees, float32 [B, D]."""
        from tasks.nets.networks import features_of

        return self.run(lambda images: features_of(self.net, images), pixels_BCHW, batch)

    def with_labels(self, label_names: Sequence[str]) -> "Classifier":
        """The same model, answering for these labels in this order; the others are left out of its softmax.

        Raises:
            InputError: a label is none of the model's classes.
        """
        own = self.label_names
        if missing := [name for name in label_names if name not in own]:
            more = f" and {len(missing) - 1} more labels" if len(missing) > 1 else ""
            known = ", ".join(own[:10]) + (" …" if len(own) > 10 else "")
            raise InputError(self._called, f"has no class '{missing[0]}'{more}", f"its classes are {known}")
        if list(label_names) == own:
            return self
        now = self.config.get("outputs") or range(len(own))
        changed = {"label_names": list(label_names), "num_classes": len(label_names), "outputs": [now[own.index(name)] for name in label_names]}
        config = {**self.config, "head_classes": self.config.get("head_classes", self.config["num_classes"]), **changed}
        return replace(self, config=config)

    def unseen(self, sample_ids: Sequence[str]) -> np.ndarray:
        """Of which of these samples it is sure that the model wasn't trained on them, bool [B]: those of the fold that it left out."""
        left_out = self.saw.get("left_out") if isinstance(self.saw, Mapping) else None
        if left_out is None:
            return np.full(len(sample_ids), self.saw == "none")
        return folds_of(sample_ids, left_out["folds"], left_out["seed"]) == left_out["fold"]

    @property
    def _called(self) -> str:
        return f"model {self.model_id[:12]}"

    def run(self, ask: "Callable[[Tensor], Tensor]", pixels_BCHW: np.ndarray, batch: int) -> np.ndarray:
        """What `ask` makes of the images, normalised, in batches of one shape; float32, a row each."""
        import torch

        parts = []
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            # An empty batch runs on padding alone, so that it has the right width.
            for start in range(0, max(1, len(pixels_BCHW)), batch):
                part_BCHW = self._fitted(pixels_BCHW[start : start + batch])
                padded = np.zeros((batch, *part_BCHW.shape[1:]), part_BCHW.dtype)
                padded[: len(part_BCHW)] = part_BCHW
                images = normalise(torch.from_numpy(padded).to(self.device), self.config["mean"], self.config["std"])
                parts.append(ask(images)[: len(part_BCHW)].float().cpu().numpy())
        return np.concatenate(parts)

    def _fitted(self, pixels_BCHW: np.ndarray) -> np.ndarray:
        channels, side_px = self.config["channels"], self.config["side_px"]
        if not len(pixels_BCHW):
            return np.zeros((0, channels, side_px, side_px), np.uint8)
        if pixels_BCHW.shape[1] not in (1, channels):
            problem = f"takes images of {channels} channel, these have {pixels_BCHW.shape[1]}"
            raise InputError(self._called, problem, f"decode them with channels: {channels}")
        if pixels_BCHW.dtype != np.uint8:
            return pixels_BCHW
        fitted = resize(pixels_BCHW, side_px)
        return np.repeat(fitted, channels, axis=1) if fitted.shape[1] < channels else fitted


def load_classifiers(table: Table, device: str) -> list[Classifier]:
    """The classifiers of a table of models, a member of the ensemble each, in row order.

    Raises:
        InputError: there is none, one is no classifier, or the members don't know the same labels.
    """
    rows = table.take(range(table.rows), ["model_id", "config", "saw", "weights"]).to_pylist()
    members = [Classifier.from_row(row, device) for row in rows]
    if not members:
        raise InputError("models", "the table is empty")
    return [member.with_labels(members[0].label_names) for member in members]


def ensemble_probs(
    members: Sequence[Classifier], pixels_BCHW: np.ndarray, batch: int, *, judges_MB: np.ndarray | None = None, temperature: float | None = None
) -> np.ndarray:
    """The mean of the members' softmaxes (not of their logits), float32 [B, K]; summed in float64, in member order.

    Args:
        judges_MB: which members judge which images, as `judges_of` gives it; None lets all judge all.
        temperature: at which each softmax is taken; None leaves the members' answers to the bit.
    """
    judges_MB = np.ones((len(members), len(pixels_BCHW)), bool) if judges_MB is None else judges_MB
    total_BK = np.zeros((len(pixels_BCHW), len(members[0].label_names)))
    for member, judged_B in zip(members, judges_MB, strict=True):
        if judged_B.any():
            probs_BK = member.probs(pixels_BCHW[judged_B], batch).astype(np.float64)
            if temperature is not None:
                # p^(1/T), normalised, is the softmax at T: the logits' constant falls out.
                probs_BK **= 1 / temperature
                probs_BK /= probs_BK.sum(axis=1, keepdims=True)
            total_BK[judged_B] += probs_BK
    return (total_BK / judges_MB.sum(axis=0)[:, None]).astype(np.float32)


def judges_of(members: Sequence[Classifier], sample_ids: Sequence[str], who: Judges) -> np.ndarray:
    """Which members judge which samples, bool [M, B]: all of them, or those that are sure not to have seen a sample.

    Raises:
        InputError: a sample that no member may judge.
    """
    if who == "all":
        return np.ones((len(members), len(sample_ids)), bool)
    judges_MB = np.stack([member.unseen(sample_ids) for member in members])
    if len(alone := np.flatnonzero(~judges_MB.any(axis=0))):
        problem = f"was seen by each of {len(members)} models, or may have been, and judge is {who}"
        raise InputError(f"sample '{sample_ids[alone[0]]}'", problem, "train them with `folds`, or write judge: all")
    return judges_MB


def accuracy(members: Sequence[Classifier], pixels_BCHW: np.ndarray, labels_B: np.ndarray, batch: int) -> float:
    """The share of images whose largest mean probability is at the label; of equal ones the first counts."""
    return float((ensemble_probs(members, pixels_BCHW, batch).argmax(1) == labels_B).mean())


def measured_on(members: Sequence[Classifier], table: Table, scratch: Path, batch: int) -> dict[str, Any]:
    """Accuracy of the members' mean on a table of samples with `image` and `label`, matched by class name.

    Returns:
        `validation_accuracy` (0 to 1) and `validation_rows`, for the `metrics` of a model row.

    Raises:
        InputError: the table has no rows, or a class that the members don't know.
    """
    labels_N, names = load_labels(table)
    config = members[0].config
    pixels_NCSS = load_images(table, scratch, side_px=config["side_px"], channels=config["channels"], name="check-on")
    asked = [member.with_labels(names) for member in members]
    return {"validation_accuracy": round(accuracy(asked, pixels_NCSS, labels_N, batch), 6), "validation_rows": table.rows}


def refuse_below(floor: float | None, metrics: Mapping[str, Any], operator: str) -> None:
    """Refuse a model whose `validation_accuracy` is below the floor; None refuses nothing.

    Raises:
        StageError: with accuracy and floor.
    """
    accuracy = metrics.get("validation_accuracy", 1.0)
    if floor is not None and accuracy < floor:
        raise StageError(
            operator,
            f"accuracy {accuracy:.4f} on {metrics['validation_rows']} validation rows is below the floor of {floor}",
            "a better model, or a lower floor",
        )


def folds_of(sample_ids: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each sample, int64 [B], 0 to folds - 1.

    It hangs on the sample's id and the seed alone: whoever meets a sample later can tell which model left it
    out, and rows that come or go move no other.
    """
    return np.floor(Draw(seed, "folds").uniform(sample_ids, 1)[:, 0] * folds).astype(np.int64)


def ids_seen(sample_ids: Sequence[str], left_out: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What a model row's `saw` says of its training samples: how many, and a digest of the sorted ids.

    Args:
        left_out: the fold that wasn't among them: `fold`, `folds` and `seed`, as `folds_of` takes them.
    """
    saw = {"rows": len(sample_ids), "ids_digest": blake3("\n".join(sorted(sample_ids)).encode()).hexdigest()}
    return saw | ({"left_out": dict(left_out)} if left_out else {})


def model_row(net_module: "nn.Module", config: Mapping[str, Any], seed: int, metrics: Mapping[str, Any], saw: Saw) -> dict[str, Any]:
    """A trained net as a row of a table of models.

    Args:
        config: all that `Classifier.from_row` needs; see there.
        saw: what `ids_seen` gives, "none" or "unknown".

    Returns:
        A value for each of `MODEL_COLUMNS`; `model_id` is the digest of config and weights, 32 hex characters.
    """
    from safetensors.torch import save

    # `save` refuses tensors that share memory, as tied weights do.
    weights = save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in net_module.state_dict().items()})
    stored = canonical_json(config)
    return {
        "model_id": blake3(len(stored).to_bytes(8, "little") + stored + weights).hexdigest(length=16),
        "seed": seed,
        "config": stored.decode(),
        "metrics": canonical_json(metrics).decode(),
        "saw": canonical_json(saw).decode(),
        "weights": weights,
    }


def model_batch(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows of `model_row` as the batch that a `train` operator yields."""
    schema = pa.schema([with_meaning(name, declared) for name, declared in MODEL_COLUMNS.items()])
    return pa.RecordBatch.from_pylist(list(rows), schema)
