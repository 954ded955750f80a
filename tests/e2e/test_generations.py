"""Generations: what Squid would refuse never runs, a rollback is one command, and a
restart never mixes.
"""

import subprocess
from pathlib import Path

import pytest

from squidkeeper.operate.setup.generations import (
    KEPT,
    check_generation,
    number_in_force,
    numbers,
)
from tests.waiting import wait_for

from .curl import answer
from .gateway import Gateway, NewGateway

POLICY = """
version: 1
rules:
  - {name: plain, action: allow, hosts: [plain.example], paths: [/x]}
"""
RULE = "version: 1\nrules:\n  - {name: new, action: allow, hosts: [new.example], paths: [/x], strip: [%s]}\n"
# Ends a run of `render` at the start of a function, as a SIGKILL there would.
KILLED = """
import os, sys
from importlib import import_module
module, name = sys.argv.pop(1).rsplit(".", 1)
module = import_module(f"squidkeeper.operate.setup.{module}")
assert hasattr(module, name)
setattr(module, name, lambda *_, **__: os._exit(9))
from squidkeeper.cli import main
main()
"""
STEPS = (
    "generations.sync_below",
    "part_additions.check_generation",
    "serving_squid.put_in_force",
    "serving_squid._reconfigure",
    "serving_squid.is_open",
    "part_additions.outdated",
)


@pytest.fixture(scope="module")
def shared(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway(POLICY)
    gateway.start()
    gateway.renders = False
    return gateway


@pytest.fixture
def gateway(shared: Gateway) -> Gateway:
    wait_for(lambda: status(shared, "plain.example") == 200, "the helpers")
    return shared


def status(gateway: Gateway, host: str = "new.example") -> int:
    return answer(gateway, f"https://{host}/x").status


def edit(gateway: Gateway, header: str) -> None:
    gateway.write("new.yaml", RULE % header)


def render(gateway: Gateway) -> None:
    done = gateway.command("render", "--root", gateway.root)
    assert done.returncode == 0, done.stderr


def generation(gateway: Gateway, *words: str) -> "subprocess.CompletedProcess[str]":
    return gateway.command("generation", words[0], "--root", gateway.root, *words[1:])


def in_force(gateway: Gateway) -> int:
    number = number_in_force(gateway.layout)
    assert number is not None
    return number


def opens(gateway: Gateway) -> bool:
    return status(gateway) == 200


def test_a_rollback_holds_until_the_policy_is_edited(gateway: Gateway) -> None:
    first = in_force(gateway)
    edit(gateway, "X-First")
    render(gateway)
    wait_for(lambda: opens(gateway), "the edit")
    second = in_force(gateway)
    assert second == first + 1
    done = generation(gateway, "rollback")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout
        == f"Generation {first} is in force, until the policy is edited or install.sh runs.\n"
    )
    wait_for(
        lambda: answer(gateway, "https://new.example/x").rule == "not-rendered",
        "Squid without the part",
    )
    render(gateway)
    assert in_force(gateway) == first, "the rollback holds"
    listed = generation(gateway, "list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [str(first), str(second)]
    assert "in force" in listed[0]
    assert "+strip.x-first" in listed[1]
    edit(gateway, "X-First, X-Second")
    render(gateway)
    assert in_force(gateway) == second + 1
    wait_for(lambda: opens(gateway), "the edit after the rollback")
    assert not gateway.layout.generation_held.exists()


def test_the_last_three_are_kept_and_a_rollback_can_name_one(gateway: Gateway) -> None:
    for header in ("X-A", "X-B", "X-C"):
        edit(gateway, header)
        gateway.layout.applied.touch()  # as install.sh: no pause is needed
        render(gateway)
    kept = numbers(gateway.layout)
    assert (len(kept), kept[-1]) == (KEPT, in_force(gateway))
    assert generation(gateway, "rollback", str(kept[0])).returncode == 0
    assert in_force(gateway) == kept[0]
    assert generation(gateway, "rollback", str(kept[2])).returncode == 0
    assert in_force(gateway) == kept[2]
    refused = generation(gateway, "rollback", "999")
    assert (refused.returncode, in_force(gateway)) == (1, kept[2])
    assert "999 is not one of the others that are kept" in refused.stderr


@pytest.mark.parametrize("step", STEPS)
def test_render_killed_at_any_step_leaves_a_whole_generation_in_force(
    gateway: Gateway, step: str
) -> None:
    layout, before = gateway.layout, in_force(gateway)
    gateway.layout.applied.touch()
    edit(gateway, f"X-Killed-{STEPS.index(step)}")
    python = (gateway.root / "bin/squidkeeper").resolve().with_name("python")
    done = subprocess.run(
        [python, "-c", KILLED, step, "render", "--root", gateway.root], check=False
    )
    assert done.returncode == 9
    assert in_force(gateway) in (before, before + 1)
    check_generation(layout, layout.generation.resolve())
    gateway.layout.applied.touch()
    render(gateway)
    wait_for(lambda: opens(gateway), "the edit")
    assert in_force(gateway) == numbers(layout)[-1]
    assert layout.generation_told.read_text() == f"{in_force(gateway)}\n"
    hidden = [path.name for path in layout.generations.glob(".*")]
    assert (hidden, layout.generation_telling.exists()) == ([], False)


def test_two_at_once_take_turns(gateway: Gateway) -> None:
    gateway.layout.applied.touch()
    edit(gateway, "X-Two")
    program = gateway.root / "bin/squidkeeper"
    words = (["render"], ["generation", "rollback"], ["render"])
    processes = [
        subprocess.Popen([program, *each, "--root", gateway.root]) for each in words
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    check_generation(gateway.layout, gateway.layout.generation.resolve())
    assert gateway.layout.generation_told.read_text() == f"{in_force(gateway)}\n"
    edit(gateway, "X-Two, X-Three")
    render(gateway)
    wait_for(lambda: opens(gateway), "the edit")


def test_a_generation_that_squid_refuses_is_not_put_back(gateway: Gateway) -> None:
    layout, current = gateway.layout, in_force(gateway)
    number = [one for one in numbers(layout) if one != current][-1]
    file = layout.generations / f"{number}/squidkeeper.conf"
    text = file.read_text()
    file.write_text(f"{text}no_such_directive on\n")
    refused = generation(gateway, "rollback", str(number))
    file.write_text(text)
    assert (refused.returncode, in_force(gateway)) == (1, current)
    assert "no_such_directive" in refused.stderr


def test_a_generation_of_other_settings_or_another_program_is_not_put_back(
    gateway: Gateway,
) -> None:
    layout, current = gateway.layout, in_force(gateway)
    number = [one for one in numbers(layout) if one != current][-1]
    for name, why in (("gateway.yaml", "other settings"), ("version", "version of")):
        file: Path = layout.generations / str(number) / name
        text = file.read_text()
        file.write_text(f"{text}# other\n")
        refused = generation(gateway, "rollback", str(number))
        listed = generation(gateway, "list").stdout
        file.write_text(text)
        assert (refused.returncode, in_force(gateway)) == (1, current)
        assert why in refused.stderr
        assert why in listed


def test_a_restart_reads_no_edit_that_is_not_applied(gateway: Gateway) -> None:
    gateway.layout.local.write_text("no_such_directive on\n")
    gateway.layout.settings.write_text("version: 1\nlisten: 1\n")
    gateway.stop()
    gateway.start()
    assert status(gateway, "plain.example") == 200
