"""What the epochs of one training say of each sample, added up as they come."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import entr

__all__ = ["Outputs", "Tally"]

# N = all samples, B = some of them, K = classes, W = epochs of a window


class Outputs(NamedTuple):
    """What a net says of B samples.

    Attributes:
        logits_BK, probs_BK: float32, before and after softmax.
        squares_B: float32, the squared length of what the last layer sees, its bias counted as an input of 1.
    """

    logits_BK: np.ndarray
    probs_BK: np.ndarray
    squares_B: np.ndarray


class Tally:
    """Scores of one training as they add up, epoch by epoch.

    A sample takes a dozen numbers and the W newest probabilities of its label, whatever the number of
    epochs. All of it is in `state`, arrays that change in place, so that a checkpoint can keep them.

    Args:
        labels_N: int64.
        epochs: how many there will be.
        el2n_epochs: those whose errors count.
        window: W, 2 to `epochs`; 1 leaves out the scores by windows.
        dual_epochs: the first epochs, whose windows count for `dual`; `window` to `epochs`.
    """

    def __init__(self, labels_N: np.ndarray, *, epochs: int, el2n_epochs: Sequence[int], window: int, dual_epochs: int) -> None:
        samples = len(labels_N)
        self.labels_N, self.epochs, self.el2n_epochs, self.window, self.dual_epochs = labels_N, epochs, el2n_epochs, window, dual_epochs
        sums = ("error_sum", "grand_sum", "margin_sum", "uncertainty_sum", "dual_sum")
        self.state = {name: np.zeros(samples, np.float64) for name in sums} | {
            "events": np.zeros(samples, np.int64),
            "was_right": np.zeros(samples, bool),
            "ever_right": np.zeros(samples, bool),
            "newest": np.zeros((samples, window), np.float32),
        }
        self.final = {name: np.zeros(samples, np.float64) for name in ("margin", "entropy")}

    def add(self, rows_B: np.ndarray | slice, outputs: Outputs, epoch: int) -> None:
        """Take in what the net says of different rows in an epoch, the first being 1; of each row, epochs come in order."""
        state, labels_B, across = self.state, self.labels_N[rows_B], np.arange(len(outputs.probs_BK))
        if epoch in self.el2n_epochs:
            errors_BK = outputs.probs_BK.astype(np.float64)
            errors_BK[across, labels_B] -= 1
            error_B = np.linalg.norm(errors_BK, axis=1)
            state["error_sum"][rows_B] += error_B
            state["grand_sum"][rows_B] += error_B * np.sqrt(outputs.squares_B, dtype=np.float64)
        right_B = outputs.probs_BK.argmax(axis=1) == labels_B
        state["events"][rows_B] += state["was_right"][rows_B] & ~right_B
        state["was_right"][rows_B] = right_B
        state["ever_right"][rows_B] |= right_B
        others_BK = outputs.logits_BK.copy()
        others_BK[across, labels_B] = -np.inf
        state["margin_sum"][rows_B] += outputs.logits_BK[across, labels_B].astype(np.float64) - others_BK.max(axis=1)
        if self.window > 1:
            self._add_window(rows_B, outputs.probs_BK[across, labels_B], epoch)

    def add_final(self, rows_B: np.ndarray | slice, probs_BK: np.ndarray) -> None:
        """Take in what the trained net says of these rows."""
        rest_BK = probs_BK.astype(np.float64)
        self.final["entropy"][rows_B] = entr(rest_BK).sum(axis=1)
        first_B = rest_BK.max(axis=1)
        rest_BK[np.arange(len(rest_BK)), rest_BK.argmax(axis=1)] = 0
        self.final["margin"][rows_B] = first_B - rest_BK.max(axis=1)

    def scores(self) -> dict[str, np.ndarray]:
        """The scores, float64 [N] each, once all epochs and the trained net are in."""
        state, early = self.state, len(self.el2n_epochs)
        scores = {
            "el2n": state["error_sum"] / early,
            "grand": state["grand_sum"] / early,
            "forgetting": np.where(state["ever_right"], state["events"].astype(np.float64), np.inf),
            "aum": state["margin_sum"] / self.epochs,
            **self.final,
        }
        if self.window > 1:
            scores["dynamic_uncertainty"] = state["uncertainty_sum"] / (self.epochs - self.window + 1)
            scores["dual"] = state["dual_sum"] / (self.dual_epochs - self.window + 1)
        return scores

    def _add_window(self, rows_B: np.ndarray | slice, true_B: np.ndarray, epoch: int) -> None:
        """Take in the probability of the label, and judge the window that this epoch ends."""
        self.state["newest"][rows_B, epoch % self.window] = true_B
        if epoch < self.window:
            return
        newest_BW = self.state["newest"][rows_B].astype(np.float64)
        mean_B = newest_BW.mean(axis=1)
        # As both papers' authors do, the deviation of a sample: the sum of squares over W - 1.
        deviation_B = newest_BW.std(axis=1, ddof=1)
        self.state["uncertainty_sum"][rows_B] += deviation_B
        if epoch <= self.dual_epochs:
            self.state["dual_sum"][rows_B] += deviation_B * (1 - mean_B)
