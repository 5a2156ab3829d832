"""A trainer of one's own: a small network reads handwritten digits. digits.yaml searches it."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from hpo import Config, DataRequest, Metric, Progress, Score, Trainer


class DigitsConfig(Config):
    lr: float = 0.1
    momentum: float = 0.9
    units: int = 32


class Digits(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor
    train: torch.Tensor
    validation: torch.Tensor
    fingerprint: str
    facts: dict[str, Any] = {}

    def describe(self, config: Config) -> list[str]:
        return [f"{len(self.train)} images train, {len(self.validation)} validate"]


def load_data(request: DataRequest) -> Digits:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32, device=request.device)
    y = torch.tensor(labels, device=request.device)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(request.seed))
    cut = round(request.fraction * len(order))
    parts = {"train": (order[cut:], order[:cut]), "test": (order[:0], torch.arange(1500, len(y)))}
    fingerprint = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16]
    return Digits(x, y, *parts[request.partition], fingerprint)


class Training:
    def __init__(self, config: DigitsConfig, data: Digits):
        torch.manual_seed(config.seed)
        self.config, self.data, self.step = config, data, 0
        ends = torch.nn.Linear(64, config.units), torch.nn.Linear(config.units, 10)
        self.model = torch.nn.Sequential(ends[0], torch.nn.ReLU(), ends[1]).to(data.x.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), config.lr, config.momentum)

    def train(self) -> Iterator[Progress]:
        while self.step < self.config.steps:
            batch = self.data.train[torch.randperm(len(self.data.train))[:64]]
            loss = cross_entropy(self.model(self.data.x[batch]), self.data.y[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            due = self.step % self.config.evaluate_every == 0 or self.step == self.config.steps
            yield Progress(self.step, loss.item(), score=self.evaluate(self.data) if due else None)

    @torch.no_grad()
    def evaluate(self, data: Digits) -> Score:
        right = self.model(data.x[data.validation]).argmax(dim=1) == data.y[data.validation]
        return Score(tuple(right.float().tolist()), (1.0,) * len(right))

    def state_dict(self) -> dict[str, Any]:
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return parts | {"step": self.step, "random": torch.get_rng_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        torch.set_rng_state(saved["random"])


accuracy = Metric(name="accuracy", unit="percent", direction="maximize", bounded=True)
digits = Trainer(config=DigitsConfig, load_data=load_data, start=Training, metric=accuracy)
