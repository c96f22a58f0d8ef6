"""Sockets on which processes listen, as the kernel lists them in /proc."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from pathlib import Path

_LISTENS = "0A"  # of the states of a TCP socket
_RECEIVES = "07"  # of a UDP socket that is not connected


def process_tree(root: int) -> set[int]:
    """Process and all its descendants."""
    children: dict[int, set[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, set()).add(int(folder.name))
    found, new = set(), {root}
    while new:
        found |= new
        new = {child for parent in new for child in children.get(parent, ())} - found
    return found


def parent_of(process: int) -> int | None:
    """Parent of a process; None when the process has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def listening(processes: set[int]) -> dict[tuple[str, int], int]:
    """Address and port of each socket of the Internet protocols that takes what anybody sends → its process."""
    owners: dict[str, int] = {}
    for process in processes:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if found := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                        owners[found[1]] = process
    sockets = {}
    for protocol, state in (("tcp", _LISTENS), ("tcp6", _LISTENS), ("udp", _RECEIVES), ("udp6", _RECEIVES)):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
                _, local, _, status, *rest = line.split()
                if status == state and rest[5] in owners:
                    address, port = local.split(":")
                    sockets[_text(address), int(port, 16)] = owners[rest[5]]
    return sockets


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _text(address: str) -> str:
    """Address in its usual form; the kernel writes words of 32 bits in the order of the machine."""
    words = bytes.fromhex(address)
    return str(ipaddress.ip_address(b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))))
