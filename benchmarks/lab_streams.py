"""A TCP stream between two network namespaces of this machine, and the rate at which it arrives."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAMESPACES = Path("/var/run/netns")  # where iproute2 keeps them by name
_TIMEOUT_S = 30.0
_CLONE_NEWNET = 0x40000000  # from <sched.h>


def stream(source: str, target: str, address: str, num_bytes: int) -> float:
    """Bytes per second of a TCP stream between two network namespaces, counted where it arrives.

    Args:
        source: the namespace that sends.
        target: the one that receives, at `address`.

    Raises:
        OSError: it cannot be opened, or did not end within 30 s.
    """
    server, client = _socket_on(target), _socket_on(source)
    with contextlib.ExitStack() as sockets:
        sockets.enter_context(server)
        sockets.enter_context(client)
        server.bind((address, 0))
        server.listen()
        client.connect(server.getsockname())
        receiver = sockets.enter_context(server.accept()[0])
        receiver.settimeout(_TIMEOUT_S)
        sender = threading.Thread(target=_send, args=(client, num_bytes))
        sender.start()
        try:
            return _receive(receiver)
        finally:
            sender.join(_TIMEOUT_S)


def _socket_on(namespace: str) -> socket.socket:
    """A TCP socket that belongs to that namespace, whichever thread uses it later."""
    with ThreadPoolExecutor(1) as pool:  # a thread of its own changes its namespace and ends
        return pool.submit(_enter_and_open, namespace).result()


def _enter_and_open(namespace: str) -> socket.socket:
    with (NAMESPACES / namespace).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns({namespace}) failed")
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.settimeout(_TIMEOUT_S)
    return opened


def _send(client: socket.socket, num_bytes: int) -> None:
    block = bytes(2**18)
    with contextlib.suppress(OSError):  # the receiver tells
        for start in range(0, num_bytes, len(block)):
            client.sendall(block[: num_bytes - start])
        client.shutdown(socket.SHUT_WR)


def _receive(receiver: socket.socket) -> float:
    """Bytes per second between the first and the last arrival."""
    block = bytearray(2**20)
    receiver.recv_into(block)
    started_s, received = time.monotonic(), 0
    while count := receiver.recv_into(block):
        received += count
        if time.monotonic() - started_s > _TIMEOUT_S:
            raise TimeoutError(f"{received} bytes arrived in {_TIMEOUT_S:.0f} s")
    return received / (time.monotonic() - started_s)
