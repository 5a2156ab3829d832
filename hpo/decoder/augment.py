"""Noise, offset and masks on a batch: tensors in, tensors out.

All random numbers come from the generator that the caller passes.
"""

from dataclasses import dataclass

import torch

from hpo.decoder.config import AugmentConfig


@dataclass(frozen=True)
class _Masks:
    """How many spans of a sentence are masked, at most; the probability of each; largest width."""

    count: int
    p: float
    max_width: int


def augment(
    x_BTC: torch.Tensor,
    lengths_B: torch.Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    padding: str = "masked",
) -> torch.Tensor:
    """Apply masks, then white noise, then a constant offset, and zero the padding again.

    x_BTC: features, zero behind each sentence's end. lengths_B: bins, on any device. padding: see
    `model.padding`. The order is that of the lab's trainer (masks when a sentence is read, noise on
    the GPU), so masked spans hold noise around 0. Departure from neural_seq_decoder, unless padding
    is "reference": its padding holds noise too, which its smoothing and its backward GRU read.
    """
    batch, bins, features = x_BTC.shape
    device = x_BTC.device
    ends_B = lengths_B.to(device, non_blocking=True)
    if config.time_masks:
        masks = _Masks(config.time_masks, config.time_mask_p, config.time_mask_width)
        masked_BT = _masked(bins, ends_B, masks, generator)
        x_BTC = x_BTC * ~masked_BT[:, :, None]
    if config.feature_masks:
        masks = _Masks(config.feature_masks, config.feature_mask_p, config.feature_mask_width)
        masked_BC = _masked(features, torch.full_like(ends_B, features), masks, generator)
        x_BTC = x_BTC * ~masked_BC[:, None, :]
    if config.white_noise_sd > 0:
        x_BTC = x_BTC + config.white_noise_sd * _normal((batch, bins, features), generator)
    if config.constant_offset_sd > 0:
        x_BTC = x_BTC + config.constant_offset_sd * _normal((batch, 1, features), generator)
    if padding == "reference":
        return x_BTC
    inside_BT = torch.arange(bins, device=device) < ends_B[:, None]
    return x_BTC * inside_BT[:, :, None]


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _masked(
    size: int, ends_B: torch.Tensor, masks: _Masks, generator: torch.Generator
) -> torch.Tensor:
    """B x size, True where masked. ends_B: where each sentence ends, at most at `size`.

    Widths are uniform on 1..max_width but below the sentence's length; starts are uniform over the
    places where the span fits.
    """
    batch = len(ends_B)
    masked = torch.zeros(batch, size, dtype=torch.bool, device=ends_B.device)
    positions = torch.arange(size, device=ends_B.device)
    for _ in range(masks.count):
        # Three uniform numbers per sentence: whether the span is masked, its width, its start.
        chance_B, width_B, start_B = torch.rand(
            3, batch, generator=generator, device=generator.device
        )
        widths = 1 + (width_B * (ends_B - 1).clamp(1, masks.max_width)).long()
        starts = (start_B * (ends_B - widths + 1)).long()
        inside = (positions >= starts[:, None]) & (positions < (starts + widths)[:, None])
        masked |= inside & (chance_B < masks.p)[:, None]
    return masked
