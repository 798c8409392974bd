"""A distillation by trajectory matching under way: its state, its steps, its guards. Importing this loads torch."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stillroom.operators import Table, Work
from tasks.distill._learning import Judge, State, adam_step, keep, resumed
from tasks.distill._matching import Matched, Step, Student, Trail, matching_gradient
from tasks.distill._synthetic import Start
from tasks.nets.dsa import draw_dsa
from tasks.nets.training import index_batches
from tasks.nets.whitening import Whitening
from tasks.nets.zoo import build

if TYPE_CHECKING:
    from tasks.distill.tesla import Experts, TeslaParams

__all__ = ["Distillation"]

# N = synthetic images, B = those of a step, C S S = image, K = classes, P = weights, T = steps

SAVE_EVERY = 20
REJECTED_IN_A_ROW = 10
LEARNT = ("images", "logits", "log_rate")
SHARE_OF_WAY = 1 / 3  # of an expert's learning rate times its steps; a student that goes further misses the first segments widely
RATE_STEP = 0.1  # the most that an iteration moves the logarithm of the learning rate


class Distillation:
    """What is distilled, and how far it is. All tensors of the state are changed in place, and go into a checkpoint."""

    def __init__(self, start: Start, experts: "Experts", params: "TeslaParams", work: Work, tune: Table | None, whitening: Whitening | None = None) -> None:
        self.experts, self.params, self.work, self.labels_N = experts, params, work, start.labels_N
        shape = {name: experts.config[name] for name in ("num_classes", "channels", "side_px")}
        with torch.random.fork_rng(devices=[]):  # the initial weights that `build` draws are never used
            self.student = Student(build(experts.config["net"], **shape).to(work.device), experts.config["net"])
        images_NCSS = start.images_NCSS.to(work.device)
        self.trail = Trail((work.scratch / "trail").open("w+b", buffering=0))
        logits_NK = self._initial_logits(images_NCSS)
        self.state: State = {
            "done": torch.zeros((), dtype=torch.int64),
            "images": images_NCSS.clone(),
            "logits": logits_NK,
            "log_rate": torch.zeros((), dtype=torch.float64),
            "rejected": torch.zeros(2, dtype=torch.int64),  # in all, in a row
            "accuracy": torch.tensor(-1.0, dtype=torch.float64),  # of the best
            "updates": torch.zeros((), dtype=torch.int64),  # since Adam began
            "loss": torch.zeros((), dtype=torch.float64),
        }
        for name in ("images", "logits"):
            self.state |= {f"{name}_{moment}": torch.zeros_like(self.state[name]) for moment in ("mean", "square")}
        for kept in ("best", "good"):
            self.state |= {f"{kept}_{name}": self.state[name].clone() for name in LEARNT}
        if not resumed(self.state, work):
            told = experts.config["expert"]
            way = told["learning_rate"] * told["steps"] * params.match_epochs
            self.state["log_rate"].fill_(math.log(params.learning_rate or way * SHARE_OF_WAY / params.steps))
            self._keep("good")
        self.judge = None if tune is None else Judge(experts.config, experts.augment, params, work, tune, whitening)

    def finish(self) -> None:
        """Run all iterations that are left."""
        for iteration in range(int(self.state["done"]), self.params.iterations):
            self._iterate(iteration)
            self.state["done"].fill_(iteration + 1)
            due = (iteration + 1) % self.params.check_every == 0 or iteration + 1 == self.params.iterations
            if due:
                self._keep("good")
                self._check()
            if due or (iteration + 1) % SAVE_EVERY == 0:
                keep(self.state, self.work)
            self.work.progress(iteration + 1, self.params.iterations)
        self.work.metrics |= {"rejected_iterations": int(self.state["rejected"][0]), "matching_loss": round(float(self.state["loss"]), 4)}
        if self.judge is not None:
            self.work.metrics["validation_accuracy"] = round(float(self.state["accuracy"]), 4)

    def chosen_images(self) -> np.ndarray:
        """The best images seen on `tune`, or the last: float32 [N, C, S, S]."""
        return self.state["best_images"].cpu().numpy()

    def chosen_targets(self) -> np.ndarray:
        """Their target probabilities, float32 [N, K]."""
        return self._targets(self.state["best_logits"]).cpu().numpy()

    def chosen_rate(self) -> float:
        """Their learning rate."""
        return float(f"{float(self.state['best_log_rate'].exp()):.6g}")

    def _iterate(self, iteration: int) -> None:
        matched = self._matched(iteration, float(self.state["log_rate"].exp()))
        rejected = self.state["rejected"]
        if matched.images_NCSS is None or matched.loss > self.params.max_loss:
            rejected += 1
            if rejected[1] >= REJECTED_IN_A_ROW:
                self._go_back()
            return
        rejected[1] = 0
        self.state["loss"].lerp_(torch.tensor(matched.loss, dtype=torch.float64), 1 / min(100, 1 + int(self.state["updates"])))
        self.state["updates"] += 1
        adam_step(self.state, "images", matched.images_NCSS, self.params.image_learning_rate)
        if self.params.labels == "soft":
            logits_NK = self.state["logits"].detach().requires_grad_()
            (by_logits,) = torch.autograd.grad(logits_NK.softmax(1), logits_NK, matched.targets_NK)
            adam_step(self.state, "logits", by_logits, self.params.label_learning_rate)
        slope = float(self.state["log_rate"].exp()) * matched.rate
        self.state["log_rate"] -= max(-RATE_STEP, min(RATE_STEP, self.params.rate_learning_rate * slope))

    def _matched(self, iteration: int, rate: float) -> Matched:
        targets_NK = self._targets(self.state["logits"])
        expert, epoch = self._segment(iteration)
        weights = [self.student.flat(self.experts.weights(expert, at)) for at in (epoch, epoch + self.params.match_epochs)]
        steps = self._steps(iteration)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            return matching_gradient(self.params.gradient, self.student, self.state["images"], targets_NK, rate, (weights[0], weights[1]), steps, self.trail)

    def _segment(self, iteration: int) -> tuple[int, int]:
        """Which expert, and the epoch that its segment starts at."""
        numbers, first = self.experts.numbers, self.experts.first_epoch
        last = self._last_start()
        begin = self.params.first_last_start if self.params.first_last_start is not None else last // 2
        widened = min(1.0, 2 * iteration / self.params.iterations)
        reach = min(last, max(first, begin)) + round(widened * max(0, last - max(first, begin)))
        expert, epoch = self.work.draw.uniform([f"segment/{iteration}"], 2)[0]
        return numbers[int(expert * len(numbers))], first + int(epoch * (reach - first + 1))

    def _last_start(self) -> int:
        reach = self.experts.last_epoch - self.params.match_epochs
        if self.params.last_start is not None:
            return max(self.experts.first_epoch, self.params.last_start)
        per_class = len(self.labels_N) / self.experts.config["num_classes"]
        return max(self.experts.first_epoch, min(reach, round(4 * math.sqrt(per_class))))

    def _steps(self, iteration: int) -> list[Step]:
        samples = len(self.labels_N)
        size = min(self.params.batch_size, samples)
        order = index_batches(samples, size, f"rows/{iteration}", self.work.draw)
        seeds = [self.work.draw.integer(f"augment/{iteration}/{step}") for step in range(self.params.steps)]
        return [Step(torch.from_numpy(order(step)).to(self.work.device), draw_dsa(self.experts.augment, seed, size)) for step, seed in enumerate(seeds)]

    def _targets(self, logits_NK: Tensor) -> Tensor:
        if self.params.labels == "soft":
            return logits_NK.softmax(1)
        return functional.one_hot(torch.from_numpy(self.labels_N), logits_NK.shape[1]).float().to(logits_NK.device)

    def _initial_logits(self, images_NCSS: Tensor) -> Tensor:
        """The mean of what the experts at their last epoch say of each image; where it isn't their label, the label's is raised to the highest."""
        sizes = images_NCSS.new_zeros(len(images_NCSS), self.experts.config["num_classes"])
        if self.params.labels == "hard":
            return sizes
        with torch.no_grad():
            for expert in self.experts.numbers:
                sizes += torch.func.functional_call(self.student.net, self.experts.weights(expert, self.experts.last_epoch), (images_NCSS,))
            logits_NK = sizes / len(self.experts.numbers)
            own_N = torch.from_numpy(self.labels_N).to(images_NCSS.device)[:, None]
            return logits_NK.scatter(1, own_N, torch.maximum(logits_NK.gather(1, own_N), logits_NK.max(1, keepdim=True).values + 1))

    def _go_back(self) -> None:
        """To the last good state, with steps of the student half as long."""
        for name in LEARNT:
            self.state[name].copy_(self.state[f"good_{name}"])
        for name in ("images_mean", "images_square", "logits_mean", "logits_square", "updates"):
            self.state[name].zero_()
        self.state["log_rate"] -= math.log(2)
        self.state["rejected"][1] = 0
        self.state["good_log_rate"].copy_(self.state["log_rate"])

    def _keep(self, kept: str) -> None:
        for name in LEARNT:
            self.state[f"{kept}_{name}"].copy_(self.state[name])

    def _check(self) -> None:
        """Keep the images as the best if they train better nets than the best before; without `tune` the latest are the best."""
        if self.judge is not None:
            accuracy = self.judge.accuracy(self.state["images"], self._targets(self.state["logits"]), float(self.state["log_rate"].exp()))
            if accuracy <= self.state["accuracy"]:
                return
            self.state["accuracy"].fill_(accuracy)
        self._keep("best")
