"""The training loop. TrainState holds everything that changes; `train` advances it and yields.

The caller decides what happens next: no database, no signals and no logging here. A step is one
optimizer update, in schedules too.
"""

import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import ctc_loss
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from hpo.decoder.augment import augment
from hpo.decoder.config import DecoderConfig, OptimizerConfig
from hpo.decoder.data import Batch, Data, by_length
from hpo.decoder.metric import BLANK, edit_distances, greedy_decode
from hpo.decoder.model import GruDecoder
from hpo.trainer import Score

# Sentences. Scores do not depend on it, except with `padding: reference`, whose size this is.
SCORING_BATCH = 64
# Batches that are drawn together and regrouped by length.
POOL = 8
# On CUDA, updates between two reads of their losses, because each read waits for the GPU.
UNSEEN_STEPS = 10


@dataclass(frozen=True)
class Updates:
    """The result of one or more updates, with an evaluation if one followed the last of them."""

    # Updates done so far, counting one whose loss or gradient was not finite.
    step: int
    # Updates since the last `Updates`.
    steps: int
    # Mean training loss of these updates.
    loss: float
    # Largest gradient norm of these updates, before clipping.
    grad_norm: float
    # Learning rate of the last update.
    lr: float
    # Per update.
    seconds: float
    score: Score | None = None
    # Mean over sentences of CTC loss / labels.
    validation_loss: float | None = None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class TrainState:
    """Weights, averaged weights, optimizer, schedule, step and all random generators of a training.

    The generators of this class draw batches and noise. PyTorch's global ones draw the initial
    weights and then dropout.
    """

    def __init__(self, config: DecoderConfig, data: Data):
        self.config = config
        torch.manual_seed(config.seed)
        self.model = GruDecoder(config.model, data.n_days, data.n_features).to(data.device)
        self.averaged: GruDecoder | None = None
        if config.optimizer.ema_decay is not None:
            self.averaged = deepcopy(self.model)
            # A copy's weights are not flat, and cuDNN would flatten them at every call.
            for layer in self.averaged.gru:
                layer.flatten_parameters()  # type: ignore[operator]
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.schedule = make_schedule(self.optimizer, config)
        self.step = 0
        # Draws which sentences make a batch.
        self.order = torch.Generator().manual_seed(config.seed)
        # Batches drawn ahead, as positions in data.train. The last one is used first.
        self.drawn: list[torch.Tensor] = []
        # Draws the augmentation.
        self.noise = torch.Generator(data.device).manual_seed(config.seed)
        # 1 once a loss or gradient was not finite: no later update changes a weight.
        self.broken = torch.zeros((), device=data.device)

    @property
    def finished(self) -> bool:
        return self.step >= self.config.steps

    @property
    def scored(self) -> GruDecoder:
        """The model that is evaluated and kept: the averaged one if it exists."""
        return self.model if self.averaged is None else self.averaged

    def state_dict(self) -> dict[str, Any]:
        device = self.noise.device
        return {
            "config": self.config.model_dump(),
            "model": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "order": self.order.get_state(),
            "drawn": self.drawn,
            "noise": self.noise.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(saved["averaged"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.step = saved["step"]
        self.order.set_state(saved["order"])
        self.drawn = saved["drawn"]
        self.noise.set_state(saved["noise"])
        torch.set_rng_state(saved["dropout"])
        if saved["dropout_cuda"] is not None and self.noise.device.type == "cuda":
            torch.cuda.set_rng_state(saved["dropout_cuda"], self.noise.device)


def train(state: TrainState, data: Data, unseen_steps: int | None = None) -> Iterator[Updates]:
    """Advance `state` to its last step and yield `Updates` on the way.

    Evaluates every `evaluate_every` steps and at the end. unseen_steps: updates per `Updates`, 1 by
    default and UNSEEN_STEPS on CUDA; no result depends on it. An update whose loss or gradient is
    not finite changes no weight, is yielded and ends the training.
    """
    config = state.config
    if not unseen_steps:
        unseen_steps = UNSEEN_STEPS if data.device.type == "cuda" else 1
    set_precision(config)
    while not state.finished:
        until_evaluation = config.evaluate_every - state.step % config.evaluate_every
        count = min(unseen_steps, until_evaluation, config.steps - state.step)
        updates = _run_updates(state, data, count)
        if not updates.finite:
            yield updates
            return
        if state.step % config.evaluate_every == 0 or state.finished:
            updates = _with_evaluation(updates, state, data)
        yield updates


def _run_updates(state: TrainState, data: Data, count: int) -> Updates:
    """Do `count` updates, up to the first whose loss or gradient is not finite."""
    begin = time.perf_counter()
    results = []
    for _ in range(count):
        lr = state.optimizer.param_groups[0]["lr"]
        results.append(_update(state, data))
    # The only place that waits for the GPU.
    losses, norms = torch.stack(results, dim=1).tolist()
    seconds = (time.perf_counter() - begin) / count
    for done, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if not math.isfinite(loss + norm):
            # This update and those after it changed no weight.
            state.step -= count - done
            return Updates(state.step + 1, done + 1, loss, norm, lr, seconds)
    return Updates(state.step, count, sum(losses) / count, max(norms), lr, seconds)


def _with_evaluation(updates: Updates, state: TrainState, data: Data) -> Updates:
    """Evaluate, and tell the plateau schedule the score."""
    score, validation_loss = evaluate(state.scored, data, state.config.precision)
    if isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step(score.value)
    return replace(updates, score=score, validation_loss=validation_loss)


def _update(state: TrainState, data: Data) -> torch.Tensor:
    """Do one update.

    Returns (loss, gradient norm before clipping) on the device, without waiting for the device.
    """
    config = state.config
    state.optimizer.zero_grad(set_to_none=True)
    state.model.train()
    loss = torch.zeros((), device=data.device)
    for _ in range(config.accumulation):
        loss += _backward(state, data)
    norm = _clip_gradients(state.model, config.optimizer.grad_clip_norm)
    result = torch.stack([loss, norm])
    state.broken.clamp_(min=(~result.isfinite().all()).float())
    # The fused optimizers skip the update where this is 1.
    state.optimizer.found_inf = state.broken  # type: ignore[attr-defined]
    state.optimizer.step()
    _average_weights(state)
    state.step += 1
    if not isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step()
    return result


def _backward(state: TrainState, data: Data) -> torch.Tensor:
    """Add the gradients of one batch. Returns its part of the update's loss."""
    config = state.config
    batch = data.batch(data.train[next_batch(state, data)])
    x_BTC = augment(batch.x_BTC, batch.lengths_B, config.augment, state.noise, config.model.padding)
    with _autocast(data.device, config.precision):
        logits_BWK, frames_B = state.model(x_BTC, batch.lengths_B, batch.days_B)
    loss = ctc_losses(logits_BWK.float(), frames_B, batch).mean() / config.accumulation
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _clip_gradients(model: GruDecoder, largest: float | None) -> torch.Tensor:
    """Scale the gradients down to the norm `largest` if it is given. Returns their norm before."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm


def _average_weights(state: TrainState) -> None:
    """Move the averaged weights, if there are any, towards those of the model."""
    decay = state.config.optimizer.ema_decay
    if state.averaged is None or decay is None:
        return
    # The average begins with the weights after the first update.
    weight = 1 - decay if state.step else 1.0
    with torch.no_grad():
        # PyTorch has no public function that moves all weights in one call.
        torch._foreach_lerp_(
            list(state.averaged.parameters()), list(state.model.parameters()), weight
        )


def next_batch(state: TrainState, data: Data) -> torch.Tensor:
    """The sentences of the next batch, as positions in data.train.

    Each batch is drawn from all sentences without replacement, as in neural_seq_decoder. With
    `batches: similar`, POOL such draws are made at once, sorted by length and cut into batches,
    which come in random order: over POOL batches the same sentences, with little padding.
    """
    if not state.drawn:
        state.drawn = _draw_batches(state, data)
    return state.drawn.pop()


def _draw_batches(state: TrainState, data: Data) -> list[torch.Tensor]:
    n_train = len(data.train)
    size = min(state.config.batch_size, n_train)
    n_draws = 1
    if state.config.batches == "similar":
        # A sentence in two draws may end up twice in one batch. That stays rare if a pool holds
        # at most a quarter of the sentences.
        n_draws = max(1, min(POOL, n_train // (4 * size)))
    draws = [torch.randperm(n_train, generator=state.order)[:size] for _ in range(n_draws)]
    if n_draws == 1:
        return draws
    pooled = torch.cat(draws)
    by_size = pooled[data.lengths_S[data.train[pooled]].argsort(stable=True)]
    batches = torch.split(by_size, size)
    return [batches[i] for i in torch.randperm(n_draws, generator=state.order)]


def ctc_losses(logits_BWK: torch.Tensor, frames_B: torch.Tensor, batch: Batch) -> torch.Tensor:
    """CTC loss / labels of each sentence; 0 where the labels do not fit the frames.

    Their mean is the loss that PyTorch's CTC computes with the reduction `mean`.
    """
    log_probs_WBK = logits_BWK.log_softmax(dim=2).transpose(0, 1)
    loss_B = ctc_loss(
        log_probs_WBK,
        batch.labels_L,
        frames_B,
        batch.label_lengths_B,
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )
    labels_B = batch.label_lengths_B.clamp(min=1)
    return loss_B / labels_B.to(loss_B.device, non_blocking=True)


def evaluate(model: GruDecoder, data: Data, precision: str = "fp32") -> tuple[Score, float]:
    """Decode the validation sentences greedily.

    Returns (score in the order of data.validation, mean loss).
    """
    numbers = data.validation.tolist()
    decoded: dict[int, list[int]] = {}
    total_loss = torch.zeros((), device=data.device)
    for numbers_B, batch, logits_BWK, frames_B in outputs(model, data, precision):
        total_loss += ctc_losses(logits_BWK.float(), frames_B, batch).sum()
        decoded |= zip(numbers_B.tolist(), greedy_decode(logits_BWK, frames_B), strict=True)
    references = [data.labels(number) for number in numbers]
    errors = edit_distances(references, [decoded[number] for number in numbers])
    lengths = [len(reference) for reference in references]
    return Score(tuple(errors), tuple(lengths)), total_loss.item() / len(numbers)


@torch.no_grad()
def outputs(
    model: GruDecoder, data: Data, precision: str
) -> Iterator[tuple[torch.Tensor, Batch, torch.Tensor, torch.Tensor]]:
    """Run the model on the validation sentences, batch by batch.

    Yields (numbers_B, batch, logits_BWK, frames_B).
    """
    model.eval()
    numbers = data.validation.tolist()
    if model.config.padding == "masked":
        batches = by_length(numbers, data.lengths_S, SCORING_BATCH)
    else:
        batches = list(torch.split(torch.tensor(numbers), SCORING_BATCH))
    for numbers_B in batches:
        batch = data.batch(numbers_B)
        with _autocast(data.device, precision):
            logits_BWK, frames_B = model(batch.x_BTC, batch.lengths_B, batch.days_B)
        yield numbers_B, batch, logits_BWK, frames_B


def set_precision(config: DecoderConfig) -> None:
    """Turn TF32 on or off for all matrix products on CUDA, in the whole process."""
    tf32 = config.precision != "fp32"
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def make_optimizer(model: GruDecoder, config: OptimizerConfig) -> torch.optim.Optimizer:
    """All are fused: one call updates all weights, and can be told on the device to skip it."""
    weights = model.parameters()
    lr = config.lr
    decay = config.weight_decay
    betas = (config.beta1, config.beta2)
    match config.name:
        case "adam":
            return torch.optim.Adam(weights, lr, betas, config.eps, decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(weights, lr, betas, config.eps, decay, fused=True)
        case "sgd":
            return torch.optim.SGD(
                weights,
                lr,
                config.momentum,
                weight_decay=decay,
                nesterov=config.nesterov,
                fused=True,
            )


def make_schedule(optimizer: torch.optim.Optimizer, config: DecoderConfig) -> LRScheduler:
    schedule = config.schedule
    if schedule.name == "plateau":
        return ReduceLROnPlateau(
            optimizer, "min", schedule.factor, schedule.patience, min_lr=schedule.min_lr, eps=0
        )
    return LambdaLR(optimizer, lambda step: lr_factor(config, step))


def lr_factor(config: DecoderConfig, step: int) -> float:
    """lr / optimizer.lr of the update after `step` updates.

    linear: from 1 to end_factor over all steps.
    warmup-cosine: up from 1 / (warmup steps + 1), then half a cosine down to end_factor.
    """
    schedule = config.schedule
    steps = max(config.steps, 1)
    if schedule.name == "linear":
        return 1 + (schedule.end_factor - 1) * min(step / steps, 1)
    if schedule.name == "warmup-cosine":
        warmup = round(schedule.warmup * steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / max(steps - warmup, 1), 1)
        cosine = 1 + math.cos(math.pi * progress)
        return schedule.end_factor + (1 - schedule.end_factor) * 0.5 * cosine
    return 1.0
