"""A GRU over a batch of sentences of unequal length, on the CPU. On CUDA cuDNN does the same.

PyTorch's CPU GRU runs a dozen small operations per time step and direction, and autograd twice as
many on the way back. At the sizes of a search's small decoders the calls take the time, not the
arithmetic. Here both directions share each call, and everything that does not depend on the
previous step is one operation over all steps: 6 calls per step forward, 3 backward.

Shape suffixes: W time steps, B sentences, D directions, I inputs, H hidden units, G = 3H gates in
PyTorch's order (r, z, n).
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear


def run_layer(layer: nn.GRU, x_WBI: torch.Tensor, reversed_rows: torch.Tensor) -> torch.Tensor:
    """The outputs of a one-layer `layer` for each sentence alone.

    reversed_rows: `reversal` of the sentences' lengths. Returns W x B x (directions * H), where
    everything behind a sentence's end is finite and meaningless.
    """
    names = ["l0", "l0_reverse"] if layer.bidirectional else ["l0"]
    # The recurrence below is written for one precision.
    with torch.autocast("cpu", enabled=False):
        x_WBI = x_WBI.float()
        gates = [
            linear(x_WBI, getattr(layer, f"weight_ih_{name}"), getattr(layer, f"bias_ih_{name}"))
            for name in names
        ]
        x_DWBG = torch.stack(gates)
        weight_DGH = torch.stack([getattr(layer, f"weight_hh_{name}") for name in names])
        bias_DG = torch.stack([getattr(layer, f"bias_hh_{name}") for name in names])
        h_DWBH = _Recurrence.apply(  # type: ignore[no-untyped-call]
            x_DWBG, weight_DGH, bias_DG, reversed_rows
        )
    return torch.cat(h_DWBH.unbind(), dim=2)


def reversal(steps: int, lengths_B: torch.Tensor) -> torch.Tensor:
    """The row numbers of a (W * B)-row matrix that reverse each sentence and keep its padding.

    Applied twice, they give the matrix back.
    """
    time_W1 = torch.arange(steps)[:, None]
    source_WB = torch.where(time_W1 < lengths_B, lengths_B - 1 - time_W1, time_W1)
    return (source_WB * len(lengths_B) + torch.arange(len(lengths_B))).flatten()


def _turn(x_DWBH: torch.Tensor, reversed_rows: torch.Tensor) -> torch.Tensor:
    """Reverse the sentences of the second direction, if there is one."""
    if len(x_DWBH) == 1:
        return x_DWBH
    forward_WBH, backward_WBH = x_DWBH
    turned_WBH = backward_WBH.flatten(0, 1)[reversed_rows].view_as(backward_WBH)
    return torch.stack([forward_WBH, turned_WBH])


class _Recurrence(torch.autograd.Function):
    """r, z = sigmoid(x_rz + h W_rz + b_rz)
    n = tanh(x_n + r * (h W_n + b_n))
    h' = n + z * (h - n), where h starts at zero

    Backward: the gradient of the gates before their squashing is the step's gradient of h times
    factors that are computed for all steps beforehand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_DWBG: torch.Tensor,
        weight_DGH: torch.Tensor,
        bias_DG: torch.Tensor,
        reversed_rows: torch.Tensor,
    ) -> torch.Tensor:
        directions, steps, batch, gates = x_DWBG.shape
        hidden = gates // 3
        x_WDBG = _turn(x_DWBG, reversed_rows).transpose(0, 1).contiguous()
        x_rz_WDBG, x_n_WDBH = torch.split(x_WDBG, [2 * hidden, hidden], dim=3)
        weight_DHG = weight_DGH.transpose(1, 2).contiguous()
        bias_D1G = bias_DG[:, None]
        # Kept for backward. u is h W_n + b_n.
        h_WDBH = x_WDBG.new_zeros(steps + 1, directions, batch, hidden)
        rz_WDBG = x_WDBG.new_empty(steps, directions, batch, 2 * hidden)
        r_WDBH, z_WDBH = rz_WDBG.chunk(2, dim=3)
        n_WDBH = torch.empty_like(h_WDBH[1:])
        u_WDBH = torch.empty_like(h_WDBH[1:])
        # The gates that h contributes to one step.
        hg_DBG = x_WDBG.new_empty(directions, batch, gates)
        hg_rz, hg_n = torch.split(hg_DBG, [2 * hidden, hidden], dim=2)
        # Views of each step, made once before the loop.
        h = h_WDBH.unbind()
        by_step = zip(
            x_rz_WDBG.unbind(),
            x_n_WDBH.unbind(),
            rz_WDBG.unbind(),
            r_WDBH.unbind(),
            z_WDBH.unbind(),
            n_WDBH.unbind(),
            u_WDBH.unbind(),
            strict=True,
        )
        for step, (x_rz, x_n, rz, r, z, n, u) in enumerate(by_step):
            torch.baddbmm(bias_D1G, h[step], weight_DHG, out=hg_DBG)
            torch.add(x_rz, hg_rz, out=rz).sigmoid_()
            u.copy_(hg_n)
            torch.addcmul(x_n, r, u, out=n).tanh_()
            torch.lerp(n, h[step], z, out=h[step + 1])
        ctx.save_for_backward(h_WDBH, rz_WDBG, n_WDBH, u_WDBH, weight_DGH, reversed_rows)
        return _turn(h_WDBH[1:].transpose(0, 1), reversed_rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h_WDBH, rz_WDBG, n_WDBH, u_WDBH, weight_DGH, reversed_rows = ctx.saved_tensors
        d_out_WDBH = _turn(gradients[0], reversed_rows).transpose(0, 1).contiguous()
        steps, directions, batch, hidden = d_out_WDBH.shape
        r_WDBH, z_WDBH = rz_WDBG.chunk(2, dim=3)
        to_n = (1 - z_WDBH) * (1 - n_WDBH.square())
        to_r = to_n * u_WDBH * r_WDBH * (1 - r_WDBH)
        to_z = (h_WDBH[:-1] - n_WDBH) * z_WDBH * (1 - z_WDBH)
        factors_WDB3H = torch.stack([to_r, to_z, to_n * r_WDBH], dim=3)
        d_h_WDBH = torch.empty_like(d_out_WDBH)
        d_gates_WDB3H = torch.empty_like(factors_WDB3H)
        d_gates_WDBG = d_gates_WDB3H.view(steps, directions, batch, 3 * hidden)
        # The gradient of h that comes from the step after.
        later_DBH = torch.zeros_like(d_out_WDBH[0])
        by_step = zip(
            reversed(d_out_WDBH.unbind()),
            reversed(z_WDBH.unbind()),
            reversed(factors_WDB3H.unbind()),
            reversed(d_h_WDBH.unbind()),
            reversed(d_h_WDBH[:, :, :, None].unbind()),
            reversed(d_gates_WDB3H.unbind()),
            reversed(d_gates_WDBG.unbind()),
            strict=True,
        )
        for d_out, z, factors, d_h, d_h_1, d_gates, d_gates_flat in by_step:
            torch.add(d_out, later_DBH, out=d_h)
            torch.mul(d_h_1, factors, out=d_gates)
            torch.baddbmm(d_h.mul(z), d_gates_flat, weight_DGH, out=later_DBH)
        d_hg = d_gates_WDBG.permute(1, 0, 2, 3).flatten(1, 2)
        d_weight = d_hg.transpose(1, 2) @ h_WDBH[:-1].transpose(0, 1).flatten(1, 2)
        d_bias = d_hg.sum(dim=1)
        # From here on these are the gradients of x. d_hg may share their memory, and is done with.
        d_gates_WDB3H[:, :, :, 2] = d_h_WDBH * to_n
        d_x = _turn(d_gates_WDB3H.flatten(3).transpose(0, 1), reversed_rows)
        return d_x, d_weight, d_bias, None
