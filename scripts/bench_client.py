"""A client that costs as little as can be: sends a file from the page cache, prints the status and the seconds.

``bench_client.py PORT METHOD PATH FILE [HEADER…]``
"""

import socket
import sys
import time
from pathlib import Path

port, method, path, name, *headers = sys.argv[1:]
size = Path(name).stat().st_size
lines = [
    f"{method} {path} HTTP/1.1",
    "Host: localhost",
    "Connection: close",
    f"Content-Length: {size}",
    *headers,
    "",
    "",
]
begun = time.perf_counter()
with socket.create_connection(("127.0.0.1", int(port))) as sock, Path(name).open("rb") as file:
    sock.sendall("\r\n".join(lines).encode())
    try:
        sock.sendfile(file)
    except ConnectionError:
        print("cut off")
        sys.exit()
    status = sock.recv(12)[9:].decode()
    print(status, time.perf_counter() - begun)
