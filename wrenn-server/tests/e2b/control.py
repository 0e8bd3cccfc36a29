"""What needs no guest, with E2B's own library, unmodified: three paused sandboxes are there, of a host that does not answer."""

from datetime import datetime, timezone

from e2b import (
    NotFoundException,
    Sandbox,
    SandboxException,
    SandboxQuery,
    SandboxState,
    ServiceBusyException,
    Template,
)
from e2b.exceptions import SandboxNotFoundException

OLDEST, MIDDLE, NEWEST = "a" * 16, "b" * 16, "c" * 16


def raises(kind, call, *args, **kwargs):
    try:
        got = call(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"{call} gave {got!r} instead of {kind}")


def everything(**options):
    pages, found = Sandbox.list(**options), []
    while pages.has_next:
        found.extend(pages.next_items())
    return found


def main():
    info = Sandbox.get_info(OLDEST)
    assert info.sandbox_id == OLDEST and info.state == SandboxState.PAUSED, info
    assert info.started_at == datetime(2026, 11, 1, 12, 0, 0, 250_000, timezone.utc), info
    assert info.metadata == {"n": "0 &=%"} and info.cpu_count == 2 and info.memory_mb == 512, info
    assert info.template_id == "debian" and info.lifecycle["on_timeout"] == "kill", info

    assert [found.sandbox_id for found in everything(limit=2)] == [NEWEST, MIDDLE, OLDEST]
    by_metadata = everything(query=SandboxQuery(metadata={"n": "1 &=%"}, state=[SandboxState.PAUSED]))
    assert [found.sandbox_id for found in by_metadata] == [MIDDLE], by_metadata
    later = everything(query=SandboxQuery(started_after=everything()[1].started_at))
    assert [found.sandbox_id for found in later] == [NEWEST, MIDDLE], later
    assert everything(query=SandboxQuery(state=[SandboxState.RUNNING])) == []
    assert everything(query=SandboxQuery(template="nothing")) == []

    error = raises(SandboxException, Sandbox.create, "nothing")
    assert "404" in str(error), error
    raises(ServiceBusyException, Sandbox.connect, OLDEST, timeout=60)
    raises(SandboxNotFoundException, Sandbox.connect, "d" * 16)
    assert Sandbox.pause(OLDEST) is False
    raises(NotFoundException, Sandbox.set_timeout, OLDEST, 60)
    assert Sandbox.get_metrics(OLDEST) == []
    assert Sandbox.kill(NEWEST) is True and Sandbox.kill(NEWEST) is False
    assert Template.exists("nothing") is False
    assert Sandbox.delete_snapshot("nothing") is False
    print("ok")


main()
