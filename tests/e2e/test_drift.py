"""Drift on a live Squid: hostile traffic raises no false alarm, and what passes the
policy by is found.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest

from squidkeeper.change.replay.replay import COLUMNS
from squidkeeper.change.replay.replay import replay as replayed
from squidkeeper.change.replay.result import FlipKind
from squidkeeper.policy.engine import CompiledPolicy, decide
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.record.log.drift import DriftChecker, PastPolicies, was_served
from squidkeeper.record.log.log_files import read_log_lines
from squidkeeper.record.log.record import NONE, Record, parse_record
from squidkeeper.record.log.requests import request_of, unexplained
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table
from tests.waiting import wait_for

from . import test_attacks as attacks
from .curl import CurlFailed, curl
from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import Raw, tunnel

Found = list[tuple[str, str, str]]  # kind, rule, URL


def records(gateway: Gateway) -> Iterator[Record]:
    log = gateway.root / "log/access.log"
    return map(parse_record, read_log_lines([log]))


def settled(gateway: Gateway) -> list[Record]:
    """The record, once a request that is sent now is on it, and the revisions
    are kept.
    """
    curl(gateway, "http://last.example/")
    gateway.logged("http://last.example/")
    wait_for(
        lambda: list((gateway.root / "state/revisions").glob("?" * 12)),
        "the revision to be kept",
    )
    return list(records(gateway))


def drift_of(gateway: Gateway) -> tuple[Found, DriftChecker]:
    drift = DriftChecker(PastPolicies(gateway.root / "state/revisions"))
    checked = [(drift.check(record), record) for record in settled(gateway)]
    return [
        (finding.kind.value, finding.rule, record.url)
        for finding, record in checked
        if finding
    ], drift


# ── No false alarm ────────────────────────────────────────────────────────────────────


ODD_PATHS = """
  - {name: odd-denied, action: deny, hosts: [odd.example], paths: ["/b{c}", "/it's", '/x"y', "regex:/r[|].*"]}
  - {name: odd-paths, action: allow, hosts: [odd.example], paths: ["/a[1]", '/back\\slash', "/it's/**", "/~me"]}
  - {name: odd-query, action: allow, hosts: [odd.example], query: {q: 'a"b*'}}
"""


@pytest.fixture(scope="module")
def attacked(new_gateway: NewGateway) -> Gateway:
    """A gateway that has seen hostile traffic."""
    gateway = new_gateway(
        attacks.POLICY.replace("secrets:", f"{ODD_PATHS.strip(chr(10))}\nsecrets:")
    )
    gateway.secret("token", attacks.TOKEN)
    gateway.start()
    for attack in hostile(gateway):
        with suppress(
            OSError, CurlFailed
        ):  # whether it is answered is another test's business
            attack()
    return gateway


def hostile(gateway: Gateway) -> Iterator[Callable[[], object]]:
    """What test_attacks.py sends, one request or tunnel each."""
    yield from (
        partial(attack.run, gateway)
        for attack in (*attacks.AUTHORITY, *attacks.PORTS, *attacks.METHODS)
    )
    for path in (*(path for path, _ in attacks.PATHS), *MANY_READINGS):
        yield partial(plain, gateway, "paths.example", path)
        yield partial(inside, gateway, "paths.example", path)
    for path in (*attacks.BESIDE, *MANY_READINGS):
        yield partial(inside, gateway, "api.example", path)
        # open whole: nobody is asked about its paths
        yield partial(inside, gateway, "good.example", path)
        yield partial(plain, gateway, "good.example", path)
    for host in (*(host for host, _ in attacks.SPELLINGS), *attacks.PRIVATE):
        yield partial(plain, gateway, host, "/")
    for sni in attacks.BAD_SNI:
        yield partial(inside, gateway, "good.example", "/x", sni)
    for head in attacks.SMUGGLED:
        yield partial(
            raw, gateway, head + attacks.request("/smuggled", "closed.example")
        )

    hosts = random.Random(4).choices(ODD_HOSTS, k=400)
    yield partial(
        kept_alive,
        gateway,
        [
            f"http://{host}{path}"
            for host, path in zip(hosts, odd_paths(400, 4), strict=True)
        ],
    )
    for seed, host in enumerate(("odd.example", "api.example", "paths.example")):
        yield partial(
            kept_alive, gateway, [path or "/" for path in odd_paths(40, seed)], host
        )


ODD_HOSTS = ["odd.example"] * 4 + [
    "good.example",
    "paths.example",
    "api.example",
    "closed.example",
    "other.example",
]
ODD_HOSTS += [
    "u:p@good.example",
    "b\xc3\xbccher.example",
    "b%C3%BCcher.example",
    "[2001:db8::1]",
    "odd.example:8080",
]
ODD_PIECES = [
    *(
        "/",
        "/",
        "a",
        "/a[1]",
        "/a%5B1%5D",
        "/back\\slash",
        "/back%5Cslash",
        "/it's",
        "/it%27s",
        "/b{c}",
    ),
    *(
        "/b%7bc%7D",
        "#",
        "%23",
        '/x"y',
        "/x%22y",
        "/~me",
        "/%7Eme",
        "/r|",
        "/r%7C",
        "<",
        "%3e",
        "^",
        "`",
        "%",
        "%%",
    ),
    *(
        "%00",
        "\xc3\xa9",
        "%C3%A9",
        "\xff",
        "%ff",
        "..",
        "/../",
        "%2e%2e",
        "//",
        ";x",
        "%2f",
        "%252f",
        "?q=",
        "?",
    ),
    *(
        "&q=",
        'a"b',
        "?q=a%22bc",
        "+",
        "/open",
        "/private",
        "/v1",
        "/squid-internal-",
        "/SQUID%2Dinternal-",
    ),
    *("x" * 1300, '"' * 1366),
]


def odd_paths(number: int, seed: int) -> Iterator[str]:
    """Make paths of characters that Squid logs otherwise than they were sent, and of
    characters that decide.
    """
    chance = random.Random(seed)
    return (
        "".join(chance.choices(ODD_PIECES, k=chance.randint(0, 4)))
        for _ in range(number)
    )


def kept_alive(gateway: Gateway, targets: list[str], inside: str | None = None) -> None:
    """Request one after the other, on a connection or in a tunnel that is opened again
    when it has ended.
    """
    client = None
    for target in targets:
        client = client or (
            Raw(gateway) if inside is None else tunnel(gateway, f"{inside}:443")
        )
        if not client.get(target, inside or "x"):
            client.close()
            client = None
    if client is not None:
        client.close()


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
    found, drift = drift_of(attacked)
    assert found == []
    assert drift.unchecked == 0
    served = Counter(record.rule for record in records(attacked) if was_served(record))
    assert served["good"] > 50
    assert served["paths"] > 10
    assert served["api"] > 3
    assert sum(not was_served(record) for record in records(attacked)) > 200


def test_what_is_on_record_is_explained_as_it_was_decided(
    attacked: Gateway, origins: Origins
) -> None:
    """The record's fields are all that decided: a verdict that does not follow from
    them is refused with the reason.
    """
    compiled = load(attacked.policy_folder, datetime.now(UTC)).compiled
    wrong, why = [], Counter[str]()
    for record in settled(attacked):
        reason = unexplained(record)
        if reason is None:
            decision = decide(
                compiled, compiled.match(request_of(record)), datetime.now(UTC)
            )
            if (decision.action, decision.rule) != (record.verdict, record.rule):
                wrong.append((decision.action, decision.rule, record))
        why[reason or f"{record.verdict} {record.rule}"] += 1
    assert wrong == []
    assert (
        min(
            why[f"deny {rule}"]
            for rule in ("default", "closed", "invalid-request", "ambiguous-path")
        )
        > 10
    )
    assert (
        min(why[f"allow {rule}"] for rule in ("good", "paths", "api", "odd-paths")) > 10
    )
    assert min(why["deny authority-mismatch"], why["deny odd-denied"]) > 2


def test_the_url_on_record_alone_is_explained_as_it_was_decided(
    attacked: Gateway, origins: Origins
) -> None:
    """Where a request was what `explain METHOD URL` takes it for: in its own tunnel,
    and nothing of it hidden.
    """
    compiled, seen = (
        load(attacked.policy_folder, datetime.now(UTC)).compiled,
        Counter[str](),
    )
    for record in settled(attacked):
        request = request_to(record.method, record.url, record.client)
        if (
            unexplained(record) is None
            and record.hidden == NONE
            and request_of(record) == request
        ):
            decision = decide(compiled, compiled.match(request), datetime.now(UTC))
            if record.rule != "authority-mismatch":  # the TLS server name was another
                assert (decision.action, decision.rule) == (
                    record.verdict,
                    record.rule,
                ), record
                seen[record.rule] += 1
    assert seen.total() > 300
    assert (
        min(
            seen[rule]
            for rule in (
                "good",
                "odd-paths",
                "closed",
                "invalid-request",
                "ambiguous-path",
            )
        )
        > 2
    )


def test_a_replay_gives_hostile_traffic_the_verdicts_that_it_had(
    attacked: Gateway, origins: Origins
) -> None:
    """The policy against itself: no flips, and no record with another verdict.

    An edit flips what it closes alone.
    """
    settled(attacked)
    now = datetime.now(UTC)
    compiled = load(attacked.policy_folder, now).compiled
    edited = replace(
        compiled.source,
        revision="0",
        rules=tuple(r for r in compiled.source.rules if r.name != "good"),
    )
    with open_table(
        TableSources(files=(attacked.root / "log/access.log",)), columns=COLUMNS
    ) as table:
        same = replayed(table.connection, compiled, compiled)
        closed = replayed(table.connection, compiled, CompiledPolicy(edited))
    assert (same.flips, same.disagreeing) == ((), 0)
    assert same.requests > 400
    assert {(group.flip.kind, group.flip.was) for group in closed.flips} == {
        (FlipKind.DENIED, "good")
    }
    assert closed.denied_and_used > 20


# ── What passes the policy by ─────────────────────────────────────────────────────────

POLICY = """
version: 1
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: good, action: allow, hosts: [good.example]}
"""
BYPASS = ("acl bypassed dstdomain bypassed.example", "http_access allow bypassed")


def test_a_line_of_the_operators_that_passes_the_policy_by_is_found(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(POLICY, *BYPASS).start()
    for host in ("good.example", "closed.example", "bypassed.example"):
        curl(gateway, f"https://{host}/x")
        curl(gateway, f"http://{host}/y")
    with Raw(
        gateway
    ) as client:  # what denied the first does not stay with the connection
        client.get("http://closed.example/z", "closed.example")
        client.get("http://bypassed.example/z", "bypassed.example")
    passed = ["bypassed.example:443", "https://bypassed.example/x"]
    passed += ["http://bypassed.example/y", "http://bypassed.example/z"]
    assert drift_of(gateway)[0] == [("unasked", "none", url) for url in passed]
    shown = log(gateway, "--drift", "--json")
    assert [json.loads(line)["record"]["url"] for line in shown] == passed


def log(gateway: Gateway, *options: str) -> list[str]:
    """Run `squidkeeper log` on a gateway; drift is exit status 1."""
    done = gateway.command("log", *options, *gateway.places)
    assert (done.returncode, done.stderr) == (1, "")
    return done.stdout.splitlines()


def test_an_allow_that_the_policy_denies_is_found_whatever_the_record_says(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(POLICY)
    revision = json.loads(
        gateway.command("check", "--json", "--policy", gateway.policy_folder).stdout
    )
    gateway.local_conf(
        "acl closed dstdomain closed.example",
        f"acl lie annotate_transaction rule_=good verdict_=allow revision_={revision['revision']}",
        "http_access allow closed lie",
    )
    gateway.start()
    assert curl(gateway, "http://closed.example/x").status == 200
    assert drift_of(gateway)[0] == [("allowed", "closed", "http://closed.example/x")]


def test_a_credential_that_was_not_due_is_found(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(
        POLICY,
        "acl stray annotate_transaction credential_=stray",
        "http_access deny stray !all",
    )
    gateway.start()
    assert curl(gateway, "http://good.example/x").status == 200
    assert drift_of(gateway)[0] == [("credential", "good", "http://good.example/x")]
