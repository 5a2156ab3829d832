"""Checkpoints: a resumed training is exact, a damaged file is not used, writing is concurrent."""

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Callable
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
    remove_drafts,
    save_checkpoint,
    write_atomically,
)

Values = dict[str, object]

OPTIMIZERS: list[Values] = [
    {"optimizer__name": "adam"},
    {"optimizer__name": "adamw"},
    {"optimizer__name": "sgd", "optimizer__nesterov": False},
    {"optimizer__name": "sgd", "optimizer__nesterov": True},
]
SCHEDULES: list[Values] = [
    {"schedule__name": "constant"},
    {"schedule__name": "linear"},
    {"schedule__name": "warmup-cosine"},
    {"schedule__name": "plateau", "schedule__patience": 0},
]
EXTRAS: list[Values] = [
    {},
    {"optimizer__ema_decay": 0.9},
    {"accumulation": 2},
    {"batches": "random"},
    {"optimizer__grad_clip_norm": 0.5, "model__layer_norm": True},
    {"model__padding": "reference"},
    {"precision": "bf16"},
]


@st.composite
def decoders(draw: st.DrawFn) -> DecoderConfig:
    return config(
        model__kernel=8,
        augment__time_masks=1,
        evaluate_every=3,
        seed=draw(st.integers(0, 99)),
        **draw(st.sampled_from(OPTIMIZERS)),
        **draw(st.sampled_from(SCHEDULES)),
        **draw(st.sampled_from(EXTRAS)),
    )


CURVE = [Point(2, 0.9, 1.5, 1.6, {"lr": 0.1})]


@pytest.fixture
def data(tiny_data: Path) -> Recordings:
    return load_recordings(DataRequest(tiny_data, config(), "cpu", 0.2))


def begun(folder: Path, data: Recordings, decoder: DecoderConfig | None = None) -> Begun:
    return begin(lambda: GruTraining(decoder or config(), data), folder)


def step_of(beginning: Begun) -> int:
    return beginning.training.step


def facts(p: Updates) -> tuple[object, ...]:
    return p.step, p.loss, p.grad_norm, p.lr, p.score, p.validation_loss


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(decoder=decoders(), steps_before=st.integers(1, 11))
def test_a_resumed_training_is_the_same_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    demo_sentences: Sentences,
    decoder: DecoderConfig,
    steps_before: int,
) -> None:
    demo = Data(demo_sentences, np.arange(40), np.arange(40, 50), CPU)
    undisturbed = TrainState(decoder, demo)
    whole = run(undisturbed, demo)

    state = TrainState(decoder, demo)
    updates = train(state, demo)
    before = [next(updates) for _ in range(steps_before)]
    folder = tmp_path_factory.mktemp("resume") / "deep"
    save_checkpoint(state.step, state.state_dict(), CURVE, folder)

    # The global generators of a new process are in another state.
    torch.manual_seed(12345)
    beginning = begun(folder, Recordings(demo, "", demo_sentences), decoder)
    assert beginning.faults == []
    assert beginning.curve == CURVE
    assert isinstance(beginning.training, GruTraining)
    resumed = beginning.training.state
    after = run(resumed, demo)

    assert [facts(update) for update in before + after] == [facts(update) for update in whole]
    weights = zip(resumed.scored.parameters(), undisturbed.scored.parameters(), strict=True)
    for weight, expected in weights:
        assert torch.equal(weight, expected)
    assert [path.suffix for path in folder.iterdir()] == [".pt"]


def saved_at(data: Recordings, folder: Path, steps: tuple[int, ...]) -> None:
    state = TrainState(config(), data.data)
    for progress in train(state, data.data):
        if progress.step in steps:
            save_checkpoint(state.step, state.state_dict(), CURVE, folder)


def test_the_two_newest_are_kept(data: Recordings, tmp_path: Path) -> None:
    saved_at(data, tmp_path, (2, 4, 6, 11))
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)] == [11, 6]


def cut(contents: bytes) -> bytes:
    return contents[: len(contents) // 2]


def with_one_bit_flipped(contents: bytes) -> bytes:
    middle = len(contents) // 2
    return contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :]


def empty(contents: bytes) -> bytes:
    return b""


def other_bytes(contents: bytes) -> bytes:
    return b"hello"


@pytest.mark.parametrize("damage", [cut, with_one_bit_flipped, empty, other_bytes])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    data: Recordings, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    saved_at(data, tmp_path, (3, 7))
    newest = checkpoints(tmp_path)[0]
    newest.write_bytes(damage(newest.read_bytes()))
    beginning = begun(tmp_path, data)
    assert step_of(beginning) == 3
    assert len(beginning.faults) == 1
    assert newest.name in beginning.faults[0]
    assert "do not match its digest" in beginning.faults[0]
    assert not newest.exists()


def test_without_a_whole_checkpoint_a_training_begins_anew(
    data: Recordings, tmp_path: Path
) -> None:
    without_files = begun(tmp_path / "nothing", data)
    assert without_files.faults == []
    assert without_files.curve == []
    assert step_of(without_files) == 0
    saved_at(data, tmp_path, (3,))
    checkpoints(tmp_path)[0].write_bytes(b"")
    with_damaged_file = begun(tmp_path, data)
    assert len(with_damaged_file.faults) == 1
    assert with_damaged_file.curve == []
    assert step_of(with_damaged_file) == 0


def test_a_checkpoint_of_another_configuration_is_not_used(
    data: Recordings, tmp_path: Path
) -> None:
    saved_at(data, tmp_path, (3,))
    beginning = begun(tmp_path, data, config(optimizer__lr=0.01))
    assert "saved with another configuration" in beginning.faults[0]
    assert step_of(beginning) == 0
    assert len(checkpoints(tmp_path)) == 1


def test_a_checkpoint_of_another_version_is_not_used(data: Recordings, tmp_path: Path) -> None:
    saved = TrainState(config(), data.data).state_dict()
    del saved["drawn"]
    save_checkpoint(5, saved, CURVE, tmp_path)
    beginning = begun(tmp_path, data)
    assert "another version" in beginning.faults[0]
    assert step_of(beginning) == 0


def test_a_checkpoint_of_the_first_version_is_read(data: Recordings, tmp_path: Path) -> None:
    """That version knew one decoder: its state holds the curve, whose points have a PER."""
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
    beginning = begun(tmp_path, data)
    assert beginning.faults == []
    assert step_of(beginning) == 3
    assert beginning.curve == [
        Point(2, 0.9, 1.5, 1.6, {"grad_norm": 2.0, "lr": 0.1, "step_seconds": 0.5})
    ]


def zip_with_deep_key(state: bytes) -> bytes:
    """A state dict with a key on which torch.load would end the process."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(state)) as given, zipfile.ZipFile(made, "w") as changed:
        for name in given.namelist():
            deep = b"\x80\x02}N" + b"\x85" * 1_000_000 + b"K\x01s."
            changed.writestr(name, deep if name.endswith("data.pkl") else given.read(name))
    return made.getvalue()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: b"hello",
        lambda whole: b"\x80\x02X\x04\x00\x00\x00\xff\xff\xff\xff.",
        lambda whole: b"\x80\x02R.",
        lambda whole: whole[:300],
        lambda whole: whole[:-300],
        lambda whole: b"PK\x03\x04" + bytes(100),
        lambda whole: b"\x80\x02}N" + b"\x85" * 1_000_000 + b"K\x01s.",
        zip_with_deep_key,
    ],
)
def test_a_checkpoint_with_a_right_digest_of_wrong_contents_is_not_used(
    data: Recordings, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    saved_at(data, tmp_path, (3, 7))
    newest = checkpoints(tmp_path)[0]
    contents = spoil(newest.read_bytes())
    digest = hashlib.sha256(contents).hexdigest()[:16]
    (tmp_path / f"checkpoint-00000007-{digest}.pt").write_bytes(contents)
    newest.unlink()
    beginning = begun(tmp_path, data)
    assert step_of(beginning) == 3
    (fault,) = beginning.faults
    assert digest in fault
    assert "\n" not in fault


def test_a_checkpoint_may_hold_many_tuples(data: Recordings, tmp_path: Path) -> None:
    state = TrainState(config(), data.data).state_dict()
    seen = [(step, (0.5, 0.25)) for step in range(30_000)]
    save_checkpoint(5, state | {"seen": seen}, CURVE, tmp_path)
    faults = begun(tmp_path, data).faults
    # It was read, and then belongs to another training.
    assert "another version" in faults[0]


class StepOnly:
    """A training whose state is its step. It fails halfway through loading a state without one."""

    def __init__(self) -> None:
        self.step = 0

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.step = 99
        self.step = saved["step"]


def test_a_state_that_the_trainer_refuses_falls_back_to_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(4, {"step": 4}, [], tmp_path)
    save_checkpoint(8, {}, [], tmp_path)
    beginning = begin(StepOnly, tmp_path)  # type: ignore[arg-type]
    assert step_of(beginning) == 4
    assert len(beginning.faults) == 1
    assert beginning.faults[0].endswith(": 'step'")


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


def test_a_checkpoint_that_cannot_be_read_back_falls_back_to_the_one_before(
    tmp_path: Path,
) -> None:
    save_checkpoint(4, {"step": 4}, [], tmp_path)
    # Written as by a version that did not check what it writes.
    save_checkpoint(8, {"step": np.float32(8)}, [], tmp_path)
    beginning = begin(StepOnly, tmp_path)  # type: ignore[arg-type]
    assert step_of(beginning) == 4
    assert len(beginning.faults) == 1


def test_a_file_is_written_under_a_name_with_its_suffix(tmp_path: Path) -> None:
    """np.savez appends .npz to a name that does not end in it."""
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


def test_the_values_at_the_time_of_the_call_are_written(tmp_path: Path) -> None:
    """The write waits while the training goes on in the same memory."""
    gate = threading.Event()
    written_weights = []

    def write(value: dict[str, Any]) -> None:
        gate.wait(30)
        written_weights.append(value["weights"][0].tolist())

    writer = Writer(lambda what, error: None)
    weights = torch.ones(3)
    writer.submit("x", write, {"weights": [weights]})
    assert writer.busy
    weights += 1
    gate.set()
    writer.wait()
    assert written_weights == [[1.0, 1.0, 1.0]]
    writer.close()


def test_a_write_that_fails_is_reported_and_the_next_is_tried(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reported: list[str] = []
    writer = Writer(lambda what, error: reported.append(f"{what}: {type(error).__name__}"))
    writer.submit("first", save_checkpoint, 1, {}, [], tmp_path / "file")
    writer.submit("second", save_checkpoint, 2, {}, [], tmp_path / "folder")
    writer.close()
    assert reported == ["first: FileExistsError"]
    assert len(checkpoints(tmp_path / "folder")) == 1


def test_a_process_that_loses_its_trial_while_it_writes_leaves_no_checkpoint(
    tmp_path: Path,
) -> None:
    save_checkpoint(1, {}, [], tmp_path / "trial", lambda: False)
    assert list((tmp_path / "trial").iterdir()) == []


def test_a_stale_checkpoint_of_a_later_step_does_not_push_out_new_ones(tmp_path: Path) -> None:
    """Such as one of another version of hpo: it cannot be used, and its step is the highest."""
    for step in (25, 5, 10):
        save_checkpoint(step, {}, [], tmp_path)
    assert [path.name.split("-")[1] for path in checkpoints(tmp_path)] == ["00000010", "00000005"]


def test_half_made_folders_are_drafts_too(tmp_path: Path) -> None:
    """As of a script's attempt whose worker was killed before it began."""
    (tmp_path / "attempt-1.tmp" / "checkpoints").mkdir(parents=True)
    (tmp_path / "attempt-1").mkdir()
    (tmp_path / "best.0.tmp.pt").touch()
    remove_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["attempt-1"]
