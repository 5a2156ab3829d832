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
    assert f"PER {100 * expected.value:.2f} % on test: {errors}" in again.stdout
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
