"""The device that a training runs on: which one, its name, and whether an error says that its memory is short."""

import torch

from hpo.errors import CallerError, MachineError

CPU = torch.device("cpu")
MEMORY_SHORT = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def choose_device(wanted: str | None) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`; None takes CUDA when there is one. Raises CallerError or MachineError."""
    gpus = torch.cuda.device_count()
    try:
        device = torch.device(wanted or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        raise CallerError(f"--device {wanted}: not a device. Valid: cpu, cuda, cuda:0, cuda:1, ...") from None
    if device.type not in ("cpu", "cuda"):
        raise CallerError(f"--device {wanted}: not supported. Valid: cpu, cuda, cuda:0, cuda:1, ...")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise MachineError(f"--device {wanted}: this machine shows {gpus} CUDA devices to PyTorch {torch.__version__}. Take --device cpu")
    return device


def device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


def is_memory_short(error: BaseException) -> bool:
    """Whether PyTorch, on a GPU or the CPU, or Python did not get the memory that they asked for."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY_SHORT)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
