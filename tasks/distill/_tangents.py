"""ConvNet-D3 written out, with its tangent along a direction in the weights; differentiable once, and not twice.

The tangent of a tensor, written with an apostrophe, is how fast it changes as the weights move in that direction. Autograd finds
the gradient of such a rate by differentiating a graph of the gradient; carrying tensor and tangent through the net together takes
fewer convolutions, and written out the rest of a block is a dozen passes over memory. `test_matching.py` compares both.

Importing this loads torch.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tasks.nets.networks import ConvNet3

__all__ = ["convnet_logits"]

# B = images, D = B, or 2B where tangents follow the images' own, C O = channels in and out, H W = height and width, F = features, K = classes

_AREA = (2, 3)
_CONV = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)  # stride, padding, dilation; not transposed; its padding; groups
_POOL = ([2, 2], [2, 2], [0, 0], False, True, None)  # kernel, stride, padding; as torch counts


def convnet_logits(net: ConvNet3, images_BCHW: Tensor, weights: Mapping[str, Tensor], direction: Mapping[str, Tensor] | None = None) -> Tensor:
    """Logits at `weights`, [B, K]; given a direction, the logits and their tangents, [2B, K]."""
    count = len(images_BCHW)
    out_DCHW = _laid_out(images_BCHW)
    for place in range(0, len(net.body), 4):
        names = [f"body.{place}.weight", f"body.{place + 1}.weight", f"body.{place + 1}.bias"]
        ways = [direction[name] for name in names] if direction else []
        out_DCHW = _Block.apply(count, net.body[place + 1].eps, out_DCHW, *(weights[name] for name in names), *ways)
    logits_DK = functional.linear(out_DCHW.flatten(1), weights["head.weight"])
    shifts_DK = weights["head.bias"].expand(count, -1)
    if direction:
        shifts_DK = torch.cat([shifts_DK, functional.linear(out_DCHW[:count].flatten(1), direction["head.weight"], direction["head.bias"])])
    return logits_DK + shifts_DK


class _Block(torch.autograd.Function):
    """Convolution, instance norm, ReLU, average pool. The convolution's bias has no effect: the norm subtracts it.

    y = kernel * x, r = 1 / std(y) and z = r (y - mean(y)) of each image and channel, n = gain z + bias, out = pool(relu(n));
    y' = kernel * x' + kernel' * x, s = mean(z y'), z' = r (y' - mean(y') - s z), n' = gain z' + gain' z + bias', out' = pool(n' where n > 0).
    """

    @staticmethod
    def forward(ctx: Any, count: int, eps: float, x_DCHW: Tensor, kernel: Tensor, gain_O: Tensor, bias_O: Tensor, *ways: Tensor) -> Tensor:
        kernel, gain_O11 = _laid_out(kernel), gain_O[:, None, None]
        y_DOHW = functional.conv2d(x_DCHW, kernel, padding=1)
        if ways:
            kernel_t, gain_t_O11, bias_t_O11 = _laid_out(ways[0]), ways[1][:, None, None], ways[2][:, None, None]
            more_BOHW = functional.conv2d(x_DCHW[:count], kernel_t, padding=1)
            if len(x_DCHW) == count:  # an image has no tangent
                y_DOHW = torch.cat([y_DOHW, more_BOHW])
            else:
                y_DOHW[count:].add_(more_BOHW)
        y_DOHW.sub_(y_DOHW.mean(_AREA, keepdim=True))
        y_BOHW, y_t_BOHW = y_DOHW[:count], y_DOHW[count:]
        r_BO11 = (y_BOHW.square().mean(_AREA, keepdim=True) + eps).rsqrt()
        out_DOHW = torch.empty_like(y_DOHW)
        torch.addcmul(bias_O[:, None, None], y_BOHW, gain_O11 * r_BO11, out=out_DOHW[:count])
        on_BOHW = out_DOHW[:count].relu_().sign()
        saved = [x_DCHW, kernel, gain_O11, y_DOHW, r_BO11, on_BOHW]
        if ways:
            s_BO11 = r_BO11 * (y_BOHW * y_t_BOHW).mean(_AREA, keepdim=True)
            out_t_BOHW = torch.addcmul(bias_t_O11, y_t_BOHW, gain_O11 * r_BO11, out=out_DOHW[count:])
            out_t_BOHW.addcmul_(y_BOHW, r_BO11 * (gain_t_O11 - gain_O11 * r_BO11 * s_BO11)).mul_(on_BOHW)
            saved += [kernel_t, gain_t_O11, s_BO11]
        ctx.count = count
        ctx.save_for_backward(*saved)
        return functional.avg_pool2d(out_DOHW, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out_DOHW: Tensor) -> tuple[Tensor | None, ...]:
        """Here u is the gradient by n, less its mean, and v that by n'; they become those by y and y'."""
        x_DCHW, kernel, gain_O11, y_DOHW, r_BO11, on_BOHW, *ways = ctx.saved_tensors
        count = ctx.count
        by_DOHW = torch.ops.aten.avg_pool2d_backward(by_out_DOHW, y_DOHW, *_POOL)
        for half_BOHW in by_DOHW.split(count):
            half_BOHW.mul_(on_BOHW)
        means_DO11 = by_DOHW.mean(_AREA, keepdim=True)
        by_DOHW.sub_(means_DO11)
        u_BOHW, v_BOHW = by_DOHW[:count], by_DOHW[count:]
        y_BOHW, y_t_BOHW = y_DOHW[:count], y_DOHW[count:]
        scale_BO11 = gain_O11 * r_BO11
        uz_BO11 = r_BO11 * (u_BOHW * y_BOHW).mean(_AREA, keepdim=True)  # mean(u z)
        by_gain_BO11, along_z_BO11 = uz_BO11, gain_O11 * uz_BO11
        u_BOHW.mul_(scale_BO11)
        if ways:
            kernel_t, gain_t_O11, s_BO11 = ways
            vz_BO11 = r_BO11 * (v_BOHW * y_BOHW).mean(_AREA, keepdim=True)
            vz_t_BO11 = r_BO11 * ((v_BOHW * y_t_BOHW).mean(_AREA, keepdim=True) - s_BO11 * vz_BO11)
            turn_BO11 = gain_t_O11 - scale_BO11 * s_BO11
            by_gain_BO11 = uz_BO11 + vz_t_BO11
            along_z_BO11 = along_z_BO11 + (turn_BO11 - scale_BO11 * s_BO11) * vz_BO11 + gain_O11 * vz_t_BO11
            u_BOHW.addcmul_(v_BOHW, r_BO11 * turn_BO11).addcmul_(y_t_BOHW, -scale_BO11 * r_BO11 * vz_BO11)
            v_BOHW.mul_(scale_BO11).addcmul_(y_BOHW, -scale_BO11 * r_BO11 * vz_BO11)
        u_BOHW.addcmul_(y_BOHW, -r_BO11.square() * along_z_BO11)
        by_gain_O, by_bias_O = (y_BOHW[0, 0].numel() * of_BO11.sum((0, 2, 3)) for of_BO11 in (by_gain_BO11, means_DO11[:count]))
        wanted = [*ctx.needs_input_grad[2:4], False]
        by_x_DCHW, by_kernel, _ = torch.ops.aten.convolution_backward(by_DOHW[: len(x_DCHW)], x_DCHW, kernel, None, *_CONV, wanted)
        if ways and wanted[0]:
            more_BCHW, _, _ = torch.ops.aten.convolution_backward(v_BOHW, x_DCHW[:count], kernel_t, None, *_CONV, [True, False, False])
            by_x_DCHW[:count].add_(more_BCHW)
        return None, None, by_x_DCHW, by_kernel, by_gain_O, by_bias_O, *(None for _ in ways)


def _laid_out(tensor_ABHW: Tensor) -> Tensor:
    """On CPUs with the channels last: pooling is ten times as fast then, and convolutions need no reordering."""
    if tensor_ABHW.device.type != "cpu":
        return tensor_ABHW
    # Of a single channel `contiguous` returns what it was given, which convolutions then read as channels first.
    return torch.empty_like(tensor_ABHW, memory_format=torch.channels_last).copy_(tensor_ABHW)
