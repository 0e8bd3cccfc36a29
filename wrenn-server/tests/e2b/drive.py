"""Drives a server and the sandboxes on its hosts with E2B's own library, unmodified: what its users do, and what they get."""

import asyncio
import time
import urllib.error
import urllib.request

from e2b import (
    AsyncSandbox,
    CommandExitException,
    FileNotFoundException,
    FilesystemEventType as Event,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from e2b.sandbox.commands.command_handle import PtySize

# Guests may be emulated.
SLOW = {"request_timeout": 300}
DIR = "/home/user/dir"


def raises(kind, call, *args, **kwargs):
    try:
        got = call(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"{call} gave {got!r} instead of {kind}")


def until(what, seconds=240):
    end = time.monotonic() + seconds
    while not (got := what()):
        assert time.monotonic() < end, "never"
        time.sleep(0.2)
    return got


def run(sbx, line, **options):
    return sbx.commands.run(line, timeout=240, **SLOW, **options)


def listed(**query):
    return [found.sandbox_id for found in Sandbox.list(query=SandboxQuery(**query), **SLOW).next_items()]


def commands(sbx):
    seen = []
    done = run(
        sbx, "echo $GREETING $OF_ALL; pwd; echo oops >&2", envs={"GREETING": "hello"}, cwd=DIR,
        on_stdout=seen.append, on_stderr=seen.append,
    )
    assert done.stdout == f"hello everyone\n{DIR}\n" and done.stderr == "oops\n" and done.exit_code == 0, done
    assert "".join(seen).count("\n") == 3, seen
    assert raises(CommandExitException, run, sbx, "exit 7").exit_code == 7
    raises(InvalidArgumentException, run, sbx, "true", cwd="/nowhere/at/all")
    raises(TimeoutException, sbx.commands.run, "sleep 600", timeout=3)
    assert run(sbx, "id -un; pwd", user="user").stdout == "user\n/home/user\n"
    assert run(sbx, "id -un", user="root").stdout == "root\n"
    of_e2b = run(sbx, "echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID").stdout
    assert of_e2b == f"true {sbx.sandbox_id} base\n", of_e2b
    large = run(sbx, "head -c 3000000 /dev/zero | tr '\\0' x")
    assert large.stdout == "x" * 3_000_000
    print("commands: ok")


def background(sbx):
    cat = sbx.commands.run("cat; echo done", background=True, stdin=True, timeout=0, **SLOW)
    processes = [process for process in sbx.commands.list(**SLOW) if process.pid == cat.pid]
    assert processes and "cat; echo done" in processes[0].args, processes
    again = sbx.commands.connect(cat.pid, timeout=0, **SLOW)
    sbx.commands.send_stdin(cat.pid, "typed ", **SLOW)
    cat.send_stdin("more\n")
    cat.close_stdin()
    for handle in (cat, again):
        assert handle.wait().stdout == "typed more\ndone\n"
    sleeper = sbx.commands.run("sleep 10000", background=True, timeout=0, **SLOW)
    sleeper.disconnect()
    assert run(sbx, f"kill -0 {sleeper.pid}").exit_code == 0
    assert sbx.commands.kill(sleeper.pid, **SLOW) is True
    until(lambda: all(process.pid != sleeper.pid for process in sbx.commands.list(**SLOW)))
    assert sbx.commands.kill(sleeper.pid, **SLOW) is False
    raises(NotFoundException, sbx.commands.connect, 999_999, **SLOW)
    print("background: ok")


def files(sbx):
    at = lambda name: f"{DIR}/{name}"
    assert sbx.files.write(at("a/b.txt"), "text", **SLOW).path == at("a/b.txt")
    assert sbx.files.read(at("a/b.txt"), **SLOW) == "text"
    blob = bytes(range(256)) * 40_000
    for options in ({}, {"use_octet_stream": True}, {"gzip": True}):
        sbx.files.write(at("blob"), blob, **SLOW, **options)
        assert bytes(sbx.files.read(at("blob"), format="bytes", **SLOW)) == blob
    assert b"".join(sbx.files.read(at("blob"), format="stream", **SLOW)) == blob
    names = [(entry.name, entry.type) for entry in sbx.files.list(DIR, depth=2, **SLOW)]
    assert ("a", FileType.DIR) in names and ("b.txt", FileType.FILE) in names, names
    assert sbx.files.get_info(at("blob"), **SLOW).size == len(blob)
    assert sbx.files.exists(at("blob"), **SLOW) and not sbx.files.exists(at("nothing"), **SLOW)
    raises(FileNotFoundException, sbx.files.read, at("nothing"), **SLOW)
    assert sbx.files.make_dir(at("new/deep"), **SLOW) is True and sbx.files.make_dir(at("new/deep"), **SLOW) is False
    assert sbx.files.rename(at("a/b.txt"), at("new/c.txt"), **SLOW).path == at("new/c.txt")
    sbx.files.remove(at("new"), **SLOW)
    assert not sbx.files.exists(at("new/c.txt"), **SLOW)
    print("files: ok")


def urls(sbx):
    path = f"{DIR}/signed"
    sbx.files.write(path, "by url", **SLOW)
    url = sbx.download_url(path, use_signature_expiration=600)
    assert urllib.request.urlopen(url).read() == b"by url"
    raises(urllib.error.HTTPError, urllib.request.urlopen, url.replace("signature=v1_", "signature=v1_x"))
    expired = raises(urllib.error.HTTPError, urllib.request.urlopen, sbx.download_url(path, use_signature_expiration=-10))
    assert expired.code == 401 and b"signature is already expired" in expired.read()
    print("urls: ok")


def watch(sbx):
    path = f"{DIR}/watched"
    sbx.files.make_dir(path, **SLOW)
    handle = sbx.files.watch_dir(path, recursive=True, **SLOW)
    sbx.files.write(f"{path}/f", "one", **SLOW)
    events = [(event.name, event.type) for event in handle.get_new_events(**SLOW)]
    assert events == [("f", Event.CREATE), ("f", Event.CHMOD), ("f", Event.WRITE)], events
    handle.stop(**SLOW)
    print("watch: ok")


def terminal(sbx):
    pty = sbx.pty.create(PtySize(rows=24, cols=80), cwd=DIR, timeout=0, **SLOW)
    sbx.pty.resize(pty.pid, PtySize(rows=30, cols=100), **SLOW)
    sbx.pty.send_stdin(pty.pid, b"stty size; exit 5\n", **SLOW)
    seen = bytearray()
    error = raises(CommandExitException, pty.wait, on_pty=seen.extend)
    assert error.exit_code == 5 and b"30 100" in seen, (error, bytes(seen))
    print("terminal: ok")


async def asynchronous(sandbox_id):
    sbx = await AsyncSandbox.connect(sandbox_id, **SLOW)
    assert (await sbx.commands.run("echo async", timeout=240, **SLOW)).stdout == "async\n"
    events = []
    handle = await sbx.files.watch_dir(DIR, on_event=events.append, timeout=0, **SLOW)
    await sbx.files.write(f"{DIR}/async", "x", **SLOW)
    for _ in range(1000):
        if len(events) >= 3:
            break
        await asyncio.sleep(0.1)
    assert [event.type for event in events] == [Event.CREATE, Event.CHMOD, Event.WRITE], events
    await handle.stop()
    print("asynchronous: ok")


def pauses(sbx):
    here = sbx.sandbox_id
    counter = sbx.commands.run("sleep 10000; echo", background=True, timeout=0, **SLOW)
    counter.disconnect()
    assert sbx.pause(**SLOW) is True and sbx.pause(**SLOW) is False
    assert not sbx.is_running(**SLOW)
    assert sbx.get_info(**SLOW).state == SandboxState.PAUSED
    assert listed(state=[SandboxState.PAUSED]) == [here] and listed(state=[SandboxState.RUNNING]) == []
    raises((TimeoutException, NotFoundException), sbx.commands.run, "true", **SLOW)
    # The handle from before the pause is good for after it.
    sbx.connect(timeout=900, **SLOW)
    assert sbx.is_running(**SLOW)
    assert any(process.pid == counter.pid for process in sbx.commands.list(**SLOW))
    assert run(sbx, "echo $OF_ALL").stdout == "everyone\n"
    again = Sandbox.connect(here, timeout=60, **SLOW)
    assert run(again, f"cat {DIR}/signed").stdout == "by url"
    # A shorter timeout than it has left changes nothing.
    left = again.get_info(**SLOW)
    assert left.state == SandboxState.RUNNING and (left.end_at - left.started_at).total_seconds() > 600, left
    print("pauses: ok")


def snapshots(sbx):
    made = sbx.create_snapshot("of-e2b", **SLOW)
    assert made.snapshot_id == "of-e2b" and made.names == ["of-e2b"], made
    copy = Sandbox.create("of-e2b", timeout=600, **SLOW)
    assert run(copy, f"cat {DIR}/signed").stdout == "by url"
    assert copy.kill(**SLOW) is True
    [fork] = sbx.fork(timeout=600, **SLOW)
    assert fork.sandbox_id != sbx.sandbox_id and run(fork, f"cat {DIR}/signed").stdout == "by url"
    assert fork.kill(**SLOW) is True
    assert Sandbox.delete_snapshot("of-e2b", **SLOW) is True
    print("snapshots: ok")


def ends():
    """At its end a sandbox is gone though it is used; one that is to be paused is resumed by who uses it."""
    sbx = Sandbox.create(timeout=600, lifecycle={"on_timeout": "pause", "auto_resume": True}, **SLOW)
    sbx.files.write("/root/kept", "kept", **SLOW)
    sbx.set_timeout(5, **SLOW)
    until(lambda: (time.sleep(1), sbx.get_info(**SLOW))[1].state == SandboxState.PAUSED)
    assert sbx.files.read("/root/kept", **SLOW) == "kept"
    assert sbx.get_info(**SLOW).state == SandboxState.RUNNING
    assert sbx.kill(**SLOW) is True
    sbx = Sandbox.create(timeout=600, **SLOW)
    sbx.set_timeout(5, **SLOW)
    until(lambda: not sbx.is_running(**SLOW))
    raises(NotFoundException, sbx.get_info, **SLOW)
    assert sbx.kill(**SLOW) is False
    print("ends: ok")


def main():
    begun = time.monotonic()
    sbx = Sandbox.create(timeout=1800, metadata={"of": "the test"}, envs={"OF_ALL": "everyone"}, **SLOW)
    print(f"created in {time.monotonic() - begun:.1f} s")
    assert sbx.is_running(**SLOW)
    run(sbx, f"install -d -o user -g user {DIR}", user="root")
    info = sbx.get_info(**SLOW)
    assert info.sandbox_id == sbx.sandbox_id and info.metadata == {"of": "the test"}, info
    assert 1700 < (info.end_at - info.started_at).total_seconds() < 2000, info
    assert listed(metadata={"of": "the test"}) == [sbx.sandbox_id] and listed(metadata={"of": "another"}) == []
    sbx.set_timeout(1200, **SLOW)
    assert sbx.get_info(**SLOW).end_at < info.end_at
    [metrics] = sbx.get_metrics(**SLOW)
    assert metrics.cpu_count >= 1 and metrics.mem_total > 1 << 26 and metrics.disk_total > 1 << 26, metrics
    for part in (commands, background, files, urls, watch, terminal):
        part(sbx)
    asyncio.run(asynchronous(sbx.sandbox_id))
    pauses(sbx)
    snapshots(sbx)
    assert sbx.kill(**SLOW) is True and sbx.kill(**SLOW) is False
    assert not sbx.is_running(**SLOW) and listed() == []
    ends()
    print("all: ok")


main()
