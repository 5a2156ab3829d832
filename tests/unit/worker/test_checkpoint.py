"""Resume is exact; a checkpoint is whole or not used; writing is beside the training."""

import hashlib
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.decoders import CPU, config, run
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.curve import Point
from hpo.data.formats import Sentences
from hpo.decoder.config import DecoderConfig
from hpo.decoder.data import Data
from hpo.decoder.train import TrainState, Updates, train
from hpo.decoder.training import GruTraining, Recordings, load_recordings
from hpo.trainer import DataRequest
from hpo.worker.checkpoint import (
    Begun,
    Writer,
    begin,
    check_state,
    checkpoints,
    save_checkpoint,
    write_atomically,
)

OPTIMIZERS: list[dict[str, object]] = [{"optimizer__name": name} for name in ("adam", "adamw")]
OPTIMIZERS += [
    {"optimizer__name": "sgd", "optimizer__nesterov": nesterov} for nesterov in (False, True)
]
SCHEDULES: list[dict[str, object]] = [
    {"schedule__name": name} for name in ("constant", "linear", "warmup-cosine")
]
SCHEDULES += [{"schedule__name": "plateau", "schedule__patience": 0}]
EXTRAS: list[dict[str, object]] = [
    {},
    {"optimizer__ema_decay": 0.9},
    {"accumulation": 2},
    {"batches": "random"},
]
EXTRAS += [
    {"optimizer__grad_clip_norm": 0.5, "model__layer_norm": True},
    {"model__padding": "reference"},
    {"precision": "bf16"},
]


CURVE = [Point(2, 0.9, 1.5, 1.6, {"lr": 0.1})]


@pytest.fixture
def data(tiny_data: Path) -> Recordings:
    return load_recordings(DataRequest(tiny_data, config(), "cpu", 0.2))


def begun(folder: Path, data: Recordings, chosen: DecoderConfig | None = None) -> Begun:
    return begin(lambda: GruTraining(chosen or config(), data), folder)


def step_of(found: Begun) -> int:
    return found.training.step


def facts(p: Updates) -> tuple[object, ...]:
    return p.step, p.loss, p.grad_norm, p.lr, p.score, p.validation_loss


@settings(max_examples=30, deadline=None)
@given(
    optimizer=st.sampled_from(OPTIMIZERS),
    schedule=st.sampled_from(SCHEDULES),
    extra=st.sampled_from(EXTRAS),
    at=st.integers(1, 11),
    seed=st.integers(0, 99),
)
def test_a_resumed_training_is_the_same_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    demo_sentences: Sentences,
    optimizer: dict[str, object],
    schedule: dict[str, object],
    extra: dict[str, object],
    at: int,
    seed: int,
) -> None:
    demo = Data(demo_sentences, np.arange(40), np.arange(40, 50), CPU)
    loaded = Recordings(demo, "", demo_sentences)
    chosen = config(
        model__kernel=8,
        augment__time_masks=1,
        seed=seed,
        evaluate_every=3,
        **optimizer,
        **schedule,
        **extra,
    )
    undisturbed = TrainState(chosen, demo)
    whole = run(undisturbed, demo)
    state = TrainState(chosen, demo)
    steps = train(state, demo)
    first = [next(steps) for _ in range(at)]
    folder = tmp_path_factory.mktemp("resume") / "deep"
    save_checkpoint(state.step, state.state_dict(), CURVE, folder)
    torch.manual_seed(12345)  # a new process has other global generators
    found = begun(folder, loaded, chosen)
    assert (found.faults, found.curve) == ([], CURVE)
    assert isinstance(found.training, GruTraining)
    resumed = found.training.state
    again = first + run(resumed, demo)
    assert [facts(p) for p in again] == [facts(p) for p in whole]
    for one, other in zip(
        resumed.scored.parameters(), undisturbed.scored.parameters(), strict=True
    ):
        assert torch.equal(one, other)
    assert [path.suffix for path in folder.iterdir()] == [".pt"]


def saved_at(data: Recordings, folder: Path, steps: tuple[int, ...]) -> None:
    state = TrainState(config(), data.data)
    for progress in train(state, data.data):
        if progress.step in steps:
            save_checkpoint(state.step, state.state_dict(), CURVE, folder)


def test_the_two_newest_are_kept(data: Recordings, tmp_path: Path) -> None:
    saved_at(data, tmp_path, (2, 4, 6, 11))
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)] == [11, 6]


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "other bytes"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    data: Recordings, tmp_path: Path, damage: str
) -> None:
    saved_at(data, tmp_path, (3, 7))
    newest = checkpoints(tmp_path)[0]
    whole = newest.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    newest.write_bytes(
        {"cut": whole[:middle], "one bit": flipped, "empty": b"", "other bytes": b"hello"}[damage]
    )
    found = begun(tmp_path, data)
    assert step_of(found) == 3
    assert len(found.faults) == 1
    assert newest.name in found.faults[0] and "do not match its digest" in found.faults[0]
    assert not newest.exists()


def test_without_a_whole_one_it_begins(data: Recordings, tmp_path: Path) -> None:
    found = begun(tmp_path / "nothing", data)
    assert (found.faults, found.curve, step_of(found)) == ([], [], 0)
    saved_at(data, tmp_path, (3,))
    checkpoints(tmp_path)[0].write_bytes(b"")
    again = begun(tmp_path, data)
    assert (len(again.faults), again.curve, step_of(again)) == (1, [], 0)


def test_a_checkpoint_of_another_configuration_is_not_used(
    data: Recordings, tmp_path: Path
) -> None:
    saved_at(data, tmp_path, (3,))
    found = begun(tmp_path, data, config(optimizer__lr=0.01))
    assert "saved with another configuration" in found.faults[0]
    assert step_of(found) == 0
    assert len(checkpoints(tmp_path)) == 1


def test_a_checkpoint_of_another_version_is_not_used(data: Recordings, tmp_path: Path) -> None:
    saved = TrainState(config(), data.data).state_dict()
    del saved["drawn"]
    save_checkpoint(5, saved, CURVE, tmp_path)
    found = begun(tmp_path, data)
    assert "another version" in found.faults[0]
    assert step_of(found) == 0


def test_a_checkpoint_of_the_version_that_knew_one_decoder_is_read(
    data: Recordings, tmp_path: Path
) -> None:
    """It had the curve among the state's own values, and points with a PER."""
    saved_at(data, tmp_path, (3,))
    (path,) = checkpoints(tmp_path)
    state = torch.load(path, weights_only=True)["state"]
    path.unlink()
    point = {
        "step": 2,
        "per": 0.9,
        "validation_loss": 1.6,
        "loss": 1.5,
        "grad_norm": 2.0,
        "lr": 0.1,
        "step_seconds": 0.5,
    }
    torch.save(state | {"beside": [point]}, tmp_path / "old.pt")
    digest = hashlib.sha256((tmp_path / "old.pt").read_bytes()).hexdigest()[:16]
    (tmp_path / "old.pt").rename(tmp_path / f"checkpoint-00000003-{digest}.pt")
    found = begun(tmp_path, data)
    assert (found.faults, step_of(found)) == ([], 3)
    assert found.curve == [
        Point(2, 0.9, 1.5, 1.6, {"grad_norm": 2.0, "lr": 0.1, "step_seconds": 0.5})
    ]


class Picky:
    """A training that cannot use its second newest state, and breaks half-way while it tries."""

    def __init__(self) -> None:
        self.step = 0

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.step = 99
        self.step = saved["step"]


def test_what_a_trainer_raises_about_a_state_is_a_fault_and_the_one_before_is_tried(
    tmp_path: Path,
) -> None:
    save_checkpoint(4, {"step": 4}, [], tmp_path)
    save_checkpoint(8, {}, [], tmp_path)
    found = begin(Picky, tmp_path)  # type: ignore[arg-type]
    assert step_of(found) == 4
    assert len(found.faults) == 1 and found.faults[0].endswith(": 'step'")


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"weights": np.zeros(3)}, "state_dict()['weights'] is a ndarray"),
        ({"deep": {"list": [1, object()]}}, "state_dict()['deep']['list'][1] is a object"),
        ({"loss": np.float64(1.0)}, "state_dict()['loss'] is a float64"),
        ({"seen": {1, 2}}, "state_dict()['seen'] is a set"),
    ],
)
def test_a_state_that_could_not_be_read_back_is_refused_before_it_is_written(
    state: dict[str, Any], place: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(place)):
        check_state(state)


def test_a_checkpoint_that_cannot_be_read_back_is_a_fault_and_the_one_before_is_tried(
    tmp_path: Path,
) -> None:
    save_checkpoint(4, {"step": 4}, [], tmp_path)
    save_checkpoint(
        8, {"step": np.float32(8)}, [], tmp_path
    )  # as a version that did not check would have written it
    found = begin(Picky, tmp_path)  # type: ignore[arg-type]
    assert (step_of(found), len(found.faults)) == (4, 1)


def test_a_writer_of_weights_may_want_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.npz"
    assert write_atomically(path, lambda draft: np.savez(draft, weights=np.ones(2)), lambda: True)
    assert [file.name for file in path.parent.iterdir()] == ["last.npz"]
    assert not write_atomically(path, lambda draft: np.savez(draft), lambda: False)
    assert np.load(path)["weights"].tolist() == [1, 1]


def test_a_state_of_tensors_and_plain_values_comes_back(tmp_path: Path) -> None:
    state = {
        "tensor": torch.ones(2),
        "plain": [1, 0.5, "text", b"bytes", None, True, (float("inf"),)],
        "numpy": np.random.default_rng(0).bit_generator.state,
    }
    check_state(state)
    save_checkpoint(1, state, [], tmp_path)
    back = torch.load(checkpoints(tmp_path)[0], weights_only=True)["state"]
    assert torch.equal(back.pop("tensor"), state.pop("tensor"))  # type: ignore[arg-type]
    assert back == state


def test_what_is_written_is_the_moment_of_the_call(tmp_path: Path) -> None:
    """Although the write waits and the training goes on in the same memory."""
    gate, written = threading.Event(), []

    def write(value: dict[str, Any]) -> None:
        gate.wait(30)
        written.append(value["weights"][0].tolist())

    writer = Writer(lambda what, error: None)
    weights = torch.ones(3)
    writer.submit("x", write, {"weights": [weights]})
    assert writer.busy
    weights += 1
    gate.set()
    writer.wait()
    assert written == [[1.0, 1.0, 1.0]]
    writer.close()


def test_a_write_that_fails_is_told_and_the_next_is_tried(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told: list[str] = []
    writer = Writer(lambda what, error: told.append(f"{what}: {type(error).__name__}"))
    writer.submit("first", save_checkpoint, 1, {}, [], tmp_path / "file")
    writer.submit("second", save_checkpoint, 2, {}, [], tmp_path / "folder")
    writer.close()
    assert told == ["first: FileExistsError"]
    assert len(checkpoints(tmp_path / "folder")) == 1


def test_a_process_that_lost_its_trial_while_it_wrote_leaves_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(1, {}, [], tmp_path / "trial", lambda: False)
    assert list((tmp_path / "trial").iterdir()) == []


def test_a_stale_checkpoint_of_a_later_step_does_not_push_out_new_ones(tmp_path: Path) -> None:
    """Of another version of hpo, say: it cannot be used, and its step is the highest."""
    for step in (25, 5, 10):
        save_checkpoint(step, {}, [], tmp_path)
    assert [path.name.split("-")[1] for path in checkpoints(tmp_path)] == ["00000010", "00000005"]
