"""Whether a folder lies on a file system that other machines may have mounted too."""

import ctypes
import os
import sys
from pathlib import Path

# f_type of statfs(2), from linux/magic.h or the sources of file systems outside the kernel.
NETWORK = {
    0x6969: "NFS",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x517B: "SMB",
    0x65735546: "FUSE",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x01021997: "9P",
    0x73757245: "Coda",
    0x7461636F: "OCFS2",
    0x01161970: "GFS2",
    0xAAD7AAEA: "PanFS",
    0x786F4256: "vboxsf",
    0x2030528D: "OrangeFS",
    0x013111A8: "IBRIX",
    0xBACBACBC: "VMware's shared folders",
}
# File systems in memory, which are empty after a reboot.
VOLATILE = {0x01021994, 0x858458F6}
# struct statfs has at most 120 bytes on Linux. Its first field is f_type, a long.
STATFS_BYTES = 256


def network_filesystem(folder: Path) -> str | None:
    """The name of the network file system that holds the folder; None if it is local or unknown."""
    return NETWORK.get(_magic(folder))


def is_lasting(folder: Path) -> bool:
    """Whether the folder exists on a disk of this machine."""
    return folder.is_dir() and _magic(folder) not in NETWORK.keys() | VOLATILE


def _magic(folder: Path) -> int:
    """The f_type of the file system; 0 on systems that do not report one."""
    if sys.platform != "linux":
        return 0
    buffer = ctypes.create_string_buffer(STATFS_BYTES)
    if ctypes.CDLL(None).statfs(os.fsencode(folder), buffer):
        return 0
    return int(ctypes.c_long.from_buffer(buffer).value) & 0xFFFFFFFF
