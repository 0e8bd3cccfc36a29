"""Frames between a `lab` command on the machine and the exec service in the lab.

A frame is one kind byte, a four-byte big-endian length and that many bytes. Both ends run this file, so there is no
version to agree on. `receive` answers None at a clean or broken end of the stream: to either end they mean the same,
the peer is gone.
"""

import json
import struct

REQUEST = b"R"  # to the lab: JSON; always the first frame
STDIN = b"I"  # to the lab: bytes for the command; empty = end of input
SIGNAL = b"K"  # to the lab: JSON signal number for the command's process group
STDOUT = b"O"  # from the lab: bytes
STDERR = b"E"  # from the lab: bytes
ALIVE = b"A"  # from the lab: nothing to say, still here
EXIT = b"X"  # from the lab: JSON, the last frame of a session
FAULT = b"F"  # from the lab: JSON text, the request could not be served; last frame

ALIVE_EVERY = 5.0  # seconds
MAX_FRAME = 1 << 22
_HEADER = struct.Struct("!cI")


def send(sock, kind, payload=b""):
    """Sends one frame; the caller serialises writers."""
    sock.sendall(_HEADER.pack(kind, len(payload)) + payload)


def send_json(sock, kind, value):
    """Sends one frame with `value` as JSON."""
    send(sock, kind, json.dumps(value).encode())


def receive(sock):
    """The next `(kind, payload)`, or None when the peer is gone."""
    header = _exactly(sock, _HEADER.size)
    if header is None:
        return None
    kind, length = _HEADER.unpack(header)
    if length > MAX_FRAME:
        return None
    payload = _exactly(sock, length)
    return None if payload is None else (kind, payload)


def _exactly(sock, count):
    parts = bytearray()
    while len(parts) < count:
        try:
            part = sock.recv(count - len(parts))
        except ConnectionError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)
