"""How a training is watched: what the net says of each sample while it learns it, or of all samples after each epoch."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import InputError
from tasks.nets.models import Classifier
from tasks.score._tally import Outputs, Tally

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CHECKPOINT_STEPS", "AfterEpochs", "WhileTraining", "add_final"]

# N = all samples, B = some of them, K = classes, D = features, C = channels, S = side

CHECKPOINT_STEPS = 200
MEASURE_BATCH = 256
MEASURE_ROWS = 16 * MEASURE_BATCH
# A small net passes over these faster than over more: what it computes stays in the cache.
FINAL_BATCH = 128


class _Answers:
    """Makes `Outputs` of a net's logits and of what its last layer saw, which a hook remembers.

    Raises:
        InputError: the net doesn't end in a linear layer.
    """

    def __init__(self, classifier: Classifier) -> None:
        from torch import nn

        from tasks.nets.networks import head_of

        head = head_of(classifier.net)
        if not isinstance(head, nn.Linear):
            raise InputError("net", f"'{classifier.config['net']}' doesn't end in one linear layer, whose gradient `grand` is", "take another net")
        self.bias = head.bias is not None
        self.features_BD: Tensor
        head.register_forward_pre_hook(self._remember)

    def _remember(self, head: object, inputs: "tuple[Tensor]") -> None:
        self.features_BD = inputs[0].detach()

    def packed(self, logits_BK: "Tensor", features_BD: "Tensor") -> "Tensor":
        """Logits, probabilities and squares side by side, float32 [B, 2K + 1]: one tensor, which crosses from the device at once."""
        import torch

        squares_B = features_BD.float().square().sum(1) + self.bias
        return torch.cat([logits_BK.float(), logits_BK.softmax(1).float(), squares_B[:, None]], dim=1)

    @staticmethod
    def unpacked(packed: np.ndarray) -> Outputs:
        """What `packed` put together."""
        classes = packed.shape[1] // 2
        return Outputs(packed[:, :classes], packed[:, classes:-1], packed[:, -1])


class WhileTraining:
    """Takes in what the net says of each sample when it is trained on it, once an epoch: nothing is computed twice.

    Logits wait until there are some thousand of them, or until a checkpoint is due, which then holds them counted.

    Args:
        classifier: the net in training.
        tally: takes the outputs.
        order: gives the positions of the samples of a step.
        epochs: steps may reach into one more, which doesn't count.
    """

    def __init__(self, classifier: Classifier, tally: Tally, order: Callable[[int], np.ndarray], epochs: int) -> None:
        self.answers, self.tally, self.order, self.epochs = _Answers(classifier), tally, order, epochs
        self.waiting: list[tuple[int, Tensor, Tensor]] = []

    def on_logits(self, step: int, logits_BK: "Tensor") -> None:
        """Keep the logits of a step."""
        self.waiting.append((step, logits_BK, self.answers.features_BD))

    def on_step(self, done: int, steps: int) -> None:
        """Count what waits, where it is much or a checkpoint is due."""
        if done % CHECKPOINT_STEPS == 0 or done == steps or len(self.waiting) * len(self.waiting[0][1]) >= MEASURE_ROWS:
            self._count()

    def _count(self) -> None:
        import torch

        steps, logits, features = zip(*self.waiting, strict=True)
        self.waiting.clear()
        packed = self.answers.packed(torch.cat(logits), torch.cat(features)).cpu().numpy()
        rows_B = np.concatenate([self.order(step) for step in steps])
        # Epochs lie end to end: a sample's place in the whole training says which one it is in.
        epoch_B = (steps[0] * len(logits[0]) + np.arange(len(rows_B))) // len(self.tally.labels_N) + 1
        for epoch in range(epoch_B[0], min(epoch_B[-1], self.epochs) + 1):
            now = slice(*np.searchsorted(epoch_B, [epoch, epoch + 1]))
            self.tally.add(rows_B[now], self.answers.unpacked(packed[now]), epoch)


class AfterEpochs:
    """Takes in what the net, in evaluation mode, says of all samples after each epoch: a forward pass of all more.

    Args:
        classifier: the net in training.
        tally: takes the outputs.
        pixels_NCSS: all samples.
        ends: the epoch that ends with a number of steps.
    """

    on_logits = None

    def __init__(self, classifier: Classifier, tally: Tally, pixels_NCSS: np.ndarray, ends: dict[int, int]) -> None:
        self.classifier, self.answers, self.tally, self.pixels_NCSS, self.ends = classifier, _Answers(classifier), tally, pixels_NCSS, ends

    def on_step(self, done: int, steps: int) -> None:
        """Look at all samples, where an epoch ends."""
        if done not in self.ends:
            return
        self.classifier.net.eval()
        for start in range(0, len(self.pixels_NCSS), MEASURE_ROWS):
            packed = self.classifier.run(self._ask, self.pixels_NCSS[start : start + MEASURE_ROWS], MEASURE_BATCH)
            self.tally.add(slice(start, start + len(packed)), self.answers.unpacked(packed), self.ends[done])

    def _ask(self, images_BCSS: "Tensor") -> "Tensor":
        logits_BK = self.classifier.net(images_BCSS)
        return self.answers.packed(logits_BK, self.answers.features_BD)


def add_final(classifier: Classifier, tally: Tally, pixels_NCSS: np.ndarray) -> None:
    """Take in what the trained net says of all samples."""
    for start in range(0, len(pixels_NCSS), MEASURE_ROWS):
        probs_BK = classifier.probs(pixels_NCSS[start : start + MEASURE_ROWS], FINAL_BATCH)
        tally.add_final(slice(start, start + len(probs_BK)), probs_BK)
