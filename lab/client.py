"""The machine's end of a command in the lab: streams, signals, limits, exit status."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time

import data
import machine
import wire
from paths import COPIED, DATA, LAB, LabError, number

# What of the caller's environment means something in the lab.
KEEP = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TERM", "COLUMNS", "NO_COLOR", "LD_LIBRARY_PATH"}
KEEP_PREFIXES = ("RUST", "CARGO", "NEXTEST", "WRENN", "LC_", "PROPTEST", "CLICOLOR", "__RUST")
INSIDE = {
    "WRENN_IN_LAB": "1",
    "WRENN_SCRATCH": "/scratch",
    "WRENN_SCRATCH_EXT4": "/scratch-ext4",
    "WRENN_DATA": "/scratch/data",
    "WRENN_TEST_DATA": "/scratch/data",
}
SILENCE_LIMIT = 60  # seconds without even an "alive" frame, after which the lab hangs
DYING_LIMIT = 10  # seconds from a broken connection to the end of QEMU's process
KILL_GRACE = 5  # seconds between passing a signal on and cutting the command off
LIMIT_STATUS = 124


def environment():
    kept = {n: v for n, v in os.environ.items() if n in KEEP or n.startswith(KEEP_PREFIXES)}
    return {**kept, **INSIDE}


def connect(state, request):
    try:
        sock = socket.create_connection(("127.0.0.1", state["port"]), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.send_json(sock, wire.REQUEST, {"token": state["token"], **request})
    except OSError as error:
        raise lost(state, str(error)) from None
    sock.settimeout(SILENCE_LIMIT)
    return sock


def lost(state, how):
    # A process that ends closes its connections first, and then takes a while to give back its memory.
    deadline = time.monotonic() + DYING_LIMIT
    while (alive := machine.started(state["pid"]) == state["started"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    what = "does not answer" if alive else "died"
    return given_up(state, f"the lab {what} ({how})")


def given_up(state, what):
    """An error with the logs as they are now; the lab goes, so that the next command boots another."""
    error = LabError(f"{what}; the next command boots another\n{machine.logs()}")
    machine.give_up(state)
    return error


def copy_data(state):
    """Brings images and guest files that are new or changed to the lab's scratch disk."""
    copied = {"token": state["token"], "files": [[path, *signature] for path, signature in data.listing(DATA)]}
    with contextlib.suppress(OSError, ValueError), open(COPIED, encoding="utf-8") as file:
        if json.load(file) == copied:
            return  # a command in the lab is dear: none to learn that there is nothing to do
    if not copied["files"]:
        return
    command = ["/usr/bin/python3", "-I", f"{LAB}/data.py", DATA, INSIDE["WRENN_DATA"]]
    status = execute(state, command, number("WRENN_LAB_COPY_LIMIT", 600), False, cwd="/")
    if status != 0:
        raise LabError(f"copying {DATA} to the lab failed (status {status})")
    with open(COPIED, "w", encoding="utf-8") as file:
        json.dump(copied, file)


def execute(state, command, limit, stdin, cwd=None):
    """Runs one command; answers its exit status (128 + n for signal n)."""
    request = {"command": command, "cwd": cwd or os.getcwd(), "env": environment(), "stdin": stdin}
    sock = connect(state, request)
    with contextlib.ExitStack() as stack:
        return converse(state, sock, command, limit, stdin, stack)


def converse(state, sock, command, limit, stdin, stack):
    stack.callback(sock.close)
    cut_off = threading.Event()
    sending = threading.RLock()  # the input's thread and signal handlers write to one socket
    status_if_cut = [LIMIT_STATUS]

    def cut():
        cut_off.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    def out_of_time():
        print(f"lab: over the limit of {limit} s, ended: {' '.join(command)}", file=sys.stderr)
        cut()

    def pass_on(number, _):
        status_if_cut[0] = 128 + number
        after(KILL_GRACE, cut)
        with contextlib.suppress(OSError), sending:
            wire.send_json(sock, wire.SIGNAL, number)

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        stack.callback(signal.signal, name, signal.signal(name, pass_on))
    stack.callback(after(limit, out_of_time).cancel)
    if stdin:
        threading.Thread(target=feed, args=(sock, sending), daemon=True).start()
    try:
        ended = relay(sock)
    except TimeoutError:
        raise given_up(state, f"the lab has been silent for {SILENCE_LIMIT} s: it hangs") from None
    except BrokenPipeError:  # whoever read our output has gone; dropping the connection ends the command
        return 128 + signal.SIGPIPE
    if ended is None and cut_off.is_set():
        return status_if_cut[0]
    if ended is None:
        raise lost(state, "the connection ended before the command did")
    if ended["left"]:
        print(f"lab: the command left {ended['left']} processes running; they were ended", file=sys.stderr)
    status = ended["status"]
    return status if status >= 0 else 128 - status


def after(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer


def relay(sock):
    """Copies output until the command ends; None when the connection ends first."""
    outputs = {wire.STDOUT: sys.stdout.buffer, wire.STDERR: sys.stderr.buffer}
    while True:
        frame = wire.receive(sock)
        if frame is None:
            return None
        kind, payload = frame
        if kind in outputs:
            outputs[kind].write(payload)
            outputs[kind].flush()
        elif kind == wire.EXIT:
            return json.loads(payload)
        elif kind == wire.FAULT:
            raise LabError(json.loads(payload))


def feed(sock, sending):
    try:
        data = True
        while data:
            data = os.read(0, 1 << 16)
            with sending:
                wire.send(sock, wire.STDIN, data)
    except OSError:
        pass  # the command is over; its status is on the way
