"""What a download may reach and start: addresses of the public internet, and no program but the JavaScript runtime.

An address in a data set's metadata, a redirect or a site's answer may name a host of the user's own network, with
services that trust whoever asks from inside (a cloud's metadata service, a notebook, a store). The check is made where
every connection of this process passes, whichever library opens it, on the very address that is connected to: Python
raises audit events there (PEP 578). So a redirect, or a name that resolves differently the second time, does not get
around it. It is no sandbox: it holds for the downloader's code, which is trusted, not for code from outside.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

PROGRAMS = ("deno",)
"""Programs that may be started: yt-dlp runs a site's own JavaScript in it, without files and network."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOCAL_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.[01]\r\n")
_HOST = re.compile(rb"\r\nhost:[ \t]*([^\s\r\n]+)", re.IGNORECASE)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_local(address: Address) -> bool:
    """Whether an address is none of the public internet: private, loopback, link-local, multicast, reserved."""
    if isinstance(address, ipaddress.IPv6Address):
        # An IPv4 address inside is where the packets end up.
        for inner in (address.ipv4_mapped, address.sixtofour, address.teredo and address.teredo[1]):
            if inner is not None and is_local(inner):
                return True
        if address in _NAT64 and is_local(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)):
            return True
    return not address.is_global or address.is_multicast


class NetworkGuard:
    """Refuses connections and programs while it is active. One at a time can be active in a process."""

    def __init__(self, local_hosts: Sequence[str] = ()) -> None:
        """Look up the hosts that may be reached although they are local.

        Args:
            local_hosts: Names or addresses of hosts of the local network that may be asked all the same.

        Raises:
            ValueError: One of these hosts is not known.
        """
        self._on_refusal: Callable[[str], object] = str
        self._names = {host.lower() for host in local_hosts}
        self._addresses: set[Address] = set()
        for host in local_hosts:
            found = _resolve(host)
            if not found:
                raise ValueError(f"the host {host!r} is not known; give a name or an address without port")
            self._addresses |= found
        # The user's own proxy may stand in the local network. What is asked through it is checked by name.
        self._proxies = _proxies()

    @contextlib.contextmanager
    def active(self, on_refusal: Callable[[str], object]) -> Iterator[None]:
        """Refuse connections and programs of this process inside the block.

        Args:
            on_refusal: Called with the message when a connection is refused; libraries turn the error into their own.
        """
        global _active
        assert _active is None, "another guard is active"
        self._on_refusal = on_refusal
        _install()
        _active = self
        try:
            yield
        finally:
            _active = None

    def check_connection(self, address: object) -> None:
        """Raise `PermissionError` unless a connection to an address (of the socket module) is allowed."""
        if not isinstance(address, tuple) or len(address) < 2:  # a local socket, which no address of a site leads to
            return
        host, port = str(address[0]), address[1]
        for found in _resolve(host):
            if is_local(found) and found not in self._addresses and (found, port) not in self._proxies:
                raise self._refusal(host, found)

    def check_request(self, data: object) -> None:
        """Raise `PermissionError` unless what an HTTP request asks for is allowed, which a proxy would fetch."""
        if not self._proxies or not isinstance(data, bytes | bytearray):
            return
        head = bytes(data[: 1 << 16])
        if not (request := _REQUEST.match(head)):
            return
        host = request[2] if request[1] == b"CONNECT" else (match[1] if (match := _HOST.search(head)) else b"")
        self.check_host(host.decode("latin-1"))

    def check_host(self, netloc: str) -> None:
        """Raise `PermissionError` for a host, with or without port, that is known to be local."""
        host = (urllib.parse.urlsplit(f"//{netloc}").hostname or "").rstrip(".")
        if host in self._names:
            return
        if host == "localhost" or host.endswith(_LOCAL_NAMES):
            raise self._refusal(host)
        for found in _resolve(host):  # a name that only the proxy knows resolves to nothing here
            if is_local(found) and found not in self._addresses:
                raise self._refusal(host, found)

    def _refusal(self, host: str, address: Address | None = None) -> PermissionError:
        where = f" ({address})" if address is not None and str(address) != host else ""
        message = (
            f"{host}{where} is an address of the local network, which no site has to name; --local-hosts allows it"
        )
        self._on_refusal(message)
        return PermissionError(message)

    def check_program(self, program: object) -> None:
        """Raise `PermissionError` for a program that may not be started, as if it were not there."""
        name = program.decode("utf-8", "replace") if isinstance(program, bytes) else str(program)
        if PurePath(name).name not in PROGRAMS:
            raise PermissionError(f"a download starts no program but {', '.join(PROGRAMS)}: not {name}")


def _resolve(host: str) -> set[Address]:
    """Addresses of a host; none where it is not known."""
    try:
        return {ipaddress.ip_address(host)}
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {ipaddress.ip_address(str(entry[4][0])) for entry in found}


def _proxies() -> set[tuple[Address, int]]:
    """Addresses and ports of the proxies that the user's environment names."""
    found: set[tuple[Address, int]] = set()
    for kind, value in urllib.request.getproxies().items():
        if kind == "no" or not value:
            continue
        parts = urllib.parse.urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 1080)
        found |= {(address, port) for address in _resolve(parts.hostname or "")}
    return found


_active: NetworkGuard | None = None
_installed = False


def _install() -> None:
    """Add the audit hook, which stays for the rest of the process."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    guard = _active
    if guard is None:
        return
    if event in ("socket.connect", "socket.sendto"):
        guard.check_connection(arguments[1])
    elif event == "http.client.send":
        guard.check_request(arguments[1])
    elif event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.system"):
        guard.check_program(arguments[0])
