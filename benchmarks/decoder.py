"""The decoder against the reference implementation's figures on the spoken digits.

    python benchmarks/decoder.py PATH/TO/ptDecoder_ctc [--seeds 1] [--threads 1] [--only TEXT]
        [--set batches=random]

It trains with the sizes of the published figures (2 x 128 units, kernel 8, stride 2, batches of 32,
600 updates; README, "Benchmarks") and scores on `test` at the end. Nothing is selected here, so
looking at `test` is allowed; the search never does.
"""

import argparse
import time
from pathlib import Path

import torch

from hpo.data.formats import read_sentences
from hpo.decoder.config import DecoderConfig
from hpo.decoder.data import Data, check, load_for_scoring
from hpo.decoder.train import TrainState, evaluate, train
from hpo.space.load import parse_settings

SIZES = {
    "model.layers": 2,
    "model.units": 128,
    "model.kernel": 8,
    "model.stride": 2,
    "batch_size": 32,
    "steps": 600,
}
# name: (values, final PER of the reference on test, one per seed)
SETTINGS = {
    "lr 0.005 eps 1e-8": ({"optimizer.lr": 0.005, "optimizer.eps": 1e-8}, (0.088, 0.097, 0.091)),
    "lr 0.02 eps 0.1": ({"optimizer.lr": 0.02, "optimizer.eps": 0.1}, (0.159, 0.165, 0.156)),
    "lr 0.02 eps 1e-8": ({"optimizer.lr": 0.02, "optimizer.eps": 1e-8}, (0.447, 0.362)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="settings with this text in their name")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the configuration",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = DecoderConfig().with_values(SIZES | parse_settings(tuple(arguments.set)))
    test = load_for_scoring(arguments.data, "test", sizes.model, device)
    sentences = read_sentences(arguments.data, "train")
    check(sentences, sizes.model)
    every = torch.arange(len(sentences)).numpy()
    for name, (values, reference) in SETTINGS.items():
        if arguments.only not in name:
            continue
        for seed in range(arguments.seeds):
            config = sizes.with_values(values | {"seed": seed, "evaluate_every": 10_000})
            # Trains on all of `train`, as the reference does.
            data = Data(sentences, every, every[:1], device)
            state = TrainState(config, data)
            begin = time.perf_counter()
            curve = []
            for updates in train(state, data):
                if not updates.finite:
                    curve.append(float("nan"))
                elif updates.step % 100 == 0:
                    curve.append(evaluate(state.scored, test)[0].value)
            seconds = time.perf_counter() - begin
            points = " ".join(f"{per:.3f}" for per in curve)
            print(
                f"{name:18} seed {seed}: PER {curve[-1]:.4f}  best {min(curve):.4f}  "
                f"reference {reference}  {seconds:.0f} s on {device}  curve {points}",
                flush=True,
            )


if __name__ == "__main__":
    main()
