"""Where the lab keeps its things, and the one error its commands print."""

import os
import subprocess

LAB = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.dirname(LAB)
CACHE = os.path.abspath(os.environ.get("WRENN_CACHE_DIR") or f"{REPO}/.wrenn")
HOME = f"{CACHE}/lab"
SHARE = f"{HOME}/share"
STATE = f"{HOME}/state.json"
LOCK = f"{HOME}/lock"
COPIED = f"{HOME}/copied.json"
CONSOLE = f"{HOME}/console.log"
QEMU_LOG = f"{HOME}/qemu.log"
KERNELS = f"{HOME}/kernel"
BUSYBOX = f"{HOME}/busybox"
DATA = os.path.abspath(os.environ.get("WRENN_DATA") or f"{CACHE}/data")


class LabError(Exception):
    """Something a person can act on; printed without a traceback."""


def number(name, default):
    """A positive number from the environment."""
    text = os.environ.get(name)
    if not text:
        return default
    if not text.isdigit() or int(text) == 0:
        raise LabError(f"{name}={text}: a positive whole number is needed")
    return int(text)


def run(*command, what, **options):
    """Runs a tool of the machine; a failure names `what` was being done."""
    try:
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    except FileNotFoundError:
        raise LabError(f"{what}: `{command[0]}` is not installed; run `make setup`") from None
    if done.returncode != 0:
        raise LabError(f"{what}: `{' '.join(command)}` failed:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout


def tail(path, lines=40):
    """The last lines of a log, indented, for an error message."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return f"  ({path}: not there)"
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:]) or f"  ({path}: empty)"
