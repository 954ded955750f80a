"""Tunnels that pass through (`tls: passthrough`), and WebSockets, on a live Squid."""

import signal
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.server import Server

from squidkeeper.base.helper_metrics import HOST
from squidkeeper.policy.engine.explain import explain
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.record.log.drift import PastPolicies
from squidkeeper.record.log.record import NONE, parse_time
from squidkeeper.record.log.requests import request_of, unexplained
from squidkeeper.serving.counters.reader import read_counter_files
from tests.waiting import pause, wait_for

from .dns import PUBLIC, SHORT_MEMORY, Names
from .gateway import Gateway
from .origin import Origins
from .raw import Raw, tunnel
from .reply import Reply
from .test_drift import drift_of, records
from .websocket import open_websocket

POLICY = """
version: 1
clients:
  vm: {networks: [127.0.0.1/32]}
  other: {networks: [127.0.0.2/32]}
  both: {networks: [127.0.0.0/30]}
rules:
  - {name: other-paths, action: allow, clients: [other], hosts: [pinned.example], paths: [/open/**]}
  - {name: pinned, action: allow, clients: [both], hosts: [pinned.example], tls: passthrough}
  - {name: addresses, action: allow, hosts: [203.0.113.10, "2001:db8::10"], tls: passthrough}
  - {name: umlaut, action: allow, hosts: [bücher.example], tls: passthrough}
  - {name: moving, action: allow, hosts: [.moving.example], tls: passthrough}
  - {name: inside, action: allow, hosts: [inside.example], tls: passthrough, private: true}
  - {name: ports, action: allow, hosts: [ports.example], ports: [444, 9443], tls: passthrough}
  - {name: bumped, action: allow, hosts: [bumped.example], paths: [/open/**]}
  - {name: injected, action: allow, hosts: [api.example]}
  - {name: rewritten, action: allow, hosts: [front.example]}
  - {name: chat, action: allow, hosts: [chat.example], ports: [9443], paths: [/live/**], websocket: true}
  - {name: chat-rest, action: allow, hosts: [chat.example], ports: [9443], paths: [/rest/**]}
rewrites:
  - {name: front, hosts: [front.example], to: "https://bumped.example{path}"}
secrets:
  token: {file: secrets/token}
credentials:
  - {name: api, hosts: [api.example], bearer: token}
"""
LISTENING = "Accepting SSL bumped HTTP Socket connections"

LOCAL_CONF = (SHORT_MEMORY,)
SECRETS = {"token": "e2e-token-passthrough"}


@contextmanager
def pinned(
    gateway: Gateway,
    origins: Origins,
    authority: str,
    sni: bytes | str | None,
    between: Callable[[], object] = lambda: None,
    client: str = "127.0.0.1",
) -> Iterator[Raw]:
    """Open a tunnel, and TLS in it that trusts the origin's authority alone; `between`
    comes between the two.
    """
    with Raw(gateway, client) as raw:
        answer = raw.connect(authority)
        assert answer.status == 200
        between()
        yield raw.tls(sni, origins.authority.certificate)


def get(
    gateway: Gateway,
    origins: Origins,
    authority: str,
    sni: bytes | str | None,
    *,
    client: str = "127.0.0.1",
) -> Reply:
    with pinned(gateway, origins, authority, sni, client=client) as raw:
        return raw.get("/x", authority.rpartition(":")[0])


def lines_of(
    gateway: Gateway, authority: str, before: int, number: int = 2
) -> list[tuple[str, int, str, str]]:
    """What the access log has for a tunnel, once it has that many lines: Squid's
    result, status, verdict and rule.
    """

    def found() -> list[tuple[str, int, str, str]]:
        lines = [line for line in gateway.log()[before:] if line["url"] == authority]
        results = [
            line["squid"].partition("/")[0].removesuffix("_ABORTED") for line in lines
        ]
        read = [
            (one, line["status"], line["verdict"], line["rule"])
            for one, line in zip(results, lines, strict=True)
        ]
        return read if len(read) >= number else []

    try:
        return wait_for(found, f"{number} lines for {authority}")
    except AssertionError as error:
        raise AssertionError(f"{error}: {gateway.log()[before:]}") from None


def test_a_client_that_trusts_the_origin_alone_passes_and_the_tunnel_is_on_record(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(gateway.log())
    with pinned(gateway, origins, "pinned.example:443", "pinned.example") as raw:
        assert raw.names() == ["pinned.example"]
        reply = raw.get(
            "/never/seen?by=squid", "pinned.example", "X-Forwarded-Host: any"
        )
    assert (reply.status, reply.header("Via")) == (200, None)
    assert [seen.values("X-Forwarded-Host") for seen in origins.seen] == [["any"]]
    assert lines_of(gateway, "pinned.example:443", before) == [
        ("NONE_NONE", 200, "allow", "pinned"),
        ("TCP_TUNNEL", 200, "allow", "pinned"),
    ]
    last = gateway.log()[-1]
    assert (last["sni"], last["tunnel"], last["upstream"]) == (
        "pinned.example",
        "pinned.example:443",
        PUBLIC,
    )
    assert last["bytes"] > 0
    assert last["request_bytes"] > 500


PASSING = [
    ("PINNED.Example:443", "pinned.example"),
    ("pinned.example.:443", "pinned.example"),
    ("pinned.example:443", "PINNED.example"),
    ("xn--bcher-kva.example:443", "xn--bcher-kva.example"),
    (f"{PUBLIC}:443", None),
    ("[2001:db8::10]:443", None),
    ("ports.example:444", "ports.example"),
]


@pytest.mark.parametrize(("authority", "sni"), PASSING)
def test_the_same_host_in_another_spelling_passes(
    gateway: Gateway, origins: Origins, authority: str, sni: str | None
) -> None:
    assert get(gateway, origins, authority, sni).status == 200


DENIED = [
    ("pinned.example:443", None, "authority-mismatch"),
    ("pinned.example:443", "evil.example", "authority-mismatch"),
    (
        "pinned.example:443",
        "bumped.example",
        "authority-mismatch",
    ),  # allowed, for some paths only
    (
        "pinned.example:443",
        "api.example",
        "authority-mismatch",
    ),  # where a credential would be injected
    (
        "pinned.example:443",
        "a.moving.example",
        "authority-mismatch",
    ),  # passes through, for itself
    ("pinned.example:443", "a.pinned.example", "authority-mismatch"),
    ("pinned.example:443", "pinned.example.evil.example", "authority-mismatch"),
    ("pinned.example:443", "203.0.113.10", "authority-mismatch"),
    (f"{PUBLIC}:443", "pinned.example", "authority-mismatch"),
    ("a.moving.example:443", "b.moving.example", "authority-mismatch"),
]


@pytest.mark.parametrize(("authority", "sni", "rule"), DENIED)
def test_another_server_name_or_none_is_denied_and_reaches_no_origin(
    gateway: Gateway, origins: Origins, authority: str, sni: str | None, rule: str
) -> None:
    before = len(gateway.log())
    with pytest.raises(ssl.SSLError), pinned(gateway, origins, authority, sni):
        pass
    # the lines of the tunnel before can be late
    denied = (
        "TCP_DENIED",
        403,
        "deny",
        rule,
    )
    wait_for(lambda: denied in lines_of(gateway, authority, before), "the denial")
    assert origins.connections == []


BUMPED = [
    ("bumped.example:443", "bumped.example", "127.0.0.1"),
    ("api.example:443", "api.example", "127.0.0.1"),
    ("front.example:443", "front.example", "127.0.0.1"),
    (
        "pinned.example:443",
        "pinned.example",
        "127.0.0.2",
    ),  # a rule above sees paths of this client
    (
        "pinned.example:443",
        "pinned.example",
        "127.0.0.9",
    ),  # no rule is for this client: the page needs TLS
    ("ports.example:443", "ports.example", "127.0.0.1"),
]


@pytest.mark.parametrize(("authority", "sni", "client"), BUMPED)
def test_every_other_tunnel_is_bumped(
    gateway: Gateway, origins: Origins, authority: str, sni: str, client: str
) -> None:
    with (
        pytest.raises(ssl.SSLCertVerificationError, match="self-signed"),
        pinned(gateway, origins, authority, sni, client=client),
    ):
        pass
    assert origins.seen == []


def test_a_tunnel_that_is_bumped_client_first_leads_to_no_host_that_passes_through(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "front.example:443") as raw:
        first = raw.get("/first", "front.example")
        second = raw.get("/second", "pinned.example")
        third = raw.get("pinned.example:443", "pinned.example:443", method="CONNECT")
    assert (first.status, second.status, second.rule) == (
        200,
        403,
        "authority-mismatch",
    )
    assert not third or third.status == 403
    assert origins.urls() == ["https://bumped.example/first"]


# ── What comes between the two questions ──────────────────────────────────────────────


def test_a_helper_that_dies_before_the_second_answer_denies(
    gateway: Gateway, origins: Origins
) -> None:
    stop = partial(gateway.kill_helpers, "acl --scope host", signal.SIGSTOP)
    before, host = len(gateway.log()), "dies.moving.example"
    killer = threading.Timer(0.5, gateway.kill_helpers, ("acl --scope host",))
    killer.start()
    with (
        pytest.raises(ssl.SSLError),
        pinned(gateway, origins, f"{host}:443", host, stop),
    ):
        pass
    killer.join()
    assert lines_of(gateway, f"{host}:443", before)[1] == (
        "TCP_DENIED",
        403,
        "deny",
        "policy-unavailable",
    )
    assert origins.connections == []
    assert get(gateway, origins, f"{host}:443", host).status == 200


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (
            "tls: passthrough}\n  - {name: inside",
            "paths: [/x/**]}\n  - {name: inside",
            "invalid-request",
        ),
        (
            "{name: moving, action: allow, hosts: [.moving.example], tls: passthrough}",
            "{name: moving, action: deny, hosts: [.moving.example]}",
            "moving",
        ),
    ],
)
def test_a_policy_that_no_longer_passes_the_tunnel_through_denies_it(
    gateway: Gateway, origins: Origins, old: str, new: str, rule: str
) -> None:
    assert old in POLICY
    before, host = len(gateway.log()), f"{rule}.moving.example"
    edit = partial(put_in_force, gateway, POLICY.replace(old, new))
    try:
        with (
            pytest.raises(ssl.SSLError),
            pinned(gateway, origins, f"{host}:443", host, edit),
        ):
            pass
        assert lines_of(gateway, f"{host}:443", before)[1] == (
            "TCP_DENIED",
            403,
            "deny",
            rule,
        )
        assert origins.connections == []
    finally:
        put_in_force(gateway, POLICY)


def put_in_force(gateway: Gateway, policy: str) -> None:
    """Edit the policy, and wait until every helper that Squid could ask
    decides by it.
    """
    gateway.write("policy.yaml", policy)
    revision = load(gateway.policy_folder, datetime.now(UTC)).compiled.revision

    def decide_by() -> set[str | None]:
        slots = read_counter_files(gateway.root / "state/helpers")
        return {
            slot.status.revision
            for slot in slots
            if slot.running and slot.status and slot.status.helper == HOST
        }

    wait_for(lambda: decide_by() == {revision}, "the policy in all helpers")


def test_a_reconfigure_in_between_changes_nothing(
    gateway: Gateway, origins: Origins
) -> None:
    def reconfigure() -> (
        None
    ):  # to its end: a lookup that is under way meanwhile is denied
        before = gateway.cache_log().count(LISTENING)
        gateway.reconfigure()
        wait_for(
            lambda: gateway.cache_log().count(LISTENING) > before,
            "the end of the reconfigure",
        )

    with pinned(
        gateway, origins, "pinned.example:443", "pinned.example", reconfigure
    ) as raw:
        reply = raw.get("/x", "pinned.example")
    assert reply.status == 200


@pytest.mark.long
def test_helpers_that_are_killed_under_load_let_no_other_server_name_through(
    gateway: Gateway, origins: Origins
) -> None:
    def attack(number: int) -> bool:
        """Whether the server name of the tunnel's own host passed; another one never
        does.
        """
        good = number % 4 == 0
        host = f"h{number}.moving.example"
        try:
            with pinned(
                gateway, origins, f"{host}:443", host if good else "evil.example"
            ) as raw:
                return bool(raw.get("/good" if good else "/evil", host))
        except (OSError, AssertionError):  # denied, or the worker of Squid has ended
            return False

    with ThreadPoolExecutor(16) as threads:
        attacks = [threads.submit(attack, number) for number in range(4_000)]
        while not all(attack.done() for attack in attacks):
            gateway.kill_helpers("acl --scope host")
            pause(1, "a helper needs half of that to start")
    assert sum(attack.result() for attack in attacks) > 10  # some tunnels did open
    assert {seen.target for seen in origins.seen} == {"/good"}
    assert {seen.sni for seen in origins.seen if seen.sni} & {"evil.example"} == set()


# ── Private addresses ─────────────────────────────────────────────────────────────────


def test_a_name_with_a_private_address_is_denied_unless_the_rule_opens_it(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    names.set("private.moving.example", ["10.0.0.5"])
    names.set("inside.example", ["10.0.0.5"])
    before = len(gateway.log())
    with (
        pytest.raises(ssl.SSLError),
        pinned(
            gateway, origins, "private.moving.example:443", "private.moving.example"
        ),
    ):
        pass
    (line,) = lines_of(gateway, "private.moving.example:443", before, 1)
    # bumped, so that a request inside is denied
    assert line == (
        "NONE_NONE",
        200,
        "deny",
        "private-address",
    )
    assert origins.connections == []
    assert (
        get(gateway, origins, "inside.example:443", "inside.example").json["address"]
        == "10.0.0.5"
    )


@pytest.mark.one_worker(
    "each worker remembers names for itself: what one looks up again, another does not"
)
def test_a_name_that_turns_private_in_between_is_denied(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    names.set("turns.moving.example", [PUBLIC], ["10.0.0.5"])
    before = len(gateway.log())

    def expire() -> None:  # Squid keeps a name for two seconds at least
        wait_for(
            lambda: asked_again(gateway, names, "turns.moving.example"),
            "the second look-up",
        )

    with (
        pytest.raises(ssl.SSLError),
        pinned(
            gateway, origins, "turns.moving.example:443", "turns.moving.example", expire
        ),
    ):
        pass
    # among the lines of the look-ups
    denied = (
        "TCP_TUNNEL",
        500,
        "deny",
        "private-address",
    )
    wait_for(
        lambda: denied in lines_of(gateway, "turns.moving.example:443", before),
        "the denial",
    )
    assert origins.connections == []


def asked_again(gateway: Gateway, names: Names, host: str) -> bool:
    with Raw(gateway) as raw:
        raw.connect(f"{host}:443")
    return len(names.asked(host)) > 2


# ── Bytes that are no TLS, and what comes after a denial ──────────────────────────────


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: pinned.example\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x03\x01\x00\x05hello",
    ],
)
def test_what_is_no_tls_is_never_passed_on(
    gateway: Gateway, origins: Origins, sent: bytes
) -> None:
    with Raw(gateway) as raw:
        raw.connect("pinned.example:443")
        raw.send(sent)
        assert not raw.finish().answer()
    assert origins.connections == []


@pytest.mark.parametrize(
    "name", [b"pinned.exampl\0", b"pinned\nexample", b"pinned.ex\0mple"]
)
def test_a_server_name_with_strange_bytes_is_denied(
    gateway: Gateway, origins: Origins, name: bytes
) -> None:
    before = len(gateway.log())
    with Raw(gateway) as raw:
        raw.connect("pinned.example:443")
        raw.send(
            client_hello("pinned.example").replace(
                b"pinned.example", name.ljust(14, b"e")
            )
        ).answer()
    lines = lines_of(gateway, "pinned.example:443", before, 1)
    assert {
        (status, rule) for _, status, verdict, rule in lines if verdict == "deny"
    } <= {(403, "authority-mismatch")}
    assert origins.connections == []


def test_nothing_follows_on_the_connection_of_a_denied_tunnel(
    gateway: Gateway, origins: Origins
) -> None:
    hello = client_hello("evil.example")
    with Raw(gateway) as raw:
        raw.connect("pinned.example:443")
        raw.send(hello)
        assert raw.answer()  # the page, which no TLS client understands
        assert not raw.send(
            b"CONNECT pinned.example:443 HTTP/1.1\r\nHost: pinned.example:443\r\n\r\n"
        ).answer()
    assert origins.connections == []


def client_hello(sni: str) -> bytes:
    outgoing = ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname=sni
    )
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


# ── HTTP/2 and WebSocket ──────────────────────────────────────────────────────────────


def test_http_2_is_negotiated_in_a_tunnel_that_passes_through_and_in_no_other(
    gateway: Gateway, origins: Origins, echoing: Server
) -> None:
    with Raw(gateway) as raw:
        raw.connect("ports.example:9443")
        assert (
            raw.tls(
                "ports.example", origins.authority.certificate, "h2", "http/1.1"
            ).protocol
            == "h2"
        )
    with Raw(gateway) as raw:
        raw.connect("chat.example:9443")
        assert raw.tls("chat.example", None, "h2", "http/1.1").protocol != "h2"


def websocket(gateway: Gateway, path: str) -> str | bytes:
    """Send a message through a tunnel that Squid bumps, and give the echo."""
    with open_websocket(gateway, path) as client:
        client.send("hello")
        return client.recv()


def test_a_websocket_passes_by_rule_and_path(gateway: Gateway, echoing: Server) -> None:
    before = len(gateway.log())
    assert websocket(gateway, "/live/room") == "hello"
    line = gateway.logged("https://chat.example:9443/live/room", before)
    assert (line["status"], line["verdict"], line["rule"]) == (101, "allow", "chat")
    with pytest.raises(InvalidStatus):
        websocket(gateway, "/rest/room")
    plain = gateway.logged("https://chat.example:9443/rest/room", before)
    frames = 11 + 8  # "hello" and the end, each with its mask
    assert line["request_bytes"] == plain["request_bytes"] + frames
    with pytest.raises(InvalidStatus) as denied:
        websocket(gateway, "/live/..%2frest/room")
    assert denied.value.response.status_code == 403


# ── The records of all of this ────────────────────────────────────────────────────────


def test_none_of_it_is_drift(gateway: Gateway) -> None:
    found, checker = drift_of(gateway)
    assert found == []
    assert checker.unchecked == 0


def test_what_is_logged_is_explained_as_it_was_decided(gateway: Gateway) -> None:
    policies = PastPolicies(gateway.root / "state/revisions")
    wrong, explained = [], Counter[str]()
    for record in records(gateway):
        policy = (
            None
            if record.revision == NONE or unexplained(record)
            else policies(record.revision)
        )
        if policy is not None:
            explained[record.rule] += 1
            decision = explain(policy, request_of(record), parse_time(record)).decision
            if (decision.action, decision.rule) != (record.verdict, record.rule):
                wrong.append((decision, record))
    assert wrong == []
    assert (
        min(
            explained[rule]
            for rule in ("pinned", "authority-mismatch", "invalid-request", "chat")
        )
        > 0
    )
