"""Secrets that change under a running gateway: a new value replaces the former one, a
removed one denies.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_for

from .curl import curl
from .fetching import fetching, put_command
from .gateway import Gateway, NewGateway
from .origin import Origins

POLICY = """
version: 1
rules:
  - {name: open, action: allow, hosts: [file.example, volume.example, command.example, expiring.example]}
secrets:
  in-file: {file: secrets/in-file}
  volume: {file: ROOT/etc/volume/github-token}
  command: {command: {run: [give, command], refresh: 1s}}
  expiring: {command: {run: [give, expiring], refresh: 1s}}
credentials:
  - {name: file, hosts: [file.example], bearer: in-file}
  - {name: volume, hosts: [volume.example], bearer: volume}
  - {name: command, hosts: [command.example], bearer: command}
  - {name: expiring, hosts: [expiring.example], bearer: expiring}
"""


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Iterator[Gateway]:
    gateway = new_gateway(POLICY)
    gateway.write("policy.yaml", POLICY.replace("ROOT", str(gateway.root)))
    put_source(gateway, "command", "rotated-fetched-value-1")
    for number in (1, 2):
        gateway.remember(f"rotated-fetched-value-{number}")
    put_command(gateway, "give", f'exec cat "{gateway.root}/etc/source-$1"')
    gateway.start()
    curl(gateway, "https://file.example/")  # starts the helpers
    with fetching(gateway):
        yield gateway
    for file in (gateway.root / "etc").glob(
        "source-*"
    ):  # no file may hold a secret at the end of the run
        file.unlink()


def put_source(gateway: Gateway, name: str, value: str) -> None:
    """Let a command print this."""
    file = gateway.root / f"etc/source-{name}"
    new = file.with_suffix(".new")
    new.write_text(value)
    shutil.chown(new, group="proxy")
    new.chmod(0o640)
    new.rename(file)


def sent(gateway: Gateway, origins: Origins, host: str) -> str | None:
    """The header that the origin of a host is sent now; None: the request is denied."""
    origins.forget()
    reply = curl(gateway, f"https://{host}/")
    if reply.status == 403:
        assert origins.seen == []
        assert reply.rule == "credential-unavailable"
        return None
    [value] = origins.seen[0].values("Authorization")
    return str(value)


def becomes(
    gateway: Gateway, origins: Origins, host: str, expected: str | None
) -> None:
    """Wait for this header, or a denial; until then, requests have what they had before
    the change.
    """
    before = sent(gateway, origins, host)

    def is_there() -> bool:
        found = sent(gateway, origins, host)
        assert found in (before, expected)
        return found == expected

    if before != expected:
        wait_for(is_there, f"{expected} at the origin")


def test_a_file_that_is_rotated_is_in_use_and_a_removed_one_denies(
    gateway: Gateway, origins: Origins
) -> None:
    gateway.secret("in-file", "rotated-file-value-1")
    becomes(gateway, origins, "file.example", "Bearer rotated-file-value-1")
    gateway.secret("in-file", "rotated-file-value-2")
    becomes(gateway, origins, "file.example", "Bearer rotated-file-value-2")
    (gateway.policy_folder / "secrets/in-file").unlink()
    becomes(gateway, origins, "file.example", None)


def test_a_volume_of_kubernetes_is_swapped(gateway: Gateway, origins: Origins) -> None:
    """As the kubelet does it: a folder for each version, and a rename of the link to
    it.

    No change of the policy.
    """
    volume = gateway.root / "etc/volume"
    volume.mkdir()
    (volume / "github-token").symlink_to("..data/github-token")
    for number in (1, 2, 3):
        put_version(volume, f"..2026_11_26_{number}", f"value-of-the-volume-{number}")
        becomes(
            gateway, origins, "volume.example", f"Bearer value-of-the-volume-{number}"
        )


def put_version(volume: Path, name: str, value: str) -> None:
    (volume / name).mkdir()
    file = volume / name / "github-token"
    file.write_text(value)
    shutil.chown(file, group="proxy")
    file.chmod(0o440)
    former = (
        (volume / "..data").readlink() if (volume / "..data").is_symlink() else None
    )
    (volume / "..data_tmp").symlink_to(name)
    os.replace(volume / "..data_tmp", volume / "..data")
    if former:
        shutil.rmtree(volume / former)


def test_a_fetched_value_that_is_rotated_is_in_use_and_a_removed_one_denies(
    gateway: Gateway, origins: Origins
) -> None:
    becomes(gateway, origins, "command.example", "Bearer rotated-fetched-value-1")
    put_source(gateway, "command", "rotated-fetched-value-2\n")
    becomes(gateway, origins, "command.example", "Bearer rotated-fetched-value-2")
    [file] = (
        file
        for file in (gateway.root / "run/secrets").glob("*.value")
        if "value-2" in file.read_text()
    )
    file.unlink()
    becomes(gateway, origins, "command.example", None)


@pytest.mark.long
def test_a_fetched_value_is_used_until_it_expires_while_its_source_fails(
    gateway: Gateway, origins: Origins
) -> None:
    gateway.remember("value-that-expires")
    end = time.time() + 6
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
    put_source(
        gateway, "expiring", f'{{"value": "value-that-expires", "expires_at": "{at}"}}'
    )
    wait_for(
        lambda: (
            sent(gateway, origins, "expiring.example") == "Bearer value-that-expires"
        ),
        "the value",
    )
    (gateway.root / "etc/source-expiring").unlink()
    while (now := time.time()) < int(end):
        found = sent(gateway, origins, "expiring.example")
        assert found == "Bearer value-that-expires" or time.time() >= int(end), now
    wait_for(lambda: sent(gateway, origins, "expiring.example") is None, "the denial")
