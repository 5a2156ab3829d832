"""The training loop. TrainState holds all that changes; `train` advances it and yields; the caller decides.

No database, no signals, no logging here. A step is one optimizer update, in schedules too.
"""

import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
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

SCORING_BATCH = 64  # sentences; no score depends on it (with padding: reference it does, and this is the reference's)
POOL = 8  # batches that are drawn together and regrouped by length
UNSEEN_STEPS = (
    10  # on CUDA, updates between two looks at what they gave: each look waits for the GPU
)


@dataclass(frozen=True)
class Updates:
    """What is known after some updates. `score` and `validation_loss` are there where the last one was evaluated."""

    step: int  # updates done; a step that came out non-finite is not done, but counted here
    steps: int  # since the progress before
    loss: float  # of the training batches, mean over those steps
    grad_norm: float  # before clipping, the largest of those steps
    lr: float  # that the last step used
    seconds: float  # per update
    score: Score | None = None
    evaluation_seconds: float = 0.0
    validation_loss: float | None = None  # mean over sentences of CTC loss / labels

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class TrainState:
    """Weights, averaged weights, optimizer, schedule, step and every random generator of one training."""

    def __init__(self, config: DecoderConfig, data: Data):
        self.config = config
        torch.manual_seed(
            config.seed
        )  # initial weights; afterwards the global generators draw dropout
        self.model = GruDecoder(config.model, data.n_days, data.n_features).to(data.device)
        self.averaged = None if config.optimizer.ema_decay is None else deepcopy(self.model)
        if self.averaged is not None:
            for layer in self.averaged.gru:
                layer.flatten_parameters()  # type: ignore[operator]  # a copy is not, and cuDNN would do it at every call
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.schedule = make_schedule(self.optimizer, config)
        self.step = 0
        self.order = torch.Generator().manual_seed(config.seed)  # which sentences
        self.drawn: list[torch.Tensor] = []  # batches to come, as positions in data.train
        self.noise = torch.Generator(data.device).manual_seed(config.seed)
        self.broken = torch.zeros(
            (), device=data.device
        )  # 1 once a loss or gradient was not finite: no weight moves any more

    @property
    def finished(self) -> bool:
        return self.step >= self.config.steps

    @property
    def scored(self) -> GruDecoder:
        """The model that evaluations score and that is kept: the averaged one, if there is one."""
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
    """Advance `state` to its last step, yielding after each; evaluates every `evaluate_every` steps and at the end.

    On CUDA it yields after UNSEEN_STEPS, because each look at a loss waits for the GPU; nothing computed depends on it.
    A step whose loss or gradient is not finite changes no weight, is yielded and ends the training.
    """
    config = state.config
    unseen_steps = unseen_steps or (UNSEEN_STEPS if data.device.type == "cuda" else 1)
    set_precision(config)
    while not state.finished:
        begin = time.perf_counter()
        to_evaluation = config.evaluate_every - state.step % config.evaluate_every
        count = min(unseen_steps, to_evaluation, config.steps - state.step)
        facts = []
        for _ in range(count):
            lr = state.optimizer.param_groups[0]["lr"]
            facts.append(_update(state, data))
        losses, norms = torch.stack(facts, dim=1).tolist()  # the one place that waits for the GPU
        seconds = (time.perf_counter() - begin) / count
        bad = next((i for i in range(count) if not math.isfinite(losses[i] + norms[i])), None)
        if bad is not None:
            state.step -= count - bad
            yield Updates(state.step + 1, bad + 1, losses[bad], norms[bad], lr, seconds)
            return
        score, validation_loss, begin = None, None, time.perf_counter()
        if state.step % config.evaluate_every == 0 or state.finished:
            score, validation_loss = evaluate(state.scored, data, config.precision)
            if isinstance(state.schedule, ReduceLROnPlateau):
                state.schedule.step(score.value)
        evaluation_seconds = time.perf_counter() - begin
        yield Updates(
            state.step,
            count,
            sum(losses) / count,
            max(norms),
            lr,
            seconds,
            score,
            evaluation_seconds,
            validation_loss,
        )


def _update(state: TrainState, data: Data) -> torch.Tensor:
    """One step. Returns (loss, gradient norm before clipping) on the device; nothing here waits for it."""
    config, optimizer = state.config, state.optimizer
    optimizer.zero_grad(set_to_none=True)
    state.model.train()
    total = torch.zeros((), device=data.device)
    for _ in range(config.accumulation):
        batch = data.batch(data.train[_next_batch(state, data)])
        x_BTC = augment(
            batch.x_BTC, batch.lengths_B, config.augment, state.noise, config.model.padding
        )
        with _autocast(data.device, config.precision):
            logits_BWK, frames_B = state.model(x_BTC, batch.lengths_B, batch.days_B)
        loss = losses(logits_BWK.float(), frames_B, batch).mean() / config.accumulation
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    norm = torch.nn.utils.get_total_norm(
        [weight.grad for weight in state.model.parameters() if weight.grad is not None]
    )
    if config.optimizer.grad_clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(
            state.model.parameters(), config.optimizer.grad_clip_norm, norm
        )
    facts = torch.stack([total, norm])
    state.broken.clamp_(min=(~facts.isfinite().all()).float())
    optimizer.found_inf = state.broken  # type: ignore[attr-defined]  # the fused optimizers skip the update where it is 1
    optimizer.step()
    if state.averaged is not None and config.optimizer.ema_decay is not None:
        weight = (
            1 - config.optimizer.ema_decay if state.step else 1.0
        )  # the average begins with the first update's weights
        with torch.no_grad():
            torch._foreach_lerp_(
                list(state.averaged.parameters()), list(state.model.parameters()), weight
            )
    state.step += 1
    if not isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step()
    return facts


def _next_batch(state: TrainState, data: Data) -> torch.Tensor:
    """Positions in data.train. Each batch is drawn from all sentences without replacement, as in neural_seq_decoder.

    With `batches: similar`, POOL such draws are made at once, sorted by length and cut into batches, which come in random
    order: the same sentences within POOL batches, and little padding. A sentence that two of the draws share can then be
    in one batch twice; with few sentences fewer draws are pooled, so that this stays rare.
    """
    if not state.drawn:
        size = min(state.config.batch_size, len(data.train))
        pool = (
            max(1, min(POOL, len(data.train) // (4 * size)))
            if state.config.batches == "similar"
            else 1
        )
        state.drawn = [
            torch.randperm(len(data.train), generator=state.order)[:size] for _ in range(pool)
        ]
        if pool > 1:
            all_drawn = torch.cat(state.drawn)
            by_size = torch.split(
                all_drawn[data.lengths_S[data.train[all_drawn]].argsort(stable=True)], size
            )
            state.drawn = [by_size[i] for i in torch.randperm(pool, generator=state.order)]
    return state.drawn.pop()


def losses(logits_BWK: torch.Tensor, frames_B: torch.Tensor, batch: Batch) -> torch.Tensor:
    """CTC loss / labels of each sentence (PyTorch's `mean` before its mean); 0 where the labels do not fit the frames."""
    log_probs_WBK = logits_BWK.log_softmax(dim=2).transpose(0, 1)
    loss_B = ctc_loss(
        log_probs_WBK,
        batch.labels_L,
        frames_B,
        batch.label_lengths_B,
        BLANK,
        "none",
        zero_infinity=True,
    )
    return loss_B / batch.label_lengths_B.clamp(min=1).to(loss_B.device, non_blocking=True)


def evaluate(model: GruDecoder, data: Data, precision: str = "fp32") -> tuple[Score, float]:
    """Greedy decoding of the validation sentences. Returns (score in the order of data.validation, mean loss)."""
    numbers = data.validation.tolist()
    decoded: dict[int, list[int]] = {}
    total_loss = torch.zeros((), device=data.device)
    for numbers_B, batch, logits_BWK, frames_B in outputs(model, data, precision):
        total_loss += losses(logits_BWK.float(), frames_B, batch).sum()
        decoded |= zip(numbers_B.tolist(), greedy_decode(logits_BWK, frames_B), strict=True)
    references = [data.labels(number) for number in numbers]
    errors = edit_distances(references, [decoded[number] for number in numbers])
    return Score(tuple(errors), tuple(map(len, references))), total_loss.item() / len(numbers)


@torch.no_grad()
def outputs(
    model: GruDecoder, data: Data, precision: str
) -> Iterator[tuple[torch.Tensor, Batch, torch.Tensor, torch.Tensor]]:
    """The model on the validation sentences, batch by batch: (numbers_B, batch, logits_BWK, frames_B)."""
    model.eval()
    numbers = data.validation.tolist()
    masked = model.config.padding == "masked"
    batches = (
        by_length(numbers, data.lengths_S, SCORING_BATCH)
        if masked
        else torch.split(torch.tensor(numbers), SCORING_BATCH)
    )
    for numbers_B in batches:
        batch = data.batch(numbers_B)
        with _autocast(data.device, precision):
            logits_BWK, frames_B = model(batch.x_BTC, batch.lengths_B, batch.days_B)
        yield numbers_B, batch, logits_BWK, frames_B


def set_precision(config: DecoderConfig) -> None:
    """TF32 for all matrix products on CUDA, or for none: PyTorch has this for the whole process."""
    tf32 = config.precision != "fp32"
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def make_optimizer(model: GruDecoder, config: OptimizerConfig) -> torch.optim.Optimizer:
    """All are fused: one call for all weights, and they can be told on the device to skip an update."""
    weights, lr, decay, betas = (
        model.parameters(),
        config.lr,
        config.weight_decay,
        (config.beta1, config.beta2),
    )
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
        return schedule.end_factor + (1 - schedule.end_factor) * 0.5 * (
            1 + math.cos(math.pi * along)
        )
    return 1.0
