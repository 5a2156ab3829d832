"""A GRU over a batch of sentences of unequal length, on the CPU. On CUDA cuDNN does the same.

PyTorch's CPU GRU runs a dozen small operations a time step and direction, and autograd twice as many on the way back; at
the sizes of a search's small decoders those calls, not the arithmetic, are the time. Here both directions share each
call, and what does not depend on the step before is one operation over all steps: 6 calls a step forward, 3 backward.

Shape suffixes: W time steps, B sentences, D directions, H hidden units, G = 3H gates in PyTorch's order (r, z, n).
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear


def run_layer(layer: nn.GRU, x_WBI: torch.Tensor, reversal: torch.Tensor) -> torch.Tensor:
    """What a one-layer `layer` makes of each sentence alone. reversal: of the sentences' lengths.

    Returns W x B x (directions * H). What is behind a sentence's end is finite and means nothing.
    """
    names = ["l0", "l0_reverse"] if layer.bidirectional else ["l0"]
    with torch.autocast("cpu", enabled=False):  # the recurrence is written in one precision
        x_WBI = x_WBI.float()
        gates = [
            linear(x_WBI, getattr(layer, f"weight_ih_{name}"), getattr(layer, f"bias_ih_{name}"))
            for name in names
        ]
        weight_DGH = torch.stack([getattr(layer, f"weight_hh_{name}") for name in names])
        bias_DG = torch.stack([getattr(layer, f"bias_hh_{name}") for name in names])
        h_DWBH = _Recurrence.apply(torch.stack(gates), weight_DGH, bias_DG, reversal)  # type: ignore[no-untyped-call]
    return torch.cat(h_DWBH.unbind(), dim=2)


def reversal(steps: int, lengths_B: torch.Tensor) -> torch.Tensor:
    """Rows of a (W * B) x anything matrix such that each sentence runs backward and its padding stays: its own inverse."""
    time_W1 = torch.arange(steps)[:, None]
    source_WB = torch.where(time_W1 < lengths_B, lengths_B - 1 - time_W1, time_W1)
    return (source_WB * len(lengths_B) + torch.arange(len(lengths_B))).flatten()


def _turn(x_DWBH: torch.Tensor, reversal: torch.Tensor) -> torch.Tensor:
    """The second direction, if there is one, with its sentences reversed."""
    if len(x_DWBH) == 1:
        return x_DWBH
    return torch.stack([x_DWBH[0], x_DWBH[1].flatten(0, 1)[reversal].view_as(x_DWBH[1])])


class _Recurrence(torch.autograd.Function):
    """r, z = sigmoid(x_rz + h W_rz + b_rz); n = tanh(x_n + r * (h W_n + b_n)); h' = n + z * (h - n); h starts at zero.

    Backward: dh/d(gates before the squashing) is the step's dh times factors that are known for all steps beforehand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_DWBG: torch.Tensor,
        weight_DGH: torch.Tensor,
        bias_DG: torch.Tensor,
        reversal: torch.Tensor,
    ) -> torch.Tensor:
        directions, steps, batch, gates = x_DWBG.shape
        x_WDBG = _turn(x_DWBG, reversal).transpose(0, 1).contiguous()
        hidden = gates // 3
        h_WDBH = x_WDBG.new_zeros(steps + 1, directions, batch, hidden)
        rz_WDBG = x_WDBG.new_empty(steps, directions, batch, 2 * hidden)
        n_WDBH, u_WDBH = (
            torch.empty_like(h_WDBH[1:]),
            torch.empty_like(h_WDBH[1:]),
        )  # u: h W_n + b_n
        weight_DHG, bias_D1G = weight_DGH.transpose(1, 2).contiguous(), bias_DG[:, None]
        r_WDBH, z_WDBH = rz_WDBG.chunk(2, dim=3)
        x_rz_WDBG, x_n_WDBH = torch.split(x_WDBG, [2 * hidden, hidden], dim=3)
        views = (x_rz_WDBG, x_n_WDBH, rz_WDBG, r_WDBH, z_WDBH, n_WDBH, u_WDBH)
        h = h_WDBH.unbind()
        hg_DBG = x_WDBG.new_empty(directions, batch, gates)
        hg_rz, hg_n = torch.split(hg_DBG, [2 * hidden, hidden], dim=2)
        for step, (x_rz, x_n, rz, r, z, n, u) in enumerate(
            zip(*(view.unbind() for view in views), strict=True)
        ):
            torch.baddbmm(bias_D1G, h[step], weight_DHG, out=hg_DBG)
            torch.add(x_rz, hg_rz, out=rz).sigmoid_()
            u.copy_(hg_n)
            torch.addcmul(x_n, r, u, out=n).tanh_()
            torch.lerp(n, h[step], z, out=h[step + 1])
        ctx.save_for_backward(h_WDBH, rz_WDBG, n_WDBH, u_WDBH, weight_DGH, reversal)
        return _turn(h_WDBH[1:].transpose(0, 1), reversal)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h_WDBH, rz_WDBG, n_WDBH, u_WDBH, weight_DGH, reversal = ctx.saved_tensors
        out_WDBH = _turn(gradients[0], reversal).transpose(0, 1).contiguous()
        r_WDBH, z_WDBH = rz_WDBG.chunk(2, dim=3)
        to_n = (1 - z_WDBH) * (1 - n_WDBH.square())
        to_r = to_n * u_WDBH * r_WDBH * (1 - r_WDBH)
        to_z = (h_WDBH[:-1] - n_WDBH) * z_WDBH * (1 - z_WDBH)
        factors = torch.stack([to_r, to_z, to_n * r_WDBH], dim=3)
        d_h = torch.empty_like(out_WDBH)
        d_gates = torch.empty_like(factors)
        steps, directions, batch, hidden = out_WDBH.shape
        views = (
            out_WDBH,
            z_WDBH,
            factors,
            d_h,
            d_h[:, :, :, None],
            d_gates,
            d_gates.view(steps, directions, batch, 3 * hidden),
        )
        flow = torch.zeros_like(out_WDBH[0])  # what comes from the step after
        for out, z, factor, dh, dh_1, dg, dg_flat in zip(
            *(reversed(view.unbind()) for view in views), strict=True
        ):
            torch.add(out, flow, out=dh)
            torch.mul(dh_1, factor, out=dg)
            torch.baddbmm(dh.mul(z), dg_flat, weight_DGH, out=flow)
        d_hg = d_gates.view(steps, directions, batch, 3 * hidden).permute(1, 0, 2, 3).flatten(1, 2)
        d_weight = d_hg.transpose(1, 2) @ h_WDBH[:-1].transpose(0, 1).flatten(1, 2)
        d_bias = d_hg.sum(dim=1)
        d_gates[:, :, :, 2] = d_h * to_n  # now those of x, in the same memory as d_hg
        return _turn(d_gates.flatten(3).transpose(0, 1), reversal), d_weight, d_bias, None
