"""Drives an agent with E2B's own library, unmodified: what its users do, and what they get."""

import asyncio
import os
import sys
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
    SandboxException,
    TimeoutException,
)
from e2b.sandbox.commands.command_handle import PtySize

DIR = sys.argv[1]
USER = os.environ.get("USER_OF_THE_TEST", "root")


def raises(kind, call, *args, **kwargs):
    try:
        got = call(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"{call} gave {got!r} instead of {kind}")


def until(what, seconds=30):
    end = time.monotonic() + seconds
    while not (got := what()):
        assert time.monotonic() < end, "never"
        time.sleep(0.02)
    return got


def commands(sbx):
    seen = []
    done = sbx.commands.run(
        "echo $GREETING; pwd; echo oops >&2", envs={"GREETING": "hello"}, cwd=DIR,
        on_stdout=lambda data: seen.append(data), on_stderr=lambda data: seen.append(data),
    )
    assert done.stdout == f"hello\n{DIR}\n" and done.stderr == "oops\n" and done.exit_code == 0, done
    assert "".join(seen).count("\n") == 3, seen
    failed = raises(CommandExitException, sbx.commands.run, "exit 7")
    assert failed.exit_code == 7, failed
    raises(InvalidArgumentException, sbx.commands.run, "true", cwd="/nowhere/at/all")
    raises(TimeoutException, sbx.commands.run, "sleep 60", timeout=1)
    assert sbx.commands.run("id -un", user=USER).stdout.strip() == USER
    large = sbx.commands.run("head -c 3000000 /dev/zero | tr '\\0' x")
    assert large.stdout == "x" * 3_000_000
    print("commands: ok")


def background(sbx):
    cat = sbx.commands.run("cat; echo done", background=True, stdin=True)
    listed = [p for p in sbx.commands.list() if p.pid == cat.pid]
    assert listed and "cat; echo done" in listed[0].args, listed
    again = sbx.commands.connect(cat.pid)
    sbx.commands.send_stdin(cat.pid, "typed ")
    cat.send_stdin("more\n")
    cat.close_stdin()
    for handle in (cat, again):
        result = handle.wait()
        assert result.stdout == "typed more\ndone\n", result
    sleeper = sbx.commands.run("sleep 1000", background=True)
    sleeper.disconnect()
    assert any(p.pid == sleeper.pid for p in sbx.commands.list())
    assert sbx.commands.run(f"kill -0 {sleeper.pid}").exit_code == 0
    assert sbx.commands.kill(sleeper.pid) is True
    until(lambda: not any(p.pid == sleeper.pid for p in sbx.commands.list()))
    assert sbx.commands.kill(sleeper.pid) is False
    raises(NotFoundException, sbx.commands.connect, 999_999)
    print("background: ok")


def files(sbx):
    at = lambda name: f"{DIR}/{name}"
    info = sbx.files.write(at("dir/a.txt"), "text")
    assert info.path == at("dir/a.txt") and info.name == "a.txt", info
    assert sbx.files.read(at("dir/a.txt")) == "text"
    blob = bytes(range(256)) * 3000
    for options in ({}, {"use_octet_stream": True}, {"gzip": True}):
        sbx.files.write(at("dir/blob"), blob, **options)
        assert bytes(sbx.files.read(at("dir/blob"), format="bytes")) == blob
    assert bytes(sbx.files.read(at("dir/blob"), format="bytes", gzip=True)) == blob
    assert b"".join(sbx.files.read(at("dir/blob"), format="stream")) == blob
    sbx.files.write_files([{"path": at("many/1"), "data": "1"}, {"path": at("many/2"), "data": b"2"}])
    sbx.files.write(at("empty"), "")
    assert sbx.files.read(at("empty")) == ""
    names = [(e.name, e.type) for e in sbx.files.list(DIR, depth=2)]
    assert ("dir", FileType.DIR) in names and ("1", FileType.FILE) in names, names
    entry = sbx.files.get_info(at("dir/blob"))
    assert entry.size == len(blob) and entry.permissions == "-rw-r--r--" and entry.mode == 0o644, entry
    assert sbx.files.exists(at("dir/blob")) and not sbx.files.exists(at("nothing"))
    raises(FileNotFoundException, sbx.files.read, at("nothing"))
    raises(FileNotFoundException, sbx.files.list, at("nothing"))
    assert sbx.files.make_dir(at("made/deep")) is True and sbx.files.make_dir(at("made/deep")) is False
    moved = sbx.files.rename(at("dir/a.txt"), at("made/b.txt"))
    assert moved.path == at("made/b.txt") and not sbx.files.exists(at("dir/a.txt"))
    sbx.files.remove(at("made"))
    assert not sbx.files.exists(at("made"))
    with_metadata = sbx.files.write(at("tagged"), "x", metadata={"kind": "test"})
    assert with_metadata.metadata == {"kind": "test"}, with_metadata
    print("files: ok")


def urls(sbx):
    path = f"{DIR}/signed"
    sbx.files.write(path, "by url")
    url = sbx.download_url(path, use_signature_expiration=60)
    assert urllib.request.urlopen(url).read() == b"by url"
    part = urllib.request.Request(url, headers={"Range": "bytes=3-"})
    with urllib.request.urlopen(part) as answer:
        assert answer.status == 206 and answer.read() == b"url"
    raises(urllib.error.HTTPError, urllib.request.urlopen, url.replace("signature=v1_", "signature=v1_x"))
    expired = sbx.download_url(path, use_signature_expiration=-10)
    error = raises(urllib.error.HTTPError, urllib.request.urlopen, expired)
    assert error.code == 401 and b"signature is already expired" in error.read()
    print("urls: ok")


def watch(sbx):
    path = f"{DIR}/watched"
    raises(NotFoundException, sbx.files.watch_dir, f"{DIR}/nothing")
    raises(SandboxException, sbx.files.watch_dir, f"{DIR}/empty")
    sbx.files.make_dir(path)
    handle = sbx.files.watch_dir(path, recursive=True, include_entry=True)
    sbx.files.write(f"{path}/f", "one")
    events = handle.get_new_events()
    assert [(e.name, e.type) for e in events] == [("f", Event.CREATE), ("f", Event.CHMOD), ("f", Event.WRITE)], events
    assert events[2].entry.path == f"{path}/f" and events[2].entry.size == 3, events
    sbx.files.write(f"{path}/f", "two")
    assert handle.get_new_events()[0].type == Event.WRITE
    sbx.files.make_dir(f"{path}/sub")
    sbx.files.write(f"{path}/sub/g", "x")
    events = [(e.name, e.type) for e in handle.get_new_events()]
    assert ("sub", Event.CREATE) in events and ("sub/g", Event.WRITE) in events, events
    assert handle.get_new_events() == []
    handle.stop()
    raises(SandboxException, handle.get_new_events)
    print("watch: ok")


def terminal(sbx):
    pty = sbx.pty.create(PtySize(rows=24, cols=80), cwd=DIR)
    sbx.pty.resize(pty.pid, PtySize(rows=30, cols=100))
    sbx.pty.send_stdin(pty.pid, b"stty size; tput cols; exit 5\n")
    seen = bytearray()
    error = raises(CommandExitException, pty.wait, on_pty=seen.extend)
    assert error.exit_code == 5 and b"30 100" in seen, (error, bytes(seen))
    pty = sbx.pty.create(PtySize(rows=24, cols=80))
    assert sbx.pty.kill(pty.pid) is True
    print("terminal: ok")


async def asynchronous():
    sbx = await AsyncSandbox.create()
    done = await sbx.commands.run("echo async")
    assert done.stdout == "async\n"
    path = f"{DIR}/async"
    await sbx.files.make_dir(path)
    events, ended = [], asyncio.Event()
    handle = await sbx.files.watch_dir(path, on_event=events.append, on_exit=lambda _: ended.set())
    await sbx.files.write(f"{path}/f", "x")
    for _ in range(500):
        if len(events) >= 3:
            break
        await asyncio.sleep(0.02)
    assert [e.type for e in events] == [Event.CREATE, Event.CHMOD, Event.WRITE], events
    await handle.stop()
    running = await sbx.commands.run("cat", background=True, stdin=True)
    await sbx.commands.send_stdin(running.pid, "streamed")
    await sbx.commands.close_stdin(running.pid)
    assert (await running.wait()).stdout == "streamed"
    print("asynchronous: ok")


def main():
    sbx = Sandbox.create()
    assert sbx.is_running()
    for part in (commands, background, files, urls, watch, terminal):
        part(sbx)
    asyncio.run(asynchronous())


main()
# What the library's threads do as an interpreter ends is no part of the test, and has ended one with a failure.
sys.stdout.flush()
os._exit(0)
