"""Workers that hold several GPUs: which, how they are named, and what their time costs."""

from collections.abc import Callable

import pytest
import torch
from helpers.studies import RECORD

from hpo.errors import CallerError, MachineError
from hpo.launch.launcher import gpu_groups
from hpo.launch.slurm import Job
from hpo.process import Process
from hpo.space.spec import StudySpec
from hpo.study.study import Study
from hpo.worker.device import check_gpus, held_gpus, visible_devices

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("count", "size", "groups"),
    [
        (4, 1, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        (4, 2, ["cuda:0,1", "cuda:2,3"]),
        (5, 2, ["cuda:0,1", "cuda:2,3"]),
        (3, 3, ["cuda:0,1,2"]),
        (2, 0, ["cuda:0", "cuda:1"]),
    ],
)
def test_gpus_are_given_out_in_groups(count: int, size: int, groups: list[str]) -> None:
    assert gpu_groups(count, size) == groups


def test_too_few_gpus_are_refused() -> None:
    with pytest.raises(MachineError, match="takes 4 GPUs, and PyTorch sees 2"):
        gpu_groups(2, 4)
    with pytest.raises(CallerError, match=r"takes 2 GPUs\. Give --device cuda:0,1"):
        check_gpus("cuda:0", CUDA, 2)
    check_gpus("cuda:0,1", CUDA, 2)
    check_gpus("cpu", torch.device("cpu"), 2)
    with pytest.raises(CallerError, match=r"takes 4 GPUs\. Give 4 or more"):
        Job(gpus_per_node="a100:2").check_gpus(4)
    Job(gpus_per_node="8").check_gpus(4)
    Job(gpus_per_node="0").check_gpus(4)


@pytest.mark.parametrize(
    ("wanted", "held"),
    [
        (None, (0,)),
        ("cuda", (0,)),
        ("cuda:0", (0,)),
        ("cuda:0,1", (0, 1)),
        ("cuda:2,5,7", (2, 5, 7)),
    ],
)
def test_a_worker_holds_the_gpus_of_its_device(wanted: str | None, held: tuple[int, ...]) -> None:
    assert held_gpus(wanted, CUDA) == held
    assert held_gpus(wanted, torch.device("cpu")) == ()


def test_a_part_of_a_gpu_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-0a, GPU-1b,MIG-2c")
    assert visible_devices((0, 2)) == "MIG-0a,MIG-2c"
    assert visible_devices((1,)) == "GPU-1b"
    assert visible_devices(()) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "gpus"),
    [
        ("cpu", 1),
        ("cuda:0 (H200)", 1),
        ("cuda:0,1 (H200, of NVIDIA)", 2),
        ("cuda:0,1,2,3 (A100)", 4),
    ],
)
def test_the_time_of_each_gpu_counts(
    make_study: Callable[..., Study], tiny_spec: StudySpec, device: str, gpus: int
) -> None:
    study = make_study(tiny_spec)
    trial = study.claim(Process("host", "1:1"), RECORD | {"device": device})
    assert trial is not None
    study.deliver(trial, [], 1, 10.0)
    record = study.records()[0]
    assert (record.seconds, record.gpu_seconds) == (10.0, 10.0 * gpus)
