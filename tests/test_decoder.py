import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.decoder.augment import augment
from hpo.decoder.config import AugmentConfig, DecoderConfig, ModelConfig
from hpo.decoder.data import Data, by_length, frames, load_data, split
from hpo.decoder.formats import Sentences, read_sentences
from hpo.decoder.metric import Score, edit_distance, greedy_decode
from hpo.decoder.model import GruDecoder, gaussian_kernel, smooth
from hpo.decoder.train import Progress, TrainState, evaluate, load_checkpoint, lr_factor, save_checkpoint, train

CPU = torch.device("cpu")
SMALL = {"model.layers": 2, "model.units": 8, "model.kernel": 4, "model.stride": 2, "batch_size": 4, "steps": 12, "evaluate_every": 5}


def config(**values: object) -> DecoderConfig:
    return DecoderConfig().with_values(SMALL | {name.replace("__", "."): value for name, value in values.items()})


@pytest.fixture
def data(tiny_data: Path) -> Data:
    return load_data(tiny_data, config().model, 0.2, 0, CPU)[0]


def run(state: TrainState, data: Data) -> list[Progress]:
    return list(train(state, data))


def recurrent_weight(state: TrainState) -> torch.Tensor:
    return dict(state.model.gru.named_parameters())["weight_hh_l0"].detach()


# ---- metric


def test_per_is_a_ratio_of_sums() -> None:
    assert Score((1, 0), (2, 8)).per == 0.1  # the mean of the ratios would be 0.25


def test_greedy_decoding_merges_repeats_and_drops_blanks() -> None:
    paths = torch.tensor([[0, 5, 5, 0, 5, 3, 3, 0], [2, 2, 0, 0, 0, 1, 1, 1]])
    assert greedy_decode(torch.nn.functional.one_hot(paths, 6).float(), torch.tensor([8, 4])) == [[5, 5, 3], [2]]


def test_edit_distance() -> None:
    assert edit_distance([1, 2, 3], [1, 3]) == 1
    assert edit_distance([1, 2, 3], [1, 4, 3, 3]) == 2
    assert edit_distance([], [1]) == 1


# ---- model


def test_initialisation_is_the_references() -> None:
    model = GruDecoder(config().model, n_days=3, n_features=5)
    assert torch.equal(model.day_weights, torch.eye(5).repeat(3, 1, 1))
    assert not model.day_bias.any()
    recurrent = dict(model.gru.named_parameters())["weight_hh_l1_reverse"]
    gates = recurrent.T @ recurrent  # an orthogonal 24 x 8 matrix has orthonormal columns
    torch.testing.assert_close(gates, torch.eye(8), atol=1e-5, rtol=0)
    bound = math.sqrt(6 / (5 * 4 + 3 * 8))  # Xavier-uniform: sqrt(6 / (in + out))
    assert bound * 0.8 < dict(model.gru.named_parameters())["weight_ih_l0"].abs().max() <= bound


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_logits_do_not_depend_on_the_batch(data: Data, bidirectional: bool, layer_norm: bool) -> None:
    """The reference's do: its backward GRU and its smoothing read padding."""
    torch.manual_seed(0)
    model = GruDecoder(config(model__bidirectional=bidirectional, model__layer_norm=layer_norm).model, data.n_days, data.n_features).eval()
    numbers = torch.arange(len(data.train) + len(data.validation))
    alone = []
    for number in numbers:
        batch = data.batch(number[None])
        logits, count = model(batch.x_BTC, batch.lengths_B, batch.days_B)
        alone.append(logits[0, : int(count[0])])
    batch = data.batch(numbers)
    together, counts = model(batch.x_BTC, batch.lengths_B, batch.days_B)
    assert len(set(counts.tolist())) > 1
    for logits, expected, count in zip(together, alone, counts.tolist(), strict=True):
        torch.testing.assert_close(logits[:count], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 240])
def test_scores_do_not_depend_on_the_scoring_batch(demo_sentences: Sentences, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    everything = np.arange(240)
    demo = Data(demo_sentences, everything, everything, CPU)
    torch.manual_seed(0)
    sizes = {"model.layers": 1, "model.units": 32, "model.kernel": 8, "model.stride": 3, "steps": 30, "batch_size": 16}
    learnt = TrainState(DecoderConfig().with_values(sizes | {"optimizer.lr": 0.005, "optimizer.eps": 1e-8, "evaluate_every": 99}), demo)
    score = run(learnt, demo)[-1].score
    assert score is not None
    assert len(set(score.errors)) > 3  # it says something, so that batches could matter
    monkeypatch.setattr("hpo.decoder.train.SCORING_BATCH", size)
    assert evaluate(learnt.model, demo)[0] == score


def test_smoothing_is_a_normalised_gaussian_that_keeps_the_length() -> None:
    kernel = gaussian_kernel(20, 2.0)
    assert float(kernel.sum()) == pytest.approx(1)
    assert float(kernel[9] / kernel[13]) == pytest.approx(math.exp((3.5**2 - 0.5**2) / (2 * 2.0**2)))
    x = torch.zeros(1, 50, 2)
    x[0, 25, 1] = 1
    smoothed = smooth(x, kernel)
    assert smoothed.shape == x.shape
    assert not smoothed[..., 0].any()
    expected = torch.nn.functional.conv1d(x[..., 1][:, None], kernel[None, None], padding="same")[0, 0]  # as the reference pads
    torch.testing.assert_close(smoothed[0, :, 1], expected)


def test_no_smoothing(data: Data) -> None:
    assert run(TrainState(config(model__smoothing_width=0, steps=1), data), data)[0].finite


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 300))
def test_frames_are_the_references_and_the_labs(kernel: int, stride: int, extra: int) -> None:
    length = kernel + extra
    counted = frames(torch.tensor([length]), ModelConfig(kernel=kernel, stride=stride))
    assert int(counted) == int((length - kernel) / stride) == (length - kernel) // stride


# ---- augmentation


def augmented(settings: dict[str, float], features: int = 40, bins: int = 200, seed: int = 0) -> torch.Tensor:
    x = torch.ones(50, bins, features)
    lengths = torch.full((50,), bins)
    silent = {"white_noise_sd": 0.0, "constant_offset_sd": 0.0}
    return augment(x, lengths, AugmentConfig.model_validate(silent | settings), torch.Generator().manual_seed(seed))


def test_noise_and_offset_have_their_standard_deviations() -> None:
    assert float(augmented({"white_noise_sd": 0.8}).std()) == pytest.approx(0.8, rel=0.01)
    offset = augmented({"constant_offset_sd": 0.2})
    assert float(offset[:, 0].std()) == pytest.approx(0.2, rel=0.05)
    assert torch.equal(offset[:, 0], offset[:, 150])  # constant over a sentence


def test_masks_have_their_probability_and_width() -> None:
    masked = augmented({"time_masks": 1, "time_mask_p": 0.5, "time_mask_width": 40}) == 0
    assert torch.equal(masked[..., 0], masked[..., 7])  # whole bins
    widths = masked[..., 0].sum(dim=1)
    assert 15 <= int((widths > 0).sum()) <= 35
    assert 1 <= int(widths[widths > 0].min()) <= 12
    assert 28 <= int(widths.max()) <= 40
    masked = augmented({"feature_masks": 2, "feature_mask_p": 1.0, "feature_mask_width": 12}) == 0
    assert torch.equal(masked[:, 0], masked[:, 100])  # whole features
    assert int(masked[:, 0].sum(dim=1).min()) >= 1
    assert int(masked[:, 0].sum(dim=1).max()) <= 24


def test_padding_stays_zero_and_the_generator_decides() -> None:
    x = torch.ones(2, 30, 3)
    x[1, 10:] = 0
    settings = AugmentConfig(time_masks=2, time_mask_p=1.0, feature_masks=2, feature_mask_p=1.0, feature_mask_width=1)
    one = augment(x, torch.tensor([30, 10]), settings, torch.Generator().manual_seed(1))
    assert not one[1, 10:].any()
    assert one[1, :10].any()
    assert torch.equal(one, augment(x, torch.tensor([30, 10]), settings, torch.Generator().manual_seed(1)))
    assert not torch.equal(one, augment(x, torch.tensor([30, 10]), settings, torch.Generator().manual_seed(2)))


# ---- data


def test_validation_is_cut_from_each_day_of_train_the_same_for_a_seed(demo_sentences: Sentences) -> None:
    train_part, validation = split(demo_sentences, 0.1, 0)
    assert sorted([*train_part, *validation]) == list(range(len(demo_sentences)))
    per_day = np.bincount(demo_sentences.days_S[validation]) / np.bincount(demo_sentences.days_S)
    assert per_day == pytest.approx(0.1, abs=0.005)
    assert np.array_equal(split(demo_sentences, 0.1, 0)[1], validation)
    assert not np.array_equal(split(demo_sentences, 0.1, 1)[1], validation)


def test_batches_hold_the_sentences_and_zeros(demo_sentences: Sentences) -> None:
    demo = Data(demo_sentences, np.arange(10), np.arange(10), CPU)
    batch = demo.batch(torch.tensor([3, 700]))
    start = int(demo_sentences.lengths_S[:700].sum())
    length = int(demo_sentences.lengths_S[700])
    torch.testing.assert_close(batch.x_BTC[1, :length], torch.from_numpy(demo_sentences.features_NC[start : start + length]))
    assert not batch.x_BTC[1, length:].any()
    assert batch.days_B.tolist() == demo_sentences.days_S[[3, 700]].tolist()
    assert batch.labels_L.tolist() == demo.labels(3) + demo.labels(700)


def test_bundled_recordings_are_those_of_the_pickle(shared_data: Path, demo_sentences: Sentences) -> None:
    pickled = read_sentences(shared_data / "spoken_digits" / "ptDecoder_ctc", "train")
    assert pickled.fingerprint() == demo_sentences.fingerprint()
    assert len(read_sentences(None, "test")) == 240


def test_batches_by_length_hold_each_sentence_once() -> None:
    lengths = torch.tensor([5, 1, 9, 3, 7])
    batches = by_length(np.array([0, 1, 2, 4]), lengths, 2)
    assert [batch.tolist() for batch in batches] == [[1, 0], [4, 2]]


# ---- training


def test_it_learns(data: Data) -> None:
    """Each phoneme of this data is 8 bins of its own value; a day's sentences repeat some phonemes back to back."""
    still = {"augment__white_noise_sd": 0.1, "augment__constant_offset_sd": 0, "model__smoothing_width": 0, "model__dropout": 0}
    learner = config(steps=200, evaluate_every=50, optimizer__eps=1e-8, optimizer__lr=0.01, model__layers=1, model__units=32, **still)
    scores = [progress.score.per for progress in run(TrainState(learner, data), data) if progress.score]
    assert len(scores) == 4
    assert scores[-1] < 0.4


def test_it_evaluates_every_so_often_and_at_the_end(data: Data) -> None:
    progress = run(TrainState(config(), data), data)
    assert [p.step for p in progress] == list(range(1, 13))
    assert [p.step for p in progress if p.score] == [5, 10, 12]


def test_a_step_that_is_not_finite_ends_the_training_and_changes_nothing(data: Data) -> None:
    state = TrainState(config(), data)
    steps = train(state, data)
    next(steps)
    with torch.no_grad():
        state.model.output.bias[0] = math.nan
    before = recurrent_weight(state).clone()
    last = next(steps)
    assert (last.step, last.finite, state.step) == (2, False, 1)
    assert torch.equal(recurrent_weight(state), before)
    assert list(steps) == []


def test_gradients_are_clipped_to_the_norm(data: Data) -> None:
    state = TrainState(
        config(optimizer__grad_clip_norm=1e-3, optimizer__name="sgd", optimizer__momentum=0, optimizer__weight_decay=0), data
    )
    before = [weight.detach().clone() for weight in state.model.parameters()]
    progress = next(train(state, data))
    assert progress.grad_norm > 1e-3
    moved = math.sqrt(sum(float((a - b.detach()).square().sum()) for a, b in zip(before, state.model.parameters(), strict=True)))
    assert moved == pytest.approx(progress.lr * 1e-3, rel=1e-2)


@pytest.mark.parametrize(("name", "decoupled"), [("adam", False), ("adamw", True)])
def test_weight_decay_is_l2_for_adam_and_decoupled_for_adamw(data: Data, name: str, decoupled: bool) -> None:
    """With a huge eps the gradient step vanishes, so only decoupled decay still shrinks the weights."""
    state = TrainState(config(optimizer__name=name, optimizer__eps=1e9, optimizer__weight_decay=1.0, optimizer__lr=0.01), data)
    before = recurrent_weight(state).clone()
    next(train(state, data))
    shrunk = float((recurrent_weight(state) / before).mean())
    assert shrunk == pytest.approx(0.99 if decoupled else 1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule.name": "constant"}, [1, 1, 1, 1]),
        ({"schedule.name": "linear", "schedule.end_factor": 0.1}, [1, 0.55, 0.1, 0.1]),
        ({"schedule.name": "warmup-cosine", "schedule.end_factor": 0.1, "schedule.warmup": 0.5}, [1 / 51, 1, 0.1, 0.1]),
    ],
)
def test_schedules_at_the_start_half_way_at_the_end_and_behind_it(schedule: dict[str, object], expected: list[float]) -> None:
    scheduled = DecoderConfig().with_values({"steps": 100, **schedule})
    assert [lr_factor(scheduled, step) for step in (0, 50, 100, 120)] == pytest.approx(expected)


def test_plateau_counts_evaluations_and_stops_at_its_floor(data: Data) -> None:
    """No weight moves, so the PER never gets better."""
    plateau = {"schedule__name": "plateau", "schedule__patience": 1, "schedule__factor": 0.5, "schedule__min_lr": 3e-13}
    state = TrainState(config(optimizer__name="sgd", optimizer__lr=1e-12, steps=12, evaluate_every=1, **plateau), data)
    lrs = [progress.lr for progress in run(state, data)]
    assert lrs[:4] == pytest.approx([1e-12, 1e-12, 1e-12, 5e-13])
    assert lrs[-1] == pytest.approx(3e-13)


OPTIMIZERS: list[dict[str, object]] = [{"optimizer__name": name} for name in ("adam", "adamw")]
OPTIMIZERS += [{"optimizer__name": "sgd", "optimizer__nesterov": True}]
SCHEDULES: list[dict[str, object]] = [{"schedule__name": name} for name in ("constant", "linear", "warmup-cosine")]
SCHEDULES += [{"schedule__name": "plateau", "schedule__patience": 0}]


@settings(max_examples=12, deadline=None)
@given(optimizer=st.sampled_from(OPTIMIZERS), schedule=st.sampled_from(SCHEDULES), at=st.integers(1, 11), seed=st.integers(0, 99))
def test_a_resumed_training_is_the_same_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    demo_sentences: Sentences,
    optimizer: dict[str, object],
    schedule: dict[str, object],
    at: int,
    seed: int,
) -> None:
    demo = Data(demo_sentences, np.arange(40), np.arange(40, 50), CPU)
    chosen = config(model__kernel=8, augment__time_masks=1, seed=seed, evaluate_every=3, **optimizer, **schedule)
    whole = run(TrainState(chosen, demo), demo)
    state = TrainState(chosen, demo)
    steps = train(state, demo)
    first = [next(steps) for _ in range(at)]
    path = tmp_path_factory.mktemp("resume") / "deep" / "checkpoint.pt"
    save_checkpoint(state, path)
    torch.manual_seed(12345)  # a new process has other global generators
    resumed = TrainState(chosen, demo)
    load_checkpoint(resumed, path)
    again = first + run(resumed, demo)

    def facts(p: Progress) -> tuple[object, ...]:
        return p.step, p.loss, p.grad_norm, p.lr, p.score, p.validation_loss

    assert [facts(p) for p in again] == [facts(p) for p in whole]
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path, data: Data) -> None:
    save_checkpoint(TrainState(config(), data), tmp_path / "c.pt")
    with pytest.raises(ValueError, match="another configuration"):
        load_checkpoint(TrainState(config(optimizer__lr=0.01), data), tmp_path / "c.pt")
