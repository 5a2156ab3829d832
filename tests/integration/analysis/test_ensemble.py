"""Ensembles of decoders that were really trained: what is averaged, what is selected where, and what is left out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import invoke
from helpers.data import tiny_contents
from helpers.decoders import CPU
from helpers.studies import TINY

from hpo.analysis.ensemble import Ensemble, ensemble_text
from hpo.data.formats import read_sentences
from hpo.decoder.artifact import load_decoder
from hpo.decoder.combine import Mean, Outputs, frame_log_probs, scores_along, select
from hpo.decoder.data import load_for_scoring
from hpo.decoder.metric import edit_distances, greedy_decode
from hpo.decoder.train import evaluate
from hpo.decoder.trainer import MEANS, PER
from hpo.decoder.training import Recordings
from hpo.space.spec import load_spec
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.trainer import named
from hpo.worker.dataset import load_study_data
from hpo.worker.worker import Worker

SPACE = """
base: {model.layers: 1, model.units: 16, model.kernel: 4, model.stride: 2, batch_size: 8, steps: 150, evaluate_every: 75, model.dropout: 0,
       augment.white_noise_sd: 0.3, optimizer.eps: 1e-8}
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
    """Three decoders of stride 2, trained until they are worth something, and a bad one of stride 3."""
    tiny_space.write_text(SPACE)
    spec = load_spec(tiny_space)
    path = write_data(tiny_contents(sentences=30))
    made = make_study(spec, path=str(path), fingerprint=read_sentences(path, "train").fingerprint())
    data = load_study_data(made, None, "cpu")
    Worker(
        made,
        data,
        study_folder(made),
        {"device": "cpu", "code_version": "0", "data": data.fingerprint},
    ).run()
    return made


def outputs_of(study: Study, numbers: list[int]) -> Outputs:
    loaded = load_study_data(study, None, "cpu")
    assert isinstance(loaded, Recordings)
    data = loaded.data
    decoders = {
        number: load_decoder(study_folder(study) / f"trial-{number}" / "last.safetensors")
        for number in numbers
    }
    return Outputs(
        data,
        decoders[numbers[0]].config.model,
        {number: frame_log_probs(decoders[number], data)[0] for number in numbers},
    )


def by_hand(outputs: Outputs, members: list[int], mean: Mean) -> tuple[int, ...]:
    """Errors per sentence of a normalised mean of the probabilities, sentence by sentence."""
    log_probs = torch.stack([outputs.log_probs_NK[number].double() for number in members])
    averaged = (
        log_probs.exp().mean(dim=0)
        if mean == "arithmetic"
        else log_probs.mean(dim=0).softmax(dim=1)
    )
    torch.testing.assert_close(averaged.sum(dim=1), torch.ones(len(averaged), dtype=torch.double))
    data, errors, begin = outputs.data, [], 0
    for number in data.validation.tolist():
        frames = int(data.lengths_S[number] - outputs.model.kernel) // outputs.model.stride
        decoded = greedy_decode(averaged[None, begin : begin + frames], torch.tensor([frames]))
        errors += edit_distances([data.labels(number)], decoded)
        begin += frames
    assert begin == len(averaged)
    return tuple(errors)


def test_an_ensemble_of_trained_decoders(study: Study, write_data: Callable[..., Path]) -> None:
    records = {record.number: record for record in study.records()}
    outputs = outputs_of(study, [0, 1, 2])
    for mean in MEANS:
        for number in (0, 1, 2):  # of one: exactly its trial's score
            assert (
                scores_along([number], outputs, mean)[0]
                == study.scores([records[number].id])[records[number].id]
            )
        assert scores_along([0, 1, 1], outputs, mean)[2].errors == by_hand(outputs, [0, 1, 1], mean)
        path = select(outputs, mean, 4)
        pers = [score.value for score in scores_along(path, outputs, mean)]
        for size in range(4):  # each step is the best that there is
            choices = [
                scores_along([*path[:size], number], outputs, mean)[size].value
                for number in (0, 1, 2)
            ]
            assert pers[size] == min(choices)
            assert path[size] == choices.index(min(choices))

    done = invoke(
        "ensemble",
        "--study",
        study.name,
        "--trials",
        "2,1,0",
        "--max-size",
        4,
        "--device",
        "cpu",
        "--json",
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    kept = study.results()["ensemble"]
    assert named({name: kept[name] for name in found}, PER) == found
    best = min((0, 1, 2), key=lambda number: (records[number].value, number))
    assert (found["single"]["trial"], found["single"]["validation_value"]) == (
        best,
        records[best].value,
    )
    assert found["ensemble"]["validation_value"] == min(
        point["validation_value"] for point in found["curve"]
    )
    assert (
        sorted({point["mean"] for point in found["curve"]}) == sorted(MEANS)
        and len(found["curve"]) == 8
    )
    decoder = load_decoder(study_folder(study) / f"trial-{best}" / "last.safetensors")
    test = load_for_scoring(study.data_path, "test", decoder.config.model, CPU)
    assert found["single"]["test_value"] == evaluate(decoder.model, test)[0].value
    difference = found["ensemble"]["test_value"] - found["single"]["test_value"]
    assert found["comparison"]["difference"] == pytest.approx(difference)
    assert found["cost"]["sentences"] == 60
    size = sum(weight.numel() for weight in decoder.model.parameters())
    assert found["cost"]["parameters"] == size * len(found["ensemble"]["members"])
    finding = Ensemble.model_validate(kept)
    assert max(map(len, ensemble_text(finding, PER).splitlines())) <= 100
    of_one_sentence = finding.model_copy(
        update={"single": finding.single.model_copy(update={"test_interval": None})}
    )
    assert "no interval of one sentence" in ensemble_text(of_one_sentence, PER)

    contents = tiny_contents(sentences=30)
    contents["test"] = tiny_contents(sentences=5)["train"]
    other = invoke(
        "ensemble",
        "--study",
        study.name,
        "--trials",
        "2,1,0",
        "--max-size",
        4,
        "--data",
        write_data(contents),
        "--json",
    )
    again = json.loads(other.stdout)
    assert again["cost"]["sentences"] == 10
    assert again["ensemble"]["members"] == found["ensemble"]["members"], (
        "the test partition selects nothing"
    )
    assert [point["validation_value"] for point in again["curve"]] == [
        point["validation_value"] for point in found["curve"]
    ]


def test_what_cannot_be_averaged(
    study: Study,
    make_study: Callable[..., Study],
    tiny_space: Path,
    write_data: Callable[..., Path],
) -> None:
    records = {record.number: record for record in study.records()}
    refused = invoke("ensemble", "--study", study.name, "--trials", "0,3")
    assert refused.exit_code == 2
    assert (
        "trial 3 has model.stride 3, not 2 as trial 0, so their frames do not match"
        in refused.stderr
    )
    assert (
        "one trial is no ensemble"
        in invoke("ensemble", "--study", study.name, "--trials", "1").stderr
    )
    assert (
        "Valid: such as 3,7,9"
        in invoke("ensemble", "--study", study.name, "--trials", "1,x").stderr
    )
    assert "no trial '9'" in invoke("ensemble", "--study", study.name, "--trials", "1,9").stderr

    found = json.loads(invoke("ensemble", "--study", study.name, "--max-size", 2, "--json").stdout)
    assert records[3].value == max(record.value or 0 for record in records.values()), (
        "the pool is the best trial's stride"
    )
    assert (found["candidates"], found["stride"]) == (3, 2)
    assert found["notes"] == [
        "trial 3 is left out: model.stride 3, not 2, so its frames do not match"
    ]
    other = invoke(
        "ensemble", "--study", study.name, "--data", write_data(tiny_contents(sentences=29))
    )
    assert other.exit_code == 2 and "Give --data with the study's data" in other.stderr
    write_data(tiny_contents(sentences=30))
    (study_folder(study) / "trial-1" / "last.safetensors").unlink()
    found = json.loads(invoke("ensemble", "--study", study.name, "--max-size", 2, "--json").stdout)
    assert found["candidates"] == 2
    assert any("the weights of trial 1 are not here. It ran on" in note for note in found["notes"])
    (study_folder(study) / "trial-0" / "last.safetensors").unlink()
    alone = invoke("ensemble", "--study", study.name)
    assert alone.exit_code == 2 and "needs 2 complete trials whose weights are here" in alone.stderr
    tiny_space.write_text(TINY)
    make_study(load_spec(tiny_space), "fresh")
    assert "of 0 complete trials 0 qualify" in invoke("ensemble", "--study", "fresh").stderr
