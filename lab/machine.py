"""The QEMU process: up, down, status.

State is one file, written when QEMU starts and again when the lab is ready. It names QEMU by pid *and* start time, so
a file left by a crash or a reboot never names somebody else's process. `up` and `down` hold a file lock throughout: of
two callers at once one boots, the other finds it booted; and a lab that is not ready when the lock is free belongs to
a caller that was killed, and is ended.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time

import parts
from paths import CACHE, CONSOLE, DATA, HOME, LAB, LOCK, QEMU_LOG, REPO, SHARE, STATE, LabError, number, run, tail

QEMU = "qemu-system-x86_64"
READY = b"wrenn-lab: ready"
# What the kernel says when an emulated CPU has lost its timer, which happens now and then early on.
STALLED = b"rcu_preempt detected stalls"
# One more than programs get: see `confine` in inside.py.
CPUS_OF_ITS_OWN = 1
# Debian's kernel would clear each page as it hands it out, most of which are then written whole: guest memory.
COMMAND_LINE = "console=ttyS0 quiet panic=-1 tsc=reliable clocksource=tsc mitigations=off init_on_alloc=0"
SCRATCH, SCRATCH_EXT4, INITRAMFS = (f"{HOME}/{name}" for name in ("scratch.img", "scratch-ext4.img", "initramfs.img"))


@contextlib.contextmanager
def locked():
    os.makedirs(SHARE, exist_ok=True)
    os.chmod(HOME, 0o700)
    with open(LOCK, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def started(pid):
    """When the process started, in clock ticks, or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            after_name = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] == "Z" else int(after_name[19])


def recorded():
    """What the state file says of a QEMU that still lives, ready or not; None when there is none."""
    try:
        with open(STATE, encoding="utf-8") as file:
            found = json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found if started(found["pid"]) == found["started"] else None


def state():
    """The lab that commands can be sent to, or None."""
    found = recorded()
    return found if found and found.get("ready") else None


def record(found):
    with open(os.open(f"{STATE}.part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.rename(f"{STATE}.part", STATE)


def needed():
    """Whether this machine's programs go to the lab at all: what lab/runner decides, for a whole run."""
    choice = os.environ.get("WRENN_LAB") or "auto"
    if choice not in ("auto", "always", "1", "never", "0"):
        raise LabError(f"WRENN_LAB={choice}: use auto, always or never")
    if os.environ.get("WRENN_IN_LAB") or choice in ("never", "0"):
        return False
    return choice != "auto" or subprocess.run([f"{LAB}/own-kvm"], check=False).returncode != 0


def up(say):
    """Boots the lab unless it runs; answers `(state, whether this call booted it)`."""
    with locked():
        found = state()
        if found:
            return found, False
        clear()
        say("lab: booting (software emulation; usually 10 to 30 s)")
        begun = time.monotonic()
        for attempt in range(3):
            try:
                found = boot()
                break
            except FailedAttempt as why:
                if attempt == 2:
                    raise LabError(f"{why}, three times\n{logs()}") from None
                say(f"lab: {why}; once more")
        say(f"lab: up after {time.monotonic() - begun:.1f} s (kernel {found['kernel']})")
        return found, True


def down():
    """Ends the lab; answers whether there was one."""
    with locked():
        return clear()


def clear():
    """Ends whatever QEMU is on record and removes its files; answers whether there was one. Under the lock."""
    found = recorded()
    if found:
        end(found["pid"])
    for path in (STATE, SCRATCH, SCRATCH_EXT4, INITRAMFS):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return found is not None


def give_up(dead):
    """Ends a lab that hangs or has died, so that the next command boots another, unless somebody did so already."""
    with locked():
        found = recorded()
        if found is None or found["started"] == dead["started"]:
            clear()
            # The next boot begins another.
            with contextlib.suppress(FileNotFoundError):
                os.replace(CONSOLE, f"{CONSOLE}.dead")


def end(pid):
    # Nothing in the lab outlives it, so there is nothing to shut down in order.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    while started(pid) is not None:
        time.sleep(0.01)


class FailedAttempt(Exception):
    """A boot that failed as another may not."""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def boot():
    if not shutil.which(QEMU):
        raise LabError(f"{QEMU} is not installed; run `make setup`")
    vmlinux, root, version = parts.kernel()
    port, token = free_port(), secrets.token_hex(16)
    shares = shared_directories()
    parts.make_initramfs(
        INITRAMFS,
        {
            "token": token, "port": port, "shares": shares, "modules_root": root,
            "idle_seconds": 60 * number("WRENN_LAB_IDLE_MINUTES", 120),
        },
        root, version,
    )  # fmt: skip
    make_scratch_disks()
    qemu = start_qemu(qemu_arguments(vmlinux, port, shares))
    found = {"pid": qemu.pid, "started": started(qemu.pid), "port": port, "token": token, "kernel": version}
    try:
        record({**found, "ready": False})
        wait_until_ready(qemu, port)
        found["ready"] = True
        record(found)
    except BaseException:
        qemu.kill()
        qemu.wait()
        raise
    return found


def shared_directories():
    """What is mounted once more after the lab has put its own /tmp and /var in place, each under its own path."""
    shares = [{"path": REPO, "writable": False}]
    for path in (CACHE, DATA, os.environ.get("CARGO_TARGET_DIR")):
        path = path and os.path.abspath(path)
        if path and os.path.isdir(path) and not any(f"{path}/".startswith(f"{s['path']}/") for s in shares):
            shares.append({"path": path, "writable": False})
    shares.append({"path": SHARE, "writable": True})
    return [{"tag": f"share{index}", **share} for index, share in enumerate(shares)]


def make_scratch_disks():
    """Sparse files, new at each boot; both file systems have 4 KiB blocks."""
    size = number("WRENN_LAB_SCRATCH_GIB", 40) << 30
    for path, bytes_long in ((SCRATCH, size), (SCRATCH_EXT4, 8 << 30)):
        with open(path, "wb") as file:
            os.truncate(file.fileno(), bytes_long)
    run("mkfs.xfs", "-q", "-K", "-b", "size=4096", "-m", "reflink=1", SCRATCH, what="making the scratch disk")
    run("mkfs.ext4", "-q", "-b", "4096", "-E", "nodiscard", SCRATCH_EXT4, what="making the ext4 scratch disk")


def memory_mib():
    """6 GiB, or three quarters of a machine with less than eight."""
    with open("/proc/meminfo", encoding="utf-8") as file:
        total = int(file.readline().split()[1]) >> 10
    return number("WRENN_LAB_MIB", min(6144, total * 3 // 4))


def qemu_arguments(vmlinux, port, shares):
    arguments = [
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        # Without SSE 4.2, whose CRC32 QEMU works out bit by bit: tables are several times as fast.
        "-machine", "q35,accel=tcg", "-cpu", "EPYC,+svm,+npt,-sse4.2",
        "-smp", str(CPUS_OF_ITS_OWN + number("WRENN_LAB_CPUS", 2)),
        "-m", str(memory_mib()), "-rtc", "base=utc",
        "-kernel", vmlinux, "-initrd", INITRAMFS, "-append", COMMAND_LINE,
        "-serial", f"file:{quoted(CONSOLE)}", "-device", "virtio-rng-pci",
        "-netdev", "user,id=net" + "".join(f",hostfwd=tcp:127.0.0.1:{p}-:{p}" for p in [port, *forwarded_ports()]),
        "-device", "virtio-net-pci,netdev=net,romfile=",
    ]  # fmt: skip
    for name, path in (("scratch", SCRATCH), ("ext4", SCRATCH_EXT4)):
        drive = f"if=none,id={name},file={quoted(path)},format=raw,cache=unsafe,discard=unmap,werror=report"
        arguments += ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]
    root = [{"tag": "root", "path": "/", "writable": False}, {"tag": "usr", "path": "/usr", "writable": False}]
    for share in root + shares:
        options = "security_model=none,multidevs=remap" + ("" if share["writable"] else ",readonly=on")
        arguments += ["-virtfs", f"local,path={quoted(share['path'])},mount_tag={share['tag']},{options}"]
    return arguments


def forwarded_ports():
    """Ports of this machine's loopback interface that lead into the lab."""
    ports = os.environ.get("WRENN_LAB_FORWARD", "").replace(",", " ").split()
    for port in ports:
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise LabError(f"WRENN_LAB_FORWARD has {port!r}, which is no port")
    return ports


def quoted(path):
    return path.replace(",", ",,")  # QEMU's own escape


def start_qemu(arguments):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(CONSOLE)
    with open(QEMU_LOG, "wb") as log:
        return subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )


def wait_until_ready(qemu, port):
    limit = number("WRENN_LAB_BOOT_LIMIT", 180)
    deadline = time.monotonic() + limit
    while True:
        console = b""
        with contextlib.suppress(FileNotFoundError), open(CONSOLE, "rb") as file:
            console = file.read()
        if READY in console:
            return
        if STALLED in console:
            raise FailedAttempt("the lab's kernel stalled while booting")
        if qemu.poll() is not None:
            with open(QEMU_LOG, "rb") as file:
                if b"host forwarding rule" in file.read():
                    # Taken between our looking and QEMU's binding.
                    raise FailedAttempt(f"port {port} was taken")
            raise LabError(f"the lab ended while booting (QEMU status {qemu.returncode})\n{logs()}")
        if time.monotonic() > deadline:
            raise LabError(f"the lab did not boot within {limit} s (WRENN_LAB_BOOT_LIMIT)\n{logs()}")
        time.sleep(0.05)


def logs():
    """The ends of both logs."""
    return f"console ({CONSOLE}):\n{tail(CONSOLE)}\nQEMU ({QEMU_LOG}):\n{tail(QEMU_LOG, 5)}"
