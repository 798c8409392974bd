"""evaluate.distilled: what a small set is worth, by the nets that it trains, beside real samples of equal number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from stillroom.digests import json_digest
from stillroom.errors import InputError
from stillroom.operators import Input, Params, Table, Unit, Work, measure
from tasks.evaluate._judged import ADDS, ANSWERS, lines_of
from tasks.evaluate._small_sets import BASELINES, SmallSet, Told, chosen, load_set, told_by
from tasks.nets.dsa import DSA_OPS, DsaOp
from tasks.nets.models import Classifier, ensemble_probs, load_classifiers
from tasks.nets.recipe import DC_BENCH, PCA_BENCH, TrainingRecipe, refuse_untunable
from tasks.nets.samples import load_images, load_labels
from tasks.nets.training import channel_stats, fit, seeded_net
from tasks.nets.whitening import Whitening, load_whitening
from tasks.nets.zoo import NetName

# N = test samples, M = those of the tune split, C S = channels and side, K = classes

SETTING = ("real", "test", "tune", "teacher", "whitening")


class DistilledParams(Params):
    """Parameters of `evaluate.distilled`."""

    protocol: Literal["dc_bench", "pca", "table"] = Field(
        default="dc_bench",
        description="dc_bench: SGD at 0.01, a tenth from half on, DSA. pca: AdamW at 0.001, cosine, crops and flips. "
        "table: dc_bench with the learning rate and the augmentation that a set's column `training` tells.",
    )
    nets: tuple[NetName, ...] = Field(
        default=("convnet3", "resnet18", "mlp"), min_length=1, description="The first is the benchmark's; the others show whether a set serves other nets too."
    )
    seeds: int = Field(default=5, ge=1, description="Nets of an arm. Seed s starts from the same weights in every arm.")
    epochs: int | None = Field(default=None, ge=1, description="Passes over a small set; left out, the protocol's: 1000, of pca 300.")
    real_epochs: int = Field(
        default=20, ge=0, description="Passes over all real samples, for HLR and LRS; more, where the small set gets more steps. 0 leaves both out."
    )
    learning_rates: tuple[float, ...] = Field(default=(), description="Tried on `tune` by every arm, beside the protocol's own.")
    tune_seeds: int = Field(default=1, ge=1, description="Nets that a learning rate is judged by: the first of the seeds.")
    augment: tuple[DsaOp, ...] = Field(default=DSA_OPS, description=f"DSA's operations: of {', '.join(DSA_OPS)}. No flip where left and right count.")
    robustness: bool = Field(default=True, description="Train the first net under the other augmentation too (none, or some), for ARS.")
    vectors: str | None = Field(default=None, description="Vector column of `real` that herding and k-medoids go by; left out, the pixels.")
    label_weight: float = Field(default=0.5, ge=0, le=1, description="Weight of IOR in LRS; HLR has the rest.")
    augment_weight: float = Field(default=0.5, ge=0, le=1, description="Weight of the augmented gain in ARS; the plain one has the rest.")
    side_px: int | None = Field(default=None, ge=8, description="Resize images to this square; left out, those of a set must have one size.")
    channels: Literal[1, 3] | None = Field(default=None, description="1 grey, 3 colour. Left out, all images of a set must agree.")
    batch: int = Field(default=256, ge=1, description="Test images that a net sees at once; the last batch is filled up.")
    torch_threads: int = Field(default=1, ge=1, description="Threads of a unit; part of what its nets depend on.")

    @model_validator(mode="after")
    def _tuned_by_its_own(self) -> Self:
        refuse_untunable(self.seeds, self.tune_seeds, self.learning_rates)
        if len(set(self.nets)) < len(self.nets):
            raise ValueError("nets must be named once each")
        return self

    def recipe(self, told: Told) -> TrainingRecipe:
        """How a set is trained on, and real samples in its place."""
        rate = told.training.get("learning_rate") if self.protocol == "table" else None
        protocol = PCA_BENCH if self.protocol == "pca" else DC_BENCH
        return replace(protocol.of_epochs(self.epochs), learning_rate=rate or protocol.learning_rate)

    def augmentation(self, told: Told) -> "tuple[DsaOp, ...] | Literal['crops']":
        """The protocol's augmentation; an empty tuple is none."""
        if self.protocol == "pca":
            return "crops"
        return tuple(told.training.get("augment") or ()) if self.protocol == "table" and told.training else self.augment


def _sets(inputs: Mapping[str, Table]) -> list[str]:
    return [name for name in inputs if name not in SETTING]


def _units(inputs: Mapping[str, Table], params: DistilledParams) -> list[Unit]:
    """A unit for each arm and net; sets of equal size that are trained on alike share the arms of real samples."""
    if not _sets(inputs):
        raise InputError("from", "names no set to judge", "write from: {mine: …, real: split.train, test: split.test}")
    if params.learning_rates and "tune" not in inputs:
        raise InputError("from.tune", "is missing", "learning_rates are tried on it: split.validation")
    told = {name: told_by(name, inputs[name], params.side_px, params.channels) for name in _sets(inputs)}
    _refuse_other_whitening(told, load_whitening(inputs.get("whitening")), params)
    units: list[Unit] = []
    for place, net in enumerate(params.nets):
        for name, one in told.items():
            units.append(_unit([name], "candidate", net, _cells(one, params, first=not place), params))
            if one.exact and params.protocol != "pca" and not place:
                units.append(_unit([name], "candidate_8_bit", net, [_main(one, params)], params))
        for alike in _alike(told, params):
            one = told[alike[0]]
            labelled = one if "teacher" in inputs else replace(one, soft=False)
            cells = _cells(labelled, params, first=not place)
            # ARS needs the random arm alone under the other augmentation.
            units += [_unit(alike, arm, net, [cell for cell in cells if cell["main"] or arm == "random"], params) for arm in BASELINES]
            if params.real_epochs and not place:
                units.append(_unit(alike, "real", net, [_main(one, params) | {"labels": "hard"}], params))
    return units


def _unit(sets: Sequence[str], arm: str, net: str, cells: list[dict[str, Any]], params: DistilledParams) -> Unit:
    name = f"{sets[0]}-{arm}-{net}".replace("/", "-").replace(":", "-")
    return Unit(name, value={"sets": list(sets), "arm": arm, "net": net, "cells": cells}, threads=params.torch_threads)


def _main(told: Told, params: DistilledParams) -> dict[str, Any]:
    """The set's own labels, under the protocol's augmentation."""
    return {"labels": "soft" if told.soft else "hard", "augmented": bool(params.augmentation(told)), "main": True}


def _cells(told: Told, params: DistilledParams, *, first: bool) -> list[dict[str, Any]]:
    """Under which labels and augmentations an arm is trained; of further nets, under its own alone."""
    main = _main(told, params)
    cells = [main]
    if first and told.soft:
        cells.append(main | {"labels": "hard"})
    if first and params.robustness:
        cells.append(main | {"augmented": not main["augmented"], "main": False})
    return cells


def _alike(told: Mapping[str, Told], params: DistilledParams) -> list[list[str]]:
    """Sets whose baselines are the same: as many of each class, of one size, trained on alike."""
    groups: dict[str, list[str]] = {}
    for name, one in told.items():
        what = [dict(one.counts), one.side_px, one.channels, one.soft, _stats(one), asdict(params.recipe(one)), params.augmentation(one)]
        groups.setdefault(json_digest(what), []).append(name)
    return list(groups.values())


def _stats(told: Told) -> tuple[list[float], list[float], str | None] | None:
    """Means, deviations and whitening that a set was made with; None: means and deviations of the real samples, and none."""
    return (told.training["mean"], told.training["std"], told.training.get("zca")) if "mean" in told.training else None


def _refuse_other_whitening(told: Mapping[str, Told], whitening: Whitening | None, params: DistilledParams) -> None:
    for name, one in told.items():
        zca = one.training.get("zca")
        if zca and whitening is None:
            raise InputError("from.whitening", f"is missing, and {name} was made for whitened images", "give the stage that its experts had")
        if zca and whitening and zca != whitening.model_id:
            raise InputError("from.whitening", f"is another than {name} was made for", "give the stage that its experts had")
        if zca and params.protocol == "pca":
            raise InputError(f"from.{name}", "was made for whitened images, which protocol pca doesn't crop", "judge it by dc_bench or table")


def _finish(tables: Sequence[pa.Table], params: DistilledParams) -> pa.Table:
    return lines_of(tables, params.protocol, params.nets[0], params.label_weight, params.augment_weight)


@measure(
    version=1,
    units=_units,
    adds=ADDS,
    inputs={
        "real": Input(requires=lambda params: ["image", "label", *([params.vectors] if params.vectors else [])], trains=True),
        "test": Input(requires=["image", "label"], trains=False),
        "tune": Input(requires=["image", "label"], trains=False, optional=True),
        "teacher": Input(kind="model", optional=True),
        "whitening": Input(kind="model", optional=True),
        "*": Input(requires=["image", "label"], also=("pixels", "soft_label", "training", "views", "mosaic_grid"), trains=True),
    },
    finish=_finish,
    random=True,
)
def distilled(unit: Unit, inputs: Mapping[str, Table], params: DistilledParams, work: Work) -> Iterator[pa.RecordBatch]:
    """Train nets on small sets and on as many real samples, by one recipe, and judge all of them on the test split.

    Each further input is a set, called by its name: a distilled table, or a pruned one. Beside each stand `random`,
    `herding` and `k_medoids`: as many samples of each class out of `real`. The protocols are those of DC-BENCH (Cui et al.,
    arXiv 2207.09639) and of PCA's benchmark (Xiao and He, arXiv 2502.06434), the figures over them DD-Ranking's
    (Li et al., arXiv 2505.13300). With a `teacher`, real samples in the place of a set with soft labels get its. A set of
    whitened images, and real ones in its place, are trained and judged on whitened ones: `whitening` is that of its experts.

    Args:
        unit: an arm and a net; `value` says for which sets, and under which labels and augmentations.

    A net whose loss is no number any more has nothing right.

    Returns:
        Rows of kind `arm` (accuracy of a set's arms), `difference` (the candidate's gain over each), `ranking`
        (`metric` HLR, IOR, LRS or ARS, and its `value`) and `seed`; `low` and `high` are the ends of the 95 % interval.

    Raises:
        InputError: a set without an image of some class; classes that don't fit; images that can't be trained on.
    """
    value = unit.value
    told = told_by(value["sets"][0], inputs[value["sets"][0]], params.side_px, params.channels)
    trainer = _Trainer(value, told, inputs, params, work)
    for done, cell in enumerate(value["cells"], 1):
        yield pa.RecordBatch.from_pylist([trainer.answers(cell, seed, trainer.rate(cell)) for seed in range(params.seeds)], ANSWERS)
        work.progress(done, len(value["cells"]))


class _Trainer:
    """Trains and judges the nets of one arm."""

    def __init__(self, value: Mapping[str, Any], told: Told, inputs: Mapping[str, Table], params: DistilledParams, work: Work) -> None:
        self.value, self.told, self.inputs, self.params, self.work = value, told, inputs, params, work
        self.size: dict[str, Any] = {"side_px": told.side_px, "channels": told.channels}
        self.labels_N, self.names = load_labels(inputs["test"])
        self.whitening = load_whitening(inputs["whitening"]) if told.training.get("zca") else None
        self.test_NCSS = load_images(inputs["test"], work.scratch, **self.size, name="test", whitening=self.whitening)
        self.is_set = value["arm"].startswith("candidate")
        stats = _stats(told)
        if not (self.is_set and stats):
            self.real_labels, self.real_names = load_labels(inputs["real"])
            self.real_ids = inputs["real"].frame(["sample_id"])["sample_id"]
            self.real_NCSS = load_images(inputs["real"], work.scratch, **self.size, name="real")
        self.mean, self.std = stats[:2] if stats else channel_stats(self.real_NCSS)
        exact = told.exact and self._exact()
        self.own = load_set(inputs[value["sets"][0]], told, work.scratch, exact=exact, whitening=self.whitening) if self.is_set else None
        self.sets: dict[int, SmallSet] = {}
        recipe = params.recipe(told)
        if value["arm"] == "real":
            # A reference that took fewer steps than the set would be a weak one: of a few hundred samples, 20 passes are a few dozen steps.
            steps_an_epoch = recipe.of_epochs(1).steps(inputs["real"].rows)
            recipe = recipe.of_epochs(max(params.real_epochs, -(-recipe.steps(sum(told.counts.values())) // steps_an_epoch)))
        self.recipe = recipe
        if "tune" in inputs:
            self.tune_labels, self.tune_names = load_labels(inputs["tune"])
            self.tune_MCSS = load_images(inputs["tune"], work.scratch, **self.size, name="tune", whitening=self.whitening)

    def rate(self, cell: Mapping[str, Any]) -> float:
        """The learning rate that the first seeds do best with on `tune`; the protocol's own, where none else is tried."""
        rates = dict.fromkeys([self.recipe.learning_rate, *self.params.learning_rates])
        if len(rates) == 1:
            return self.recipe.learning_rate
        right = {rate: sum(self._right(cell, seed, rate)[1] for seed in range(self.params.tune_seeds)) for rate in rates}
        return max(right, key=lambda rate: right[rate])

    def answers(self, cell: Mapping[str, Any], seed: int, rate: float) -> dict[str, Any]:
        """What a net made of the test split, as a row of ANSWERS."""
        known = {name: self.value[name] for name in ("sets", "arm", "net")}
        rows = len(self._set(seed).labels_N)
        return {**known, **cell, "seed": seed, "learning_rate": rate, "rows": rows, "correct": self._right(cell, seed, rate)[0]}

    def _right(self, cell: Mapping[str, Any], seed: int, rate: float) -> tuple[np.ndarray, int]:
        """Which test samples a net gets right, and how many of `tune`; of a net that a stopped build trained, as it left them."""
        kept = f"{cell['labels']}-{'augmented' if cell['augmented'] else 'plain'}-{rate}-{seed}"
        if (known := self.work.load(f"{kept}-answers")) is None:
            right_N, right_M = self._judged(cell, seed, rate, kept)
            known = np.packbits(right_N).tobytes() + int(right_M.sum()).to_bytes(8, "little")
            self.work.save(f"{kept}-answers", known)
            self.work.save(kept, b"")  # weights of dozens of nets would fill a store
        bits = np.unpackbits(np.frombuffer(known[:-8], np.uint8), count=len(self.labels_N))
        return bits.astype(bool), int.from_bytes(known[-8:], "little")

    def _judged(self, cell: Mapping[str, Any], seed: int, rate: float, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Train a net, and see which samples of `test` and of `tune` (none, where that isn't given) it gets right."""
        tuned = len(self.tune_labels) if "tune" in self.inputs else 0
        try:
            classifier = self._trained(cell, seed, rate, name)
        except InputError as error:
            if error.args[0] != "training":
                raise
            # A rate that suits one net, or one set, may be too much for another: that is a finding, and no fault of the recipe.
            told = f"diverged_{self.value['sets'][0]}_{self.value['arm']}_{self.value['net']}"  # metrics of units are merged by name
            self.work.metrics[told] = self.work.metrics.get(told, 0) + 1
            return np.zeros(len(self.labels_N), bool), np.zeros(tuned, bool)
        right_N = classifier.with_labels(self.names).probs(self.test_NCSS, self.params.batch).argmax(1) == self.labels_N
        if not tuned:
            return right_N, np.zeros(0, bool)
        return right_N, classifier.with_labels(self.tune_names).probs(self.tune_MCSS, self.params.batch).argmax(1) == self.tune_labels

    def _trained(self, cell: Mapping[str, Any], seed: int, rate: float, name: str) -> Classifier:
        small, params, work = self._set(seed), self.params, self.work
        net = seeded_net(self.value["net"], f"init/{seed}", work.draw, **small.shape)
        augment = (params.augmentation(self.told) or params.augment or DSA_OPS) if cell["augmented"] else ()
        fit(
            net,
            small.batches(self.recipe.batch_size, seed, work.draw, self.mean, self.std, augment, soft=cell["labels"] == "soft"),
            steps=self.recipe.steps(len(small.labels_N)),
            lr=rate,
            weight_decay=self.recipe.weight_decay,
            device=work.device,
            checkpoint=work,
            name=name,
            optimizer=self.recipe.make_optimizer,
            schedule=self.recipe.rate,
        )
        config = {"task": "classify", "net": self.value["net"], **small.shape, "label_names": small.label_names, "mean": self.mean, "std": self.std}
        return Classifier(net, config, f"{self.value['arm']}-{seed}", work.device)

    def _set(self, seed: int) -> SmallSet:
        """What a seed's net is trained on."""
        if self.own:
            return self.own
        place = seed if self.value["arm"] == "random" else 0
        if place not in self.sets:
            self.sets[place] = self._of_real(place)
        return self.sets[place]

    def _of_real(self, seed: int) -> SmallSet:
        if self.value["arm"] == "real":
            rows = self.real_ids.arg_sort().to_numpy()
        else:
            rows = chosen(self.value["arm"], self.inputs["real"], self.real_NCSS, self.told.counts, self.work.draw, seed, self.params.vectors)
        soft_NK = None
        if any(cell["labels"] == "soft" for cell in self.value["cells"]):
            members = [member.with_labels(self.real_names) for member in load_classifiers(self.inputs["teacher"], self.work.device)]
            soft_NK = ensemble_probs(members, self.real_NCSS[rows], self.params.batch)
        pixels_PCSS, places = self.real_NCSS, rows
        if self.whitening is not None:  # choices and teachers go by the images as they are
            pixels_PCSS, places = self.whitening.apply_to_file(self.real_NCSS[rows], self.work.scratch / f"whitened-real-{seed}"), np.arange(len(rows))
        return SmallSet(pixels_PCSS, places, self.real_labels[rows], self.real_names, self.real_ids.gather(rows).to_list(), soft_NK)

    def _exact(self) -> bool:
        return self.value["arm"] == "candidate" and self.params.protocol != "pca"
