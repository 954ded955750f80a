"""Quotas on a live gateway: what is counted, what is denied, with which page, and that
no count is passed or lost.
"""

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from squidkeeper.serving.quotas.local_counts import LocalCounts
from tests.valkey_server import GATEWAYS, OPERATOR, ValkeyServer
from tests.valkey_server import PASSWORD as VALKEY_PASSWORD
from tests.waiting import pause, wait_for

from .curl import CurlFailed, answer, curl
from .gateway import Gateway, NewGateway
from .observer import Exporter, fetch
from .origin import Answer, Origins, Stream
from .raw import Raw, tunnel
from .reply import Reply

DAY = 86_400
POLICY = """
version: 1
defaults: {contact: platform@example.com}
clients:
  few: {networks: [127.0.0.2, 127.0.0.12]}
  tight: {networks: [127.0.0.3, 127.0.0.13]}
rules:
  - {name: closed, action: deny, hosts: [docs.example], paths: [/admin/**]}
  - {name: pinned, action: allow, hosts: [pinned.example], tls: passthrough}
  - {name: many, action: allow, hosts: [counted.example]}
  - {name: asked, action: ask, hosts: [asked.example]}
  - {name: llm, action: allow, hosts: [llm.example]}
  - {name: fetched, action: allow, hosts: [fetched.example]}
  - {name: open, action: allow, hosts: [.example]}
quotas:
  - {name: downloads, per: client, rules: [fetched], bytes_in: 3MB, every: day}
  - {name: per-vm, per: client, clients: [few], requests: 5, every: day}
  - {name: openings, per: client, clients: [tight], tunnels: 2, every: day}
  - {name: questions, per: client, tickets: 2, every: day}
  - {name: uploads, per: client, rules: [llm], bytes_out: 100KB, every: day}
  - {name: of-many, per: rule, rules: [many], requests: 40, every: day}
"""


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    """With few questions at a time for each helper, so that two of them count.

    No day ends meanwhile.
    """
    left = DAY - time.time() % DAY
    pause(left + 1 if left < 60 else 0, "the end of the day")
    made = new_gateway(POLICY)
    made.render()
    made.edit("squidkeeper.d/quotas.conf", "concurrency=32 ", "concurrency=2 ")
    return made.start()


@pytest.fixture
def exporter(gateway: Gateway) -> Iterator[Exporter]:
    with Exporter(gateway, 9130) as exporter:
        yield exporter


def test_nothing_is_asked_where_no_quota_is(gateway: Gateway, origins: Origins) -> None:
    assert curl(gateway, "http://docs.example/unasked").status == 200
    assert curl(gateway, "https://docs.example/unasked").status == 200
    assert gateway.helpers("acl --scope host") != []
    assert gateway.helpers("meter") == []


def test_requests_in_a_tunnel_and_outside_count_once_each_and_a_denied_one_does_not(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "docs.example:443", client="127.0.0.2") as inside:
        got = [
            inside.get(path, "docs.example") for path in ("/1", "/2", "/3", "/admin/x")
        ]
    assert [reply.status for reply in got if reply] == [200, 200, 200, 403]
    statuses = [
        curl(gateway, f"http://docs.example/{number}", client="127.0.0.2").status
        for number in (4, 5, 6)
    ]
    assert statuses == [200, 200, 403]
    assert curl(gateway, "http://docs.example/another-client").status == 200
    assert not any("/6" in url or "/admin/" in url for url in origins.urls())


def test_the_page_names_the_quota_and_when_it_resets_in_each_form(
    gateway: Gateway, origins: Origins
) -> None:
    use_up(gateway, origins)
    text = curl(gateway, "http://docs.example/text", client="127.0.0.2")
    assert (text.status, text.rule) == (403, "quota")
    assert (
        text.reason == "The quota per-vm (5 requests a day for each client) is used up."
    )
    assert text.line("Contact") == "platform@example.com"
    midnight = time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime(time.time() + DAY))
    resets = text.line("Resets") or ""
    assert resets.startswith(f"{midnight} (in ")
    assert text.header("Retry-After") is None
    problem = curl(
        gateway,
        "https://docs.example/json",
        "-H",
        "Accept: application/json",
        client="127.0.0.2",
    )
    assert problem.header("Content-Type") == "application/problem+json"
    assert (problem.json["type"], problem.json["resets"]) == (
        "urn:squidkeeper:quota",
        midnight,
    )
    assert 0 < problem.json["resets_in_seconds"] <= DAY
    page = curl(
        gateway,
        "http://docs.example/html",
        "-H",
        "Accept: text/html",
        client="127.0.0.2",
    )
    assert (page.header("Content-Type"), page.rule) == (
        "text/html; charset=utf-8",
        "quota",
    )
    line = gateway.logged("https://docs.example/json")
    assert (line["rule"], line["verdict"], line["status"], line["found"]) == (
        "quota",
        "deny",
        403,
        "quota:per-vm",
    )
    assert origins.urls() == []


def test_tunnels_are_counted_and_a_refused_one_has_the_page_inside(
    gateway: Gateway, origins: Origins
) -> None:
    for number in (1, 2):
        with tunnel(gateway, "docs.example:443", client="127.0.0.3") as inside:
            got = [
                inside.get(f"/tunnel/{number}/{turn}", "docs.example")
                for turn in range(3)
            ]
        assert [reply.status for reply in got if reply] == [200] * 3
    refused = curl(
        gateway,
        "https://docs.example/third",
        "-H",
        "Accept: application/json",
        client="127.0.0.3",
    )
    # The page is the CONNECT's: HTML, whatever the request inside accepts.
    assert (refused.status, refused.rule) == (403, "quota")
    assert (
        refused.reason
        == "The quota openings (2 tunnels a day for each client) is used up."
    )
    assert "(in " in (refused.line("Resets") or "")
    with tunnel(
        gateway, "docs.example:443", client="127.0.0.3"
    ) as inside:  # TLS with the gateway alone
        got = [inside.get("/again", "docs.example") for _ in range(2)]
    assert [reply.rule for reply in got if reply][:1] == ["quota"]
    assert {reply.status for reply in got if reply} == {403}
    assert curl(gateway, "http://docs.example/plain", client="127.0.0.3").status == 200
    assert not any("/third" in url or "/again" in url for url in origins.urls())


def test_a_tunnel_that_passes_through_counts_once(
    gateway: Gateway, origins: Origins
) -> None:
    ca = origins.authority.certificate
    for _ in range(2):  # Squid asks twice about each
        assert (
            curl(
                gateway, "https://pinned.example/", "--cacert", ca, client="127.0.0.13"
            ).status
            == 200
        )
    with pytest.raises(CurlFailed):
        curl(gateway, "https://pinned.example/", "--cacert", ca, client="127.0.0.13")


def test_many_clients_at_once_never_pass_the_limit_with_two_helpers(
    gateway: Gateway, origins: Origins
) -> None:
    def client(number: int) -> list[int]:
        with Raw(gateway) as connection:
            replies = [
                connection.get(
                    f"http://counted.example/{number}/{turn}", "counted.example"
                )
                for turn in range(4)
            ]
        return [reply.status for reply in replies if reply]

    with ThreadPoolExecutor(24) as pool:
        statuses = [status for got in pool.map(client, range(24)) for status in got]
    assert len(statuses) == 96
    assert set(statuses) == {200, 403}
    passed = [url for url in origins.urls() if "//counted.example/" in url]
    assert 0 < len(passed) == statuses.count(200) <= 40
    # what leases of two helpers can leave over
    assert len(passed) >= 40 - 2 * (40 // 16)
    assert len(gateway.helpers("meter")) > 1


def test_new_tickets_of_a_client_are_counted_and_a_question_keeps_its_own(
    gateway: Gateway, origins: Origins
) -> None:
    first = [curl(gateway, f"http://asked.example/{number}") for number in (1, 2, 3, 1)]
    tickets = [reply.line("Ticket") for reply in first]
    assert [reply.status for reply in first] == [403] * 4
    assert tickets == [tickets[0], tickets[1], None, tickets[0]]
    reason = (
        "The rule asked denies this until a person allows it. It has no "
        "ticket: a quota of new tickets is used up, "
    )
    assert first[2].reason == f"{reason}and its count begins again later."
    assert (
        curl(gateway, "http://asked.example/3", client="127.0.0.4").line("Ticket")
        is not None
    )
    assert origins.urls() == []


def test_bytes_count_at_the_end_of_a_request_once(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    def upload(size: int, scheme: str = "https") -> Reply:
        return curl(
            gateway,
            f"{scheme}://llm.example/",
            "--data-binary",
            "x" * size,
            client="127.0.0.5",
        )

    def used() -> int:
        return uploaded(gateway, "127.0.0.5")

    assert [upload(30_000).status, upload(30_000, "http").status] == [200, 200]
    wait_for(lambda: used() > 60_000, "the count of two uploads")
    exporter.end()
    exporter.start()
    assert used() < 62_000
    too_large = upload(40_000)
    assert (too_large.status, too_large.rule) == (403, "quota")
    left = "The quota uploads (100 KB out a day for each client) has less left than this request would send."
    assert too_large.reason == left
    assert upload(38_000).status == 200
    wait_for(lambda: used() > 98_000, "the count of the third upload")
    wait_for(lambda: upload(2_000).rule == "quota", "the quota")
    shown = fetch(exporter.port, "/metrics").text
    assert 'squidkeeper_quota_denials_total{quota="uploads"} ' in shown
    assert 'squidkeeper_quota_denials_total{quota="uploads"} 0.0' not in shown
    assert "\nsquidkeeper_quota_store_up " not in shown
    assert curl(gateway, "https://llm.example/", client="127.0.0.6").status == 200


def got(gateway: Gateway, client: str, path: str, *options: str) -> tuple[int, int]:
    """The status of an answer, and how much of it came."""
    url = f"{'https' if path.endswith('0') else 'http'}://fetched.example/{path}"
    with suppress(CurlFailed):
        curl(gateway, url, *options, client=client)
    line = gateway.logged(url)
    if line["status"] == 403:
        assert (line["rule"], line["verdict"]) == ("quota", "deny")
        assert line["found"] == "quota:downloads"
        return 403, 0
    return int(line["status"]), int(line["bytes"])


@pytest.mark.parametrize(
    ("size", "passes"), [(9_000_000, range(1)), (900_000, range(1, 4))]
)
def test_answers_at_once_pass_no_limit_of_bytes_in(
    gateway: Gateway, exporter: Exporter, origins: Origins, size: int, passes: range
) -> None:
    origins.fallback = Answer(body=b"x" * size)
    client = f"127.0.1.{size // 100_000}"
    with ThreadPoolExecutor(40) as pool:
        answers = [*pool.map(lambda n: got(gateway, client, f"{size}-{n}"), range(40))]
    assert {status for status, _ in answers} <= {200, 403}
    whole = [length for status, length in answers if status == 200]
    assert all(length > size for length in whole)
    assert len(whole) in passes, "more came than the limit allows"
    assert got(gateway, client, f"head-{size}", "--head")[0] == 200


def test_answers_of_unknown_length_at_once_pass_no_limit_of_bytes_in(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    origins.fallback = Stream(events=(b"x" * 10_000,) * 5)
    assert got(gateway, "127.0.1.1", "stream-0")[1] > 50_000
    origins.fallback = Stream(events=(b"x" * 10_000,) * 900)
    alone = got(gateway, "127.0.1.3", "long-0")[1]
    assert 2**20 < alone < 2**20 + 20_000, "half is left for others"
    with ThreadPoolExecutor(40) as pool:
        answers = [*pool.map(lambda n: got(gateway, "127.0.1.2", f"s-{n}"), range(40))]
    assert sum(size for _, size in answers) < 3_300_000, "heads, and 4 KB of each"
    assert max(size for _, size in answers) > 2**17
    assert {status for status, _ in answers} <= {200, 403}


@pytest.mark.parametrize(
    ("client", "announced", "held"),
    [
        ("127.0.0.9", "Content-Length: 60000", 60_000),
        ("127.0.0.10", "Transfer-Encoding: chunked", 100_000),
        ("127.0.0.14", "Content-Length: 0000000000000060000", 100_000),
    ],
)
def test_uploads_that_are_held_open_count_and_do_after_a_crash_of_squid(
    gateway: Gateway,
    exporter: Exporter,
    origins: Origins,
    client: str,
    announced: str,
    held: int,
) -> None:
    def upload(size: int) -> int:
        return curl(
            gateway, "http://llm.example/", "--data-binary", "x" * size, client=client
        ).status

    head = (
        f"POST http://llm.example/ HTTP/1.1\r\nHost: llm.example\r\n{announced}\r\n\r\n"
    )
    with Raw(gateway, client) as connection:
        connection.send(head)
        wait_for(lambda: uploaded(gateway, client) == held, "what it announces")
        assert upload(60_000) == 403
        assert curl(gateway, "http://llm.example/", client=client).status == 200
    wait_for(
        lambda: uploaded(gateway, client) < 2_000,
        "the end of the upload, which has sent nothing",
    )
    assert upload(30_000) == 200
    wait_for(
        lambda: 30_000 < uploaded(gateway, client) < 32_000, "the end of an upload"
    )
    with Raw(gateway, client) as connection:
        connection.send(head)
        wait_for(lambda: uploaded(gateway, client) > 90_000, "what it announces")
        gateway.kill()
    gateway.start()
    assert upload(20_000) == 403
    assert uploaded(gateway, client) > 90_000


def test_an_upload_that_is_gone_when_it_may_begin_holds_nothing(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    """It waits for another, its client leaves, and its line is there before the other
    ends.
    """
    client, head = (
        "127.0.0.15",
        "POST http://llm.example/{} HTTP/1.1\r\nHost: llm.example\r\n{}\r\n\r\n",
    )
    with Raw(gateway, client) as first:
        first.send(head.format("first", "Transfer-Encoding: chunked"))
        wait_for(lambda: uploaded(gateway, client) == 100_000, "what it announces")
        for number in range(3):
            with Raw(gateway, client) as gone:
                gone.send(head.format(f"gone{number}", "Content-Length: 30000"))
                pause(0.2, "its client leaves while it waits")
        gateway.logged("http://llm.example/gone2")
        pause(0.3, "its line is there before the other ends")
    wait_for(lambda: uploaded(gateway, client) < 2_000, "the end of all of them")
    pause(2, "what is late is counted too")
    assert uploaded(gateway, client) < 2_000


def uploaded(gateway: Gateway, client: str) -> int:
    with closing(LocalCounts(gateway.root / "state")) as counts:
        found = {
            use.count.holder: use.used
            for use in counts.uses()
            if use.count.quota == "uploads"
        }
    return found.get(client, 0)


def test_a_body_that_does_not_tell_its_length_is_bounded(
    gateway: Gateway, exporter: Exporter, origins: Origins, tmp_path: Path
) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * 150_000)
    chunked = (
        "-H",
        "Transfer-Encoding: chunked",
        "-H",
        "Expect:",
        "--data-binary",
        f"@{body}",
    )
    try:
        status = curl(
            gateway, "http://llm.example/", *chunked, client="127.0.0.8"
        ).status
    except CurlFailed:
        status = 0
    assert status != 200
    assert all(
        len(seen.body) < 100_000
        for seen in origins.seen
        if seen.values("Host") == ["llm.example"]
    )
    body.write_bytes(b"x" * 50_000)
    assert (
        curl(gateway, "http://llm.example/", *chunked, client="127.0.0.8").rule
        == "quota"
    )
    assert (
        curl(gateway, "http://llm.example/", *chunked, client="127.0.0.11").status
        == 200
    )


def test_bytes_that_nobody_counts_are_denied(
    gateway: Gateway, origins: Origins
) -> None:
    heartbeat = gateway.root / "state/quotas/bytes-counted"
    heartbeat.unlink(missing_ok=True)
    denied = curl(gateway, "http://llm.example/", client="127.0.0.7")
    assert (denied.status, denied.rule) == (403, "quota")
    lines = wait_for(
        lambda: [line for line in gateway.log() if line["client"] == "127.0.0.7"],
        "its line in the log",
    )
    assert lines[0]["found"] == "quota-unavailable:uploads"


def test_counts_survive_helpers_that_are_killed_and_a_restart_of_squid(
    gateway: Gateway, origins: Origins
) -> None:
    use_up(gateway, origins)
    gateway.kill_helpers("meter")
    wait_for(
        lambda: (
            answer(gateway, "http://docs.example/killed", client="127.0.0.2").rule
            == "quota"
        ),
        "a new helper",
    )
    gateway.kill()
    gateway.start()
    assert (
        curl(gateway, "http://docs.example/restarted", client="127.0.0.2").rule
        == "quota"
    )
    assert origins.urls() == []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path / "valkey", saves=True).start()
    yield server
    server.kill()


def share_counts(
    gateway: Gateway, store: ValkeyServer, user: str, on_unavailable: str
) -> None:
    """Write the quota-store.yaml of a gateway, as squid/FLEET.md says."""
    folder = gateway.root / "etc"
    password, ca = folder / "quota-store.password", folder / "quota-store-ca.crt"
    password.write_text(VALKEY_PASSWORD)
    password.chmod(0o640)
    shutil.chown(password, group="proxy")
    shutil.copy(store.folder / "ca.crt", ca)
    told = f"address: 127.0.0.1:{store.port}\nuser: {user}\npassword_file: {password}\ntls_ca: {ca}\n"
    (folder / "quota-store.yaml").write_text(
        f"{told}on_unavailable: {on_unavailable}\ngateways: 2\n"
    )


def test_two_gateways_share_a_count_and_go_on_or_deny_without_its_store(
    new_gateway: NewGateway, store: ValkeyServer, origins: Origins
) -> None:
    policy = POLICY.replace("requests: 5,", "requests: 8,")
    gateways = [new_gateway(policy), new_gateway(policy)]
    for gateway, user, on_unavailable in zip(
        gateways, GATEWAYS, ("local", "deny"), strict=False
    ):
        share_counts(gateway, store, user, on_unavailable)
        gateway.start()

    def rules(gateway: Gateway, number: int) -> list[str | None]:
        replies = [
            curl(gateway, f"http://docs.example/{index}", client="127.0.0.2")
            for index in range(number)
        ]
        return [None if reply.status == 200 else reply.rule for reply in replies]

    assert rules(gateways[0], 2) + rules(gateways[1], 2) == [None] * 4
    store.kill()
    local, denying = rules(gateways[0], 5), rules(gateways[1], 1)
    assert local == [None] * 4 + ["quota"]  # half of the limit
    assert denying == ["quota"]
    wait_for(
        lambda: "Valkey on 127.0.0.1 port" in gateways[1].cache_log(),
        "what is wrong, in cache.log",
    )
    assert (
        "quotas are counted on this gateway alone, up to 1/2 of each limit: Valkey"
        in gateways[0].cache_log()
    )
    assert all(VALKEY_PASSWORD not in gateway.cache_log() for gateway in gateways)
    store.start()
    wait_for(lambda: rules(gateways[1], 1) == [None], "the store to be asked again")
    wait_for(
        lambda: (
            rules(gateways[0], 1) == ["quota"] and rules(gateways[1], 1) == ["quota"]
        ),
        "the whole limit",
    )
    assert len([url for url in origins.urls() if "docs.example" in url]) <= 8 + 4
    # no client reaches it
    refused = curl(gateways[0], f"https://127.0.0.1:{store.port}/", client="127.0.0.2")
    assert (refused.status, refused.rule) == (403, "default")
    places = (
        "--policy",
        gateways[1].policy_folder,
        "--state",
        gateways[1].root / "state",
    )
    done = gateways[1].command("quota", *places, "--holder", "127.0.0.2")
    assert "127.0.0.2  8 requests" in done.stdout
    settings = (gateways[1].root / "etc/quota-store.yaml").read_text()
    operator = gateways[1].root / "operator.yaml"
    operator.write_text(settings.replace(GATEWAYS[1], OPERATOR))
    done = gateways[1].command(
        "quota", "--policy", gateways[1].policy_folder, "--store", operator, "--json"
    )
    [per_vm] = [load for load in json.loads(done.stdout) if load["quota"] == "per-vm"]
    assert [(use["holder"], use["used"]) for use in per_vm["used"]] == [
        ("127.0.0.2", 8)
    ]


def test_what_cannot_be_counted_is_denied(gateway: Gateway, origins: Origins) -> None:
    """The last one, as nothing is counted after it."""
    assert curl(gateway, "http://docs.example/first", client="127.0.0.12").status == 200
    counts = gateway.root / "state/quotas"
    for file in counts.iterdir():
        file.unlink()
    counts.rmdir()
    counts.write_text("no folder")
    origins.forget()
    refused = curl(gateway, "http://docs.example/uncounted", client="127.0.0.12")
    assert (refused.status, refused.rule) == (403, "quota")
    assert (
        refused.reason
        == "The quota per-vm (5 requests a day for each client) cannot be counted at the moment."
    )
    assert (
        gateway.logged("http://docs.example/uncounted")["found"]
        == "quota-unavailable:per-vm"
    )
    assert curl(gateway, "http://docs.example/not-counted").status == 200
    assert origins.urls() == ["http://docs.example/not-counted"]
    assert "quotas cannot be counted" in gateway.cache_log()


def use_up(gateway: Gateway, origins: Origins) -> None:
    """Use the quota of the client 127.0.0.2, and forget what the origins saw."""
    wait_for(
        lambda: (
            curl(gateway, "http://docs.example/", client="127.0.0.2").rule == "quota"
        ),
        "the quota",
    )
    origins.forget()
