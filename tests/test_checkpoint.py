"""Resume is exact; a checkpoint is whole or not used; writing is beside the training."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoder import CPU, config, recurrent_weight, run

from hpo.decoder.checkpoint import Writer, checkpoints, load_checkpoint, save_checkpoint
from hpo.decoder.data import Data, load_data
from hpo.decoder.formats import Sentences
from hpo.decoder.train import Progress, TrainState, train

OPTIMIZERS: list[dict[str, object]] = [{"optimizer__name": name} for name in ("adam", "adamw")]
OPTIMIZERS += [{"optimizer__name": "sgd", "optimizer__nesterov": nesterov} for nesterov in (False, True)]
SCHEDULES: list[dict[str, object]] = [{"schedule__name": name} for name in ("constant", "linear", "warmup-cosine")]
SCHEDULES += [{"schedule__name": "plateau", "schedule__patience": 0}]
EXTRAS: list[dict[str, object]] = [{}, {"optimizer__ema_decay": 0.9}, {"accumulation": 2}, {"batches": "random"}]
EXTRAS += [{"optimizer__grad_clip_norm": 0.5, "model__layer_norm": True}, {"model__padding": "reference"}, {"precision": "bf16"}]


@pytest.fixture
def data(tiny_data: Path) -> Data:
    return load_data(tiny_data, config().model, 0.2, 0, CPU)[0]


def facts(p: Progress) -> tuple[object, ...]:
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
    chosen = config(model__kernel=8, augment__time_masks=1, seed=seed, evaluate_every=3, **optimizer, **schedule, **extra)
    undisturbed = TrainState(chosen, demo)
    whole = run(undisturbed, demo)
    state = TrainState(chosen, demo)
    steps = train(state, demo)
    first = [next(steps) for _ in range(at)]
    folder = tmp_path_factory.mktemp("resume") / "deep"
    save_checkpoint(state.state_dict(), folder, {"kept": "beside"})
    torch.manual_seed(12345)  # a new process has other global generators
    resumed = TrainState(chosen, demo)
    assert load_checkpoint(resumed, folder) == ([], {"kept": "beside"})
    again = first + run(resumed, demo)
    assert [facts(p) for p in again] == [facts(p) for p in whole]
    for one, other in zip(resumed.scored.parameters(), undisturbed.scored.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [path.suffix for path in folder.iterdir()] == [".pt"]


def saved_at(data: Data, folder: Path, steps: tuple[int, ...]) -> TrainState:
    state = TrainState(config(), data)
    for progress in train(state, data):
        if progress.step in steps:
            save_checkpoint(state.state_dict(), folder, {"kept": "beside"})
    return state


def test_the_two_newest_are_kept(data: Data, tmp_path: Path) -> None:
    saved_at(data, tmp_path, (2, 4, 6, 11))
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)] == [11, 6]


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "other bytes"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(data: Data, tmp_path: Path, damage: str) -> None:
    saved_at(data, tmp_path, (3, 7))
    newest = checkpoints(tmp_path)[0]
    whole = newest.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    newest.write_bytes({"cut": whole[:middle], "one bit": flipped, "empty": b"", "other bytes": b"hello"}[damage])
    state = TrainState(config(), data)
    faults, _ = load_checkpoint(state, tmp_path)
    assert state.step == 3
    assert len(faults) == 1 and newest.name in faults[0] and "not those that were written" in faults[0]
    assert not newest.exists()


def test_without_a_whole_one_the_state_stays_as_it_is(data: Data, tmp_path: Path) -> None:
    state = TrainState(config(), data)
    before = recurrent_weight(state).clone()
    assert load_checkpoint(state, tmp_path / "nothing") == ([], None)
    saved_at(data, tmp_path, (3,))
    checkpoints(tmp_path)[0].write_bytes(b"")
    assert len(load_checkpoint(state, tmp_path)[0]) == 1
    assert state.step == 0 and torch.equal(recurrent_weight(state), before)


def test_a_checkpoint_of_another_configuration_is_not_used(data: Data, tmp_path: Path) -> None:
    saved_at(data, tmp_path, (3,))
    state = TrainState(config(optimizer__lr=0.01), data)
    assert "of another configuration" in load_checkpoint(state, tmp_path)[0][0]
    assert state.step == 0
    assert len(checkpoints(tmp_path)) == 1


def test_a_checkpoint_of_another_version_is_not_used(data: Data, tmp_path: Path) -> None:
    saved = TrainState(config(), data).state_dict()
    del saved["drawn"]
    save_checkpoint(saved | {"step": 5}, tmp_path)
    state = TrainState(config(), data)
    assert "another version" in load_checkpoint(state, tmp_path)[0][0]
    assert state.step == 0


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
    writer.submit("first", save_checkpoint, {"step": 1}, tmp_path / "file")
    writer.submit("second", save_checkpoint, {"step": 2}, tmp_path / "folder")
    writer.close()
    assert told == ["first: FileExistsError"]
    assert len(checkpoints(tmp_path / "folder")) == 1


def test_a_process_that_lost_its_trial_while_it_wrote_leaves_no_checkpoint(data: Data, tmp_path: Path) -> None:
    save_checkpoint(TrainState(config(), data).state_dict(), tmp_path / "trial", None, lambda: False)
    assert list((tmp_path / "trial").iterdir()) == []


def test_a_stale_checkpoint_of_a_later_step_does_not_push_out_new_ones(data: Data, tmp_path: Path) -> None:
    """Of another version of hpo, say: it cannot be used, and its step is the highest."""
    state = TrainState(config(), data)
    for step in (25, 5, 10):
        save_checkpoint(state.state_dict() | {"step": step}, tmp_path)
    assert [path.name.split("-")[1] for path in checkpoints(tmp_path)] == ["00000010", "00000005"]
