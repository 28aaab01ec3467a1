"""Many clients that send at the pace of a network, in one process: prints how many of them ended identical.

``bench_slow.py PORT COUNT BYTES_PER_S SECONDS``

They share the processor with the server that is measured, so they take as little of it as they can: plain sockets, and
one loop that sends what is due.
"""

import hashlib
import json
import os
import socket
import sys
import time

PORT, COUNT, RATE, SECONDS = (int(argument) for argument in sys.argv[1:])
PART = 16 << 10
LOOK_EACH_S = 0.001


class Client:
    """One upload."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._socket = socket.create_connection(("127.0.0.1", PORT))
        length = f"Content-Length: {len(content)}"
        self._socket.sendall(
            f"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}\r\n\r\n".encode()
        )
        self._socket.setblocking(False)
        self._sent = 0
        self._began = self.due = time.monotonic()

    def send(self) -> bool:
        """Send the part that is due, if there is room for it; whether more is to come."""
        try:
            self._sent += self._socket.send(self._content[self._sent : self._sent + PART])
        except BlockingIOError:
            return True
        self.due = self._began + self._sent / RATE
        return self._sent < len(self._content)

    def is_identical(self, digest: str) -> bool:
        """Whether the server has what was sent."""
        self._socket.settimeout(60)
        with self._socket, self._socket.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
        return head.startswith(b"HTTP/1.1 201 ") and json.loads(body)["result"]["sha256"] == digest


def main() -> None:
    """All at once."""
    content = os.urandom(RATE * SECONDS)
    clients = [Client(memoryview(content)) for _ in range(COUNT)]
    sending = list(clients)
    while sending:
        now = time.monotonic()
        ended = [client for client in sending if client.due <= now and not client.send()]
        for client in ended:
            sending.remove(client)
        time.sleep(LOOK_EACH_S)
    digest = hashlib.sha256(content).hexdigest()
    print(sum(client.is_identical(digest) for client in clients))


main()
