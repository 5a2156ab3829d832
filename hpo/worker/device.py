"""The device that a training runs on: which one, its name, its memory, and whether an error says that that is short."""

import os
import re
import resource
import traceback
from pathlib import Path

import torch

from hpo.errors import CallerError, MachineError

CPU = torch.device("cpu")
MEMORY_SHORT = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def choose_device(wanted: str | None) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`; None takes CUDA when there is one. Of several GPUs (`cuda:0,1`) the first.

    Raises CallerError or MachineError.
    """
    gpus = torch.cuda.device_count()
    if wanted and re.fullmatch(r"cuda:\d+(,\d+)+", wanted):
        first, *others = wanted.removeprefix("cuda:").split(",")
        for index in others:
            choose_device(f"cuda:{index}")
        wanted = f"cuda:{first}"
    try:
        device = torch.device(wanted or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        raise CallerError(
            f"--device {wanted}: not a device. Valid: cpu, cuda, cuda:0, cuda:1, ..."
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise CallerError(
            f"--device {wanted}: not supported. Valid: cpu, cuda, cuda:0, cuda:1, ..."
        )
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise MachineError(
            f"--device {wanted}: this machine shows {gpus} CUDA devices to PyTorch {torch.__version__}. Take --device cpu"
        )
    return device


def device_name(device: torch.device, gpus: tuple[int, ...] = ()) -> str:
    """gpus: the indices, where they are several."""
    if device.type != "cuda":
        return "cpu"
    text = f"cuda:{','.join(map(str, gpus))}" if len(gpus) > 1 else str(device)
    return f"{text} ({torch.cuda.get_device_name(device)})"


def held_gpus(wanted: str | None, device: torch.device) -> tuple[int, ...]:
    """The indices of the GPUs that a worker holds. wanted: as for `choose_device`, which gave `device`."""
    if device.type != "cuda":
        return ()
    if wanted and "," in wanted:
        return tuple(int(index) for index in wanted.removeprefix("cuda:").split(","))
    return (device.index or 0,)


def check_gpus(wanted: str | None, device: torch.device, needed: int) -> None:
    """Raises CallerError if a worker with this `--device` holds too few GPUs for a training. On the CPU anything goes."""
    held = held_gpus(wanted, device)
    if held and len(held) < needed:
        more = ",".join(str(index) for index in range(needed))
        raise CallerError(
            f"--device {wanted or device}: a training of this study takes {needed} GPUs. Give --device cuda:{more}"
        )


def visible_devices(gpus: tuple[int, ...]) -> str:
    """CUDA_VISIBLE_DEVICES for a process that shall see these GPUs of ours alone, by UUID; empty for none."""
    given = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    names = []
    for index in gpus:
        ours = given[index] if index < len(given) else ""
        # A part of a GPU (MIG) has a name of its own, which the properties do not tell.
        by_name = ours.startswith(("GPU-", "MIG-"))
        names.append(ours if by_name else f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    return ",".join(names)


def is_memory_short(error: BaseException) -> bool:
    """Whether PyTorch, on a GPU or the CPU, or Python did not get the memory that they asked for."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY_SHORT)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def place_of(error: BaseException) -> str:
    """Where it was raised: train.py, line 12."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def free_memory(device: str) -> int:
    """Bytes that nobody uses: of the GPU, or of the machine."""
    if device.startswith("cuda"):
        # Of several the first, which is as full as the others.
        return torch.cuda.mem_get_info(torch.device(device.partition(",")[0]))[0]
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def taken_memory(device: torch.device) -> int:
    """Bytes that this process has taken so far at most: of the GPU, by PyTorch, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
