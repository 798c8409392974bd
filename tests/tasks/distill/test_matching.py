"""The engines of trajectory matching against each other, against plain unrolling, and against differences."""

import tempfile

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stillroom.errors import InputError
from tasks.distill._matching import Matched, Step, Student, Trail, matching_gradient
from tasks.nets.dsa import DSA_OPS, Dsa, apply_dsa, draw_dsa
from tasks.nets.zoo import build

# N = synthetic images, B = those of a step, P = weights, T = steps

RATE = 0.1
PLAIN = Dsa(None, torch.zeros(1, 3))


class Problem:
    """A small net, six images of three classes, and an expert's segment, all float64."""

    def __init__(self, steps: int, *, net: str = "mlp:7", augment: bool = False, batch: int = 4) -> None:
        torch.manual_seed(7)
        self.student = Student(build(net, num_classes=3, channels=1, side_px=8).double(), net)
        self.images_NCSS = torch.randn(6, 1, 8, 8, dtype=torch.float64)
        self.targets_NK = torch.randn(6, 3, dtype=torch.float64).softmax(1)
        size = sum(self.student.sizes)
        start_P = torch.randn(size, dtype=torch.float64) * 0.3
        self.segment = (start_P, start_P + 0.05 * torch.randn(size, dtype=torch.float64))
        drawn = [draw_dsa(DSA_OPS, step, batch) if augment else PLAIN for step in range(steps)]
        self.steps = [Step(torch.randperm(6)[:batch], drawn[step]) for step in range(steps)]
        self.trail = Trail(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115  # gone with it

    def by(self, engine) -> Matched:
        return matching_gradient(engine, self.student, self.images_NCSS, self.targets_NK, RATE, self.segment, self.steps, self.trail)


def detached(problem: Problem) -> tuple[Tensor, ...]:
    """Autograd through all steps, where the weights before each count as constant: what the TESLA paper differentiates."""
    images_NCSS, targets_NK = problem.images_NCSS.clone().requires_grad_(), problem.targets_NK.clone().requires_grad_()
    beta = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    start_P, end_P = problem.segment
    weights_P, moved_P = start_P.clone(), torch.zeros_like(start_P)
    for rows_B, drawn in problem.steps:
        leaf_P = weights_P.detach().requires_grad_()
        gradient_P = problem.student.gradient(leaf_P, apply_dsa(images_NCSS[rows_B], drawn), targets_NK[rows_B], create_graph=True)
        moved_P = moved_P + gradient_P
        weights_P = weights_P - RATE * gradient_P.detach()
    loss = (start_P - beta * moved_P - end_P).square().sum() / (start_P - end_P).square().sum()
    return torch.autograd.grad(loss, (images_NCSS, targets_NK, beta))


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def parts(matched: Matched) -> tuple[Tensor, ...]:
    return matched.images_NCSS, matched.targets_NK, torch.tensor(matched.rate, dtype=torch.float64)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("net", ["mlp:7", "convnet3:3"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_exact_is_the_unrolled_gradient_and_tesla_the_detached_one(steps, net, augment):
    problem = Problem(steps, net=net, augment=augment)
    unrolled, exact, tesla = problem.by("unrolled"), problem.by("exact"), problem.by("tesla")
    assert exact.loss == pytest.approx(unrolled.loss, rel=1e-12)
    assert tesla.loss == exact.loss
    for found, expected in zip(parts(exact), parts(unrolled), strict=True):
        assert far(found, expected) < 1e-10
    for found, expected in zip(parts(tesla), detached(problem), strict=True):
        assert far(found, expected) < 1e-10


def test_tesla_is_exact_for_one_step_and_not_for_five():
    one, five = Problem(1), Problem(5)
    assert far(one.by("tesla").images_NCSS, one.by("exact").images_NCSS) < 1e-12
    assert far(five.by("tesla").images_NCSS, five.by("exact").images_NCSS) > 1e-3


def test_the_gradient_agrees_with_differences():
    matched, far_apart = Problem(5, augment=True).by("exact"), 1e-5

    def slope(by: str, place: tuple[int, ...] = ()) -> float:
        losses = []
        for change in (far_apart, -far_apart):
            moved, rate = Problem(5, augment=True), RATE
            if by == "rate":
                rate += change
            else:
                getattr(moved, by)[place] += change
            losses.append(matching_gradient("unrolled", moved.student, moved.images_NCSS, moved.targets_NK, rate, moved.segment, moved.steps, None).loss)
        return (losses[0] - losses[1]) / (2 * far_apart)

    for place in [(0, 0, 1, 2), (2, 0, 4, 4), (3, 0, 7, 0), (4, 0, 3, 6), (5, 0, 2, 2)]:
        assert slope("images_NCSS", place) == pytest.approx(float(matched.images_NCSS[place]), rel=1e-4)
    assert slope("targets_NK", (1, 2)) == pytest.approx(float(matched.targets_NK[1, 2]), rel=1e-4)
    assert slope("rate") == pytest.approx(matched.rate, rel=1e-4)


def test_no_step_taken_is_a_loss_of_one_and_the_experts_own_steps_are_a_loss_of_zero():
    problem = Problem(3)
    standing = matching_gradient("exact", problem.student, problem.images_NCSS, problem.targets_NK, 0.0, problem.segment, problem.steps, problem.trail)
    assert standing.loss == pytest.approx(1)
    weights_P = problem.segment[0]
    for rows_B, _ in problem.steps:
        leaf_P = weights_P.detach().requires_grad_()
        weights_P = leaf_P.detach() - RATE * problem.student.gradient(leaf_P, problem.images_NCSS[rows_B], problem.targets_NK[rows_B])
    problem.segment = (problem.segment[0], weights_P)
    assert problem.by("exact").loss == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(("channels", "side_px"), [(1, 8), (3, 16), (1, 28), (2, 37)])
def test_the_convnet_written_out_is_what_autograd_makes_of_the_net(channels, side_px):
    torch.manual_seed(3)
    student = Student(build("convnet3:5", num_classes=4, channels=channels, side_px=side_px).double(), "convnet3:5")
    direction_P, weights_P = torch.randn(2, sum(student.sizes), dtype=torch.float64)
    given = torch.randn(3, channels, side_px, side_px, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    images_BCSS, targets_BK, weights_P = (tensor.requires_grad_() for tensor in (*given, weights_P))
    by_autograd_P = student.gradient(weights_P, images_BCSS, targets_BK, create_graph=True).detach()
    assert far(student.gradient(weights_P, images_BCSS, targets_BK), by_autograd_P) < 1e-12
    slopes = [student.slope(weights_P, direction_P, images_BCSS, targets_BK, written_out=written_out) for written_out in (True, False)]
    assert slopes[0].item() == pytest.approx(slopes[1].item(), rel=1e-12)
    for found, expected in zip(*(torch.autograd.grad(slope, (images_BCSS, targets_BK, weights_P)) for slope in slopes), strict=True):
        assert far(found, expected) < 1e-12


def test_a_loss_that_explodes_has_no_gradient():
    problem = Problem(4)
    for engine in ("exact", "tesla", "unrolled"):
        found = matching_gradient(engine, problem.student, problem.images_NCSS, problem.targets_NK, 1e200, problem.segment, problem.steps, problem.trail)
        assert found.images_NCSS is None


def graph_bytes(problem: Problem, engine) -> int:
    """The most that autograd holds at a time of what it saves for the way back."""
    held = {"now": 0, "most": 0}

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            held["now"] += tensor.nbytes
            held["most"] = max(held["most"], held["now"])

        def __del__(self) -> None:
            held["now"] -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        problem.by(engine)
    return held["most"]


def test_the_graph_of_one_step_is_held_whatever_their_number():
    few, many = (graph_bytes(Problem(steps, net="convnet3:3"), "exact") for steps in (1, 20))
    assert many < 1.2 * few
    assert graph_bytes(Problem(20, net="convnet3:3"), "unrolled") > 10 * few


def test_a_net_with_running_statistics_is_refused():
    with pytest.raises(InputError, match="cnn keeps running statistics, which can't be matched; take convnet3 or mlp"):
        Student(build("cnn", num_classes=3, channels=1, side_px=8), "cnn")


def test_flat_weights_are_the_nets_own():
    net = build("convnet3:3", num_classes=3, channels=1, side_px=8)
    student, images_BCSS = Student(net, "convnet3:3"), torch.randn(4, 1, 8, 8)
    targets_BK = torch.eye(3)[[0, 1, 2, 0]]
    found = student.loss(student.flat(net.state_dict()), images_BCSS, targets_BK)
    assert torch.equal(found, functional.cross_entropy(net(images_BCSS), targets_BK))
