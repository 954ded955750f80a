"""The programs that Squid starts, as processes on pipes: what they read, what they
answer, what they survive.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import subprocess
import time
import tracemalloc
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Thread
from unittest.mock import patch
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from squidkeeper.base.atomic_write import replace as replace_file
from squidkeeper.base.errors import InvalidLine
from squidkeeper.base.helper_metrics import DECISION_DURATION, DECISIONS
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.secret_sources import source_key
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.revisions import stored_revisions
from squidkeeper.policy.protocol.lines import (
    LINE_LIMIT,
    Reply,
    Result,
    format_reply,
    reply_limit,
)
from squidkeeper.policy.protocol.request_headers import READ_HEADERS
from squidkeeper.policy.url import recorded_url
from squidkeeper.serving.counters.layout import HelperStatus, counter_key
from squidkeeper.serving.counters.reader import read_counter_files
from squidkeeper.serving.credentials.fetched_values import (
    FetchedValue,
    format_value,
    value_file,
)
from squidkeeper.serving.credentials.sealing import SealingPrivateKey
from squidkeeper.serving.helpers import cache_log, credential, host_matches, rewrite
from squidkeeper.serving.helpers.acl import (
    HostScope,
    RequestScope,
    answer_host,
    answer_url,
)
from squidkeeper.serving.helpers.credential import Injector
from squidkeeper.serving.helpers.host_matches import HostMatches
from squidkeeper.serving.helpers.loop import write_all
from squidkeeper.serving.helpers.rewrite import Rewriter
from squidkeeper.serving.parts import Part

from ..conftest import write_policy
from ..waiting import wait_for
from .conftest import Program

POLICY = """
clients: {agents: {networks: [192.0.2.0/24]}}
rules:
  - {name: closed, action: deny, hosts: [closed.example], reason: "It is \\"closed\\"."}
  - {name: open, action: allow, hosts: [open.example, packages.example]}
  - {name: paths, action: allow, hosts: [paths.example], paths: [/a/**]}
  - {name: inside, action: allow, hosts: [inside.internal], private: true}
  - {name: other, action: allow, hosts: [other.example]}
  - {name: api, action: allow, hosts: [api.example, narrow.example], clients: [agents]}
rewrites:
  - {name: mirror, hosts: [packages.example], paths: [/simple/**], to: "https://inside.internal/p{path}", private: true}
  - {name: moved, hosts: [open.example], paths: [/moved], to: "https://paths.example/a/", redirect: 308}
secrets:
  token: {file: token}
  password: {file: password}
credentials:
  - {name: api, hosts: [api.example], bearer: token}
  - {name: api-key, hosts: [api.example], header: X-Api-Key, value: "key {password}"}
  - {name: mirror, hosts: [inside.internal], basic: {username: bot, password: password}}
  - {name: narrow, hosts: [narrow.example], paths: [/v1/**], bearer: token}
"""
REWRITTEN = ("open.example", "packages.example")
SCOPES = {"host": ["acl", "--scope", "host"], "request": ["acl", "--scope", "request"]}
PLACE = "192.0.2.1 - GET https {host} 443 {host} {host}:443 -"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    directory = write_policy(tmp_path / "policy", POLICY)
    for name, value in (("token", "s3cret-token\n"), ("password", 'pass word%"\\')):
        (directory / name).write_text(value)
        (directory / name).chmod(0o600)
    return directory


Start = Callable[..., Program]


@pytest.fixture
def start(program: Callable[..., Program], tmp_path: Path, policy: Path) -> Start:
    def make(
        *arguments: str, concurrency: int = 16, directory: Path = policy
    ) -> Program:
        options = [
            "--policy",
            str(directory),
            "--state",
            str(tmp_path / "state"),
            "--concurrency",
            str(concurrency),
        ]
        options += (
            ["--in-force", ",".join(Part)]
            if arguments[0] in ("acl", "credential")
            else []
        )
        return program(*arguments, *options)

    return make


def compiled_in(policy: Path) -> CompiledPolicy:
    return load(policy, datetime.now(UTC)).compiled


def revision_of(policy: Path) -> str:
    return compiled_in(policy).revision


def injected(injector: Injector | None, line: str) -> Reply:
    return credential.answer(injector, line.encode(), 4)


def written(reply: Reply, concurrency: int = 16) -> str:
    return format_reply(reply, b"1", reply_limit(concurrency)).decode()


def place(host: str, **changes: str) -> str:
    names = (
        "client",
        "user",
        "method",
        "scheme",
        "host",
        "port",
        "sni",
        "tunnel",
        "token",
    )
    tokens = dict(zip(names, PLACE.format(host=host).split(), strict=True))
    if host in REWRITTEN:
        tokens["tunnel"] += "%20first"
    tokens |= changes
    return " ".join(tokens.values())


def connect(host: str, port: str = "443") -> str:
    return place(host, method="CONNECT", scheme="-", port=port, sni="-", tunnel="-")


# --- what each answers ----------------------------------------------------------------

CONTACT = 'contact_="the operator of this gateway"'
HOST_ANSWERS = {
    place(
        "other.example"
    ): "OK rule_=other verdict_=allow tag=sk_final override_=yes websocket_=yes",
    place(
        "other.example", method="POST"
    ): "OK rule_=other verdict_=allow tag=sk_final override_=yes websocket_=yes",
    connect(
        "other.example"
    ): "OK rule_=other verdict_=allow clt_conn_tag=other.example:443 tag=sk_final private_=no",
    place("open.example"): "OK rule_=open verdict_=allow tag=sk_asks_more rewrite_=yes",
    place("inside.internal"): (
        "OK rule_=inside verdict_=allow tag=sk_asks_more private_=yes inject_=yes override_=yes websocket_=yes"
    ),
    place("paths.example"): "OK rule_=paths verdict_=allow tag=sk_url_decides",
    place(
        "api.example"
    ): "OK rule_=api verdict_=allow tag=sk_asks_more inject_=yes override_=yes websocket_=yes",
    place(
        "narrow.example"
    ): "OK rule_=api verdict_=allow tag=sk_asks_more inject_=yes websocket_=yes",
    place("api.example", client="198.51.100.1"): (
        f'ERR rule_=default verdict_=deny {CONTACT} reason_="No rule of the policy allows this request."'
    ),
    place(
        "closed.example"
    ): f'ERR rule_=closed verdict_=deny {CONTACT} reason_="It is \\"closed\\"."',
    connect("open.example"): (
        'OK rule_=open verdict_=allow clt_conn_tag="open.example:443 first" bump_=first tag=sk_asks_more private_=no'
        " rewrite_=yes"
    ),
    connect(
        "closed.example"
    ): 'OK rule_=closed verdict_=deny clt_conn_tag="closed.example:443 first" bump_=first',
    place("open.example")
    + " -": "OK rule_=open verdict_=allow tag=sk_asks_more rewrite_=yes",
}


def test_at_host_scope_squid_learns_the_verdict_and_what_else_to_ask(
    start: Start, policy: Path
) -> None:
    helper = start(*SCOPES["host"])
    for number, (line, answer) in enumerate(HOST_ANSWERS.items(), 1):
        with_revision = re.sub(
            "(verdict_=[a-z]+)", rf"\1 revision_={revision_of(policy)}", answer
        )
        assert helper.ask(f"{number} {line}") == f"{number} {with_revision}\n"


def test_at_request_scope_the_url_is_decided(policy: Path) -> None:
    scope, line = RequestScope(compiled_in(policy)), place("paths.example")
    allowed = (
        f"1 OK rule_=paths verdict_=allow revision_={revision_of(policy)} private_=no\n"
    )
    for url, said in {
        "https://paths.example/a/b -": allowed,
        "https://paths.example/a/%25C3%25A9": allowed,
        "https://paths.example/b": "1 ERR rule_=default verdict_=deny",
        "https://paths.example/a/../b": "1 ERR rule_=ambiguous-path verdict_=deny",
        "https://open.example/": "1 ERR rule_=invalid-request verdict_=deny",
        "-": "1 ERR rule_=invalid-request verdict_=deny",
    }.items():
        assert written(answer_url(scope, f"{line} {url}".encode())).startswith(said)


@pytest.mark.parametrize("policy_loads", [True, False])
def test_at_host_scope_the_proxy_user_of_the_decision_is_named(
    policy: Path, policy_loads: bool
) -> None:
    scope = HostScope(compiled_in(policy)) if policy_loads else None
    for host in (
        "open.example",
        "closed.example",
        "not%20a%20host",
        "open.example",
    ):  # the last is answered as before
        for user, named in (
            ("ci-bot", " user_=ci-bot"),
            ("%25%22%FF%40x", ' user_="%25%22%FF@x"'),
        ):
            assert (
                named
                in format_reply(
                    answer_host(scope, place(host, user=user).encode()), b"1"
                ).decode()
            )
        assert b" user_=" not in format_reply(
            answer_host(scope, place(host).encode()), b"1"
        )


def test_hosts_that_are_answered_alike_share_one_reply_for_each_user(
    policy: Path,
) -> None:
    answers = HostScope(compiled_in(policy))
    for user in ("-", "ci-bot"):
        first, second = (
            answer_host(answers, place(f"{name}.nowhere.example", user=user).encode())
            for name in ("one", "two")
        )
        assert first is second


def test_the_url_names_the_rule_in_a_tunnel_in_which_every_url_is_denied(
    policy: Path,
) -> None:
    write_policy(
        policy,
        "rules: [{name: half, action: deny, hosts: [half.example], paths: [/admin/**]}]",
    )
    scope, host = HostScope(compiled_in(policy)), "half.example"
    closed = answer_host(scope, connect(host).encode())
    inside = answer_host(scope, place(host, tunnel=f"{host}:443%20first").encode())
    assert (closed.result, ("verdict_", "deny") in closed.annotations) == (
        Result.OK,
        True,
    )
    assert (inside.result, ("tag", "sk_url_decides") in inside.annotations) == (
        Result.OK,
        True,
    )


def test_a_tunnel_that_is_denied_when_it_is_about_to_be_spliced_is_closed(
    policy: Path,
) -> None:
    scope = HostScope(compiled_in(policy))
    reply = answer_host(
        scope, place("closed.example", method="CONNECT", scheme="-").encode()
    )
    assert reply.result is Result.ERR
    assert ("rule_", "closed") in reply.annotations


# what a client sends, and its characters in the access log
FORMS = {
    "a": 1,
    "%22": 3,
    '"': 3,
    "\xff": 3,
    "'": 3,
}


def url_of(host: str, form: str, recorded: int) -> bytes:
    """Make a URL that takes so many characters in the access log."""
    number, rest = divmod(recorded - len(f"http://{host}/"), FORMS[form])
    return f"http://{host}/{'b' * rest}{form * number}".encode("latin-1")


@pytest.mark.parametrize("host", ["paths.example", "closed.example"])
@pytest.mark.parametrize("policy_loads", [True, False])
def test_at_request_scope_the_length_and_hash_of_a_url_that_the_record_cuts_off_are_told(
    policy: Path, host: str, policy_loads: bool
) -> None:
    scope = RequestScope(compiled_in(policy)) if policy_loads else None
    line = place(host, scheme="http", port="80", sni="-", tunnel="-")
    for form in FORMS:
        for length in (4095, 4096, 7000):
            url = url_of(host, form, length)
            reply = answer_url(scope, f"{line} {quote(url, safe='')}".encode())
            recorded = recorded_url(url.decode("utf-8", "surrogateescape"))
            expected = (
                f"{length}:{sha256(recorded.encode()).hexdigest()[:32]}"
                if length >= 4096
                else None
            )
            assert dict(reply.annotations).get("cut_") == expected, form


def test_a_denied_host_is_denied_for_itself_where_its_long_url_cannot_be_decided(
    policy: Path,
) -> None:
    scope = RequestScope(compiled_in(policy))
    reply = answer_url(
        scope,
        f"{place('closed.example')} https://closed.example/%2523{'%2500' * 1400}".encode(),
    )
    assert (reply.result, reply.annotations[0]) == (Result.ERR, ("rule_", "closed"))


def test_the_rewriter_always_names_the_final_url(start: Start, policy: Path) -> None:
    helper = start("rewrite", concurrency=0)
    rewritten = "https://inside.internal/p/simple/x/"
    assert helper.ask(
        f"https://packages.example/simple/x/ {place('packages.example')}"
    ) == (
        f"OK rewrite-url={rewritten} final_url_={rewritten} private_=yes revision_={revision_of(policy)}\n"
    )
    moved = "https://paths.example/a/"
    assert helper.ask(f"https://open.example/moved {place('open.example')}") == (
        f"OK status=308 url={moved} final_url_={moved} private_=yes revision_={revision_of(policy)}\n"
    )
    url = "https://open.example/x?y=%20"
    assert helper.ask(f"{url} {place('open.example')}") == f'ERR final_url_="{url}"\n'
    for url in (
        "https://closed.example/",
        "https://packages.example/x/../simple/y",
    ):  # denied: nothing is fetched
        assert helper.ask(f"{url} {place(url.split('/')[2])}") == 'ERR final_url_="-"\n'


def test_the_credential_helper_gives_a_header_an_annotation(
    start: Start, policy: Path
) -> None:
    said = f"verdict_=allow revision_={revision_of(policy)}"
    helper = start("credential", concurrency=4)
    url = "https://api.example/x"
    assert helper.ask(f"1 {place('api.example')} {url} - -") == (
        f'1 OK rule_=api {said} authorization_="Bearer s3cret-token" x_api_key_="key pass word%\\"\\\\" '
        'injected_=yes credential_="api,api-key"\n'
    )
    url, final = (
        "https://packages.example/simple/x/",
        "https://inside.internal/p/simple/x/",
    )
    basic = b64encode(b'bot:pass word%"\\').decode()
    assert helper.ask(f"2 {place('packages.example')} {url} {final} - -") == (
        f'2 OK rule_=open {said} authorization_="Basic {basic}" injected_=yes credential_=mirror\n'
    )
    assert (
        helper.ask(f"3 {place('open.example')} https://open.example/ - - -")
        == f"3 OK rule_=open {said}\n"
    )
    assert (
        helper.ask(
            f"4 {place('api.example', method='OPTIONS')} https://api.example/ - -"
        )
        == f"4 OK rule_=api {said}\n"
    )


def test_the_credential_helper_takes_a_line_with_headers_where_it_is_told_so(
    policy: Path,
) -> None:
    injector, headers = (
        Injector(compiled_in(policy)),
        " ".join(["-"] * len(READ_HEADERS)),
    )
    line = f"{place('api.example')} https://api.example/x - -"
    answer = partial(credential.answer, injector, concurrency=4, with_headers=True)
    assert written(answer(f"{line} {headers} -".encode())).startswith(
        "1 OK rule_=api verdict_=allow"
    )
    with pytest.raises(InvalidLine, match="expected"):
        answer(f"{line} -".encode())
    long = answer(f"{line} {'x' * LINE_LIMIT} {headers}".encode())
    assert written(long).startswith("1 ERR rule_=header-too-long verdict_=deny ")


def test_the_credential_helper_decides_again_and_denies_what_a_dead_rewriter_let_through(
    policy: Path,
) -> None:
    injector = Injector(compiled_in(policy))
    for host, rule in (
        ("closed.example", "closed"),
        ("packages.example", "policy-unavailable"),
    ):
        denied = injected(injector, f"{place(host)} https://{host}/simple/x/ - -")
        assert written(denied).startswith(f"1 ERR rule_={rule} verdict_=deny ")


def test_what_one_policy_denies_and_another_rewrites_is_not_fetched_as_it_is(
    policy: Path, tmp_path: Path
) -> None:
    closing = write_policy(
        tmp_path / "closing",
        "rules: [{name: shut, action: deny, hosts: [packages.example]}]",
    )
    line, url = place("packages.example"), "https://packages.example/simple/x/"
    # it has loaded an edit first
    answered = rewrite.answer(Rewriter(compiled_in(closing)), f"{url} {line}".encode())
    final_url = quote(dict(answered.annotations)["final_url_"], safe="")
    answer = injected(
        Injector(compiled_in(policy)), f"{line} {quote(url, safe='')} {final_url} -"
    )
    assert written(answer).startswith("1 ERR rule_=policy-unavailable verdict_=deny ")


UNUSABLE = {
    "with a newline": b"a\r\nX-Evil: 1",
    "with NUL": b"a\0b",
    "eight-bit": "schlüssel".encode(),
    "empty": b"",
    "only a newline": b"\n",
    "with a tab": b"a\tb",
    "larger than a header": b"x" * 70_000,
    "larger than a reply": b"x" * 9_000,
}


@pytest.mark.parametrize("value", UNUSABLE.values(), ids=UNUSABLE)
def test_a_secret_that_cannot_be_a_header_denies_and_is_not_shown(
    policy: Path, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (policy / "token").write_bytes(value)
    injector = Injector(compiled_in(policy))
    line = f"{place('api.example')} https://api.example/ - -".encode()
    answers = {written(credential.answer(injector, line, 4), 4) for _ in range(2)}
    [answer] = answers
    said = f"rule_=credential-unavailable verdict_=deny revision_={revision_of(policy)} {CONTACT}"
    assert answer.startswith(f"1 ERR {said} reason_=")
    assert caplog.text.count("credential api, api-key: ") == 1
    for part in (value.strip(), b64encode(value)):
        assert (
            not part
            or len(part) < 3
            or part.decode("latin-1") not in answer + caplog.text
        )


def test_a_secret_is_read_again_when_it_changes_and_denies_while_it_is_gone(
    start: Start, policy: Path
) -> None:
    helper = start("credential", concurrency=4)
    line = f"1 {place('api.example')} https://api.example/ - -"
    assert "s3cret-token" in helper.ask(line)
    (policy / "token").write_text("rotated")
    ask_until(helper, line, "Bearer rotated")
    (policy / "token").rename(policy / "gone")
    ask_until(helper, line, "1 ERR rule_=credential-unavailable")
    (policy / "gone").rename(policy / "token")
    assert "Bearer rotated" in helper.ask(line)  # an error is not trusted for a moment


def ask_until(helper: Program, line: str, expected: str) -> int:
    """Ask until a file that has changed is read, and count the answers before."""
    before: list[str] = []

    def asked() -> bool:
        before.append(helper.ask(line))
        return expected in before[-1]

    wait_for(asked, expected)
    return len(before) - 1


# --- the protocol ---------------------------------------------------------------------

LINE = st.one_of(
    st.binary(max_size=300).map(lambda data: data.replace(b"\n", b"")),
    st.lists(
        st.sampled_from(
            [b"-", b"a", b"%00", b"%0A", b"\xff", b"GET", b"443", b"[", b""]
        )
    ).map(b" ".join),
)


@pytest.mark.parametrize(
    "arguments", [*SCOPES.values(), ["credential"]], ids=lambda one: one[-1]
)
def test_every_line_gets_exactly_one_answer_whatever_it_holds(
    arguments: list[str], start: Start
) -> None:
    helper = start(*arguments)
    Thread(
        target=helper.stderr.read, daemon=True
    ).start()  # it complains about each line, and must not wait

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(LINE, max_size=16))
    def ask(lines: list[bytes]) -> None:
        helper.send(*(b"%d %s" % (number, line) for number, line in enumerate(lines)))
        answers = [helper.stdout.readline() for _ in lines]
        assert [answer.split(b" ")[0] for answer in answers] == [
            b"%d" % number for number in range(len(lines))
        ]
        assert all(
            re.fullmatch(rb"\d+ (OK|ERR|BH)[^\x00-\x1f]*\n", answer)
            for answer in answers
        )
        assert not any(b" OK" in answer for answer in answers)

    ask()


def test_a_line_without_a_channel_id_is_not_answered_and_hurts_nobody(
    start: Start,
) -> None:
    helper = start(*SCOPES["host"])
    helper.send("", "x", " 1 a", "-", b"\xff" * 100)
    assert helper.ask(f"7 {place('open.example')}").startswith("7 OK")


def test_a_line_of_a_megabyte_and_a_url_over_the_bound_are_refused_and_forgotten(
    start: Start,
) -> None:
    helper = start(*SCOPES["request"])
    assert helper.ask(b"5 " + b"x" * 1_000_000).startswith(
        "5 BH rule_=policy-unavailable verdict_=deny message="
    )
    for number, path in enumerate(("a", "a" * 131_072, "a")):
        answer = helper.ask(
            f"{number} {place('paths.example')} https://paths.example/a/{path}"
        )
        assert answer.startswith(f"{number} {'BH' if number == 1 else 'OK'} ")


def test_everything_read_is_answered_at_the_end_of_input_and_a_torn_line_is_not_a_line(
    start: Start,
) -> None:
    helper = start(*SCOPES["host"])
    helper.send(*(f"{number} {place('open.example')}" for number in range(1000)))
    helper.stdin.write(b"1000 torn")
    out, _ = helper.end()
    assert [line.split()[0] for line in out.splitlines()] == [
        b"%d" % number for number in range(1000)
    ]


def test_replies_in_flight_stay_below_squids_read_buffer(policy: Path) -> None:
    write_policy(
        policy,
        f"rules: [{{name: long, action: deny, hosts: [a.example], reason: {'é' * 900}}}]",
    )
    reply = answer_host(HostScope(compiled_in(policy)), place("a.example").encode())
    for concurrency in (4, 16, 100):
        answers = [
            format_reply(reply, b"%d" % number, reply_limit(concurrency))
            for number in range(concurrency)
        ]
        assert all(b" ERR rule_=long" in answer for answer in answers)
        assert sum(map(len, answers)) < 32_000


def test_the_longest_names_leave_room_for_an_answer(policy: Path, start: Start) -> None:
    name, host = "\N{GRINNING FACE}" * 100, ".".join(["h" * 60] * 4) + ".example"
    rules = (
        f"rules: [{{name: {name}, action: deny, hosts: [{host}], reason: {'é' * 900}}}]"
    )
    write_policy(policy, f"defaults: {{contact: {name}}}\n{rules}")
    helper = start(*SCOPES["host"])
    client, _, place_of_it = connect(host, "65535").split(" ", 2)
    answer = helper.ask(f"{10**18} {client} {'%22' * 5000} {place_of_it}")
    said = f'rule_="{name}" verdict_=deny revision_={revision_of(policy)}'
    user = 'user_="' + "%22" * 85 + '%"'
    assert (
        answer
        == f'{10**18} OK {said} {user} clt_conn_tag="{host}:65535 first" bump_=first\n'
    )
    answer = helper.ask(
        f"{10**18} {client} {'%22' * 5000} {place(host).split(' ', 2)[2]}"
    )
    assert answer.startswith(f'{10**18} ERR {said} {user} contact_="{name}" reason_="é')
    answer = start(*SCOPES["request"], concurrency=32).ask(
        f"{10**18} {place(host)} http://{host}/{'%22' * 7900}%23 -"
    )
    assert answer.startswith(
        f'{10**18} ERR {said} contact_="{name}" hidden_=fragment cut_=2'
    )


def test_all_is_written_however_little_one_write_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = bytearray()

    def write(_output: int, data: bytes) -> int:
        written.extend(data[:3])
        return len(data[:3])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        write_all(1, b"1 OK\n2 ERR\n")
    assert written == b"1 OK\n2 ERR\n"


def test_nothing_but_answers_reaches_squid_and_no_core_is_left(start: Start) -> None:
    helper = start(*SCOPES["host"])
    helper.ask(f"1 {place('open.example')}")
    descriptors = Path(f"/proc/{helper.process.pid}/fd")
    assert os.readlink(descriptors / "1") == os.readlink(descriptors / "2")
    assert resource.prlimit(helper.process.pid, resource.RLIMIT_CORE) == (0, 0)


def test_a_reader_that_goes_away_ends_the_helper_without_a_word(start: Start) -> None:
    helper = start(*SCOPES["host"])
    helper.ask(f"1 {place('open.example')}")
    helper.stdout.close()
    helper.send(f"2 {place('open.example')}")
    assert helper.process.wait(timeout=60) == 0
    assert b"Traceback" not in helper.stderr.read()


# --- what is counted ------------------------------------------------------------------


def counted(state: Path, metric: str = "decisions") -> dict[tuple[str, ...], float]:
    """What the slots hold of a metric: by the values of its labels, what is 0
    left out.
    """
    name = f"squidkeeper_{metric}"
    samples = (
        sample
        for slot in read_counter_files(state / "helpers")
        for sample in slot.samples
    )
    return {
        tuple(labels.values()): value
        for found, labels, value in samples
        if found == name and value
    }


def status(state: Path) -> HelperStatus:
    (slot,) = read_counter_files(state / "helpers")
    assert slot.running
    assert slot.status
    return slot.status


def test_each_answer_is_counted_by_helper_rule_and_verdict(
    start: Start, tmp_path: Path
) -> None:
    helper = start(*SCOPES["host"])
    for number, line in enumerate([*HOST_ANSWERS, "x", "y y"]):
        helper.ask(f"{number} {line}")
    helper.send("without a channel")
    helper.ask(f"99 {place('other.example')}")
    helper.end()
    assert counted(tmp_path / "state", "decisions_total") == {
        ("host", "other", "allow"): 3,
        ("host", "other", "tunnel"): 1,
        ("host", "open", "allow"): 2,
        ("host", "open", "tunnel"): 1,
        ("host", "inside", "allow"): 1,
        ("host", "paths", "url"): 1,
        ("host", "api", "allow"): 2,
        ("host", "default", "deny"): 1,
        ("host", "closed", "deny"): 2,
        ("host", "policy-unavailable", "deny"): 2,
    }
    assert counted(tmp_path / "state", "protocol_errors_total") == {("host",): 3}
    assert counted(tmp_path / "state", "helper_starts_total") == {("host",): 1}


def test_each_helper_counts_under_its_own_name(policy: Path) -> None:
    compiled = compiled_in(policy)
    scope, rewriter, injector = (
        RequestScope(compiled),
        Rewriter(compiled),
        Injector(compiled),
    )
    paths, moved, closed = (
        place("paths.example"),
        place("open.example"),
        place("closed.example"),
    )
    expected = (
        (
            answer_url(scope, f"{paths} https://paths.example/a/b".encode()),
            ("request", "paths", "allow"),
        ),
        (
            answer_url(scope, f"{paths} https://paths.example/b".encode()),
            ("request", "default", "deny"),
        ),
        (
            rewrite.answer(rewriter, f"https://open.example/moved {moved}".encode()),
            ("rewrite", "moved", "redirect"),
        ),
        (
            rewrite.answer(rewriter, f"https://open.example/ {moved}".encode()),
            ("rewrite", "none", "unchanged"),
        ),
        (
            injected(injector, f"{moved} https://open.example/ - -"),
            ("credential", "open", "allow"),
        ),
        (
            injected(injector, f"{closed} https://closed.example/ - -"),
            ("credential", "closed", "deny"),
        ),
        (answer_host(None, paths.encode()), ("host", "policy-unavailable", "deny")),
        (
            answer_url(None, f"{paths} https://a.example/".encode()),
            ("request", "policy-unavailable", "deny"),
        ),
        (
            injected(None, f"{paths} https://a.example/ - -"),
            ("credential", "policy-unavailable", "deny"),
        ),
    )
    for reply, labels in expected:
        assert reply.counts == (counter_key(DECISIONS, *labels),)


def test_credentials_are_counted_where_they_are_given_and_where_they_are_unavailable(
    start: Start, policy: Path, tmp_path: Path
) -> None:
    line = f"1 {place('api.example')} https://api.example/ - -"
    helper = start("credential", concurrency=4)
    helper.ask(line)
    (policy / "password").rename(policy / "gone")
    given = 1 + ask_until(helper, line, " ERR rule_=credential-unavailable")
    (policy / "token").write_text("x" * 9_000)
    (policy / "gone").rename(policy / "password")
    given += ask_until(helper, line, " ERR rule_=credential-unavailable")
    state = tmp_path / "state"
    wait_for(lambda: stored_revisions(state / "revisions") != [])
    helper.end()
    assert counted(state, "credential_injections_total") == {
        ("api",): given,
        ("api-key",): given,
    }
    assert counted(state, "credential_failures_total") == {("api-key",): 2, ("api",): 1}
    assert counted(state, "decisions_total") == {
        ("credential", "api", "allow"): given,
        ("credential", "credential-unavailable", "deny"): 2,
    }
    secrets = (b"s3cret-token", b'pass word%"', b"xxxxxxxxxx")
    files = [path for path in state.rglob("*") if path.is_file()]
    assert len(files) in (7, 8)  # the state file is renamed into place
    assert not any(secret in path.read_bytes() for path in files for secret in secrets)


def test_every_line_of_a_batch_has_its_duration_counted(
    start: Start, tmp_path: Path
) -> None:
    helper = start(*SCOPES["host"])
    helper.send(*(f"{number} {place('open.example')}" for number in range(500)))
    helper.end()
    buckets = counted(tmp_path / "state", "decision_duration_seconds_bucket")
    assert sum(buckets.values()) == 500
    assert {bound for _, bound in buckets} <= {
        *map(str, DECISION_DURATION.buckets),
        "+Inf",
    }
    assert counted(tmp_path / "state", "decision_duration_seconds_sum")[("host",)] > 0


def test_a_helper_that_is_killed_loses_at_most_the_batch_it_was_at(
    start: Start, tmp_path: Path
) -> None:
    helper = start(*SCOPES["host"])
    for line in range(50):
        helper.ask(f"{line} {place('open.example')}")
    helper.kill()
    assert (
        counted(tmp_path / "state", "decisions_total")[("host", "open", "allow")] >= 49
    )
    assert counted(tmp_path / "state", "helper_starts_total") == {("host",): 1}


def test_a_helper_tells_how_it_is_once_a_second(
    start: Start, policy: Path, tmp_path: Path
) -> None:
    helper, state = start(*SCOPES["host"]), tmp_path / "state"
    helper.ask(f"1 {place('open.example')}")
    first = status(state)
    assert (first.helper, first.pid) == ("host", helper.process.pid)
    assert (first.revision, first.reload_ok, first.faults, first.busy_since) == (
        revision_of(policy),
        True,
        0,
        None,
    )
    assert first.reloaded
    assert first.started <= first.reloaded <= first.beat <= time.time()
    wait_for(lambda: status(state).beat > first.beat)
    assert status(state).busy_since is None
    write_policy(
        policy,
        "rules: [{name: a, action: allowed, hosts: [a.example]}, {name: a, action: deny}]",
    )
    wait_for(lambda: not status(state).reload_ok)
    bad = status(state)
    assert (bad.revision, bad.reloaded, bad.faults) == (
        first.revision,
        first.reloaded,
        2,
    )
    write_policy(policy, "rules: [{name: a, action: allow, hosts: [a.example]}]")
    wait_for(lambda: status(state).reload_ok)
    assert (status(state).revision, status(state).faults) == (revision_of(policy), 0)


def test_a_helper_that_cannot_answer_tells_since_when(
    start: Start, tmp_path: Path
) -> None:
    """One whose answers nobody reads: it waits in the writing of them."""
    helper, state = start(*SCOPES["host"]), tmp_path / "state"
    helper.ask(f"1 {place('open.example')}")
    before = time.time()
    line = f"1 {place('closed.example')}\n".encode()
    os.set_blocking(helper.stdin.fileno(), False)
    with suppress(BlockingIOError):
        while True:
            os.write(helper.stdin.fileno(), line)
    wait_for(lambda: status(state).busy_since is not None)
    busy = status(state)
    assert busy.busy_since
    assert before - 1 < busy.busy_since < busy.beat
    wait_for(lambda: status(state).beat > busy.beat)
    assert abs((status(state).busy_since or 0) - busy.busy_since) < 0.1


def test_a_state_folder_that_takes_nothing_costs_metrics_and_no_verdict(
    policy: Path, tmp_path: Path, start: Start
) -> None:
    disk = tmp_path / "state"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", disk], check=True
    )
    try:
        helper = start(*SCOPES["host"])
        for _ in range(3):
            assert " OK rule_=open" in helper.ask(f"1 {place('open.example')}")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        wait_for(
            lambda: counted(disk, "decisions_total") == {("host", "open", "allow"): 3}
        )
        _, err = helper.end()
        assert (
            err.count("metrics of this helper cannot be written: Read-only file system")
            == 1
        )
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# --- the policy in force --------------------------------------------------------------


def test_without_a_policy_everything_is_denied_until_one_loads(
    start: Start, tmp_path: Path
) -> None:
    helper = start(*SCOPES["host"], directory=tmp_path / "later")
    line = f"1 {place('other.example')}"
    assert helper.ask(line).startswith("1 ERR rule_=policy-unavailable verdict_=deny")
    write_policy(
        tmp_path / "later",
        "rules: [{name: other, action: allow, hosts: [other.example]}]",
    )
    wait_for(lambda: helper.ask(line).startswith("1 OK"))


def test_a_rewriter_without_a_policy_names_no_url_so_that_the_request_is_denied(
    start: Start, tmp_path: Path
) -> None:
    helper = start("rewrite", concurrency=0, directory=tmp_path / "none")
    assert helper.ask(f"https://a.example/ {place('a.example')}") == "ERR\n"


def test_an_edit_takes_effect_and_a_bad_one_keeps_the_last_good_policy(
    start: Start, policy: Path, tmp_path: Path
) -> None:
    helper = start(*SCOPES["host"])
    line = f"1 {place('closed.example')}"
    assert " ERR " in helper.ask(line)
    write_policy(
        policy, "rules: [{name: opened, action: allow, hosts: [closed.example]}]"
    )
    wait_for(lambda: " OK rule_=opened" in helper.ask(line))
    write_policy(
        policy, "rules: [{name: opened, action: allowed, hosts: [closed.example]}]"
    )
    wait_for(lambda: not status(tmp_path / "state").reload_ok)
    assert " OK rule_=opened" in helper.ask(line)
    write_policy(
        policy, "rules: [{name: again, action: allow, hosts: [closed.example]}]"
    )
    wait_for(lambda: " OK rule_=again" in helper.ask(line))
    _, err = helper.end()
    assert err.count("the last good policy goes on") == 1
    assert "policy.yaml:2:32: " in err


LOGGED = re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\| squidkeeper: (.*)")


def test_what_one_helper_alone_sees_is_said_by_it(start: Start) -> None:
    helpers = [start(*SCOPES["host"]), start(*SCOPES["host"])]
    for helper in helpers:
        helper.send("no channel", "1 too short")
        helper.stdout.readline()
    told = [helper.end()[1] for helper in helpers]
    assert all(LOGGED.fullmatch(line) for other in told for line in other.splitlines())
    assert all("no channel-ID" in line for line in told)
    assert sum("is in force" in line for line in told) == 1


def test_claims_of_what_is_said_are_bounded(tmp_path: Path) -> None:
    once = cache_log.OncePerGateway()
    once.open(tmp_path)
    name = "squidkeeper.policy.published.reader"
    for number in (*range(300), 299):  # the process that has said it may say it again
        assert once.filter(
            logging.makeLogRecord({"name": name, "msg": f"revision {number}"})
        )
    held = [
        line
        for line in Path("/proc/locks").read_text().splitlines()
        if f" {os.getpid()} " in line
    ]
    inode = f":{(tmp_path / 'announced').stat().st_ino} "
    assert len([line for line in held if inode in line]) == 200
    assert (tmp_path / "announced").stat().st_size == 0


def test_without_a_state_folder_the_policy_is_published_in_memory(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("no folder")
    first, second = start(*SCOPES["host"]), start(*SCOPES["host"])
    for helper in (first, second):
        assert " OK rule_=open" in helper.ask(f"1 {place('open.example')}")
    assert "is in force" in first.end()[1]


def test_an_answer_that_was_given_stands_only_while_the_same_rules_are_in_force(
    policy: Path,
) -> None:
    ends = datetime.now(UTC)
    write_policy(
        policy,
        f"rules: [{{name: brief, action: allow, hosts: [a.example], expires: '{ends.isoformat()}'}}]",
    )
    answers = HostScope(load(policy, ends).compiled)
    said = []
    for hours in (-2, -1, 0, 1, -1, 1):  # the clock is set back once
        with patch.object(host_matches, "datetime") as clock:
            clock.now.return_value = ends + timedelta(hours=hours)
            reply = answer_host(answers, place("a.example").encode())
        said.append((reply.result, dict(reply.annotations)["rule_"]))
    open_, closed = (Result.OK, "brief"), (Result.ERR, "default")
    assert said == [open_, open_, closed, closed, open_, closed]


@pytest.mark.parametrize(
    ("number", "made_up", "more", "room"),
    [
        (3_000, "method", 0, 3_600_000),
        (250, "method", 20_000, 4_000_000),
        (250, "user", 20_000, 4_000_000),
    ],
)
def test_answers_that_are_kept_take_no_more_than_their_room(
    policy: Path,
    number: int,
    made_up: str,
    more: int,
    room: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each method or user that a client makes up has a reply of its own, with the
    policy's text in it.
    """
    monkeypatch.setattr("squidkeeper.serving.helpers.acl._HOST_CACHE_BYTES", 3_000_000)
    write_policy(policy, f"defaults: {{action: deny, reason: {'x' * 900}}}")
    answers = HostScope(compiled_in(policy))
    tracemalloc.start()
    for one in range(number):
        answer_host(
            answers, place("a.example", **{made_up: f"M{one}{'x' * more}"}).encode()
        )
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < room


def test_what_is_known_of_places_takes_no_more_than_its_room(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each port that a client makes up is a place that holds all rules of its host."""
    rule = "  - {{name: r{}, action: deny, hosts: [a.example], ports: [1]}}\n"
    write_policy(policy, "rules:\n" + "".join(map(rule.format, range(500))))
    monkeypatch.setattr(
        "squidkeeper.serving.helpers.host_matches._CACHE_BYTES", 300_000
    )
    monkeypatch.setattr(
        "squidkeeper.policy.engine.compiled_policy._CACHE_BYTES", 100_000
    )
    places = HostMatches(compiled_in(policy))
    tracemalloc.start()
    for port in range(120):
        line = place(
            "a.example", scheme="http", port=str(port + 2), sni="-", tunnel="-"
        )
        places.find(line.encode())
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 400_000


def test_of_a_secret_that_was_rotated_nothing_is_kept(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credential, "_TRUST_SECONDS", 0.0)
    write_policy(
        policy,
        f"""
        defaults: {{action: allow}}
        secrets: {{token: {{file: {tmp_path}/token}}}}
        credentials:
          - {{name: c, hosts: [a.example], bearer: token}}
          - {{name: d, hosts: [b.example], bearer: token}}
        """,
    )
    secret = tmp_path / "token"
    secret.write_text("former")
    secret.chmod(0o600)
    injector = Injector(compiled_in(policy))
    for value, hosts in (
        ("former", ("a.example", "b.example")),
        ("rotated", ("a.example",)),
    ):
        secret.write_text(value)
        for host in hosts:
            line = f"{place(host)} https%3A%2F%2F{host}%2F - -"
            assert value in str(
                credential.answer(injector, line.encode(), 4).annotations
            )
    held = [value for headers, _ in injector._replies.values() for _, value in headers]
    for secrets, filled in injector.secrets._made.values():
        held += [*(secret.reveal() for secret in secrets), filled]
    held += [secret.reveal() for _, secret in injector.secrets._read.values()]
    assert "rotated" in held
    assert "Bearer former" not in held
    assert "former" not in held


def put(file: Path, value: str) -> None:
    file.write_text(value)
    file.chmod(0o600)


def test_a_signature_is_not_kept_and_has_no_other_reply_forgotten(
    tmp_path: Path, policy: Path
) -> None:
    for name, value in (
        ("id", "AKIAEXAMPLE"),
        ("key", "secret/access+key"),
        ("token", "bearer-token"),
    ):
        put(tmp_path / name, value)
    write_policy(
        policy,
        f"""
        defaults: {{action: allow}}
        secrets: {{token: {{file: {tmp_path}/token}}, id: {{file: {tmp_path}/id}}, key: {{file: {tmp_path}/key}}}}
        credentials:
          - {{name: c, hosts: [a.example], bearer: token}}
          - {{name: d, hosts: [bucket.example], aws_sigv4: {{access_key_id: id, secret_access_key: key, region: r}}}}
        """,
    )
    injector = Injector(compiled_in(policy))
    headers = " ".join(["-"] * len(READ_HEADERS))
    for url in ("a.example/", "bucket.example/1", "bucket.example/2"):
        host = url.partition("/")[0]
        line = f"{place(host)} https%3A%2F%2F{quote(url, safe='')} - - {headers}"
        answered = credential.answer(injector, line.encode(), 4, with_headers=True)
        assert answered.result is Result.OK, answered
        assert ("AWS4-HMAC" in str(answered.annotations)) == (host == "bucket.example")
    assert [dict(headers) for headers, _ in injector._replies.values()] == [
        {"Authorization": "Bearer bearer-token"}
    ]


def test_where_tokens_are_sealed_a_request_without_its_headers_is_denied(
    tmp_path: Path, policy: Path
) -> None:
    put(tmp_path / "key", SealingPrivateKey.new().reveal())
    write_policy(
        policy,
        f"""
        rules: [{{name: open, action: allow, hosts: [a.example]}}]
        secrets: {{key: {{file: {tmp_path}/key}}}}
        sealed_tokens: {{keys: [key]}}
        rewrites: [{{name: moved, hosts: [a.example], paths: [/moved], to: "https://b.example/", redirect: 308}}]
        """,
    )
    injector = Injector(compiled_in(policy))
    headers = " ".join(["-"] * len(READ_HEADERS))

    def rule(url: str, final_url: str = "-", *, with_headers: bool = False) -> str:
        line = (
            f"{place(url.split('/')[2])} {url} {final_url} -"
            + f" {headers}" * with_headers
        )
        reply = credential.answer(injector, line.encode(), 4, with_headers=with_headers)
        assert (reply.result is Result.OK) == (
            dict(reply.annotations)["verdict_"] == "allow"
        )
        return dict(reply.annotations)["rule_"]

    assert rule("https://a.example/", with_headers=True) == "open"
    assert rule("https://a.example/") == "policy-unavailable"
    assert rule("https://a.example/moved", "https://b.example/") == "open"
    assert rule("https://c.example/") == "default"


# --- secrets that are fetched ---------------------------------------------------------

FETCHED = """
rules: [{name: api, action: allow, hosts: [api.example, other.example]}]
secrets: {token: {command: {run: [read]}}, file: {file: token}}
credentials:
  - {name: api, hosts: [api.example], bearer: token}
  - {name: other, hosts: [other.example], bearer: file}
"""


def fetch(policy: Path, run: Path, value: str, seconds: float = 60) -> Path:
    """Write a value as `squidkeeper secrets` does."""
    secrets = compiled_in(policy).source.secrets
    file = value_file(run / "secrets", source_key("token", secrets))
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, format_value(FetchedValue(value, time.time() + seconds)))
    return file


def asked(host: str) -> str:
    return f"192.0.2.5 - GET https {host} 443 {host} {host}%3A443 - https%3A%2F%2F{host}%2F - -"


def test_a_request_waits_for_a_first_value_and_holds_up_no_other(
    start: Start, policy: Path, tmp_path: Path
) -> None:
    write_policy(policy, FETCHED)
    helper = start(
        "credential", "--run", str(tmp_path / "run"), "--wait", "30", concurrency=4
    )
    helper.send(f"1 {asked('api.example')}")
    assert helper.ask(f"2 {asked('other.example')}").startswith("2 OK ")
    file = fetch(policy, tmp_path / "run", "first")
    assert 'authorization_="Bearer first"' in helper.answer().removeprefix("1 OK ")
    fetch(policy, tmp_path / "run", "second")
    assert 'authorization_="Bearer second"' in helper.ask(f"3 {asked('api.example')}")
    file.unlink()
    assert helper.ask(f"4 {asked('api.example')}").startswith(
        "4 ERR rule_=credential-unavailable "
    )
    fetch(policy, tmp_path / "run", "third", seconds=-1)
    assert helper.ask(f"5 {asked('api.example')}").startswith(
        "5 ERR rule_=credential-unavailable "
    )
    fetch(policy, tmp_path / "run", "fourth")
    assert 'authorization_="Bearer fourth"' in helper.ask(f"6 {asked('api.example')}")


def test_a_wait_for_a_first_value_is_bounded(
    start: Start, policy: Path, tmp_path: Path
) -> None:
    write_policy(policy, FETCHED)
    helper = start(
        "credential", "--run", str(tmp_path / "run"), "--wait", "3", concurrency=4
    )
    begun = time.monotonic()
    helper.send(*(f"{number} {asked('api.example')}" for number in (1, 2, 3)))
    answers = [helper.answer() for _ in range(3)]
    # two of four slots hold lines
    assert answers[0].startswith("3 ERR rule_=credential-unavailable ")
    assert sorted(answer[:5] for answer in answers) == ["1 ERR", "2 ERR", "3 ERR"]
    assert time.monotonic() - begun >= 3
    again = time.monotonic()
    assert helper.ask(f"4 {asked('api.example')}").startswith(
        "4 ERR rule_=credential-unavailable "
    )
    assert time.monotonic() - again < 3  # the second one does not wait again
    out, log = helper.end()
    assert out == b""
    assert log.count("no value has been fetched from command read") == 1


def test_lines_that_wait_are_answered_at_the_end_of_input(
    start: Start, policy: Path, tmp_path: Path
) -> None:
    write_policy(policy, FETCHED)
    helper = start(
        "credential", "--run", str(tmp_path / "run"), "--wait", "30", concurrency=4
    )
    assert helper.ask(f"1 {asked('other.example')}").startswith("1 OK ")
    helper.send(f"2 {asked('api.example')}")
    out, _ = helper.end()
    assert out.startswith(b"2 ERR rule_=credential-unavailable ")


PARAMETERS = """
    rules: [{name: a, action: allow, hosts: [a.example, b.example]}]
    secrets: {key: {file: %s}}
    credentials: [{name: query, hosts: [a.example], parameters: {key: "{key}"}}]
"""


def test_a_request_whose_parameters_the_two_helpers_do_not_agree_on_is_denied(
    tmp_path: Path, policy: Path
) -> None:
    """The policy changes between the two, or a secret comes or goes: what was added
    must be what is given.
    """
    (tmp_path / "key").write_text("s3cr&t")
    (tmp_path / "key").chmod(0o600)
    write_policy(policy, PARAMETERS % (tmp_path / "key"))
    compiled = compiled_in(policy)
    rewriter, injector = Rewriter(compiled), Injector(compiled)
    added = dict(
        rewriter.answer(
            "https://a.example/x?y", place("a.example").encode()
        ).annotations
    )
    assert (added["rewrite-url"], added["final_url_"]) == (
        "https://a.example/x?key=s3cr%26t&y",
        "https://a.example/x?y",
    )

    def rule_of(host: str, parameters: str) -> tuple[str, str | None]:
        url = f"https%3A%2F%2F{host}%2Fx%3Fy"
        said = dict(
            credential.answer(
                injector, f"{place(host)} {url} {url} {parameters}".encode(), 4
            ).annotations
        )
        return said["rule_"], said.get("credential_")

    assert rule_of("a.example", added["parameters_"]) == ("a", "query")
    assert rule_of("a.example", "0123456789abcdef") == ("policy-unavailable", None)
    assert rule_of("a.example", "-") == ("credential-unavailable", None)
    assert rule_of("b.example", "-") == ("a", None)
    assert rule_of("b.example", added["parameters_"]) == ("policy-unavailable", None)
    (tmp_path / "key").unlink()
    assert "rewrite-url" not in dict(
        rewriter.answer("https://a.example/x", place("a.example").encode()).annotations
    )
    assert rule_of("a.example", "-") == ("credential-unavailable", None)
