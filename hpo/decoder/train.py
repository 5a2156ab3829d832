"""The training loop. TrainState holds all that changes; `train` advances it and yields; the caller decides.

No database, no signals, no logging here. A step is one optimizer update, in schedules too.
"""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import ctc_loss
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from hpo.decoder.augment import augment
from hpo.decoder.config import DecoderConfig, OptimizerConfig
from hpo.decoder.data import Batch, Data, by_length
from hpo.decoder.metric import BLANK, Score, edit_distance, greedy_decode
from hpo.decoder.model import GruDecoder

SCORING_BATCH = 64  # sentences; no score depends on it


@dataclass(frozen=True)
class Progress:
    """What is known after a step. `score` and `validation_loss` are there where the step was evaluated."""

    step: int  # updates done; a step that came out non-finite is not done, but counted here
    loss: float  # of the training batch
    grad_norm: float  # before clipping
    lr: float  # that the step used
    seconds: float  # of the update
    score: Score | None = None
    evaluation_seconds: float = 0.0
    validation_loss: float | None = None  # mean over sentences of CTC loss / labels

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class TrainState:
    """Weights, optimizer, schedule, step and every random generator of one training."""

    def __init__(self, config: DecoderConfig, data: Data):
        self.config = config
        torch.manual_seed(config.seed)  # initial weights; afterwards the global generators draw dropout
        self.model = GruDecoder(config.model, data.n_days, data.n_features).to(data.device)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.schedule = make_schedule(self.optimizer, config)
        self.step = 0
        self.order = torch.Generator().manual_seed(config.seed)  # which sentences
        self.noise = torch.Generator(data.device).manual_seed(config.seed)

    @property
    def finished(self) -> bool:
        return self.step >= self.config.steps

    def state_dict(self) -> dict[str, Any]:
        device = self.noise.device
        return {
            "config": self.config.model_dump(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "order": self.order.get_state(),
            "noise": self.noise.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.step = saved["step"]
        self.order.set_state(saved["order"])
        self.noise.set_state(saved["noise"])
        torch.set_rng_state(saved["dropout"])
        if saved["dropout_cuda"] is not None:
            torch.cuda.set_rng_state(saved["dropout_cuda"], self.noise.device)


def train(state: TrainState, data: Data) -> Iterator[Progress]:
    """Advance `state` to its last step, yielding after each; evaluates every `evaluate_every` steps and at the end.

    Each batch is drawn anew from all training sentences without replacement, as in neural_seq_decoder. A step whose loss
    or gradient is not finite changes nothing, is yielded and ends the training.
    """
    config = state.config
    while not state.finished:
        begin = time.perf_counter()
        lr = state.optimizer.param_groups[0]["lr"]
        picked_B = data.train[torch.randperm(len(data.train), generator=state.order)[: config.batch_size]]
        loss, grad_norm = _gradients(state, data.batch(picked_B))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            yield Progress(state.step + 1, loss, grad_norm, lr, time.perf_counter() - begin)
            return
        state.optimizer.step()
        state.step += 1
        if not isinstance(state.schedule, ReduceLROnPlateau):
            state.schedule.step()
        seconds, score, validation_loss = time.perf_counter() - begin, None, None
        if state.step % config.evaluate_every == 0 or state.finished:
            score, validation_loss = evaluate(state.model, data)
            if isinstance(state.schedule, ReduceLROnPlateau):
                state.schedule.step(score.per)
        evaluation_seconds = time.perf_counter() - begin - seconds
        yield Progress(state.step, loss, grad_norm, lr, seconds, score, evaluation_seconds, validation_loss)


def _gradients(state: TrainState, batch: Batch) -> tuple[float, float]:
    """Forward and backward of one batch, clipped. Returns (loss, gradient norm before clipping)."""
    state.model.train()
    x_BTC = augment(batch.x_BTC, batch.lengths_B, state.config.augment, state.noise)
    logits_BWK, frames_B = state.model(x_BTC, batch.lengths_B, batch.days_B)
    loss = losses(logits_BWK, frames_B, batch).mean()
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [weight.grad for weight in state.model.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if state.config.optimizer.grad_clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(state.model.parameters(), state.config.optimizer.grad_clip_norm, norm)
    pair = torch.stack([loss.detach(), norm]).tolist()  # one wait for the GPU, not two
    return pair[0], pair[1]


def losses(logits_BWK: torch.Tensor, frames_B: torch.Tensor, batch: Batch) -> torch.Tensor:
    """CTC loss / labels of each sentence (PyTorch's `mean` before its mean); 0 where the labels do not fit the frames."""
    log_probs_WBK = logits_BWK.log_softmax(dim=2).transpose(0, 1)
    loss_B = ctc_loss(log_probs_WBK, batch.labels_L, frames_B, batch.label_lengths_B, BLANK, "none", zero_infinity=True)
    return loss_B / batch.label_lengths_B.clamp(min=1).to(loss_B.device)


@torch.no_grad()
def evaluate(model: GruDecoder, data: Data) -> tuple[Score, float]:
    """Greedy decoding of the validation sentences. Returns (score in the order of data.validation, mean loss)."""
    model.eval()
    errors: dict[int, int] = {}
    total_loss = 0.0
    for numbers_B in by_length(data.validation, data.lengths_S, SCORING_BATCH):
        batch = data.batch(numbers_B)
        logits_BWK, frames_B = model(batch.x_BTC, batch.lengths_B, batch.days_B)
        total_loss += losses(logits_BWK, frames_B, batch).sum().item()
        for number, decoded in zip(numbers_B.tolist(), greedy_decode(logits_BWK, frames_B), strict=True):
            errors[number] = edit_distance(data.labels(number), decoded)
    numbers = data.validation.tolist()
    score = Score(tuple(errors[number] for number in numbers), tuple(len(data.labels(number)) for number in numbers))
    return score, total_loss / len(numbers)


def make_optimizer(model: GruDecoder, config: OptimizerConfig) -> torch.optim.Optimizer:
    weights, lr, decay, betas = model.parameters(), config.lr, config.weight_decay, (config.beta1, config.beta2)
    match config.name:
        case "adam":
            return torch.optim.Adam(weights, lr, betas, config.eps, decay)
        case "adamw":
            return torch.optim.AdamW(weights, lr, betas, config.eps, decay)
        case "sgd":
            return torch.optim.SGD(weights, lr, config.momentum, weight_decay=decay, nesterov=config.nesterov)


def make_schedule(optimizer: torch.optim.Optimizer, config: DecoderConfig) -> LRScheduler:
    schedule = config.schedule
    if schedule.name == "plateau":
        return ReduceLROnPlateau(optimizer, "min", schedule.factor, schedule.patience, min_lr=schedule.min_lr)
    return LambdaLR(optimizer, lambda step: lr_factor(config, step))


def lr_factor(config: DecoderConfig, step: int) -> float:
    """lr / optimizer.lr for the update after `step` updates.

    linear: from 1 to end_factor over all steps. warmup-cosine: up from 1/warmup steps, then half a cosine to end_factor.
    """
    schedule, steps = config.schedule, max(config.steps, 1)
    if schedule.name == "linear":
        return 1 + (schedule.end_factor - 1) * min(step / steps, 1)
    if schedule.name == "warmup-cosine":
        warmup = round(schedule.warmup * steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        along = min((step - warmup) / max(steps - warmup, 1), 1)
        return schedule.end_factor + (1 - schedule.end_factor) * 0.5 * (1 + math.cos(math.pi * along))
    return 1.0


def save_checkpoint(state: TrainState, path: Path) -> None:
    """Write the whole state under a temporary name, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        torch.save(state.state_dict(), draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def load_checkpoint(state: TrainState, path: Path) -> None:
    """Go on where `save_checkpoint` was. Raises ValueError if it was made by another configuration."""
    saved = torch.load(path, map_location="cpu", weights_only=True)  # generators want their states there; the rest is copied over
    if saved["config"] != state.config.model_dump():
        raise ValueError(f"{path} holds another configuration")
    state.load_state_dict(saved)
