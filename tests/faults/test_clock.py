"""A clock that is set, for the helpers alone: needs Debian's libfaketime."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e.gateway import Gateway, NewGateway
from tests.e2e.observer import Exporter
from tests.e2e.origin import Origins
from tests.waiting import stays

from .conftest import prepared
from .expect import POLICY, answers, under_load


def with_set_clock(gateway: Gateway, library: Path, setting: Path) -> None:
    """Let the helpers read their clock by what `setting` holds, and by the true one
    where they measure spans.
    """
    program = gateway.root / "bin/squidkeeper"
    true = program.with_name("squidkeeper-true")
    program.rename(true)
    program.write_text(
        f"#!/bin/sh\nLD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={setting} FAKETIME_NO_CACHE=1"
        f' FAKETIME_DONT_FAKE_MONOTONIC=1 exec {true} "$@"\n'
    )
    program.chmod(0o755)


@pytest.mark.long
def test_the_clock_of_the_helpers_set_back_and_forth(
    new_gateway: NewGateway, origins: Origins
) -> None:
    # apt-get install libfaketime
    [library] = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    lapses = datetime.now(UTC) + timedelta(hours=12)
    rule = f"  - {{name: lapsing, action: allow, hosts: [lapsing.example], expires: {lapses:%Y-%m-%dT%H:%M:%SZ}}}\n"
    gateway = prepared(new_gateway(POLICY.replace("rules:\n", "rules:\n" + rule)))
    setting = gateway.root / "clock"
    set_clock(setting, 0)
    with_set_clock(gateway, library, setting)
    gateway.start()
    with (
        Exporter(gateway, 9133),
        under_load(gateway, origins, also={"lapsing.example"}) as load,
    ):
        helpers = gateway.helpers("")
        for days, status in ((0, 200), (1, 403), (-1, 200), (1, 403), (0, 200)):
            set_clock(setting, days)
            answers(gateway, "http://lapsing.example/", status)
            load.at_least(30)
        stays(
            lambda: set(helpers) <= set(gateway.helpers("")),
            15,
            "each helper, longer than a watchdog waits,",
        )


def set_clock(setting: Path, days: int) -> None:
    """Set it in one go: of a torn setting the library would make any time."""
    new = setting.with_name("clock-new")
    new.write_text(f"{days:+}d\n")
    new.rename(setting)
