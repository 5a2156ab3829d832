"""The built-in decoder: its metric, model, augmentation, batches and training."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.decoders import CPU, config, run
from helpers.reference_model import Reference
from hypothesis import given
from hypothesis import strategies as st

from hpo.data.formats import Sentences, read_sentences
from hpo.decoder.artifact import reference_weights
from hpo.decoder.augment import augment
from hpo.decoder.config import AugmentConfig, DecoderConfig, ModelConfig
from hpo.decoder.data import Data, by_length, frames, load_data, split
from hpo.decoder.lab import lab_arguments
from hpo.decoder.metric import edit_distances, greedy_decode
from hpo.decoder.model import GruDecoder, gaussian_kernel, smooth
from hpo.decoder.train import POOL, TrainState, evaluate, lr_factor, next_batch, train
from hpo.trainer import Score


@pytest.fixture
def data(tiny_data: Path) -> Data:
    return load_data(tiny_data, config().model, 0.2, 0, CPU)[0]


def recurrent_weight(state: TrainState) -> torch.Tensor:
    return dict(state.model.gru.named_parameters())["0.weight_hh_l0"].detach()


# ---- metric


def test_per_is_a_ratio_of_sums() -> None:
    # The mean of the ratios would be 0.25.
    assert Score((1, 0), (2, 8)).value == 0.1


def one_hot(paths: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(paths, 6).float()


def test_greedy_decoding_merges_repeats_and_drops_blanks() -> None:
    paths = torch.tensor([[0, 5, 5, 0, 5, 3, 3, 0], [2, 2, 0, 0, 0, 1, 1, 1]])
    assert greedy_decode(one_hot(paths), torch.tensor([8, 4])) == [[5, 5, 3], [2]]


def test_greedy_decoding_of_blanks_and_of_no_frames_is_empty() -> None:
    blanks = torch.zeros(2, 3, dtype=torch.long)
    assert greedy_decode(one_hot(blanks), torch.tensor([3, 0])) == [[], []]


def test_edit_distances() -> None:
    decoded = [[1, 2, 3], [1, 2, 3], [], [300, 1]]
    labels = [[1, 3], [1, 4, 3, 3], [1], []]
    assert edit_distances(decoded, labels) == [1, 2, 1, 2]


# ---- model


def test_the_initialisation_is_that_of_the_reference() -> None:
    model = GruDecoder(config().model, n_days=3, n_features=5)
    assert torch.equal(model.day_weights, torch.eye(5).repeat(3, 1, 1))
    assert not model.day_bias.any()
    recurrent = dict(model.gru.named_parameters())["1.weight_hh_l0_reverse"]
    # An orthogonal 24 x 8 matrix has orthonormal columns.
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(8), atol=1e-5, rtol=0)
    # Xavier-uniform: sqrt(6 / (in + out)).
    bound = math.sqrt(6 / (5 * 4 + 3 * 8))
    largest = dict(model.gru.named_parameters())["0.weight_ih_l0"].abs().max()
    assert bound * 0.8 < largest <= bound


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_logits_do_not_depend_on_the_batch(
    data: Data, bidirectional: bool, layer_norm: bool
) -> None:
    """Those of the reference do: its backward GRU and its smoothing read the padding."""
    torch.manual_seed(0)
    settings = config(model__bidirectional=bidirectional, model__layer_norm=layer_norm).model
    model = GruDecoder(settings, data.n_days, data.n_features).eval()
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


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 240])
def test_scores_do_not_depend_on_the_scoring_batch(
    demo_sentences: Sentences, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    everything = np.arange(240)
    demo = Data(demo_sentences, everything, everything, CPU)
    torch.manual_seed(0)
    values = {
        "model.layers": 1,
        "model.units": 32,
        "model.kernel": 8,
        "model.stride": 3,
        "steps": 30,
        "batch_size": 16,
        "optimizer.lr": 0.005,
        "optimizer.eps": 1e-8,
        "evaluate_every": 99,
    }
    trained = TrainState(DecoderConfig().with_values(values), demo)
    score = run(trained, demo)[-1].score
    assert score is not None
    # The decoder outputs something, so that batches could matter.
    assert len(set(score.errors)) > 3
    monkeypatch.setattr("hpo.decoder.train.SCORING_BATCH", size)
    assert evaluate(trained.model, demo)[0] == score


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_gru_for_the_cpu_computes_what_pytorchs_does(bidirectional: bool) -> None:
    """Values and every gradient, over sentences of unequal length. CUDA runs `run_packed`."""
    torch.manual_seed(0)
    settings = ModelConfig(
        layers=3, units=16, kernel=2, stride=1, dropout=0, bidirectional=bidirectional
    )
    model = GruDecoder(settings, n_days=1, n_features=5).double().float()
    x = torch.randn(6, 20, 10, requires_grad=True)
    windows = torch.tensor([20, 3, 1, 11, 20, 7])
    inside = torch.arange(20) < windows[:, None]
    weights = torch.randn(6, 20, 32 if bidirectional else 16) * inside[..., None]
    results = []
    for run_gru in (model.run_packed, model.run_padded):
        out = run_gru(x, windows)
        leaves = [x, *model.gru.parameters()]
        gradients = torch.autograd.grad((out * weights).sum(), leaves)
        results.append([out * inside[..., None], *gradients])
    for pytorchs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, pytorchs, atol=1e-5, rtol=1e-4)


def test_padding_reference_reads_the_padding_as_the_reference_does(data: Data) -> None:
    """For a padded batch, the logits are those of the reference and not those of a sentence alone.

    The reference is a model that the tests have built from its description.
    """
    torch.manual_seed(0)
    settings = config(model__padding="reference", model__units=16).model
    model = GruDecoder(settings, data.n_days, data.n_features).eval()
    batch = data.batch(data.lengths_S.argsort()[[0, -1]])
    length = int(batch.lengths_B[0])
    generator = torch.Generator().manual_seed(0)
    noisy = augment(batch.x_BTC, batch.lengths_B, AugmentConfig(), generator, "reference")
    assert noisy[0, length:].any()

    arguments = lab_arguments(config(model__units=16), data.n_features, data.n_days)
    reference = Reference(arguments, data.n_days).eval()
    reference.load_state_dict(reference_weights(model))
    logits = model(noisy, batch.lengths_B, batch.days_B)[0]
    expected = reference(noisy, batch.days_B)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)

    alone = model(noisy[:1, :length], batch.lengths_B[:1], batch.days_B[:1])[0]
    assert not torch.allclose(alone[0, :3], expected[0, :3], atol=1e-4)


def test_smoothing_is_a_normalised_gaussian_that_keeps_the_length() -> None:
    kernel = gaussian_kernel(20, 2.0)
    assert float(kernel.sum()) == pytest.approx(1)
    ratio = math.exp((3.5**2 - 0.5**2) / (2 * 2.0**2))
    assert float(kernel[9] / kernel[13]) == pytest.approx(ratio)
    x = torch.zeros(1, 50, 2)
    x[0, 25, 1] = 1
    smoothed = smooth(x, kernel)
    assert smoothed.shape == x.shape
    assert not smoothed[..., 0].any()
    padded = torch.nn.functional.pad(x[..., 1][:, None], (9, 10))
    expected = torch.nn.functional.conv1d(padded, kernel[None, None])[0, 0]
    torch.testing.assert_close(smoothed[0, :, 1], expected)


def test_a_decoder_without_smoothing_trains(data: Data) -> None:
    assert run(TrainState(config(model__smoothing_width=0, steps=1), data), data)[0].finite


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 300))
def test_frames_are_counted_as_the_reference_and_the_lab_count_them(
    kernel: int, stride: int, extra: int
) -> None:
    length = kernel + extra
    counted = frames(torch.tensor([length]), ModelConfig(kernel=kernel, stride=stride))
    assert int(counted) == int((length - kernel) / stride) == (length - kernel) // stride


# ---- augmentation


def augmented(
    settings: dict[str, float], features: int = 40, bins: int = 200, seed: int = 0
) -> torch.Tensor:
    x = torch.ones(50, bins, features)
    lengths = torch.full((50,), bins)
    without_noise = {"white_noise_sd": 0.0, "constant_offset_sd": 0.0}
    augmentation = AugmentConfig.model_validate(without_noise | settings)
    return augment(x, lengths, augmentation, torch.Generator().manual_seed(seed))


def test_noise_and_offset_have_their_standard_deviations() -> None:
    assert float(augmented({"white_noise_sd": 0.8}).std()) == pytest.approx(0.8, rel=0.01)
    offset = augmented({"constant_offset_sd": 0.2})
    assert float(offset[:, 0].std()) == pytest.approx(0.2, rel=0.05)
    # Constant over a sentence.
    assert torch.equal(offset[:, 0], offset[:, 150])


def test_masks_have_their_probability_and_width() -> None:
    masked = augmented({"time_masks": 1, "time_mask_p": 0.5, "time_mask_width": 40}) == 0
    # Whole bins are masked.
    assert torch.equal(masked[..., 0], masked[..., 7])
    widths = masked[..., 0].sum(dim=1)
    assert 15 <= int((widths > 0).sum()) <= 35
    assert 1 <= int(widths[widths > 0].min()) <= 12
    assert 28 <= int(widths.max()) <= 40
    masked = augmented({"feature_masks": 2, "feature_mask_p": 1.0, "feature_mask_width": 12}) == 0
    # Whole features are masked.
    assert torch.equal(masked[:, 0], masked[:, 100])
    assert int(masked[:, 0].sum(dim=1).min()) >= 1
    assert int(masked[:, 0].sum(dim=1).max()) <= 24


def test_padding_stays_zero_and_the_generator_decides() -> None:
    x = torch.ones(2, 30, 3)
    x[1, 10:] = 0
    lengths = torch.tensor([30, 10])
    settings = AugmentConfig(
        time_masks=2, time_mask_p=1.0, feature_masks=2, feature_mask_p=1.0, feature_mask_width=1
    )
    first = augment(x, lengths, settings, torch.Generator().manual_seed(1))
    assert not first[1, 10:].any()
    assert first[1, :10].any()
    same_seed = augment(x, lengths, settings, torch.Generator().manual_seed(1))
    assert torch.equal(first, same_seed)
    other_seed = augment(x, lengths, settings, torch.Generator().manual_seed(2))
    assert not torch.equal(first, other_seed)


# ---- data


def test_each_day_gives_a_share_to_validation_which_the_seed_decides(
    demo_sentences: Sentences,
) -> None:
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
    features = torch.from_numpy(demo_sentences.features_NC[start : start + length])
    torch.testing.assert_close(batch.x_BTC[1, :length], features)
    assert not batch.x_BTC[1, length:].any()
    assert batch.days_B.tolist() == demo_sentences.days_S[[3, 700]].tolist()
    assert batch.labels_L.tolist() == demo.labels(3) + demo.labels(700)


def test_the_bundled_recordings_are_those_of_the_pickle(
    shared_data: Path, demo_sentences: Sentences
) -> None:
    pickled = read_sentences(shared_data / "spoken_digits" / "ptDecoder_ctc", "train")
    assert pickled.fingerprint() == demo_sentences.fingerprint()
    assert len(read_sentences(None, "test")) == 240


def test_batches_by_length_hold_each_sentence_once() -> None:
    lengths = torch.tensor([5, 1, 9, 3, 7])
    batches = by_length(np.array([0, 1, 2, 4]), lengths, 2)
    assert [batch.tolist() for batch in batches] == [[1, 0], [4, 2]]


# ---- training


def test_the_decoder_learns(data: Data) -> None:
    """Each phoneme of these data is 8 bins of its own value; some phonemes are repeated at once."""
    learner = config(
        steps=200,
        evaluate_every=50,
        optimizer__eps=1e-8,
        optimizer__lr=0.01,
        model__layers=1,
        model__units=32,
        model__smoothing_width=0,
        model__dropout=0,
        augment__white_noise_sd=0.1,
        augment__constant_offset_sd=0,
    )
    updates = run(TrainState(learner, data), data)
    scores = [update.score.value for update in updates if update.score]
    assert len(scores) == 4
    # 1 if it outputs nothing; 0.3 or 0.4 over eight seeds.
    assert scores[-1] < 0.5


def test_a_training_is_evaluated_at_intervals_and_at_the_end(data: Data) -> None:
    updates = run(TrainState(config(), data), data)
    assert [update.step for update in updates] == list(range(1, 13))
    assert [update.step for update in updates if update.score] == [5, 10, 12]


def test_a_step_that_is_not_finite_ends_the_training_and_changes_nothing(data: Data) -> None:
    state = TrainState(config(), data)
    steps = train(state, data)
    next(steps)
    with torch.no_grad():
        state.model.output.bias[0] = math.nan
    before = recurrent_weight(state).clone()
    last = next(steps)
    assert last.step == 2
    assert last.finite is False
    assert state.step == 1
    assert torch.equal(recurrent_weight(state), before)
    assert list(steps) == []


def test_gradients_are_clipped_to_the_norm(data: Data) -> None:
    clipped = config(
        optimizer__grad_clip_norm=1e-3,
        optimizer__name="sgd",
        optimizer__momentum=0,
        optimizer__weight_decay=0,
    )
    state = TrainState(clipped, data)
    before = torch.nn.utils.parameters_to_vector(state.model.parameters()).detach().clone()
    update = next(train(state, data))
    assert update.grad_norm > 1e-3
    after = torch.nn.utils.parameters_to_vector(state.model.parameters()).detach()
    moved = float((after - before).norm())
    assert moved == pytest.approx(update.lr * 1e-3, rel=1e-2)


@pytest.mark.parametrize(("name", "decoupled"), [("adam", False), ("adamw", True)])
def test_weight_decay_is_l2_for_adam_and_decoupled_for_adamw(
    data: Data, name: str, decoupled: bool
) -> None:
    """With a huge eps the gradient step vanishes, so only decoupled decay shrinks the weights."""
    decayed = config(
        optimizer__name=name,
        optimizer__eps=1e9,
        optimizer__weight_decay=1.0,
        optimizer__lr=0.01,
    )
    state = TrainState(decayed, data)
    before = recurrent_weight(state).clone()
    next(train(state, data))
    shrunk = float((recurrent_weight(state) / before).mean())
    assert shrunk == pytest.approx(0.99 if decoupled else 1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule.name": "constant"}, [1, 1, 1, 1]),
        ({"schedule.name": "linear", "schedule.end_factor": 0.1}, [1, 0.55, 0.1, 0.1]),
        (
            {"schedule.name": "warmup-cosine", "schedule.end_factor": 0.1, "schedule.warmup": 0.5},
            [1 / 51, 1, 0.1, 0.1],
        ),
    ],
)
def test_schedules_at_the_start_halfway_at_the_end_and_after_it(
    schedule: dict[str, object], expected: list[float]
) -> None:
    scheduled = DecoderConfig().with_values({"steps": 100, **schedule})
    factors = [lr_factor(scheduled, step) for step in (0, 50, 100, 120)]
    assert factors == pytest.approx(expected)


def test_plateau_counts_evaluations_and_stops_at_its_floor(data: Data) -> None:
    """No weight moves, so the PER never improves."""
    plateau = config(
        optimizer__name="sgd",
        optimizer__lr=1e-12,
        schedule__name="plateau",
        schedule__patience=1,
        schedule__factor=0.5,
        schedule__min_lr=3e-13,
        steps=12,
        evaluate_every=1,
    )
    lrs = [update.lr for update in run(TrainState(plateau, data), data)]
    assert lrs[:4] == pytest.approx([1e-12, 1e-12, 1e-12, 5e-13], abs=0)
    assert lrs[-1] == pytest.approx(3e-13, abs=0)


def test_similar_batches_hold_the_sentences_of_random_ones_and_less_padding(
    demo_sentences: Sentences,
) -> None:
    demo = Data(demo_sentences, np.arange(1000), np.arange(1000, 1010), CPU)
    pools = {}
    for kind in ("random", "similar"):
        state = TrainState(config(batches=kind, model__kernel=8, batch_size=16), demo)
        pools[kind] = [next_batch(state, demo) for _ in range(POOL)]
    drawn = {kind: torch.cat(pool).sort().values for kind, pool in pools.items()}
    assert torch.equal(drawn["random"], drawn["similar"])

    def longest(numbers: torch.Tensor) -> int:
        return int(demo.lengths_S[numbers].max())

    def padded_bins(pool: list[torch.Tensor]) -> int:
        return sum(longest(numbers) * len(numbers) for numbers in pool)

    bins = int(demo.lengths_S[drawn["random"]].sum())
    assert padded_bins(pools["similar"]) < 1.1 * bins
    assert 1.3 * bins < padded_bins(pools["random"])
    # The batches of similar sentences are not in the order of their length.
    lengths = [longest(numbers) for numbers in pools["similar"]]
    assert lengths != sorted(lengths)
    assert lengths != sorted(lengths, reverse=True)


def test_accumulated_batches_give_the_gradient_of_one_large_one(data: Data) -> None:
    """Two batches of 4 in one step are one batch of 8, without dropout and noise."""
    deterministic = {
        "model__dropout": 0,
        "augment__white_noise_sd": 0,
        "augment__constant_offset_sd": 0,
        "batches": "random",
        "steps": 3,
    }
    halves = TrainState(config(batch_size=4, accumulation=2, **deterministic), data)
    whole = TrainState(config(batch_size=8, **deterministic), data)
    # Batches are taken from the end of the list.
    whole.drawn = [torch.randperm(len(data.train))[:8] for _ in range(3)]
    halves.drawn = []
    for numbers in whole.drawn:
        halves.drawn += [numbers[4:], numbers[:4]]
    updates = zip(run(halves, data), run(whole, data), strict=True)
    for accumulated, at_once in updates:
        assert accumulated.step == at_once.step
        assert accumulated.lr == at_once.lr
        assert accumulated.loss == pytest.approx(at_once.loss, rel=1e-4)
        assert accumulated.grad_norm == pytest.approx(at_once.grad_norm, rel=1e-3)


def test_averaged_weights_are_scored_and_follow_the_weights(data: Data) -> None:
    state = TrainState(config(optimizer__ema_decay=0.5, steps=2), data)
    weights = [recurrent_weight(state).clone() for _ in train(state, data)]
    assert state.averaged is not None
    averaged = dict(state.scored.gru.named_parameters())["0.weight_hh_l0"]
    torch.testing.assert_close(averaged.detach(), 0.5 * weights[0] + 0.5 * weights[1])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_reading_the_losses_less_often_changes_nothing(data: Data, name: str) -> None:
    """As on CUDA: several updates before the losses are read; evaluations come where they did."""
    settings = config(steps=11, evaluate_every=4, optimizer__name=name, schedule__name="linear")
    often = list(train(TrainState(settings, data), data, unseen_steps=1))
    seldom = list(train(TrainState(settings, data), data, unseen_steps=3))
    assert [p.step for p in seldom] == [3, 4, 7, 8, 11]
    assert [p.steps for p in seldom] == [3, 1, 3, 1, 3]
    assert [p.score for p in seldom if p.score] == [p.score for p in often if p.score]
    assert seldom[0].loss == pytest.approx(sum(p.loss for p in often[:3]) / 3)
    assert seldom[0].grad_norm == max(p.grad_norm for p in often[:3])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_no_weight_moves_after_a_step_that_is_not_finite(data: Data, name: str) -> None:
    """Even if several updates run before the losses are read."""
    state = TrainState(config(optimizer__name=name, steps=9), data)
    next(train(state, data))
    with torch.no_grad():
        state.model.output.bias[0] = math.nan
    before = recurrent_weight(state).clone()
    last = next(train(state, data, unseen_steps=4))
    assert last.step == 2
    assert last.finite is False
    assert state.step == 1
    assert torch.equal(recurrent_weight(state), before)


def test_bf16_trains_and_scores_about_the_same(data: Data) -> None:
    """Autocast runs on the CPU too, so this runs the code that CUDA does."""
    fp32 = next(train(TrainState(config(precision="fp32"), data), data))
    bf16 = next(train(TrainState(config(precision="bf16"), data), data))
    assert bf16.loss == pytest.approx(fp32.loss, rel=0.05)
    assert bf16.loss != fp32.loss
