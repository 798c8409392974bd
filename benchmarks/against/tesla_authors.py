"""Times iterations of the code that TESLA's authors published: python tesla_authors.py CHECKOUT STEPS ITERATIONS; prints CPU seconds of each but the first.

Their distill.py runs as it is, on noise of CIFAR-10's shape. What it imports for logging and for data sets is replaced by nothing.
"""

import itertools
import runpy
import sys
import tempfile
import time
import types
from pathlib import Path

import torch

checkout, steps, iterations = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
ends: list[float] = []


class Config:
    """What they read the arguments back from."""

    def __init__(self, args) -> None:
        self._items = vars(args)

    def __getitem__(self, name):
        return self._items[name]

    @property
    def _keys(self):
        return self._items


def _log(values, **_) -> None:
    if "Grand_Loss" in values:
        ends.append(time.process_time())


wandb = types.ModuleType("wandb")
wandb.init = lambda config=None, **_: setattr(wandb, "config", Config(config))
wandb.log, wandb.finish, wandb.Histogram, wandb.Image = _log, lambda: None, None, None
for name in ("kornia", "scipy.ndimage.interpolation"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["scipy.ndimage.interpolation"].rotate = None
sys.modules["wandb"] = wandb
sys.path.insert(0, str(checkout))

import networks
import utils

torch.set_num_threads(1)
noise = [(torch.randn(3, 32, 32), label) for label in range(10) for _ in range(2)]
utils.get_dataset = lambda *_, **__: (3, (32, 32), 10, [str(label) for label in range(10)], None, None, noise, noise, noise, None, None, None)
with tempfile.TemporaryDirectory() as folder:
    experts = Path(folder) / "CIFAR10_NO_ZCA" / "ConvNet"
    experts.mkdir(parents=True)
    net = networks.ConvNet(3, 10, 128, 3, "relu", "instancenorm", "avgpooling", (32, 32))
    way = [[weight.detach() + 0.01 * epoch * torch.randn(weight.shape) for weight in net.parameters()] for epoch in range(4)]
    torch.save([way], experts / "replay_buffer_0.pt")
    said = [
        "--buffer_path",
        folder,
        "--eval_it",
        "-1",
        "--Iteration",
        str(iterations - 1),
        "--syn_steps",
        str(steps),
        "--max_start_epoch",
        "2",
        "--expert_epochs",
        "2",
    ]
    sys.argv = ["distill.py", *said, "--lr_img", "1e-6"]
    runpy.run_path(str(checkout / "distill.py"), run_name="__main__")
print(*[later - before for before, later in itertools.pairwise(ends)])
