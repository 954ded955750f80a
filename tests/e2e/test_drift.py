"""Drift on a live Squid: hostile traffic raises no false alarm, and what passes the policy by is found."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest

from squidkeeper.observe.record.drift import Drift, was_served
from squidkeeper.observe.record.judges import KeptJudges
from squidkeeper.observe.record.line import Record, parse_record
from squidkeeper.observe.record.logs import read_blocks

from . import test_attacks as attacks
from .curl import CurlFailed, curl
from .gateway import Gateway, NewGateway
from .network import run, wait_for
from .origin import Origins
from .raw import Raw, tunnel

Found = list[tuple[str, str, str]]  # kind, rule, URL


def records(gateway: Gateway) -> Iterator[Record]:
    log = gateway.root / "log/access.log"
    return (parse_record(line) for block in read_blocks([log]) for line in block.lines)


def settled(gateway: Gateway) -> list[Record]:
    """The record, once a request that is sent now is on it, and the revisions are kept."""
    curl(gateway, "http://last.example/")
    gateway.logged("http://last.example/")
    wait_for(lambda: list((gateway.root / "state/revisions").glob("?" * 12)), "the revision to be kept")
    return list(records(gateway))


def drift_of(gateway: Gateway) -> tuple[Found, Drift]:
    drift = Drift(KeptJudges(gateway.root / "state/revisions"))
    checked = [(drift.check(record), record) for record in settled(gateway)]
    return [(one.kind.value, one.rule, record.url) for one, record in checked if one], drift


# ── No false alarm ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def attacked(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway(attacks.POLICY)
    gateway.secret("token", attacks.TOKEN)
    return gateway.start()


def hostile(gateway: Gateway) -> Iterator[Callable[[], object]]:
    """What test_attacks.py sends, one request or tunnel each."""
    yield from (partial(one.run, gateway) for one in (*attacks.AUTHORITY, *attacks.PORTS, *attacks.METHODS))
    for path in (*(path for path, _ in attacks.PATHS), *MANY_READINGS):
        yield partial(plain, gateway, "paths.example", path)
        yield partial(inside, gateway, "paths.example", path)
    for path in (*attacks.BESIDE, *MANY_READINGS):
        yield partial(inside, gateway, "api.example", path)
        yield partial(inside, gateway, "good.example", path)  # open whole: nobody is asked about its paths
        yield partial(plain, gateway, "good.example", path)
    for host in (*(host for host, _ in attacks.SPELLINGS), *attacks.PRIVATE):
        yield partial(plain, gateway, host, "/")
    for sni in attacks.BAD_SNI:
        yield partial(inside, gateway, "good.example", "/x", sni)
    for head in attacks.SMUGGLED:
        yield partial(raw, gateway, head + attacks.request("/smuggled", "closed.example"))


MANY_READINGS = [
    "/" + "a//../b//../;x/..;/./" * 20,
    "/" + "%25" * 40 + "41",
    "/" + "/" * 3000,
    '/"<>{}|^`[]\\',
    "/\xff\xfe",
    "/x?" + "&".join(f"{n}=%2{n % 10}" for n in range(500)),
]


def plain(gateway: Gateway, host: str, path: str) -> object:
    return raw(gateway, attacks.request(f"http://{host}{path}", host))


def raw(gateway: Gateway, data: str) -> object:
    with Raw(gateway) as client:
        return client.send(data.encode("latin-1", "replace")).finish().answer()


def inside(gateway: Gateway, host: str, path: str, sni: bytes | str = "same") -> object:
    with tunnel(gateway, f"{host}:443", sni) as client:
        return client.send(attacks.request(path, host)).answer()


def test_hostile_traffic_raises_no_alarm(attacked: Gateway, origins: Origins) -> None:
    for one in hostile(attacked):
        with suppress(OSError, CurlFailed):  # whether it is answered is another test's business
            one()
    found, drift = drift_of(attacked)
    assert found == []
    assert drift.unchecked == 0
    served = Counter(record.rule for record in records(attacked) if was_served(record))
    assert served["good"] > 50
    assert served["paths"] > 10
    assert served["api"] > 3
    assert sum(not was_served(record) for record in records(attacked)) > 200


# ── What passes the policy by ──────────────────────────────────────────────────────────────────────────────────────

POLICY = """
version: 1
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: good, action: allow, hosts: [good.example]}
"""
BYPASS = ("acl bypassed dstdomain bypassed.example", "http_access allow bypassed")


def test_a_line_of_the_operators_that_passes_the_policy_by_is_found(new_gateway: NewGateway, origins: Origins) -> None:
    gateway = new_gateway(POLICY, *BYPASS).start()
    for host in ("good.example", "closed.example", "bypassed.example"):
        curl(gateway, f"https://{host}/x")
        curl(gateway, f"http://{host}/y")
    with Raw(gateway) as client:  # what denied the first is still noted of the connection
        client.get("http://closed.example/z", "closed.example")
        client.get("http://bypassed.example/z", "bypassed.example")
    assert drift_of(gateway)[0] == [
        ("unasked", "none", "bypassed.example:443"),
        ("unasked", "none", "https://bypassed.example/x"),
        ("unasked", "none", "http://bypassed.example/y"),
        ("allowed", "closed", "http://bypassed.example/z"),
    ]
    shown = log(gateway, "--drift", "--json")
    assert [json.loads(line)["record"]["url"] for line in shown] == [
        "bypassed.example:443",
        "https://bypassed.example/x",
        "http://bypassed.example/y",
        "http://bypassed.example/z",
    ]


def log(gateway: Gateway, *options: str) -> list[str]:
    """Run `squidkeeper log` on a gateway; drift is exit status 1."""
    where = [
        "--policy",
        str(gateway.policy_folder),
        "--state",
        f"{gateway.root}/state",
        f"{gateway.root}/log/access.log",
    ]
    command = [f"{gateway.root}/bin/squidkeeper", "log", *options, *where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    return done.stdout.splitlines()


def test_an_allow_that_the_policy_denies_is_found_whatever_the_record_says(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(POLICY)
    revision = json.loads(run(f"{gateway.root}/bin/squidkeeper", "check", "--json", "--policy", gateway.policy_folder))
    gateway.local_conf(
        "acl closed dstdomain closed.example",
        f"acl lie annotate_transaction rule_=good verdict_=allow revision_={revision['revision']}",
        "http_access allow closed lie",
    )
    gateway.start()
    assert curl(gateway, "http://closed.example/x").status == 200
    assert drift_of(gateway)[0] == [("allowed", "closed", "http://closed.example/x")]


def test_a_credential_that_was_not_due_is_found(new_gateway: NewGateway, origins: Origins) -> None:
    gateway = new_gateway(POLICY, "acl stray annotate_transaction credential_=stray", "http_access deny stray !all")
    gateway.start()
    assert curl(gateway, "http://good.example/x").status == 200
    assert drift_of(gateway)[0] == [("credential", "good", "http://good.example/x")]
