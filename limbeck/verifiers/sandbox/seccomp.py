"""A filter for system calls, as a program for the kernel: what no judged program needs is refused.

Nothing that is refused would lead out of the namespaces by itself; most ways out that were ever
found began with one of these.
"""

from __future__ import annotations

import errno
import platform
from struct import pack

# The numbers of a system call on each machine (include/uapi/asm-generic/unistd.h, and
# arch/x86/entry/syscalls/syscall_64.tbl); None where there is no such call.
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column below, AUDIT_ARCH
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    # Devices are the machine's own, and root's program owns them: it must not make them its own.
    "chmod": (90, None),
    "chown": (92, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "futimesat": (261, None),
    "lchown": (94, None),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_setup": (206, 0),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vmsplice": (278, 75),
}
CLONE3 = 435  # its flags lie in memory, where no filter can read them
CLONE = (56, 220)
FORK = ((57, None), (58, None))  # fork, vfork
SOCKET = (41, 198)
NEW_NAMESPACE = 0x7E020080  # CLONE_NEW: time, mounts, cgroups, uts, ipc, users, pids, network
THREAD = 0x00010000
FAMILIES = (1, 2, 10)  # unix, inet, inet6: no namespace keeps a program from the host's vsock

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # where they lie in struct seccomp_data


def program(may_fork: bool, machine: str = platform.machine()) -> bytes:
    """The filter as an array of struct sock_filter, for one of MACHINES.

    Without `may_fork` a program may start threads, but no process: so its memory and its number are
    bounded even where nothing counts processes together.
    """
    column, architecture = MACHINES[machine]
    refused = errno.EPERM
    lines = [
        _line(LOAD, ARCHITECTURE),
        _line(EQUAL, architecture, 1, 0),
        _line(RETURN, KILL),
        _line(LOAD, NUMBER),
        _line(AT_LEAST, 0x40000000, 0, 1),  # x32, the same calls under other numbers
        _line(RETURN, KILL),
        *_refuse(CLONE3, errno.ENOSYS),  # the C library then takes clone
    ]
    numbers = [both[column] for both in (*REFUSED.values(), *(() if may_fork else FORK))]
    for number in numbers:
        if number is not None:
            lines += _refuse(number, refused)
    flags = [_line(ANY_BIT, NEW_NAMESPACE, 0, 1), _line(RETURN, REFUSE | refused)]
    if not may_fork:
        flags += [_line(ANY_BIT, THREAD, 1, 0), _line(RETURN, REFUSE | errno.EAGAIN)]
    families = [_line(EQUAL, family, len(FAMILIES) - at, 0) for at, family in enumerate(FAMILIES)]
    families += [_line(RETURN, REFUSE | errno.EAFNOSUPPORT)]
    lines += _looked_into(CLONE[column], flags) + _looked_into(SOCKET[column], families)
    return b"".join([*lines, _line(RETURN, ALLOW)])


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return pack("=HBBI", code, if_true, if_false, value)


def _refuse(number: int, error: int) -> list[bytes]:
    return [_line(EQUAL, number, 0, 1), _line(RETURN, REFUSE | error)]


def _looked_into(number: int, checks: list[bytes]) -> list[bytes]:
    """For one system call: its first argument is loaded, checked, and what passes is allowed."""
    lines = [_line(LOAD, FIRST_ARGUMENT), *checks, _line(RETURN, ALLOW)]
    return [_line(EQUAL, number, 0, len(lines)), *lines]
