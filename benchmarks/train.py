"""How fast a training is: a plain loop with the reference's semantics against hpo's.

    # The demo decoder to its end, by seed: seconds and PER.
    python benchmarks/train.py --size demo
    # 5 x 1,024 units, synthetic data of the real shape.
    python benchmarks/train.py --size full --batch 8 --steps 8 --seeds 1
    python benchmarks/train.py --size full --steps 50 --seeds 1 --device cuda --at-once 2 4 8

`plain` is written for this benchmark from the reference's description: fp32, batches in random
order padded to the longest, noise in the padding too, nn.GRU with its own dropout, Adam without
fusion, the loss read at every step, evaluation in the file's order with a per-sentence edit
distance in Python. `ours` is hpo's decoder. Each run is a process of its own, so its peak memory
counts it alone (CUDA: allocated; CPU: resident, with Python and PyTorch in it).

Operations: a GRU layer of I inputs, H units, D directions takes 2 * 3 * H * (I + H) * D a window
(multiply and add count as two), the day layer 2 * C * C a bin, the output layer
2 * D * H * (classes + 1) a window; backward takes twice the forward. Windows and bins of the
sentences count, padding does not. `share of peak` is those operations per second over the machine's
peak: of the card by its data sheet (H100 and H200 SXM, dense: 989 TFLOP/s bf16, 494 tf32, 67 fp32),
of the CPU by a matrix product of 2,048 x 2,048 with the same threads in the same run.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import conv1d, ctc_loss, softsign, unfold
from torch.nn.utils.rnn import pad_sequence

from hpo.data.formats import Sentences
from hpo.decoder.config import DecoderConfig
from hpo.decoder.data import Data, frames, load_data
from hpo.decoder.model import gaussian_kernel
from hpo.decoder.train import TrainState, evaluate, set_precision, train
from hpo.space.load import find_space, load_spec

# FLOP/s.
PEAK = {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12}
# With these the demo comes to a PER that means something.
LEARNS = {"optimizer.lr": 0.005, "optimizer.eps": 1e-8}


# ---- the plain loop


class PlainDecoder(nn.Module):
    """Smoothing, a linear layer for each day, windows, a bidirectional GRU, an output layer."""

    def __init__(self, config: DecoderConfig, data: Data):
        super().__init__()
        model = config.model
        features = data.n_features
        self.kernel = model.kernel
        self.stride = model.stride
        taps = gaussian_kernel(model.smoothing_kernel, model.smoothing_width)
        self.register_buffer("taps", taps.repeat(features, 1, 1))
        self.day_weights = nn.Parameter(torch.eye(features).repeat(data.n_days, 1, 1))
        self.day_bias = nn.Parameter(torch.zeros(data.n_days, 1, features))
        self.gru = nn.GRU(
            features * model.kernel,
            model.units,
            model.layers,
            batch_first=True,
            dropout=model.dropout,
            bidirectional=True,
        )
        for name, weight in self.gru.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(weight)
            if "weight_ih" in name:
                nn.init.xavier_uniform_(weight)
        self.output = nn.Linear(2 * model.units, model.classes + 1)

    def forward(self, x_BTC: torch.Tensor, days_B: torch.Tensor) -> torch.Tensor:
        taps = self.get_buffer("taps")
        x_BCT = conv1d(x_BTC.transpose(1, 2), taps, groups=len(taps), padding="same")
        x_BTC = x_BCT.transpose(1, 2)
        x_BTC = torch.einsum("btc,bcd->btd", x_BTC, self.day_weights[days_B])
        x_BTC = softsign(x_BTC + self.day_bias[days_B])
        x_BCT = x_BTC.transpose(1, 2)
        windows = unfold(x_BCT[..., None], (self.kernel, 1), stride=self.stride)
        hidden, _ = self.gru(windows.transpose(1, 2))
        logits: torch.Tensor = self.output(hidden)
        return logits


def edit_distance(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal = row[0]
        row[0] = i
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = min(above + 1, row[j - 1] + 1, diagonal + (x != y))
            diagonal = above
    return row[-1]


class Plain:
    """The plain loop."""

    def __init__(self, config: DecoderConfig, data: Data):
        torch.manual_seed(config.seed)
        self.config = config
        self.data = data
        self.model = PlainDecoder(config, data).to(data.device)
        optimizer = config.optimizer
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            optimizer.lr,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        )
        numbers = [*data.train.tolist(), *data.validation.tolist()]
        batches = {number: data.batch(torch.tensor([number])) for number in numbers}
        self.x = {number: batch.x_BTC[0] for number, batch in batches.items()}
        self.days = {number: int(batch.days_B[0]) for number, batch in batches.items()}
        self.y = {number: batch.labels_L for number, batch in batches.items()}

    def logits(
        self, numbers: list[int], noisy: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logits, mean CTC loss, frames) of a batch padded to its longest."""
        device = self.data.device
        augment = self.config.augment
        x_BTC = pad_sequence([self.x[number] for number in numbers], batch_first=True)
        lengths_B = self.data.lengths_S[torch.tensor(numbers)].to(device)
        if noisy:
            white_BTC = torch.randn(x_BTC.shape, device=device)
            x_BTC = x_BTC + white_BTC * augment.white_noise_sd
            offsets_B1C = torch.randn(len(x_BTC), 1, x_BTC.shape[2], device=device)
            x_BTC = x_BTC + offsets_B1C * augment.constant_offset_sd
        days_B = torch.tensor([self.days[number] for number in numbers], device=device)
        logits_BWK = self.model(x_BTC, days_B)
        frames_B = frames(lengths_B, self.config.model).int()
        targets = pad_sequence([self.y[number] for number in numbers], batch_first=True)
        counts = torch.tensor([len(self.y[number]) for number in numbers], device=device)
        loss = ctc_loss(
            logits_BWK.log_softmax(2).transpose(0, 1),
            targets,
            frames_B,
            counts,
            0,
            "mean",
            zero_infinity=True,
        )
        return logits_BWK, loss, frames_B

    def block(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        shuffled = torch.randperm(len(self.data.train))
        batch = self.data.train[shuffled[: self.config.batch_size]].tolist()
        _, loss, _ = self.logits(batch, True)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        loss.item()

    @torch.no_grad()
    def evaluate(self) -> float:
        self.model.eval()
        numbers = self.data.validation.tolist()
        errors = 0
        for begin in range(0, len(numbers), self.config.batch_size):
            batch = numbers[begin : begin + self.config.batch_size]
            logits_BWK, _, frames_B = self.logits(batch, False)
            for number, logits_WK, count in zip(batch, logits_BWK, frames_B, strict=True):
                path = torch.unique_consecutive(logits_WK[:count].argmax(dim=-1)).cpu().numpy()
                decoded = [int(label) for label in path if label != 0]
                errors += edit_distance(self.y[number].tolist(), decoded)
        return errors / sum(len(self.y[number]) for number in numbers)


# ---- sizes


def demo(device: torch.device, seed: int) -> tuple[DecoderConfig, Data]:
    config = load_spec(find_space("lr-aug"), "demo").config(LEARNS | {"seed": seed})
    assert isinstance(config, DecoderConfig)
    return config, load_data(None, config.model, 0.1, 0, device)[0]


def full(device: torch.device, seed: int) -> tuple[DecoderConfig, Data]:
    """640 sentences to train and 64 to score.

    24 days, 256 features, 300 to 900 bins, 20 to 40 labels.
    """
    generator = np.random.default_rng(0)
    count = 704
    lengths_S = generator.integers(300, 900, count)
    labels_S = generator.integers(20, 40, count)
    sentences = Sentences(
        features_NC=generator.standard_normal((int(lengths_S.sum()), 256), dtype=np.float32),
        lengths_S=lengths_S,
        labels_L=generator.integers(1, 41, int(labels_S.sum())),
        label_lengths_S=labels_S,
        days_S=np.arange(count) % 24,
        n_days=24,
        source="synthetic",
    )
    return DecoderConfig(seed=seed), Data(sentences, np.arange(64, count), np.arange(64), device)


# ---- one run, in a process of its own


class Ours:
    """hpo's training."""

    def __init__(self, config: DecoderConfig, data: Data):
        self.data = data
        self.state = TrainState(config, data)
        self.training = train(self.state, data)

    def block(self, steps: int) -> None:
        end = self.state.step + steps
        while self.state.step < end:
            next(self.training)

    def evaluate(self) -> float:
        return evaluate(self.state.scored, self.data, self.state.config.precision)[0].value


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One training with evaluations in between. Times are of this process.

    job: with `together` the training waits until it may start with others on the device.
    """
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    size = demo if job["size"] == "demo" else full
    sized, data = size(device, job["seed"])
    steps = job["steps"] or sized.steps
    every = min(sized.evaluate_every, steps)
    trainer, order, precision = job["kind"].split()
    # The last step would evaluate, so it is never made.
    values = {
        "steps": steps + 1,
        "evaluate_every": steps + 1,
        "batches": order,
        "precision": precision,
    }
    if job["batch"]:
        values["batch_size"] = job["batch"]
    config = sized.with_values(values)
    set_precision(config)
    make = Plain if trainer == "plain" else Ours
    if device.type == "cuda":
        # Allocation and the choice of kernels happen once and are no part of the pace.
        make(config, data).block(1)
    training = make(config, data)
    if job["together"]:
        print("ready", flush=True)
        sys.stdin.readline()
    stepping = evaluating = 0.0
    scores: list[float] = []
    blocks = [every] * (steps // every)
    if steps % every:
        blocks.append(steps % every)
    for block in blocks:
        stepping += _seconds(partial(training.block, block), device)
        evaluating += _seconds(lambda: scores.append(training.evaluate()), device)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "kind": job["kind"],
        "seed": job["seed"],
        "stepping": stepping / steps,
        "evaluating": evaluating / len(scores),
        "total": stepping + evaluating,
        "per": scores[-1],
        "memory": memory,
        "batch": config.batch_size,
        "operations": operations(config, data),
    }


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def operations(config: DecoderConfig, data: Data) -> float:
    """Operations of one update, on average over the sentences (see above)."""
    model = config.model
    channels = data.n_features
    lengths_S: torch.Tensor = data.lengths_S[data.train].double()
    windows = float((frames(lengths_S, model) + 1).mean())
    inputs_of_layers = [channels * model.kernel] + [2 * model.units] * (model.layers - 1)
    gru = sum(2 * 3 * model.units * (inputs + model.units) * 2 for inputs in inputs_of_layers)
    output = 2 * 2 * model.units * (model.classes + 1)
    window: int = gru + output
    bins = float(lengths_S.mean())
    total: float = 3 * config.batch_size * (windows * window + bins * 2 * channels * channels)
    return total


def start(job: dict[str, Any]) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def result_of(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with exit code {process.returncode}")
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def at_once(job: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The results of `count` trainings that begin together."""
    processes = [start(job | {"seed": seed, "together": True}) for seed in range(count)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [result_of(process) for process in processes]


# ---- the tables

TITLES = (
    "run",
    "seed",
    "steps/s",
    "sentences/s",
    "evaluation s",
    "whole s",
    "PER",
    "peak memory",
    "share of peak",
    "x plain, whole",
)


def peak(device: str, threads: int, precision: str) -> float:
    """FLOP/s; on the CPU the best of five."""
    if device != "cpu":
        return PEAK[precision]
    torch.set_num_threads(threads)
    a = torch.randn(2048, 2048)
    cpu = torch.device("cpu")
    seconds = min(_seconds(lambda: a @ a, cpu) for _ in range(5))
    return 2 * 2048**3 / seconds


def row(result: dict[str, Any], plain: dict[str, Any], peak: float) -> str:
    """plain: the result of the plain loop, to compare with."""
    pace = 1 / result["stepping"]
    cells = [
        result["kind"],
        result["seed"],
        f"{pace:.3g}",
        f"{pace * result['batch']:.3g}",
        f"{result['evaluating']:.3g}",
        f"{result['total']:.0f}",
        f"{result['per']:.3f}",
        f"{result['memory'] / 2**30:.2f} GiB",
        f"{100 * result['operations'] * pace / peak:.1f} %",
        f"{plain['total'] / result['total']:.2f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["demo", "full"], default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="default: the configuration's")
    parser.add_argument("--batch", type=int, help="sentences; default: the configuration's")
    parser.add_argument(
        "--at-once", type=int, nargs="*", default=[2], help="how many trainings share the device"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(run(json.loads(arguments.job))))
        return
    job = {
        "size": arguments.size,
        "device": arguments.device,
        "threads": arguments.threads,
        "steps": arguments.steps,
        "batch": arguments.batch,
        "together": False,
        "seed": 0,
    }
    kinds = ["plain random fp32", "ours random fp32", "ours similar fp32"]
    precisions = ["fp32"]
    if arguments.device != "cpu":
        kinds += ["ours similar tf32", "ours similar bf16"]
        precisions = list(PEAK)
    peaks = {
        precision: peak(arguments.device, arguments.threads, precision) for precision in precisions
    }
    in_words = [f"{precision} {flops / 1e9:.3g} GFLOP/s" for precision, flops in peaks.items()]
    print(f"peak: {', '.join(in_words)}\n")
    print("| " + " | ".join(TITLES) + " |")
    print("|" + "---|" * len(TITLES))
    for seed in range(arguments.seeds):
        plain: dict[str, Any] = {}
        for kind in kinds:
            result = result_of(start(job | {"kind": kind, "seed": seed}))
            # The first kind is the plain loop.
            plain = plain or result
            print(row(result, plain, peaks[kind.split()[-1]]), flush=True)
    kind = kinds[-1]
    alone = pace_of(at_once(job | {"kind": kind}, 1))
    for count in arguments.at_once:
        together = at_once(job | {"kind": kind}, count)
        pace = pace_of(together)
        memory = sum(result["memory"] for result in together)
        print(
            f"{count} trainings at once ({kind}): {pace:.3g} steps/s in all, "
            f"{pace / alone:.2f} x one alone; {memory / 2**30:.2f} GiB"
        )


def pace_of(results: Sequence[dict[str, Any]]) -> float:
    """Steps per second of all together."""
    return float(sum(1 / result["stepping"] for result in results))


if __name__ == "__main__":
    main()
