"""The service of sessions is killed in each step of each call: afterwards a session is
whole, or it is not there, and the call again does what it asks for.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from .test_sessions_calls import CODING, Answered, Service, serving

pytestmark = [pytest.mark.system, pytest.mark.long]
# Ends itself around a step of a call, once a file is there.
KILLED = """
import os, signal
from squidkeeper.cli import main
from squidkeeper.services.sessions.session_secrets import SessionSecrets
from squidkeeper.serving.sessions.counter import ChangeCounter
from squidkeeper.serving.sessions.store import SessionStore
owners = {one.__name__: one for one in (SessionStore, SessionSecrets, ChangeCounter)}
when, step, armed = %r
owner, name = step.split(".")
does = getattr(owners[owner], name)
def end():
    if os.path.exists(armed):
        os.kill(os.getpid(), signal.SIGKILL)
def killed(*given, **named):
    if when == "before":
        end()
    done = does(*given, **named)
    end()
    return done
setattr(owners[owner], name, killed)
main(prog_name="squidkeeper")
"""
OLD, NEW = "value-of-before", "value-of-afterwards"
VM = {**CODING, "address": "10.20.0.7", "ttl": 600, "secrets": {"github": OLD}}
CHANGE = {"address": "10.20.0.8", "secrets": {"github": NEW}}
LISTED = {"sessions": [{"name": "vm", **VM, **CHANGE}, {"name": "new", **CODING}]}
Call = Callable[[Service], Answered]


def put(service: Service) -> Answered:
    return service.put("vm", VM)


def patch(service: Service) -> Answered:
    return service.call("PATCH", "/v1/sessions/vm", CHANGE, if_match="*")


def delete(service: Service) -> Answered:
    return service.delete("vm")


def put_list(service: Service) -> Answered:
    return service.call("PUT", "/v1/sessions", LISTED)


STEPS: dict[Call, tuple[str, ...]] = {
    put: ("SessionStore.create", "SessionSecrets.make", "ChangeCounter.advance"),
    patch: ("SessionSecrets.put", "SessionStore.change", "ChangeCounter.advance"),
    delete: ("SessionStore.end", "ChangeCounter.advance", "SessionSecrets.remove"),
    put_list: (
        "SessionStore.end",
        "SessionSecrets.remove",
        "SessionStore.create",
        "SessionSecrets.make",
        "ChangeCounter.advance",
    ),
}
EACH = [
    pytest.param(call, step, when, id=f"{call.__name__}-{when}-{step}")
    for call, steps in STEPS.items()
    for step in steps
    for when in ("before", "after")
]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    yield from serving()


def check_whole(service: Service) -> None:
    """Expect whole sessions alone, and no secret of anything else."""
    rows = service.rows()
    for row in rows:
        shown = service.get(row.name).body
        assert (shown["number"], shown["state"]) == (row.number, "active")
        if row.name == "vm":
            assert value_of(service, row.number) in (OLD, NEW)
    with_secrets = {f"{row.number}" for row in rows if row.secrets}
    files = {file.name for file in (service.run / "secrets").iterdir()}
    assert files == with_secrets


def value_of(service: Service, number: int) -> str:
    values = json.loads(service.secrets(number).read_bytes())
    assert [*values] == ["github"]
    return str(values["github"])


@pytest.mark.parametrize(("call", "step", "when"), EACH)
def test_a_call_that_is_killed_leaves_nothing_half_made(
    service: Service, call: Call, step: str, when: str
) -> None:
    service.call("PUT", "/v1/sessions", {"sessions": []})
    if call is not put:
        assert put(service).status == 201
    armed = service.root / "armed"
    service.end()
    service.program = ("-c", KILLED % ((when, step, str(armed)),))
    service.start()
    armed.touch()
    with suppress(OSError, http.client.HTTPException):
        answered = call(service)
        raise AssertionError(f"it was not killed: {answered}")
    assert service.process
    service.process.wait(60)
    armed.unlink()
    service.program = ("-m", "squidkeeper")
    service.start()
    check_whole(service)
    done = call(service)
    assert done.status in (200, 201, 204), done
    check_whole(service)
    left = {row.name: row for row in service.rows()}
    if call is delete:
        assert left == {}
        return
    changed = call is not put
    address = "10.20.0.8/32" if changed else "10.20.0.7/32"
    assert left["vm"].network == address
    assert value_of(service, left["vm"].number) == (NEW if changed else OLD)
    assert put_again(service, changed).status == 200
    assert left.keys() == ({"vm", "new"} if call is put_list else {"vm"})


def put_again(service: Service, changed: bool) -> Answered:
    return service.put("vm", {**VM, **CHANGE} if changed else VM)
