"""Ensembles of decoders that were really trained: averages, selection, and what is left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import invoke
from helpers.data import tiny_contents
from helpers.decoders import CPU
from helpers.lines import ON_CPU, refusal
from helpers.studies import RECORD, TINY

from hpo.analysis.ensemble import Ensemble, ensemble_text
from hpo.data.formats import read_sentences
from hpo.decoder.artifact import load_decoder
from hpo.decoder.combine import Mean, Outputs, frame_log_probs, scores_along, select
from hpo.decoder.data import load_for_scoring
from hpo.decoder.metric import edit_distances, greedy_decode
from hpo.decoder.train import evaluate
from hpo.decoder.trainer import MEANS, PER
from hpo.decoder.training import Recordings
from hpo.space.load import load_spec
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.trainer import named
from hpo.worker.dataset import load_study_data
from hpo.worker.worker import Worker

SPACE = """
base:
  model.layers: 1
  model.units: 16
  model.kernel: 4
  model.stride: 2
  model.dropout: 0
  augment.white_noise_sd: 0.3
  optimizer.eps: 1e-8
  batch_size: 8
  steps: 150
  evaluate_every: 75
parameters:
  optimizer.lr: {low: 1e-5, high: 3e-2, log: true}
  model.stride: {choices: [2, 3]}
starts:
  one: {optimizer.lr: 0.02}
  two: {optimizer.lr: 0.01}
  three: {optimizer.lr: 0.006}
  strided: {optimizer.lr: 1e-5, model.stride: 3}
budget: {trials: 4}
validation: {fraction: 0.3}
"""


@pytest.fixture
def study(
    make_study: Callable[..., Study], tiny_space: Path, write_data: Callable[..., Path]
) -> Study:
    """Three decoders of stride 2 that have learned something, and a bad one of stride 3."""
    tiny_space.write_text(SPACE)
    path = write_data(tiny_contents(sentences=30))
    fingerprint = read_sentences(path, "train").fingerprint()
    study = make_study(load_spec(tiny_space), path=str(path), fingerprint=fingerprint)
    data = load_study_data(study, None, "cpu")
    record = RECORD | {"data": data.fingerprint}
    Worker(study, data, study_folder(study), record).run()
    return study


def weights_of(study: Study, number: int) -> Path:
    return study_folder(study) / f"trial-{number}" / "last.safetensors"


def outputs_of(study: Study, numbers: list[int]) -> Outputs:
    loaded = load_study_data(study, None, "cpu")
    assert isinstance(loaded, Recordings)
    decoders = {number: load_decoder(weights_of(study, number)) for number in numbers}
    log_probs = {
        number: frame_log_probs(decoder, loaded.data)[0] for number, decoder in decoders.items()
    }
    return Outputs(loaded.data, decoders[numbers[0]].config.model, log_probs)


def by_hand(outputs: Outputs, members: list[int], mean: Mean) -> tuple[int, ...]:
    """Errors per sentence of a normalised mean of the probabilities, sentence by sentence."""
    log_probs = torch.stack([outputs.log_probs_NK[number].double() for number in members])
    if mean == "arithmetic":
        averaged = log_probs.exp().mean(dim=0)
    else:
        averaged = log_probs.mean(dim=0).softmax(dim=1)
    torch.testing.assert_close(averaged.sum(dim=1), torch.ones(len(averaged), dtype=torch.double))
    data = outputs.data
    errors = []
    begin = 0
    for number in data.validation.tolist():
        frames = int(data.lengths_S[number] - outputs.model.kernel) // outputs.model.stride
        decoded = greedy_decode(averaged[None, begin : begin + frames], torch.tensor([frames]))
        errors += edit_distances([data.labels(number)], decoded)
        begin += frames
    assert begin == len(averaged)
    return tuple(errors)


@pytest.mark.slow
def test_members_are_averaged_and_the_best_next_one_is_selected(study: Study) -> None:
    outputs = outputs_of(study, [0, 1, 2])
    ids = {record.number: record.id for record in study.records()}
    for mean in MEANS:
        # An ensemble of one has exactly the score of its trial.
        for number in (0, 1, 2):
            trial_id = ids[number]
            assert scores_along([number], outputs, mean)[0] == study.scores([trial_id])[trial_id]
        assert scores_along([0, 1, 1], outputs, mean)[2].errors == by_hand(outputs, [0, 1, 1], mean)
        path = select(outputs, mean, 4)
        pers = [score.value for score in scores_along(path, outputs, mean)]
        for size in range(4):
            selected = path[:size]
            choices = [
                scores_along([*selected, number], outputs, mean)[size].value for number in (0, 1, 2)
            ]
            assert pers[size] == min(choices)
            assert path[size] == choices.index(min(choices))


def ensemble_of(study: Study, *more: object) -> Any:
    """What `hpo ensemble` prints of the decoders of stride 2, up to four members."""
    line = ("ensemble", "--study", study.name, "--trials", "2,1,0", "--max-size", 4, "--json")
    done = invoke(*line, *more)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_command_compares_the_ensemble_with_the_best_single_decoder(study: Study) -> None:
    printed = ensemble_of(study, *ON_CPU)
    kept = study.results()["ensemble"]
    assert named({name: kept[name] for name in printed}, PER) == printed

    records = {record.number: record for record in study.records()}
    best = min((0, 1, 2), key=lambda number: (records[number].value, number))
    single, ensemble, curve = printed["single"], printed["ensemble"], printed["curve"]
    assert single["trial"] == best
    assert single["validation_value"] == records[best].value
    assert ensemble["validation_value"] == min(point["validation_value"] for point in curve)
    assert sorted({point["mean"] for point in curve}) == sorted(MEANS)
    assert len(curve) == 8
    decoder = load_decoder(weights_of(study, best))
    test = load_for_scoring(study.data_path, "test", decoder.config.model, CPU)
    assert single["test_value"] == evaluate(decoder.model, test)[0].value
    difference = ensemble["test_value"] - single["test_value"]
    assert printed["comparison"]["difference"] == pytest.approx(difference)
    assert printed["cost"]["sentences"] == 60
    size = sum(weight.numel() for weight in decoder.model.parameters())
    assert printed["cost"]["parameters"] == size * len(ensemble["members"])

    finding = Ensemble.model_validate(kept)
    assert max(map(len, ensemble_text(finding, PER).splitlines())) <= 100
    without_interval = finding.single.model_copy(update={"test_interval": None})
    of_one_sentence = finding.model_copy(update={"single": without_interval})
    assert "no interval of one sentence" in ensemble_text(of_one_sentence, PER)


@pytest.mark.slow
def test_the_test_partition_selects_nothing(study: Study, write_data: Callable[..., Path]) -> None:
    before = ensemble_of(study)
    contents = tiny_contents(sentences=30)
    contents["test"] = tiny_contents(sentences=5)["train"]
    after = ensemble_of(study, "--data", write_data(contents))
    assert after["cost"]["sentences"] == 10
    assert after["ensemble"]["members"] == before["ensemble"]["members"]
    values = [point["validation_value"] for point in before["curve"]]
    assert [point["validation_value"] for point in after["curve"]] == values


@pytest.mark.slow
def test_decoders_that_cannot_be_averaged_are_refused(
    study: Study, make_study: Callable[..., Study], tiny_space: Path
) -> None:
    line = ("ensemble", "--study", study.name, "--trials")
    frames = "trial 3 has model.stride 3, not 2 as trial 0, so their frames do not match"
    assert frames in refusal(*line, "0,3")
    assert "one trial is no ensemble" in refusal(*line, "1")
    assert "Valid: such as 3,7,9" in refusal(*line, "1,x")
    assert "no trial '9'" in refusal(*line, "1,9")
    tiny_space.write_text(TINY)
    make_study(load_spec(tiny_space), "fresh")
    assert "of 0 complete trials 0 qualify" in refusal("ensemble", "--study", "fresh")


@pytest.mark.slow
def test_the_pool_leaves_out_other_strides_and_missing_weights(
    study: Study, write_data: Callable[..., Path]
) -> None:
    line = ("ensemble", "--study", study.name)
    values = {record.number: record.value or 0 for record in study.records()}
    assert values[3] == max(values.values()), "the pool has the stride of the best trial"
    printed = json.loads(invoke(*line, "--max-size", 2, "--json").stdout)
    assert (printed["candidates"], printed["stride"]) == (3, 2)
    left_out = "trial 3 is left out: model.stride 3, not 2, so its frames do not match"
    assert printed["notes"] == [left_out]

    error = refusal(*line, "--data", write_data(tiny_contents(sentences=29)))
    assert "Give --data with the study's data" in error
    write_data(tiny_contents(sentences=30))

    weights_of(study, 1).unlink()
    printed = json.loads(invoke(*line, "--max-size", 2, "--json").stdout)
    assert printed["candidates"] == 2
    missing = "the weights of trial 1 are not here. It ran on"
    assert any(missing in note for note in printed["notes"])
    weights_of(study, 0).unlink()
    assert "needs 2 complete trials whose weights are here" in refusal(*line)
