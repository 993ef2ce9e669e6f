"""A process of its own on each node of a run, which says that the node is alive and notices when another one is not. Only the standard library.

Nodes send a few bytes by UDP to the first node, which answers with the names of those that have gone silent. Why not in the training process: it may hold Python's lock
for longer than a node may be silent. Why not only SLURM: it notices after SlurmdTimeout (300 s by default), and NCCL waits for ever for a node without power.

Run by `nodes.py`: python -m mc2.training.heartbeat TOKEN ADDRESS PORT NODE SECONDS HOST. It lives until something is to be read from its standard input, or that is
closed, and prints one line before it ends when a node is lost.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

BEATS = 10  # within the time after which a node counts as lost


@dataclass
class Watch:
    """When each of the others was heard last, by this machine's clock alone. A node that was never heard is not missed: its messages may be blocked."""

    seconds: float
    heard: dict[int, tuple[float, str]] = field(default_factory=dict)
    looked: float | None = None

    def hear(self, node: int, host: str, now: float) -> None:
        self.heard[node] = (now, host)

    def forget(self, node: int) -> None:
        """It has ended in order, or with an error of its own."""
        self.heard.pop(node, None)

    def silent(self, now: float) -> list[str]:
        """Hosts that are lost. Whoever slept himself (a suspended job) has not heard anybody: everybody gets a new chance."""
        if self.looked is not None and now - self.looked > self.seconds / 2:
            self.heard = {node: (now, host) for node, (_, host) in self.heard.items()}
        self.looked = now
        return sorted(host for when, host in self.heard.values() if now - when > self.seconds)


def beat(token: str, address: str, port: int, node: int, seconds: float, host: str) -> str:
    """Beat until the parent closes the pipe ("") or a node is lost (what to tell)."""
    watch = Watch(seconds)
    first = node == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        if first:
            udp.bind(("", port))
        hello = json.dumps({"token": token, "node": node, "host": host}).encode()
        following: dict[int, Any] = {}  # node -> where it sends from
        next_beat = 0.0
        while True:
            ready, _, _ = select.select([udp, sys.stdin], [], [], max(0.0, min(1.0, next_beat - time.monotonic())))
            now = time.monotonic()
            if sys.stdin in ready:  # the training process has ended
                goodbye = json.dumps({"token": token, "node": node, "bye": True}).encode()
                for place in following.values() if first else [(address, port)]:
                    send(udp, goodbye, place)
                return ""
            if udp in ready:
                message, place = receive(udp, token)
                if message.get("silent"):
                    return lost(message["silent"], seconds)
                if message.get("bye"):
                    watch.forget(message["node"])
                    following.pop(message["node"], None)
                elif message:
                    watch.hear(message["node"], message["host"], now)
                    following[message["node"]] = place
                    if first:
                        send(udp, hello, place)
            if now >= next_beat:
                next_beat = now + seconds / BEATS
                if not first:
                    send(udp, hello, (address, port))
            if silent := watch.silent(now):
                verdict = json.dumps({"token": token, "silent": silent}).encode()
                for place in following.values() if first else []:
                    send(udp, verdict, place)
                return lost(silent, seconds)


def lost(hosts: list[str], seconds: float) -> str:
    """What to tell."""
    return f"node {', '.join(hosts)} has not answered for {seconds:g} s and counts as lost; the run ends here and goes on from its last checkpoint"


def send(udp: socket.socket, message: bytes, place: Any) -> None:
    """A message that may get lost, as all of them."""
    with contextlib.suppress(OSError):
        udp.sendto(message, place)


def receive(udp: socket.socket, token: str) -> tuple[dict[str, Any], Any]:
    """A message of this run, or nothing."""
    try:
        data, place = udp.recvfrom(65536)
        message = json.loads(data)
    except (OSError, ValueError):
        return {}, None
    return (message, place) if isinstance(message, dict) and message.get("token") == token else ({}, None)


def main(arguments: list[str]) -> int:
    """See the head of this file."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # meant for the training process, whose end ends this one
        signal.signal(number, signal.SIG_IGN)
    token, address, port, node, seconds, host = arguments
    with contextlib.suppress(BrokenPipeError):
        print(beat(token, address, int(port), int(node), float(seconds), host), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
