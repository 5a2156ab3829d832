"""The device that a training runs on: which one, its name, its memory, and errors about that."""

import os
import re
import resource
import traceback
from pathlib import Path

import torch

from hpo.errors import CallerError, MachineError

CPU = torch.device("cpu")
# Texts of RuntimeErrors that say that memory is short.
MEMORY_SHORT = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def choose_device(wanted: str | None) -> torch.device:
    """The device for `cpu`, `cuda` or `cuda:N`; None takes CUDA if there is any.

    Of several GPUs (`cuda:0,1`) it is the first. Raises CallerError or MachineError.
    """
    gpus = torch.cuda.device_count()
    if wanted and re.fullmatch(r"cuda:\d+(,\d+)+", wanted):
        first, *others = wanted.removeprefix("cuda:").split(",")
        for index in others:
            choose_device(f"cuda:{index}")
        wanted = f"cuda:{first}"
    default = "cuda" if gpus else "cpu"
    try:
        device = torch.device(wanted or default)
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
            f"--device {wanted}: PyTorch {torch.__version__} sees {gpus} CUDA devices on this "
            f"machine. Use --device cpu"
        )
    return device


def device_name(device: torch.device, gpus: tuple[int, ...] = ()) -> str:
    """The device with its model: cuda:0 (NVIDIA H200). gpus: the indices, if there are several."""
    if device.type != "cuda":
        return "cpu"
    name = str(device)
    if len(gpus) > 1:
        name = f"cuda:{','.join(map(str, gpus))}"
    return f"{name} ({torch.cuda.get_device_name(device)})"


def held_gpus(wanted: str | None, device: torch.device) -> tuple[int, ...]:
    """The indices of the GPUs that a worker holds; empty on the CPU.

    wanted: as for `choose_device`, which returned `device`.
    """
    if device.type != "cuda":
        return ()
    if wanted and "," in wanted:
        return tuple(int(index) for index in wanted.removeprefix("cuda:").split(","))
    return (device.index or 0,)


def check_gpus(wanted: str | None, device: torch.device, needed: int) -> None:
    """Raises CallerError if a worker with this `--device` holds too few GPUs for a training.

    The CPU is always enough.
    """
    held = held_gpus(wanted, device)
    if held and len(held) < needed:
        enough = ",".join(str(index) for index in range(needed))
        raise CallerError(
            f"--device {wanted or device}: a training of this study takes {needed} GPUs. Give "
            f"--device cuda:{enough}"
        )


def visible_devices(gpus: tuple[int, ...]) -> str:
    """CUDA_VISIBLE_DEVICES for a process that may see only these of this process's GPUs.

    The GPUs are named by UUID; empty for none.
    """
    visible_here = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = []
    for index in gpus:
        name = visible_here[index].strip() if index < len(visible_here) else ""
        # A part of a GPU (MIG) has a name of its own, which its properties do not tell.
        if not name.startswith(("GPU-", "MIG-")):
            name = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        names.append(name)
    return ",".join(names)


def is_memory_short(error: BaseException) -> bool:
    """Whether PyTorch, on a GPU or the CPU, or Python ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return any(words in text for words in MEMORY_SHORT)


def place_of(error: BaseException) -> str:
    """Where the error was raised: train.py, line 12."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def first_line(error: BaseException) -> str:
    """The first line of the error's text."""
    return (str(error).strip() or "no message").splitlines()[0]


def free_memory(device: str, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """The free bytes of the GPU, or of the machine; None if this machine does not tell.

    meminfo: the kernel's table, as in proc(5).
    """
    if device.startswith("cuda"):
        # Of several GPUs the first is as full as the others.
        first = torch.device(device.partition(",")[0])
        try:
            return torch.cuda.mem_get_info(first)[0]
        except RuntimeError:
            # A GPU that has fallen off the bus.
            return None
    try:
        table = meminfo.read_text()
    except OSError:
        return None
    # Kernels before 3.14 and some containers do not estimate what is available.
    for name in ("MemAvailable", "MemFree"):
        found = re.search(rf"^{name}:\s*(\d+) kB", table, re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return None


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has taken so far: of the GPU by PyTorch, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
