"""What the helpers of a real gateway count while they are killed, and the revision in
the log line of each request.
"""

from typing import Any

from squidkeeper.policy.policy_store.loading import load_stored_revision
from squidkeeper.policy.policy_store.revisions import stored_revisions
from squidkeeper.serving.counters.layout import HelperStatus
from squidkeeper.serving.counters.reader import read_counter_files
from tests.waiting import wait_for

from .curl import curl
from .gateway import Gateway
from .origin import Origins
from .raw import Raw

POLICY = """
version: 1
rules:
  - {name: open, action: allow, hosts: [open.example]}
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}
"""
HELPERS = ("host", "request")
KILLS = 12


def test_the_slots_say_which_helpers_run_and_what_they_judge_by(
    gateway: Gateway, origins: Origins
) -> None:
    wait_for(
        lambda: curl(gateway, "http://paths.example/open/x").status == 200,
        "both helpers",
    )
    assert curl(gateway, "http://closed.example/").status == 403  # starts the throttle
    kinds = [*(f"acl --scope {helper}" for helper in HELPERS), "throttle"]

    def running() -> list[HelperStatus]:
        return [
            slot.status
            for slot in read_counter_files(gateway.root / "state/helpers")
            if slot.running and slot.status
        ]

    def pids() -> set[int]:
        return {pid for kind in kinds for pid in gateway.helpers(kind)}

    wait_for(
        lambda: {status.pid for status in running()} == pids(), "a slot of each helper"
    )
    newest = stored_revisions(gateway.root / "state/revisions")[0].revision
    judged_by = {(status.helper, status.revision) for status in running()}
    assert judged_by == {("host", newest), ("request", newest), ("throttle", None)}


def test_each_request_has_the_revision_on_record_that_decided(
    gateway: Gateway, origins: Origins
) -> None:
    folder = gateway.root / "state/revisions"
    curl(gateway, "http://open.example/before")
    # so are the requests of the tests before
    gateway.logged("http://open.example/before")
    before = len(gateway.log())
    curl(gateway, "https://open.example/allowed")
    curl(gateway, "http://closed.example/denied")
    curl(gateway, "https://closed.example/inside-a-denied-tunnel")
    curl(gateway, "https://paths.example/denied-by-its-url")
    gateway.logged("https://paths.example/denied-by-its-url", before)
    lines = gateway.log()[before:]
    assert [(line["method"], line["rule"]) for line in lines] == [
        ("CONNECT", "open"),
        ("GET", "open"),
        ("GET", "closed"),
        ("CONNECT", "closed"),
        ("GET", "closed"),
        ("CONNECT", "paths"),
        ("GET", "default"),
    ]
    revision = stored_revisions(folder)[0].revision
    assert {line["revision"] for line in lines} == {revision}
    rules = [rule.name for rule in load_stored_revision(folder, revision).source.rules]
    assert [name for name in rules if name != "canaries"] == ["open", "closed", "paths"]


def test_a_kept_alive_connection_has_the_revision_of_each_of_its_requests_on_record(
    gateway: Gateway, origins: Origins
) -> None:
    stored = gateway.root / "state/revisions"
    with Raw(gateway) as client:
        assert answered(client, "http://closed.example/before") == 403
        old = wait_for(lambda: stored_revisions(stored), "the revision to be stored")[
            0
        ].revision
        gateway.write(
            "policy.yaml",
            POLICY.replace(
                "{name: closed, action: deny,", "{name: opened, action: allow,"
            ),
        )

        def opened() -> bool:
            return answered(client, "http://closed.example/after") == 200

        wait_for(opened, "the edit to take effect")

    def replaced() -> str | None:
        newest = stored_revisions(stored)[0].revision
        return newest if newest != old else None

    new = wait_for(replaced, "the edit to be stored")
    assert gateway.logged("http://closed.example/before")["revision"] == old

    def served() -> list[
        dict[str, Any]
    ]:  # the lines of the requests before the edit came into force are denials
        lines = (
            line
            for line in gateway.log()
            if line["url"] == "http://closed.example/after"
        )
        return [line for line in lines if line["status"] == 200]

    [last] = wait_for(served, "the line of the request that was served")
    assert (last["rule"], last["verdict"], last["revision"]) == ("opened", "allow", new)


def answered(client: Raw, url: str) -> int | None:
    reply = client.get(url, "closed.example")
    return reply.status
