"""How fast a training is: a plain loop with the reference's semantics against ours, and several of ours at once.

    python benchmarks/train.py --size demo            # the demo decoder to its end, by seed: seconds and PER
    python benchmarks/train.py --size full --batch 8 --steps 8 --seeds 1   # 5 x 1,024 units, synthetic data of the real shape
    python benchmarks/train.py --size full --steps 50 --seeds 1 --device cuda --at-once 2 4 8

`plain` is written for this purpose from the reference's description: fp32, batches in random order padded to the longest,
noise in the padding too, nn.GRU with its own dropout, Adam that is not fused, a look at the loss every step, evaluation in
the file's order with a per-sentence Python edit distance. Each run is a process of its own, so that its peak of memory is
its own (CUDA: allocated; CPU: resident, with Python and PyTorch in it).

Operations: a GRU layer of I inputs, H units, D directions takes 2 * 3 * H * (I + H) * D a window (multiply and add count as
two), the day layer 2 * C * C a bin, the output layer 2 * D * H * (classes + 1) a window; backward takes twice the forward.
Windows and bins of the sentences count, padding does not. `share of peak` is those operations per second over the
machine's peak: of the card by its data sheet (H100 and H200 SXM, dense: 989 TFLOP/s bf16, 494 tf32, 67 fp32), of the CPU by
a matrix product of 2,048 x 2,048 with the same threads in the same run.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
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
from hpo.space.spec import find_space, load_spec

PEAK = {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12}  # FLOP/s
LEARNS = {
    "optimizer.lr": 0.005,
    "optimizer.eps": 1e-8,
}  # so that the demo comes to a PER that means something


# ---- the plain loop


class PlainDecoder(nn.Module):
    def __init__(self, config: DecoderConfig, data: Data):
        super().__init__()
        model, features = config.model, data.n_features
        self.kernel, self.stride = model.kernel, model.stride
        self.register_buffer(
            "taps",
            gaussian_kernel(model.smoothing_kernel, model.smoothing_width).repeat(features, 1, 1),
        )
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
        x_BTC = conv1d(x_BTC.transpose(1, 2), taps, groups=len(taps), padding="same").transpose(
            1, 2
        )
        x_BTC = softsign(
            torch.einsum("btc,bcd->btd", x_BTC, self.day_weights[days_B]) + self.day_bias[days_B]
        )
        windows = unfold(
            x_BTC.transpose(1, 2)[..., None], (self.kernel, 1), stride=self.stride
        ).transpose(1, 2)
        logits: torch.Tensor = self.output(self.gru(windows)[0])
        return logits


def edit_distance(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


class Plain:
    def __init__(self, config: DecoderConfig, data: Data):
        torch.manual_seed(config.seed)
        self.config, self.data = config, data
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
        device, augment = self.data.device, self.config.augment
        x_BTC = pad_sequence([self.x[number] for number in numbers], batch_first=True)
        lengths_B = self.data.lengths_S[torch.tensor(numbers)].to(device)
        if noisy:
            x_BTC = x_BTC + torch.randn(x_BTC.shape, device=device) * augment.white_noise_sd
            x_BTC = (
                x_BTC
                + torch.randn(len(x_BTC), 1, x_BTC.shape[2], device=device)
                * augment.constant_offset_sd
            )
        logits_BWK = self.model(
            x_BTC, torch.tensor([self.days[number] for number in numbers], device=device)
        )
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
        picked = self.data.train[
            torch.randperm(len(self.data.train))[: self.config.batch_size]
        ].tolist()
        _, loss, _ = self.logits(picked, True)
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
            some = numbers[begin : begin + self.config.batch_size]
            logits_BWK, _, frames_B = self.logits(some, False)
            for number, logits_WK, count in zip(some, logits_BWK, frames_B, strict=True):
                path = torch.unique_consecutive(logits_WK[:count].argmax(dim=-1)).cpu().numpy()
                errors += edit_distance(
                    self.y[number].tolist(), [int(label) for label in path if label != 0]
                )
        return errors / sum(len(self.y[number]) for number in numbers)


# ---- sizes


def demo(device: torch.device, seed: int) -> tuple[DecoderConfig, Data]:
    config = load_spec(find_space("lr-aug"), "demo").config(LEARNS | {"seed": seed})
    assert isinstance(config, DecoderConfig)
    return config, load_data(None, config.model, 0.1, 0, device)[0]


def full(device: torch.device, seed: int) -> tuple[DecoderConfig, Data]:
    """640 sentences to train, 64 to score: 24 days, 256 features, 300 to 900 bins, 20 to 40 labels."""
    generator = np.random.default_rng(0)
    count = 704
    lengths_S, labels_S = generator.integers(300, 900, count), generator.integers(20, 40, count)
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
    def __init__(self, config: DecoderConfig, data: Data):
        self.state, self.data = TrainState(config, data), data
        self.training = train(self.state, data)

    def block(self, steps: int) -> None:
        end = self.state.step + steps
        while self.state.step < end:
            next(self.training)

    def evaluate(self) -> float:
        return evaluate(self.state.scored, self.data, self.state.config.precision)[0].value


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One training with evaluations between. Times are of this process; `together`: others wait with it and train beside."""
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    sized, data = {"demo": demo, "full": full}[job["size"]](device, job["seed"])
    steps = job["steps"] or sized.steps
    every = min(sized.evaluate_every, steps)
    trainer, order, precision = job["kind"].split()
    values = {
        "steps": steps + 1,
        "evaluate_every": steps + 1,
        "batches": order,
        "precision": precision,
    }
    config = sized.with_values(values | ({"batch_size": job["batch"]} if job["batch"] else {}))
    set_precision(config)  # the last step is never made: it would evaluate
    make = Plain if trainer == "plain" else Ours
    if device.type == "cuda":
        make(config, data).block(
            1
        )  # what is done once (allocation, choice of kernels) is no part of the pace
    training = make(config, data)
    if job["together"]:
        print("ready", flush=True)
        sys.stdin.readline()
    stepping = evaluating = 0.0
    scores = []
    for block in [every] * (steps // every) + [steps % every] * (steps % every > 0):
        stepping += _seconds(lambda: training.block(block), device)  # noqa: B023  (called at once)
        evaluating += _seconds(lambda: scores.append(training.evaluate()), device)
    cuda = device.type == "cuda"
    memory = (
        torch.cuda.max_memory_allocated(device)
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {"kind": job["kind"], "seed": job["seed"], "stepping": stepping / steps, "evaluating": evaluating / len(scores),
            "total": stepping + evaluating, "per": scores[-1], "memory": memory, "batch": config.batch_size,
            "operations": operations(config, data)}  # fmt: skip


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def operations(config: DecoderConfig, data: Data) -> float:
    """Of one update, on average over the sentences (see above)."""
    model, channels = config.model, data.n_features
    lengths_S: torch.Tensor = data.lengths_S[data.train].double()
    windows = float((frames(lengths_S, model) + 1).mean())
    inputs = [channels * model.kernel] + [2 * model.units] * (model.layers - 1)
    window: int = sum(
        2 * 3 * model.units * (size + model.units) * 2 for size in inputs
    ) + 2 * 2 * model.units * (model.classes + 1)
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
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def at_once(job: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """`count` trainings that begin together."""
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


def peak(device: str, threads: int, precision: str) -> float:
    """FLOP/s; on the CPU the best of five."""
    if device != "cpu":
        return PEAK[precision]
    torch.set_num_threads(threads)
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(_seconds(lambda: a @ a, torch.device("cpu")) for _ in range(5))


def row(one: dict[str, Any], plain: dict[str, Any], peak: float) -> str:
    pace = 1 / one["stepping"]
    cells = [one["kind"], one["seed"], f"{pace:.3g}", f"{pace * one['batch']:.3g}", f"{one['evaluating']:.3g}", f"{one['total']:.0f}",
             f"{one['per']:.3f}", f"{one['memory'] / 2**30:.2f} GiB", f"{100 * one['operations'] * pace / peak:.1f} %",
             f"{plain['total'] / one['total']:.2f}"]  # fmt: skip
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
        name: getattr(arguments, name) for name in ("size", "device", "threads", "steps", "batch")
    } | {"together": False, "seed": 0}
    cuda = arguments.device != "cpu"
    kinds = ["plain random fp32", "ours random fp32", "ours similar fp32"] + [
        "ours similar tf32",
        "ours similar bf16",
    ] * cuda
    peaks = {
        precision: peak(arguments.device, arguments.threads, precision)
        for precision in PEAK
        if cuda or precision == "fp32"
    }
    print(
        f"peak: {', '.join(f'{precision} {flops / 1e9:.3g} GFLOP/s' for precision, flops in peaks.items())}\n"
    )
    print(
        "| run | seed | steps/s | sentences/s | evaluation s | whole s | PER | peak memory | share of peak | x plain, whole |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for seed in range(arguments.seeds):
        plain: dict[str, Any] = {}
        for kind in kinds:
            one = result_of(start(job | {"kind": kind, "seed": seed}))
            plain = plain or one
            print(row(one, plain, peaks[kind.split()[-1]]), flush=True)
    kind = kinds[-1]
    alone = sum(1 / one["stepping"] for one in at_once(job | {"kind": kind}, 1))
    for count in arguments.at_once:
        together = at_once(job | {"kind": kind}, count)
        total = sum(1 / one["stepping"] for one in together)
        print(f"{count} trainings at once ({kind}): {total:.3g} steps/s in all, {total / alone:.2f} x one alone; "
              f"{sum(one['memory'] for one in together) / 2**30:.2f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
