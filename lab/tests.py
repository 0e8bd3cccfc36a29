#!/usr/bin/python3 -ES
"""Tests of the lab: `lab/tests.py`, with the lab up or not. Skipped where the machine needs no lab."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import machine
import parts
from paths import HOME, LAB, REPO, SHARE

PROGRAM = f"{LAB}/lab"


def lab(*arguments, env=None, **options):
    settings = {"cwd": REPO, "capture_output": True, "text": True, "timeout": 300, **options}
    return subprocess.run([PROGRAM, *arguments], check=False, env={**os.environ, **(env or {})}, **settings)


def start(*arguments, env=None):
    return subprocess.Popen(
        [PROGRAM, *arguments], cwd=REPO, env={**os.environ, **(env or {})}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def inside(script, *options, **more):
    return lab("exec", "--up", *options, "--", "sh", "-c", script, **more)


def until(condition):
    """Waits for what must come; a minute is for a busy machine, not an expectation."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


class Exec(unittest.TestCase):
    """Commands in the running lab."""

    def test_streams_and_status_come_back_apart(self):
        done = inside("echo out; echo err >&2; exit 7")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (7, "out\n", "err\n"))

    def test_a_signal_is_128_and_its_number(self):
        self.assertEqual(inside("kill -9 $$").returncode, 137)

    def test_a_missing_command_is_127(self):
        self.assertEqual(lab("exec", "--", "no-such-command").returncode, 127)

    def test_arguments_pass_unaltered(self):
        words = ["a b", "$HOME", "--", "", "--limit", "'\"", "é"]
        done = lab("exec", "--", "printf", "%s\\n", *words)
        self.assertEqual(done.stdout.splitlines(), words)

    def test_directory_and_environment_are_the_callers(self):
        chosen = {"WRENN_TESTS": "kept", "OTHER": "dropped"}
        done = inside('pwd; echo "$WRENN_TESTS,$OTHER,$WRENN_IN_LAB"', env=chosen, cwd=LAB)
        self.assertEqual(done.stdout.split(), [LAB, "kept,,1"])

    def test_a_directory_that_is_not_there_is_named(self):
        with tempfile.TemporaryDirectory(dir="/tmp") as place:
            done = inside("true", cwd=place)
        self.assertEqual(done.returncode, 125)
        self.assertIn(place, done.stderr)

    def test_input_passes_when_asked_for(self):
        text = "line\n" * 100_000
        self.assertEqual(lab("exec", "-i", "--", "cat", input=text).stdout, text)
        self.assertEqual(lab("exec", "--", "cat", input=text).stdout, "")

    def test_many_at_once(self):
        running = [start("exec", "--", "sh", "-c", f"sleep 1; echo {n}; exit {n}") for n in range(8)]
        for n, process in enumerate(running):
            out, _ = process.communicate(timeout=120)
            self.assertEqual((process.returncode, out), (n, f"{n}\n"))

    def test_the_time_limit_ends_a_command(self):
        done = inside("sleep 4321", "--limit", "2")
        self.assertEqual(done.returncode, 124)
        self.assertIn("limit of 2", done.stderr)
        self.assertTrue(until(lambda: not alive("sleep 4321")))

    def test_sigterm_is_passed_on(self):
        script = "trap 'echo caught; exit 3' TERM; echo on; while :; do sleep 0.1; done"
        process = start("exec", "--", "sh", "-c", script)
        self.assertEqual(process.stdout.readline(), "on\n")
        process.terminate()
        out, _ = process.communicate(timeout=60)
        self.assertEqual((process.returncode, out), (3, "caught\n"))

    def test_a_killed_client_takes_everything_with_it(self):
        # setsid: the process group alone would not find it.
        process = start("exec", "--", "sh", "-c", "setsid sleep 5432 & echo on; sleep 5432")
        self.assertEqual(process.stdout.readline(), "on\n")
        self.assertTrue(alive("sleep 5432"))
        process.kill()
        process.communicate()
        self.assertTrue(until(lambda: not alive("sleep 5432")))

    def test_a_reader_that_goes_ends_the_command(self):
        done = subprocess.run(
            f"{PROGRAM} exec -- sh -c 'while echo 7654; do :; done' | head -1; echo ${{PIPESTATUS[0]}}",
            shell=True, executable="/bin/bash", check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual((done.stdout, done.stderr), ("7654\n141\n", ""))
        self.assertTrue(until(lambda: not alive("sh -c while echo 7654.*")))

    def test_what_a_command_leaves_is_ended_and_counted(self):
        done = inside("setsid sleep 6543 >/dev/null 2>&1 & exit 0")
        self.assertIn("left 1 processes", done.stderr)
        self.assertFalse(alive("sleep 6543"))

    def test_files_pass_both_ways(self):
        with tempfile.TemporaryDirectory(dir=SHARE) as place:
            with open(f"{place}/from-here", "w", encoding="utf-8") as file:
                file.write("hello")
            done = inside(f"cp {place}/from-here {place}/from-there; touch {REPO}/not-allowed")
            self.assertNotEqual(done.returncode, 0)
            with open(f"{place}/from-there", encoding="utf-8") as file:
                self.assertEqual(file.read(), "hello")

    def test_a_rebuilt_file_is_seen_at_once(self):
        with tempfile.TemporaryDirectory(dir=HOME) as place:
            for text in ("one", "two, longer", "3"):
                with open(f"{place}/part", "w", encoding="utf-8") as file:
                    file.write(text)
                os.rename(f"{place}/part", f"{place}/file")
                self.assertEqual(inside(f"cat {place}/file").stdout, text)

    def test_it_has_what_sandboxes_need(self):
        done = inside(
            "set -e; stat -f -c '%T %s' /scratch /scratch-ext4; cat /proc/sys/vm/unprivileged_userfaultfd;"
            "grep -c favordynmods /proc/mounts; grep -o device-mapper /proc/misc;"
            "cat /sys/devices/system/clocksource/clocksource0/current_clocksource;"
            "touch /scratch/a; cp --reflink=always /scratch/a /scratch/b; rm /scratch/a /scratch/b"
        )
        expected = ["xfs 4096", "ext2/ext3 4096", "0", "1", "device-mapper", "tsc"]
        self.assertEqual((done.returncode, done.stdout.splitlines()), (0, expected), done.stderr)

    def test_kvm_makes_machines(self):
        script = (
            "import fcntl, os; kvm = os.open('/dev/kvm', os.O_RDWR); machine = fcntl.ioctl(kvm, 0xAE01, 0);"
            "print(fcntl.ioctl(machine, 0xAE41, 0) > machine)"
        )
        self.assertEqual(lab("exec", "--", "/usr/bin/python3", "-c", script).stdout, "True\n")


def alive(command):
    return lab("exec", "--", "pgrep", "-f", f"^{command}$").returncode == 0


class Life(unittest.TestCase):
    """Up, down and failures, in a second lab of its own."""

    def setUp(self):
        place = tempfile.TemporaryDirectory(prefix="wrenn-lab-tests-")
        self.addCleanup(place.cleanup)
        self.home = f"{place.name}/lab"
        os.mkdir(self.home)
        self.env = {
            "WRENN_CACHE_DIR": place.name,
            "WRENN_DATA": f"{place.name}/data",
            "WRENN_LAB_MIB": "1024",
            # The first lab may have it.
            "WRENN_LAB_FORWARD": "",
        }

    def give_parts(self):
        for name in ("kernel", "busybox"):
            os.symlink(f"{HOME}/{name}", f"{self.home}/{name}")
        self.addCleanup(lab, "down", env=self.env)

    def write_state(self, **state):
        with open(f"{self.home}/state.json", "w", encoding="utf-8") as file:
            json.dump(state, file)

    def test_a_missing_kernel_says_make_setup(self):
        done = lab("up", env=self.env)
        self.assertEqual(done.returncode, 125)
        self.assertIn("make setup", done.stderr)

    def test_a_missing_qemu_says_make_setup(self):
        self.give_parts()
        done = lab("up", env={**self.env, "PATH": "/nonexistent"})
        self.assertEqual(done.returncode, 125)
        self.assertIn("qemu-system-x86_64 is not installed; run `make setup`", done.stderr)

    def test_a_damaged_kernel_is_not_booted(self):
        self.give_parts()
        os.unlink(f"{self.home}/kernel")
        version = parts.kernel()[2]
        os.makedirs(f"{self.home}/kernel/{version}")
        with open(f"{self.home}/kernel/{version}/vmlinux", "wb") as file:
            file.write(b"not it")
        with open(f"{self.home}/kernel/{version}/manifest.json", "w", encoding="utf-8") as file:
            json.dump({"version": version, "vmlinux_sha256": "0"}, file)
        done = lab("up", env=self.env)
        self.assertEqual(done.returncode, 125)
        self.assertIn("is damaged", done.stderr)

    def test_a_state_file_of_the_dead_or_of_others_is_no_lab(self):
        for pid, started in ((2**22 - 1, 1), (os.getpid(), machine.started(os.getpid()) + 1)):
            self.write_state(pid=pid, started=started, port=1, token="", kernel="", ready=True)
            self.assertEqual(lab("status", env=self.env).stdout, "down\n")

    def test_the_boot_limit_ends_qemu(self):
        self.give_parts()
        done = lab("up", env={**self.env, "WRENN_LAB_BOOT_LIMIT": "1"})
        self.assertEqual(done.returncode, 125)
        self.assertIn("did not boot within 1 s", done.stderr)
        self.assertEqual(lab("status", env=self.env).stdout, "down\n")

    def test_a_caller_killed_while_booting_leaves_nothing_for_long(self):
        self.give_parts()
        for kill in (signal.SIGTERM, signal.SIGKILL):
            caller = start("up", env=self.env)
            self.assertTrue(until(lambda: os.path.exists(f"{self.home}/state.json")))
            with open(f"{self.home}/state.json", encoding="utf-8") as file:
                pid = json.load(file)["pid"]
            caller.send_signal(kill)
            caller.communicate()
            lab("down", env=self.env)
            self.assertIsNone(machine.started(pid))

    def write_image(self, text):
        path = f"{self.env['WRENN_DATA']}/images/x/rootfs.ext4"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            os.truncate(file.fileno(), 1 << 26)
            file.seek(1 << 25)
            file.write(text)

    def check_image(self, text):
        script = (
            "f=/scratch/data/images/x/rootfs.ext4; stat -c %s $f; du -k $f | cut -f1;"
            f"dd if=$f bs=1M skip=32 status=none | head -c {len(text)}"
        )
        done = lab("exec", "--", "sh", "-c", script, env=self.env)
        size, used, found = done.stdout.splitlines()
        self.assertEqual((int(size), found), (1 << 26, text))
        self.assertLess(int(used), 1024)

    def test_one_life(self):
        """Two callers get one lab; images get there, new ones too; its death is noticed by whoever waits."""
        self.give_parts()
        self.write_image("first")
        callers = [start("up", env=self.env) for _ in range(2)]
        said = [caller.communicate(timeout=400)[1] for caller in callers]
        self.assertEqual([caller.returncode for caller in callers], [0, 0], said)
        self.assertEqual(sum("booting" in text for text in said), 1, said)
        self.check_image("first")
        self.write_image("second")
        self.assertIn("copied", lab("up", env=self.env).stderr)
        self.check_image("second")
        self.assertEqual(lab("up", env=self.env).stderr, "")
        waiting = start("exec", "--", "sh", "-c", "echo on; sleep 1000", env=self.env)
        self.assertEqual(waiting.stdout.readline(), "on\n")
        with open(f"{self.home}/state.json", encoding="utf-8") as file:
            os.kill(json.load(file)["pid"], signal.SIGKILL)
        _, error = waiting.communicate(timeout=60)
        self.assertEqual(waiting.returncode, 125)
        self.assertIn("the lab died", error)
        self.assertEqual(lab("status", env=self.env).returncode, 1)


if __name__ == "__main__":
    if not machine.needed():
        print("SKIP: this machine needs no lab", file=sys.stderr)
        sys.exit(0)
    unittest.main(verbosity=2)
