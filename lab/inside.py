"""PID 1 of the lab: mounts, modules, network, then the exec service.

The first process sets the system up and reaps orphans; a forked child serves commands over TCP (QEMU forwards one
loopback port of the machine to it). Any failure here ends PID 1, so the kernel, so QEMU: `lab up` and every waiting
`lab exec` notice at once. Commands run in a cgroup each, so that a client that goes away takes everything its command
started with it.
"""

import fcntl
import glob
import hmac
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import wire  # noqa: E402  (its directory is only known now: -I keeps it off the path)

HERE = "/run/wrenn-lab"
CGROUPS = "/sys/fs/cgroup/lab"
# Where sandboxes are put, outside of the cgroup of the command that made them.
SANDBOXES = "/sys/fs/cgroup/wrenn"
OPTIONS_9P = "trans=virtio,version=9p2000.L,msize=524288,cache=none"
# rcu_expedited: emulated CPUs are slow to pass a grace period, and every namespace or device that goes waits for one.
# softlockup_panic: CPUs that hang never come back. A lab that ends is noticed at once, and the next command boots anew.
SETTINGS = {
    "/proc/sys/kernel/watchdog_thresh": "30",
    "/proc/sys/kernel/softlockup_panic": "1",
    "/proc/sys/kernel/printk": "4",
    "/sys/kernel/rcu_expedited": "1",
}
KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_CREATE_IRQCHIP = 0xAE01, 0xAE41, 0xAE60


def note(text):
    """A line in the kernel's log, for whoever wonders where boot time goes."""
    write("/dev/kmsg", f"wrenn-lab: {text}\n")


def run(*command):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def mount(kind, source, target, options="defaults"):
    os.makedirs(target, exist_ok=True)
    run("mount", "-n", "-t", kind, "-o", options, source, target)


def mount_everything(config):
    mount("proc", "proc", "/proc")
    mount("sysfs", "sys", "/sys")
    mount("devpts", "devpts", "/dev/pts", "gid=5,mode=620")
    mount("tmpfs", "shm", "/dev/shm", "mode=1777")
    mount("tmpfs", "tmp", "/tmp", "mode=1777")
    for link, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        if not os.path.lexists(f"/dev/{link}"):
            os.symlink(target, f"/dev/{link}")
    # favordynmods: without it every KVM_CREATE_VM waits for a grace period.
    mount("cgroup2", "cgroup2", "/sys/fs/cgroup", "favordynmods")
    write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +cpuset +memory +pids")
    offer_modules(config["modules_root"])
    for name in ("etc", "var"):
        layers = f"{HERE}/overlay-{name}"
        mount("tmpfs", name, layers)
        os.makedirs(f"{layers}/upper")
        os.makedirs(f"{layers}/work")
        mount("overlay", name, f"/{name}", f"lowerdir=/{name},upperdir={layers}/upper,workdir={layers}/work")
    # After /tmp and /var have been replaced: the project may live below them.
    for share in config["shares"]:
        access = "rw" if share["writable"] else "ro"
        mount("9p", share["tag"], share["path"], f"{access},{OPTIONS_9P}")
    mount("xfs", "/dev/vda", "/scratch")
    mount("ext4", "/dev/vdb", "/scratch-ext4")


def offer_modules(root):
    """Lets the kernel load what it asks for: the machine has no /lib/modules for it, so a wrapper says where."""
    wrapper = f"{HERE}/modprobe"
    write(wrapper, f'#!/bin/sh\nexec /sbin/modprobe -d {shlex.quote(root)} "$@"\n')
    os.chmod(wrapper, 0o755)
    write("/proc/sys/kernel/modprobe", wrapper)


def set_up_network():
    run("ip", "link", "set", "lo", "up")
    links = [os.path.basename(path) for path in glob.glob("/sys/bus/virtio/drivers/virtio_net/virtio*/net/*")]
    if len(links) != 1:
        raise RuntimeError(f"one virtio network card expected, found {links}")
    run("ip", "address", "add", "10.0.2.15/24", "dev", links[0])
    run("ip", "link", "set", links[0], "up")
    run("ip", "route", "add", "default", "via", "10.0.2.2")
    write(f"{HERE}/resolv.conf", "nameserver 10.0.2.3\n")
    if os.path.exists("/etc/resolv.conf"):
        run("mount", "-n", "--bind", f"{HERE}/resolv.conf", "/etc/resolv.conf")


def hold_static_keys():
    """Keeps the switches in the kernel's code from being thrown while programs run.

    The kernel patches its code when the first user of such a feature comes and when the last one goes. Emulated
    CPUs that run the code meanwhile may go on with what was there half way (a breakpoint), for ever: soft lockups of
    all CPUs, for example in __apic_accept_irq. So there always is a user: a VM with a vCPU for KVM itself, one whose
    vCPU has a local APIC that is off, as every vCPU's is until its kernel runs, and a firewall on every hook.
    """
    kvm = os.open("/dev/kvm", os.O_RDWR)
    held = [kvm]
    for has_apic in (False, True):
        machine = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        if has_apic:
            fcntl.ioctl(machine, KVM_CREATE_IRQCHIP)
        held += [machine, fcntl.ioctl(machine, KVM_CREATE_VCPU, 0)]
    hooks = "".join(
        f"add chain inet held {hook} {{ type filter hook {hook} priority 0; }}\n"
        for hook in ("prerouting", "input", "forward", "output", "postrouting")
    )
    # In a network namespace of its own, where nobody meets it.
    script = f"nft -f - <<END\nadd table inet held\n{hooks}END\nexec sleep infinity"
    firewall = subprocess.Popen(["unshare", "--net", "sh", "-ec", script], stdin=subprocess.DEVNULL)
    return held, firewall


def confine():
    """Makes the cgroup of all commands, which may use every CPU but the first.

    On QEMU's first CPU guests meet triple faults, and the kernel falls over with them: whenever another CPU restores
    its FPU's state, QEMU (7.2 to 10 at least) clears a flag in a word of the first one's without a lock, and so brings
    back what that one changes in the same word just then, for example whether addresses go through nested paging.
    """
    os.makedirs(CGROUPS)
    write(f"{CGROUPS}/cpuset.cpus", f"1-{os.cpu_count() - 1}")


def kill_sandboxes():
    """Ends the sandboxes that commands left, once no command is left that they could belong to."""
    try:
        write(f"{SANDBOXES}/cgroup.kill", "1")
    except OSError:
        return  # there are none
    for path, _, _ in os.walk(SANDBOXES, topdown=False):
        for _ in range(500):
            try:
                os.rmdir(path)
                break
            except OSError:
                time.sleep(0.01)


class Service:
    """Serves commands; one thread a connection."""

    def __init__(self, config):
        self.config = config
        self.lock = threading.Lock()
        self.sessions = 0
        self.last_use = time.monotonic()
        self.number = 0

    def serve(self):
        listener = socket.create_server(("", self.config["port"]), backlog=64)
        threading.Thread(target=self.end_when_idle, daemon=True).start()
        print("wrenn-lab: ready", flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self.session, args=(connection,), daemon=True).start()

    def end_when_idle(self):
        while True:
            time.sleep(30)
            with self.lock:
                idle = time.monotonic() - self.last_use
                if self.sessions == 0 and idle > self.config["idle_seconds"]:
                    print(f"wrenn-lab: unused for {idle:.0f} s, ending", flush=True)
                    os._exit(0)

    def session(self, connection):
        with self.lock:
            self.sessions += 1
            self.number += 1
            number = self.number
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.answer(connection, number)
        except (OSError, ValueError, KeyError) as error:
            print(f"wrenn-lab: session {number}: {error}", flush=True)
        finally:
            connection.close()
            with self.lock:
                self.sessions -= 1
                self.last_use = time.monotonic()
                if self.sessions == 0:
                    kill_sandboxes()

    def answer(self, connection, number):
        connection.settimeout(30)
        frame = wire.receive(connection)
        if frame is None or frame[0] != wire.REQUEST:
            return
        request = json.loads(frame[1])
        if not hmac.compare_digest(request.get("token", ""), self.config["token"]):
            wire.send_json(connection, wire.FAULT, "wrong token: the state file belongs to another lab")
            return
        connection.settimeout(None)
        Command(connection, request, f"{CGROUPS}/{number}").run()


class Command:
    """One command: its cgroup, its streams, its end."""

    def __init__(self, connection, request, cgroup):
        self.connection = connection
        self.request = request
        self.cgroup = cgroup
        self.sending = threading.Lock()
        self.ended = threading.Event()
        self.process = None

    def run(self):
        os.makedirs(self.cgroup)
        try:
            self.process = self.start()
        except OSError as error:
            os.rmdir(self.cgroup)
            wire.send_json(self.connection, wire.FAULT, f"cannot start in {self.request['cwd']}: {error}")
            return
        relays = [
            threading.Thread(target=self.relay, args=(self.process.stdout, wire.STDOUT)),
            threading.Thread(target=self.relay, args=(self.process.stderr, wire.STDERR)),
        ]
        for thread in relays:
            thread.start()
        threading.Thread(target=self.listen, daemon=True).start()
        threading.Thread(target=self.say_alive, daemon=True).start()
        status = self.process.wait()
        left = self.kill_what_is_left()
        for thread in relays:
            thread.join()
        self.ended.set()
        with self.sending:
            wire.send_json(self.connection, wire.EXIT, {"status": status, "left": left})

    def start(self):
        enter = 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"'
        return subprocess.Popen(
            ["/bin/sh", "-c", enter, "lab", self.cgroup, *self.request["command"]],
            cwd=self.request["cwd"],
            env=self.request["env"],
            stdin=subprocess.PIPE if self.request["stdin"] else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def relay(self, pipe, kind):
        while data := os.read(pipe.fileno(), 1 << 16):
            try:
                with self.sending:
                    wire.send(self.connection, kind, data)
            except OSError:
                return self.kill_all()

    def say_alive(self):
        while not self.ended.wait(wire.ALIVE_EVERY):
            try:
                with self.sending:
                    wire.send(self.connection, wire.ALIVE)
            except OSError:
                return self.kill_all()

    def listen(self):
        while frame := wire.receive(self.connection):
            kind, payload = frame
            try:
                if kind == wire.SIGNAL:
                    os.killpg(self.process.pid, json.loads(payload))
                elif kind == wire.STDIN and payload:
                    self.process.stdin.write(payload)
                    self.process.stdin.flush()
                elif kind == wire.STDIN:
                    self.process.stdin.close()
            except (OSError, ValueError):
                continue  # it has ended or closed its input: its status says the rest
        if not self.ended.is_set():
            self.kill_all()

    def kill_all(self):
        try:
            write(f"{self.cgroup}/cgroup.kill", "1")
        except OSError:
            pass  # gone already

    def kill_what_is_left(self):
        """Ends what the command left running, so that one test cannot disturb the next; answers how many."""
        with open(f"{self.cgroup}/cgroup.procs", encoding="utf-8") as file:
            left = len(file.read().split())
        self.kill_all()
        for _ in range(500):
            try:
                os.rmdir(self.cgroup)
                return left
            except OSError:
                time.sleep(0.01)
        print(f"wrenn-lab: {self.cgroup} is still busy", flush=True)
        return left


def main():
    with open(f"{HERE}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    note("inside.py runs")
    mount_everything(config)
    note("mounted")
    for path, value in SETTINGS.items():
        write(path, value)
    set_up_network()
    note("network is up")
    held = hold_static_keys()
    confine()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    service = os.fork()
    if service == 0:
        Service(config).serve()
    while os.wait()[0] != service:
        pass
    print(f"wrenn-lab: the exec service ended; what it held ({held}) goes with it", flush=True)


main()
