"""In the lab: copies images and guest files that are new or changed from the machine's data directory to the scratch disk.

Usage: data.py SOURCE TARGET. Over 9p no loop device can be made and holes are not seen, hence copies; `lab up` runs this
as a command of the lab. A file appears under its name when it is whole. What is being built (names that begin with a dot)
and what is not a plain file stays behind. One runs at a time.
"""

import fcntl
import os
import stat
import subprocess
import sys


def main(source, target):
    os.makedirs(target, exist_ok=True)
    with open(f"{target}/.copying", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path, signature in listing(source):
            if copy(os.path.join(source, path), os.path.join(target, path), signature):
                print(f"lab: copied {path} to {target}", file=sys.stderr)


def listing(source):
    """Every file to copy, below `source`, with what tells whether it changed: size and time in nanoseconds."""
    found = []
    for part in ("images", "guest"):
        for directory, inner, names in os.walk(os.path.join(source, part)):
            inner[:] = [name for name in inner if not name.startswith(".")]
            paths = [os.path.join(directory, name) for name in names if not name.startswith(".")]
            found += [(os.path.relpath(path, source), state) for path in paths if (state := signature(path))]
    return sorted(found)


def signature(path):
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return None
    return (state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else None


def copy(source, target, changed):
    if signature(target) == changed:
        return False
    os.makedirs(os.path.dirname(target), exist_ok=True)
    part = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.part")
    subprocess.run(["cp", "--sparse=always", "--preserve=mode,timestamps", source, part], check=True)
    os.rename(part, target)
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
