"""The device that a training runs on: which one, its name, its memory, and whether an error says that that is short."""

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
    """`cpu`, `cuda` or `cuda:N`; None takes CUDA when there is one. Raises CallerError or MachineError."""
    gpus = torch.cuda.device_count()
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


def device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


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
        return torch.cuda.mem_get_info(torch.device(device))[0]
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def taken_memory(device: torch.device) -> int:
    """Bytes that this process has taken so far at most: of the GPU, by PyTorch, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
