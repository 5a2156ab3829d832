"""Noise, offset and masks on a batch: tensors in, tensors out. Random numbers come from the given generator only."""

import torch

from hpo.decoder.config import AugmentConfig


def augment(
    x_BTC: torch.Tensor,
    lengths_B: torch.Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    padding: str = "masked",
) -> torch.Tensor:
    """Masks, then white noise, then a constant offset; the padding is zero again afterwards.

    x_BTC: features, zero behind each sentence's end. lengths_B: bins, on any device. padding: as `model.padding`.
    The order is that of the lab's trainer (masks when a sentence is read, noise on the GPU), so masked spans hold
    noise around 0. Departure from neural_seq_decoder, unless padding is "reference": its padding holds noise too, which
    its smoothing and its backward GRU read.
    """
    batch, bins, features = x_BTC.shape
    device = x_BTC.device
    ends_B = lengths_B.to(device, non_blocking=True)
    if config.time_masks:
        spans = (config.time_masks, config.time_mask_p, config.time_mask_width)
        x_BTC = x_BTC * ~_masked(batch, bins, ends_B, spans, generator)[:, :, None]
    if config.feature_masks:
        spans = (config.feature_masks, config.feature_mask_p, config.feature_mask_width)
        x_BTC = (
            x_BTC
            * ~_masked(batch, features, torch.full_like(ends_B, features), spans, generator)[
                :, None, :
            ]
        )
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
    batch: int,
    size: int,
    ends_B: torch.Tensor,
    spans: tuple[int, float, int],
    generator: torch.Generator,
) -> torch.Tensor:
    """batch x size, True where masked: `count` spans a sentence, each there with probability `p`.

    Widths are uniform on 1..max_width, below the sentence's length; starts uniform over the places where it fits.
    """
    count, p, max_width = spans
    masked = torch.zeros(batch, size, dtype=torch.bool, device=ends_B.device)
    positions = torch.arange(size, device=ends_B.device)
    for _ in range(count):
        there_B, width_B, start_B = torch.rand(
            3, batch, generator=generator, device=generator.device
        )
        widths = 1 + (width_B * (ends_B - 1).clamp(1, max_width)).long()
        starts = (start_B * (ends_B - widths + 1)).long()
        inside = (positions >= starts[:, None]) & (positions < (starts + widths)[:, None])
        masked |= inside & (there_B < p)[:, None]
    return masked
