"""Trained decoders in files are read as written, and the reference's model takes our weights."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import invoke
from helpers.data import recordings, tiny_contents
from helpers.decoders import CPU, config, run
from helpers.lines import refusal
from helpers.reference_model import Reference
from helpers.studies import RECORD, TINY
from safetensors.torch import save_file

from hpo.decoder.artifact import Decoder, load_decoder, reference_folder, save_decoder
from hpo.decoder.data import Data, load_data, load_for_scoring
from hpo.decoder.scoring import score
from hpo.decoder.train import TrainState, evaluate
from hpo.errors import CallerError, DataError
from hpo.past.lab_runs import read_lab_run
from hpo.space.load import load_spec
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.worker.worker import Worker


@pytest.fixture
def data(tiny_data: Path) -> Data:
    return load_data(tiny_data, config().model, 0.2, 0, CPU)[0]


def trained(data: Data, **values: object) -> Decoder:
    state = TrainState(config(steps=3, **values), data)
    run(state, data)
    return Decoder(state.scored.eval(), state.config, {"step": 3})


def saved(decoder: Decoder, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_decoder(path, decoder.model.state_dict(), decoder.config, decoder.metadata)
    return path


def logits(model: Any, data: Data) -> torch.Tensor:
    batch = data.batch(torch.tensor([0, 5]))
    with torch.no_grad():
        output: torch.Tensor = model(batch.x_BTC, batch.lengths_B, batch.days_B)[0]
    return output


def test_a_file_gives_back_the_decoder(data: Data, tmp_path: Path) -> None:
    decoder = trained(data, optimizer__ema_decay=0.9)
    back = load_decoder(saved(decoder, tmp_path / "deep" / "last.safetensors"))
    assert torch.equal(logits(back.model, data), logits(decoder.model, data))
    assert back.config == decoder.config
    assert back.metadata == {"step": 3}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_the_reference_model_loads_the_folder_strictly_and_computes_the_same(
    data: Data, tmp_path: Path, bidirectional: bool, layer_norm: bool
) -> None:
    decoder = trained(
        data, model__bidirectional=bidirectional, model__layer_norm=layer_norm, model__layers=3
    )
    reference_folder(decoder, tmp_path / "out")
    args = pickle.loads((tmp_path / "out" / "args").read_bytes())
    assert type(args) is dict
    types = {type(value) for value in args.values()}
    assert types <= {int, float, bool, str, type(None)}
    reference = Reference(args, data.n_days).eval()
    weights = torch.load(tmp_path / "out" / "modelWeights", weights_only=True)
    assert weights["dayBias"].shape == (data.n_days, 1, data.n_features)
    assert weights["gaussianSmoother.weight"].shape == (data.n_features, 1, 20)
    assert torch.equal(weights["inpLayer1.weight"], torch.eye(data.n_features))
    assert not weights["inpLayer1.bias"].any()
    reference.load_state_dict(weights, strict=True)
    # One sentence at a time: in a batch the reference reads padding.
    for number in (0, 9, 17):
        batch = data.batch(torch.tensor([number]))
        with torch.no_grad():
            ours, lengths = decoder.model(batch.x_BTC, batch.lengths_B, batch.days_B)
            expected = reference(batch.x_BTC, batch.days_B)
        frames = int(lengths[0])
        torch.testing.assert_close(expected[:, :frames], ours[:, :frames])
    back = load_decoder(tmp_path / "out")
    assert torch.equal(logits(back.model, data), logits(decoder.model, data))
    assert args["use_layer_norm"] is layer_norm


@pytest.mark.parametrize("values", [{"model__smoothing_width": 0}, {"model__smoothing_kernel": 11}])
def test_a_decoder_that_the_reference_cannot_express_is_not_exported(
    data: Data, tmp_path: Path, values: dict[str, object]
) -> None:
    with pytest.raises(CallerError, match="its code smooths with 20 taps and a width above 0"):
        reference_folder(trained(data, **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path)


def with_header(text: str) -> Callable[[Path], None]:
    return lambda path: save_file({"x": torch.zeros(1)}, path, metadata={"hpo_decoder": text})


def enormous(path: Path) -> None:
    """A configuration whose weights would take terabytes."""
    decoder = load_decoder(path)
    larger = decoder.config.with_values({"model.units": 10**6})
    save_decoder(path, decoder.model.state_dict(), larger, {})


def endless(path: Path) -> None:
    decoder = load_decoder(path)
    deeper = decoder.config.with_values({"model.layers": 10**9})
    save_decoder(path, decoder.model.state_dict(), deeper, {})


def misfit(path: Path) -> None:
    decoder = load_decoder(path)
    wider = decoder.config.with_values({"model.units": 9})
    save_decoder(path, decoder.model.state_dict(), wider, {})


NO_FILE = "no such file. Valid: a .safetensors file of hpo, or a folder with args and modelWeights"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, NO_FILE),
        (cut, "not a whole safetensors file"),
        (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
        (foreign, "not one of hpo"),
        (misfit, "its weights do not fit its configuration"),
        (enormous, "its weights do not fit its configuration"),
        (endless, "1,000,000,000 layers, but"),
        (with_header("[" * 100_000), "not one of hpo"),
        (with_header('{"config": "x"}'), "not one of hpo"),
        (with_header('{"config": null}'), "not one of hpo"),
        (with_header('{"config": {"steps": ' + "9" * 5000 + "}}"), "not one of hpo"),
        (with_header('{"config": {"' + "x" * 9000 + '": 1}}'), r"there is no 'x+\.\.\.x+'"),
        (with_header('{"config": {"steps": "x"}}'), "steps: input should be a valid integer"),
    ],
)
def test_a_file_that_is_no_decoder_is_refused(
    data: Data, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    path = saved(trained(data), tmp_path / "m.safetensors")
    damage(path)
    with pytest.raises(DataError, match=message):
        load_decoder(path)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("it ran",)


def torch_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


ODD = {
    "dayWeights": torch.zeros(2, 0, 0),
    "gru_decoder.weight_hh_l0": torch.zeros(3),
    "gaussianSmoother.weight": torch.zeros(3),
}
# 43 GB in a file of a kilobyte: one number that is repeated.
REPEATED = {
    "dayWeights": torch.zeros(2, 3, 3),
    "gru_decoder.weight_hh_l0": torch.zeros(1).expand(180_000, 60_000),
}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("args", pickle.dumps(Code()), r"args: asks to load builtins\.print"),
        ("args", pickle.dumps({"nUnits": 8}), "args: no pickled dict with strideLen"),
        ("args", b"", "args: not a whole pickle"),
        ("modelWeights", b"PK", "modelWeights: not a state dict of torch"),
        (
            "modelWeights",
            torch_bytes({"dayWeights": torch.zeros(2, 3, 3)}),
            "not the weights of neural_seq_decoder's model",
        ),
        ("modelWeights", torch_bytes([1]), "modelWeights: a list, not a state dict"),
        ("modelWeights", torch_bytes(torch.zeros(3)), "modelWeights: a Tensor, not a state dict"),
        ("modelWeights", torch_bytes(REPEATED), "is a Tensor, not plain weights"),
        ("modelWeights", torch_bytes(ODD), "not the weights of neural_seq_decoder's model"),
    ],
)
def test_a_folder_that_is_no_decoder_is_refused(
    data: Data, tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    reference_folder(trained(data), tmp_path / "out")
    (tmp_path / "out" / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_decoder(tmp_path / "out")


Weights = dict[str, Any]


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    """Replaces the weights of a folder of neural_seq_decoder."""
    weights = torch.load(folder / "modelWeights", weights_only=True)
    torch.save(change(weights), folder / "modelWeights")


def restate(folder: Path, **values: Any) -> None:
    """Changes the args of a folder of neural_seq_decoder."""
    arguments = pickle.loads((folder / "args").read_bytes())
    (folder / "args").write_bytes(pickle.dumps(arguments | values))


@pytest.fixture
def lab_folder(data: Data, tmp_path: Path) -> Path:
    reference_folder(trained(data, model__layers=2), tmp_path / "lab")
    return tmp_path / "lab"


def without_bias(weights: Weights) -> Weights:
    return {name: weight for name, weight in weights.items() if "bias_hh" not in name}


def smoothed_differently(weights: Weights) -> Weights:
    weights["gaussianSmoother.weight"][1] *= 2
    return weights


def of_an_lstm(weights: Weights) -> Weights:
    """An LSTM has four gates where a GRU has three, under the same names."""
    return {
        name: torch.cat([weight, weight[: len(weight) // 3]]) if "gru" in name else weight
        for name, weight in weights.items()
    }


EXTRA = {"extra_layer.weight": torch.eye(3), "gru_decoder.weight_hr_l0": torch.eye(3)}
NOT_USED = "weights that the model does not use: extra_layer.weight, gru_decoder.weight_hr_l0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights | EXTRA, NOT_USED),
        (lambda weights: weights | {"inpLayer0.weight.x": torch.eye(3)}, r"not use: inpLayer0\.w"),
        (lambda weights: weights | {"n_averaged": torch.tensor(3)}, "not use: n_averaged"),
        (without_bias, r"needs are missing: gru_decoder\.bias_hh_l0, gru_decoder"),
        (
            lambda weights: (
                weights | {"gru_decoder.weight_hh_l7": weights["gru_decoder.weight_hh_l0"]}
            ),
            r"does not use: gru_decoder\.weight_hh_l7",
        ),
        (
            of_an_lstm,
            r"another model than the GRU decoder: gru_decoder\.weight_ih_l0 \[32, 12\] in",
        ),
        (
            lambda weights: weights | {"dayBias": weights["dayBias"].to(torch.complex64)},
            "no floating-point numbers: dayBias",
        ),
        (lambda weights: weights | {"\x1b[31mx": torch.eye(2)}, r"does not use: \?\[31mx$"),
        (smoothed_differently, "differs between features"),
        (
            lambda weights: {"model_state_dict": weights, "step": 3},
            "under 'model_state_dict' alone",
        ),
        (lambda weights: weights | {"module.dayBias": weights["dayBias"]}, "two weights are dayB"),
        (lambda weights: weights | {"dayBias": None}, "'dayBias' is a NoneType, not plain"),
        (
            lambda weights: weights | {"dayBias": torch.zeros(1).expand(10**9)},
            "'dayBias' is a Tensor, not plain weights",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_name(
    lab_folder: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    rewrite(lab_folder, change)
    with pytest.raises(DataError, match=message):
        load_decoder(lab_folder)


@pytest.mark.parametrize(
    "values",
    [
        {"nUnits": 99},
        {"nLayers": 3},
        {"bidirectional": False},
        {"kernelLen": 1},
        {"use_layer_norm": True},
        {"nClasses": 3},
    ],
)
def test_args_of_another_model_are_refused(lab_folder: Path, values: dict[str, Any]) -> None:
    restate(lab_folder, **values)
    (name, value), *_ = values.items()
    with pytest.raises(DataError, match=f"args say {name} = {value}, its weights are of"):
        load_decoder(lab_folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_a_wrapped_model_are_read(data: Data, lab_folder: Path, prefix: str) -> None:
    expected = load_decoder(lab_folder)
    rewrite(lab_folder, lambda weights: {prefix + name: weights[name] for name in weights})
    assert torch.equal(logits(load_decoder(lab_folder).model, data), logits(expected.model, data))


def test_weights_of_a_model_with_a_compiled_part_are_read(data: Data, lab_folder: Path) -> None:
    expected = load_decoder(lab_folder)

    def compiled(name: str) -> str:
        return name.replace("gru_decoder.", "gru_decoder._orig_mod.")

    rewrite(lab_folder, lambda weights: {compiled(name): weights[name] for name in weights})
    assert torch.equal(logits(load_decoder(lab_folder).model, data), logits(expected.model, data))


def test_args_of_numpy_are_read(data: Data, lab_folder: Path) -> None:
    expected = load_decoder(lab_folder)
    restate(lab_folder, strideLen=np.int64(expected.config.model.stride), nLayers=np.int32(2))
    assert load_decoder(lab_folder).config == expected.config


def test_weights_that_are_no_numbers_are_said(
    data: Data, lab_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    assert load_decoder(lab_folder).warnings == ()

    def spoiled(weights: Weights) -> Weights:
        weights["dayBias"][0] = torch.nan
        weights["fc_decoder_out.bias"][0] = torch.inf
        # Nobody uses it.
        weights["inpLayer0.bias"][0] = torch.nan
        return weights

    rewrite(lab_folder, spoiled)
    restate(lab_folder, activation="relu")
    evaluate = ("evaluate", "--data", tiny_data, "--partition", "test", "--model")
    done = invoke(*evaluate, lab_folder)
    assert done.exit_code == 0, done.output
    line = "NaN or infinite values in its weights dayBias, fc_decoder_out.bias"
    assert f"hpo: warning: {line}\n" in done.stderr
    assert "its args have words that hpo does not know: activation. If" in done.stderr
    printed = json.loads(invoke(*evaluate, lab_folder, "--json").stdout)
    assert printed["warnings"][0] == line

    decoder = trained(data)
    with torch.no_grad():
        decoder.model.day_bias[0] = torch.nan
    own = saved(decoder, tmp_path / "own.safetensors")
    done = invoke(*evaluate, own)
    assert "NaN or infinite values in its weights day_bias\n" in done.stderr


def test_a_score_names_its_data(tmp_path: Path, tiny_data: Path) -> None:
    bundled = load_data(None, config().model, 0.2, 0, CPU)[0]
    path = saved(trained(bundled), tmp_path / "m.safetensors")
    done = invoke("evaluate", "--model", path, "--partition", "test")
    assert " % on test of the bundled recordings: " in done.stdout
    other = saved(trained(load_data(tiny_data, config().model, 0.2, 0, CPU)[0]), tmp_path / "o")
    line = refusal("evaluate", "--model", other, "--partition", "test")
    assert "the bundled recordings: the data have" in line


def test_import_looks_at_the_weights_of_a_run(lab_folder: Path) -> None:
    arguments = pickle.loads((lab_folder / "args").read_bytes())

    def checked() -> tuple[tuple[str, ...], str]:
        run = read_lab_run(lab_folder)
        return run.foreign, " ".join(run.warnings)

    assert "modelWeights" not in checked()[1]
    weights = (lab_folder / "modelWeights").read_bytes()
    rewrite(lab_folder, lambda weights: weights | EXTRA)
    foreign, warnings = checked()
    assert foreign == (f"modelWeights: {NOT_USED}",)
    assert NOT_USED in warnings

    (lab_folder / "modelWeights").write_bytes(weights)
    rewrite(lab_folder, of_an_lstm)
    assert "another model than the GRU decoder" in checked()[0][0]

    (lab_folder / "modelWeights").write_bytes(weights)
    rewrite(lab_folder, lambda weights: weights | {"dayBias": weights["dayBias"] / 0})
    foreign, warnings = checked()
    assert not foreign
    assert "modelWeights: NaN or infinite values in its weights dayBias" in warnings

    (lab_folder / "modelWeights").write_bytes(weights)
    (lab_folder / "args").write_bytes(pickle.dumps(arguments | {"nUnits": 5}))
    assert "modelWeights: args say nUnits = 5" in checked()[0][0]

    (lab_folder / "args").write_bytes(pickle.dumps(arguments))
    torch.save({"encoder.weight": torch.eye(3)}, lab_folder / "modelWeights")
    assert "not the weights of neural_seq_decoder's model" in checked()[0][0]

    for unreadable in (b"version https://git-lfs", weights[:-100]):
        (lab_folder / "modelWeights").write_bytes(unreadable)
        foreign, warnings = checked()
        assert not foreign
        assert "its weights are not checked: " in warnings


def test_code_in_a_folder_does_not_run(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference_folder(trained(data), tmp_path / "out")
    (tmp_path / "out" / "args").write_bytes(pickle.dumps(Code()))
    with pytest.raises(DataError, match=r"args: asks to load builtins\.print"):
        load_decoder(tmp_path / "out")
    assert "it ran" not in capsys.readouterr().out


def test_data_of_other_features_or_days_are_refused(
    data: Data, tmp_path: Path, write_data: Callable[[Any], Path]
) -> None:
    path = saved(trained(data), tmp_path / "m.safetensors")
    with pytest.raises(DataError, match="the data have 4 features, the model takes 3"):
        score(path, write_data(tiny_contents(features=4)), "test", CPU, None)
    with pytest.raises(DataError, match="the data have 3 days, the model has input layers for 2"):
        score(path, write_data(tiny_contents(days=3)), "test", CPU, None)


# ---- a study's weights, through the commands


@pytest.fixture
def study(make_study: Callable[..., Study], tiny_space: Path, tiny_data: Path) -> Study:
    """Run to its end, with the weights where a worker leaves them."""
    tiny_space.write_text(
        TINY.replace("steps: 6, evaluate_every: 2", "steps: 9, evaluate_every: 1")
    )
    spec = load_spec(tiny_space)
    study = make_study(spec, path=str(tiny_data))
    data = recordings(tiny_data, spec, spec.validation.fraction)
    Worker(study, data, study_folder(study), RECORD).run()
    return study


@pytest.mark.slow
def test_a_finished_trial_has_its_last_and_its_best_weights(study: Study, tiny_data: Path) -> None:
    """`last` are those of the trial's PER, `best` those of the curve's lowest."""
    fraction = study.spec.validation.fraction
    validation = recordings(tiny_data, study.spec, fraction).data
    for record in study.records():
        folder = study_folder(study) / f"trial-{record.number}"
        files = sorted(path.name for path in folder.iterdir())
        assert files == ["best.safetensors", "last.safetensors"]
        last = load_decoder(folder / "last.safetensors")
        assert evaluate(last.model, validation)[0].value == record.value
        assert last.metadata["per"] == record.value
        assert last.metadata["step"] == 9
        assert last.config.flat() == record.config
        best = load_decoder(folder / "best.safetensors")
        assert evaluate(best.model, validation)[0].value == record.best_value
        assert best.metadata["per"] == record.best_value


@pytest.mark.slow
def test_evaluate_scores_a_trial_and_its_exported_folder_alike(
    study: Study, tiny_data: Path, tmp_path: Path
) -> None:
    done = invoke("evaluate", "--study", study.name, "--model", 1, "--partition", "test", "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    last = load_decoder(study_folder(study) / "trial-1" / "last.safetensors")
    test = load_for_scoring(tiny_data, "test", last.config.model, CPU)
    expected, _ = evaluate(last.model, test)
    assert printed["per"] == expected.value
    assert tuple(printed["errors"]) == expected.errors
    assert printed["facts"]["trial"] == 1

    out = tmp_path / "lab"
    export = ("export", "--study", study.name, "--trial", 1, "--format", "neural_seq_decoder")
    done = invoke(*export, "--out", out)
    assert done.exit_code == 0, done.output
    assert "nInputLayers=2" in done.stdout
    again = invoke("evaluate", "--model", out, "--data", tiny_data, "--partition", "test")
    errors = f"{sum(expected.errors)} errors in {sum(expected.lengths)} phonemes"
    data = f"on test of {tiny_data}"
    assert f"PER {100 * expected.value:.2f} % {data}: {errors}" in again.stdout
    assert "already exists" in refusal(*export, "--out", out)


@pytest.mark.slow
def test_missing_weights_are_one_line(
    study: Study, make_study: Callable[..., Study], tiny_space: Path, tmp_path: Path
) -> None:
    (study_folder(study) / "trial-2" / "last.safetensors").unlink()
    error = refusal("evaluate", "--study", study.name, "--model", 2, "--partition", "test")
    assert "the weights of trial 2 are not here. It ran on" in error
    fresh = make_study(load_spec(tiny_space), "fresh")
    export = ("export", "--study", fresh.name, "--format", "neural_seq_decoder")
    assert "no trial is complete yet" in refusal(*export, "--out", tmp_path / "x")
    error = refusal("evaluate", "--model", tmp_path / "nothing", "--partition", "test")
    assert error.startswith("hpo: --model ")
    assert "no such file" in error


def test_with_padding_reference_the_loss_depends_on_the_batch(
    data: Data, tmp_path: Path, tiny_data: Path
) -> None:
    path = saved(trained(data, model__units=64), tmp_path / "m.safetensors")
    default, masked, reference = (
        score(path, tiny_data, "test", CPU, padding)["ctc_loss"]
        for padding in (None, "masked", "reference")
    )
    assert default == masked
    assert default != reference
    assert np.isfinite([default, masked, reference]).all()
