"""`squidkeeper secrets` as a process: programs, token endpoints, GitHub Apps, and what
helpers read of it.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import stat
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from squidkeeper.base.errors import SecretUnavailable, SourceFailed
from squidkeeper.base.faults import Location
from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.secret_sources import (
    ClientAuth,
    CommandSource,
    FetchedSource,
    FileSource,
    Grant,
    NamedSecret,
    OAuth2Source,
    source_key,
)
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.services.fetching.command import checked_program, parse_output
from squidkeeper.services.fetching.endpoints import (
    parse_expires_at,
    parse_expires_in,
    parse_token,
)
from squidkeeper.services.fetching.process import Fetching
from squidkeeper.services.fetching.renewal import (
    FetchedSecret,
    Renewal,
    renewal_seconds,
    retry_seconds,
)
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.fetch_status import SecretStatus, read_fetch_status
from squidkeeper.serving.credentials.fetched_values import (
    FetchedValue,
    format_value,
    parse_value,
    value_file,
)

from ..conftest import write_policy
from ..token_server import CANARY, Respond, TokenServer, response, token
from ..waiting import wait_for

NOW = 1_800_000_000.0


# --- pure parts -----------------------------------------------------------------------


def test_a_value_is_renewed_before_it_expires_and_not_by_all_gateways_at_once() -> None:
    assert [renewal_seconds(100, 5, chance) for chance in (0, 1)] == [60, 80]
    assert [renewal_seconds(None, 300, chance) for chance in (0, 1)] == [270, 300]
    assert renewal_seconds(0.5, 300, 0) == 1


def test_failures_are_tried_again_ever_more_rarely() -> None:
    assert [retry_seconds(failures, 1) for failures in (1, 2, 3, 6, 7, 10_000)] == [
        1,
        2,
        4,
        32,
        60,
        60,
    ]
    assert retry_seconds(1, 0) == 0.5


def test_an_expires_in_is_a_number_of_seconds_to_come_also_as_text_or_missing() -> None:
    assert [parse_expires_in(value, NOW) for value in (60, 60.5, "60", None)] == [
        NOW + 60,
        NOW + 60.5,
        NOW + 60,
        None,
    ]
    huge = (10**400, float("inf"), float("nan"), "9" * 400, 1e300)
    refused: tuple[object, ...] = ("soon", "", "12x", -1, 0, True, [], {}, *huge)
    for value in refused:
        with pytest.raises(SourceFailed, match="expires_in is not a number"):
            parse_expires_in(value, NOW)


def test_an_expires_at_is_a_time_to_come_that_has_a_zone_or_counts_seconds() -> None:
    text = datetime.fromtimestamp(NOW + 60, UTC).isoformat()
    assert [parse_expires_at(value, NOW) for value in (text, NOW + 60, None)] == [
        NOW + 60,
        NOW + 60,
        None,
    ]
    texts = ("tomorrow", "2027-01-15T08:00:01", "0001-01-01T00:00:00+23:59")
    refused: tuple[object, ...] = (*texts, 10**400, True, [], 1e300, 9e12, float("nan"))
    for value in refused:
        with pytest.raises(SourceFailed, match="expires_at is not a time"):
            parse_expires_at(value, NOW)
    with pytest.raises(SourceFailed, match="expired already"):
        parse_expires_at(NOW, NOW)


OUTPUTS = [
    "{",
    f'{{"{CANARY}": 1}}',
    f'{{"value": ["{CANARY}"]}}',
    f'{{"value": "{CANARY}"',
    "{" * 100_000,
]


@pytest.mark.parametrize("output", [*map(str.encode, OUTPUTS)])
def test_output_that_starts_with_a_brace_is_json_with_a_value(output: bytes) -> None:
    with pytest.raises(SourceFailed, match="expected a text 'value'") as raised:
        parse_output(output, NOW)
    assert CANARY not in str(raised.value)


def test_other_output_is_the_value() -> None:
    assert parse_output(b"tok en\n", NOW) == FetchedValue("tok en")
    assert parse_output(
        b'{"value": "t", "expires_at": 1800000060, "more": 1}', NOW
    ) == FetchedValue("t", NOW + 60)


@pytest.mark.parametrize(
    "answer", [{}, {"access_token": 1}, {"access_token": ""}, {"access_token": ["x"]}]
)
def test_an_answer_without_a_token_is_refused(answer: dict[str, object]) -> None:
    with pytest.raises(SourceFailed, match="'access_token'"):
        parse_token(answer, NOW)


def test_no_value_is_shown_by_what_holds_it() -> None:
    made = parse_token({"access_token": CANARY, "refresh_token": CANARY}, NOW)
    assert CANARY not in f"{made!r} {made}"


def test_an_edited_source_has_another_key() -> None:
    def named(**changes: object) -> dict[str, NamedSecret]:
        source = replace(CommandSource(("read",), 10, 300), **changes)  # type: ignore[arg-type] # as the test says
        return {"s": NamedSecret("s", Location("p.yaml"), source)}

    keys = {
        source_key("s", named(**changes))
        for changes in ({}, {"run": ("read", "x")}, {"refresh_seconds": 5})
    }
    assert len(keys) == 3
    moved = {
        "s": NamedSecret(
            "s", Location("p.yaml", 7, 7), CommandSource(("read",), 10, 300)
        )
    }
    assert source_key("s", moved) == source_key("s", named())


# --- the process ----------------------------------------------------------------------

POLICY = """
rules: [{{name: open, action: allow, hosts: [a.example]}}]
secrets: {secrets}
credentials: [{{name: c, hosts: [a.example], bearer: s}}]
"""


class Fetcher:
    """The process, its folders, and what it has written."""

    def __init__(self, root: Path) -> None:
        self.policy, self.run, self.commands = (
            root / "policy",
            root / "run",
            root / "commands",
        )
        self.folder = self.run / "secrets"
        self.commands.mkdir(mode=0o755)
        self.process: subprocess.Popen[str] | None = None

    def write(self, secrets: str) -> Policy:
        write_policy(self.policy, POLICY.format(secrets=secrets))
        return load(self.policy, datetime.now(UTC)).compiled.source

    def command(self, name: str, script: str) -> Path:
        file = self.commands / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    def start(self, secrets: str) -> Policy:
        policy = self.write(secrets)
        folders = {
            "policy": self.policy,
            "state": self.run / "state",
            "run": self.run,
            "commands": self.commands,
        }
        options = [f"--{name}={folder}" for name, folder in folders.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "squidkeeper", "secrets", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        return policy

    def stop(self) -> str:
        assert self.process
        self.process.terminate()
        _, log = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, log
        return log

    def status(self, name: str = "s") -> SecretStatus | None:
        return read_fetch_status(self.folder, time.time()).secrets.get(name)

    def failure(self, name: str = "s") -> str:
        return wait_for(
            lambda: (self.status(name) or SecretStatus("")).failure,
            f"a failure of {name}",
        )

    def value(self, policy: Policy, name: str = "s") -> str:
        store = SecretStore(policy.secrets, {}, self.folder)
        return wait_for(lambda: value_of(store, name), f"a value of {name}")


def value_of(store: SecretStore, name: str = "s") -> str:
    try:
        return store.get(name).reveal()
    except SecretUnavailable:
        return ""


@pytest.fixture
def fetcher(tmp_path: Path) -> Iterator[Fetcher]:
    made = Fetcher(tmp_path)
    yield made
    if made.process and made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TokenServer]:
    made = TokenServer(tmp_path / "server")
    yield made
    made.stop()


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="a program of a secret has to be root's"
)


@needs_root
@pytest.mark.long
def test_a_value_of_a_program_is_written_for_its_group_renewed_and_removed_with_its_source(
    fetcher: Fetcher,
) -> None:
    fetcher.command("tick", f"date +%N > {fetcher.run}/last; cat {fetcher.run}/last")
    policy = fetcher.start("{s: {command: {run: [tick], refresh: 1s}}}")
    first = fetcher.value(policy)
    [file] = fetcher.folder.glob("*.value")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    store = SecretStore(policy.secrets, {}, fetcher.folder)
    wait_for(lambda: value_of(store) != first, "a renewed value")
    other = fetcher.write("{s: {command: {run: [tick, again], refresh: 1s}}}")
    assert fetcher.value(other)
    wait_for(lambda: not file.exists(), "the removal of the former value")
    assert fetcher.stop().count("\n") == 2  # a line for each revision


@pytest.mark.system
@needs_root
def test_a_program_gets_its_arguments_without_a_shell_and_little_else(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_OF_OURS", CANARY)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/x")
    fetcher.command(
        "show", 'printf "%s|" "$@" $(env | cut -d= -f1 | sort) "$(pwd)"; cat'
    )
    renewal, store = renewal_in(
        fetcher, "{s: {command: {run: [show, '$(id)', 'a b; c']}}}"
    )
    asyncio.run(until(renewal, 0, lambda: renewal.status.fetches))
    assert value_of(store) == "$(id)|a b; c|CREDENTIALS_DIRECTORY|HOME|LANG|PATH|PWD|/|"


@needs_root
@pytest.mark.long
def test_a_program_that_hangs_is_killed_with_its_children_and_holds_up_no_other(
    fetcher: Fetcher,
) -> None:
    fetcher.command(
        "hang", f"sleep 600 & echo $! > {fetcher.commands}/child; sleep 600"
    )
    fetcher.command("quick", "echo quick")
    policy = fetcher.start(
        "{s: {command: {run: [quick]}}, hangs: {command: {run: [hang], timeout: 1s}}}"
    )
    assert fetcher.value(policy) == "quick"
    assert fetcher.failure("hangs").endswith("hang has not ended after 1 s (timeout)")
    child = int((fetcher.commands / "child").read_text())
    wait_for(lambda: not is_running(child), "the end of the program's child")


@needs_root
@pytest.mark.long
def test_stopping_the_process_kills_the_programs(fetcher: Fetcher) -> None:
    fetcher.command("hang", f"echo $$ > {fetcher.commands}/pid; exec sleep 600")
    fetcher.start("{s: {command: {run: [hang]}}}")
    pid = int(wait_for(lambda: read(fetcher.commands / "pid"), "the program"))
    fetcher.stop()
    assert not is_running(pid)


PRINTED = [
    (
        f"echo {CANARY}; echo {CANARY} >&2; exit 3",
        "ended with exit status 3, expected 0 and the value on",
    ),
    (f"echo {CANARY} >&2; kill -9 $$", "ended with signal 9"),
    (f"yes {CANARY}", "the output is longer than 64 KB"),
    (
        f"printf '{CANARY}\\r\\nX-Injected: x'",
        "holds characters other than printable ASCII",
    ),
    (f"printf '{CANARY}\\0'", "holds characters other than printable ASCII"),
    (f"printf '{CANARY}\\377'", "holds characters other than printable ASCII"),
    ("true", "is empty"),
    (
        f"""echo '{{"value": "{CANARY}", "expires_at": 1000}}'""",
        "the value has expired already",
    ),
]


@pytest.mark.system
@needs_root
def test_a_failure_of_a_program_says_what_was_expected_and_nothing_that_it_printed(
    fetcher: Fetcher,
) -> None:
    for number, (script, _) in enumerate(PRINTED):
        fetcher.command(f"fail{number}", script)
    sources = ", ".join(
        f"s{n}: {{command: {{run: [fail{n}]}}}}" for n in range(len(PRINTED))
    )
    policy = fetcher.start(f"{{s: {{env: UNSET}}, {sources}}}")
    for number, (_, expected) in enumerate(PRINTED):
        assert expected in fetcher.failure(f"s{number}")
        assert not value_of(
            SecretStore(policy.secrets, {}, fetcher.folder), f"s{number}"
        )
    log = fetcher.stop()
    assert all(expected in log for _, expected in PRINTED)
    assert CANARY not in log + (fetcher.folder / "status.json").read_text()


@needs_root
def test_only_roots_own_programs_in_the_folder_are_run(tmp_path: Path) -> None:
    commands, elsewhere = tmp_path / "commands", tmp_path / "elsewhere"
    for folder in (commands, elsewhere):
        folder.mkdir(mode=0o755)
        (folder / "read").write_text("#!/bin/sh\n")
        (folder / "read").chmod(0o755)
    assert checked_program("read", commands) == commands / "read"
    (commands / "link").symlink_to(elsewhere / "read")
    (commands / "inner").symlink_to("read")
    assert checked_program("inner", commands) == commands / "read"
    for name in (
        "link",
        "../elsewhere/read",
        str(elsewhere / "read"),
        "/bin/sh",
        "..",
        ".",
    ):
        with pytest.raises(SourceFailed, match="expected one in the folder"):
            checked_program(name, commands)
    with pytest.raises(SourceFailed, match="No such file"):
        checked_program("gone", commands)
    (commands / "loop").symlink_to("loop")
    with pytest.raises(SourceFailed, match="not in the folder"):
        checked_program("loop", commands)
    (commands / "data").write_text("x")
    with pytest.raises(SourceFailed, match="cannot be executed"):
        checked_program("data", commands)


@needs_root
@pytest.mark.parametrize(
    "change",
    [
        "mode of the program",
        "owner of the program",
        "mode of the folder",
        "owner above",
    ],
)
def test_a_program_that_others_can_change_is_not_run(
    tmp_path: Path, change: str
) -> None:
    commands = tmp_path / "above/commands"
    commands.mkdir(parents=True)
    program = commands / "read"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert checked_program("read", commands)
    which = {"program": program, "folder": commands, "above": commands.parent}[
        change.rpartition(" ")[2]
    ]
    if change.startswith("mode"):
        which.chmod(0o775)
    else:
        os.chown(which, 1, -1)
    with pytest.raises(
        SourceFailed, match=f"{which} can be changed by others than root"
    ):
        checked_program("read", commands)


def client_fields(server: TokenServer) -> str:
    client = "grant: client_credentials, client_id: me, client_secret: secret"
    return f"token_url: '{server.url}', {client}, ca: {server.ca}"


def oauth2(server: TokenServer, *more: str, grant: str = "client_credentials") -> str:
    fields = ", ".join(
        (
            f"token_url: '{server.url}', grant: {grant}, client_id: me, ca: {server.ca}",
            *more,
        )
    )
    return f"{{s: {{oauth2: {{{fields}}}}}, secret: {{file: secret}}, refresh: {{file: refresh}}}}"


def renewal_in(fetcher: Fetcher, secrets: str) -> tuple[Renewal, SecretStore]:
    """What the process runs for one secret, in this one."""
    fetcher.folder.mkdir(parents=True)
    named = fetcher.write(secrets).secrets
    source, store = named["s"].source, SecretStore(named, {}, fetcher.folder)
    assert isinstance(source, FetchedSource)
    return Renewal(
        FetchedSecret("s", source_key("s", named), source, store),
        fetcher.folder,
        fetcher.commands,
    ), store


def renewal_of(tmp_path: Path, source: FetchedSource, **others: NamedSecret) -> Renewal:
    store = SecretStore(
        {"s": NamedSecret("s", Location("p.yaml"), source), **others}, {}, tmp_path
    )
    return Renewal(FetchedSecret("s", "key", source, store), tmp_path, tmp_path)


async def until(
    renewal: Renewal, seconds: float, condition: Callable[[], object]
) -> None:
    """Let it run until the condition holds."""
    task = asyncio.create_task(renewal.run(seconds))
    await asyncio.to_thread(wait_for, condition)
    task.cancel()


def put(fetcher: Fetcher, name: str, value: str) -> None:
    fetcher.policy.mkdir(exist_ok=True)
    (fetcher.policy / name).write_text(value)
    (fetcher.policy / name).chmod(0o640)


CLIENT = "client_secret: secret, scope: 'a b', audience: them"


@pytest.mark.system
def test_a_token_is_asked_for_by_client_credentials_and_renewed_before_it_expires(
    fetcher: Fetcher, server: TokenServer
) -> None:
    put(fetcher, "secret", "of the client")
    numbers = count(1)
    server.respond = lambda _: token(f"token-{next(numbers)}", expires_in=6)
    renewal, store = renewal_in(fetcher, oauth2(server, CLIENT))
    asyncio.run(until(renewal, 0, lambda: value_of(store) == "token-2"))
    first, second = server.requests[:2]
    assert first.line == "POST /token HTTP/1.1"
    assert first.form == {
        "grant_type": "client_credentials",
        "scope": "a b",
        "audience": "them",
    }
    assert (
        b64decode(first.headers["authorization"].removeprefix("Basic "))
        == b"me:of the client"
    )
    assert 3 < second.at - first.at < 6


@pytest.mark.system
def test_the_secret_of_a_client_may_be_sent_in_the_form(
    fetcher: Fetcher, server: TokenServer
) -> None:
    put(fetcher, "secret", "s&c=ret")
    renewal, store = renewal_in(fetcher, oauth2(server, CLIENT, "client_auth: form"))
    asyncio.run(until(renewal, 0, lambda: renewal.status.fetches))
    assert value_of(store) == "a-token"
    assert server.requests[0].form["client_secret"] == "s&c=ret"
    assert "authorization" not in server.requests[0].headers


@pytest.mark.long
def test_a_refresh_token_that_was_replaced_is_not_used_again(
    fetcher: Fetcher, server: TokenServer
) -> None:
    put(fetcher, "refresh", "first")
    numbers = count(1)
    server.respond = lambda _: token(
        "t", expires_in=1, refresh_token=f"next-{next(numbers)}"
    )
    fetcher.start(oauth2(server, "refresh_token: refresh", grant="refresh_token"))
    wait_for(lambda: len(server.requests) >= 3, "three requests")
    fetcher.stop()
    sent = [request.form["refresh_token"] for request in server.requests]
    assert sent[:3] == ["first", "next-1", "next-2"]
    [file] = fetcher.folder.glob("*.refresh")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = len(server.requests)
    fetcher.start(oauth2(server, "refresh_token: refresh", grant="refresh_token"))
    wait_for(lambda: len(server.requests) > before, "a request of the next process")
    assert server.requests[before].form["refresh_token"] == f"next-{before}"
    put(fetcher, "refresh", "another")
    wait_for(
        lambda: server.requests[-1].form["refresh_token"] == "another",
        "the policy's new refresh token",
    )


@pytest.mark.system
def test_a_refresh_token_that_cannot_be_stored_is_used_and_told(
    tmp_path: Path, server: TokenServer, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "first").write_text("first")
    refresh = NamedSecret("refresh", Location("p.yaml"), FileSource(tmp_path / "first"))
    grant, auth = Grant.REFRESH_TOKEN, ClientAuth.BASIC
    source = OAuth2Source(
        server.url, grant, "me", None, auth, "refresh", None, None, server.ca, 300
    )
    renewal = renewal_of(tmp_path, source, refresh=refresh)
    in_the_way = tmp_path / "key.refresh"
    in_the_way.mkdir()

    def fetched(number: int, rotated: str) -> str:
        """Fetch once more, and give the refresh token that was sent."""
        server.respond = lambda _: token(f"t{number}", refresh_token=rotated)
        asyncio.run(until(renewal, 0, lambda: renewal.status.fetches == number))
        assert (
            parse_value(value_file(tmp_path, "key").read_bytes()).value == f"t{number}"
        )
        return server.requests[-1].form["refresh_token"]

    assert [fetched(1, "next-1"), fetched(2, "next-2")] == ["first", "next-1"]
    assert renewal.status.failures == 2
    in_the_way.rmdir()
    assert fetched(3, "next-2") == "next-2"  # which is the newest, and stored now
    assert b"next-2" in in_the_way.read_bytes()
    assert (renewal.status.failure, renewal.status.failures) == ("", 0)
    assert (
        caplog.text.count(
            "refresh token cannot be stored, and is lost when this process ends: Is a directory"
        )
        == 1
    )


@pytest.mark.system
@pytest.mark.parametrize(("step", "seconds"), [(4_000, 3_600), (-4_000, 0.1)])
def test_a_value_is_renewed_by_the_clock_and_no_later_where_that_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float, seconds: float
) -> None:
    renewal = renewal_of(tmp_path, CommandSource(("gone",), 10, 300))
    clock = time.time

    def is_renewed() -> bool:
        if renewal.status.next_fetch:  # it sleeps
            monkeypatch.setattr(time, "time", lambda: clock() + step)
        return bool(renewal.status.failure)

    asyncio.run(until(renewal, seconds, is_renewed))


def test_what_fails_in_the_folder_is_logged_once_whatever_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("_REMOVE_AFTER_SECONDS", "_REPORT_EVERY_SECONDS"):
        monkeypatch.setattr(f"squidkeeper.services.fetching.process.{name}", 0.0)
    (tmp_path / "former.value").mkdir()
    fetching = Fetching(tmp_path, tmp_path)
    for _ in range(3):
        fetching.check({})
    assert caplog.text.count("Is a directory") == 1
    assert (
        read_fetch_status(tmp_path, time.time()).problem
        == f"{tmp_path}: Is a directory"
    )
    (tmp_path / "former.value").rmdir()
    fetching.check({})
    assert read_fetch_status(tmp_path, time.time()).problem == ""


HUGE = b"x" * (1024 * 1024 + 1)
FAILURES: list[tuple[Respond, str]] = [
    (lambda _: response(500, CANARY.encode()), "status 500, expected 200"),
    (
        lambda _: response(400, f'{{"error": "{CANARY}"}}'.encode()),
        "status 400, expected 200",
    ),
    (
        lambda _: response(302, b"", "Location: https://127.0.0.1:1/"),
        "status 302, expected 200: redirects are not",
    ),
    (
        lambda _: response(307, b"", f"Location: /{CANARY}"),
        "status 307, expected 200: redirects are not",
    ),
    (lambda _: response(204, b""), "status 204, expected 200"),
    (lambda _: response(200, CANARY.encode()), "the answer is not a JSON object"),
    (
        lambda _: response(200, f'["{CANARY}"]'.encode()),
        "the answer is not a JSON object",
    ),
    (lambda _: response(200, b"[" * 200_000), "the answer is not a JSON object"),
    (lambda _: response(200, b"\xff\xfe\x00"), "the answer is not a JSON object"),
    (lambda _: response(200, HUGE), "the answer is longer than 1 MB"),
    (
        lambda _: response(200, gzip.compress(HUGE), "Content-Encoding: gzip"),
        "the answer is not a JSON object",
    ),
    (
        lambda _: f"{CANARY}\r\n\r\n".encode(),
        "the connection broke, or the answer is not HTTP",
    ),
    (lambda _: b"", "the connection broke, or the answer is not HTTP"),
    (
        lambda _: response(200, b"{}")[:-1],
        "the connection broke, or the answer is not HTTP",
    ),
    (
        lambda _: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
        "the connection broke, or the answer is not HTTP",
    ),
    (
        lambda _: token(CANARY, expires_in="soon"),
        "expires_in is not a number of seconds to come",
    ),
    (lambda _: token([CANARY]), "the answer holds no text 'access_token'"),
    (
        lambda _: token(f"{CANARY}\r\nX-Injected: x"),
        "holds characters other than printable ASCII",
    ),
    (lambda _: token(f"{CANARY}\0"), "holds characters other than printable ASCII"),
    (lambda _: token(f"{CANARY}\u2028"), "holds characters other than printable ASCII"),
    (lambda _: token(f"{CANARY}\ud800"), "holds characters other than printable ASCII"),
    (lambda _: token(CANARY * 1000), "the value is longer than 16 KB"),
    (
        lambda _: token(CANARY, expires_in=10**400),
        "expires_in is not a number of seconds to come",
    ),
    (
        lambda _: token(CANARY, refresh_token=f"{CANARY}\ud800"),
        "the answer's 'refresh_token' is not a text",
    ),
    (
        lambda _: token(CANARY, refresh_token={CANARY: 1}),
        "the answer's 'refresh_token' is not a text",
    ),
]


@pytest.mark.system
def test_each_failure_of_a_token_endpoint_is_named_and_nothing_of_its_answer_is_shown(
    fetcher: Fetcher, server: TokenServer
) -> None:
    put(fetcher, "secret", "of-the-client")
    server.respond = lambda request: FAILURES[int(request.form["scope"])][0](request)
    fields = client_fields(server)
    sources = ", ".join(
        f"s{n}: {{oauth2: {{{fields}, scope: '{n}'}}}}" for n in range(len(FAILURES))
    )
    policy = fetcher.start(
        f"{{s: {{file: secret}}, secret: {{file: secret}}, {sources}}}"
    )
    for number, (_, expected) in enumerate(FAILURES):
        assert expected in fetcher.failure(f"s{number}"), number
        assert not value_of(
            SecretStore(policy.secrets, {}, fetcher.folder), f"s{number}"
        )
    log = fetcher.stop()
    assert CANARY not in log + (fetcher.folder / "status.json").read_text()
    assert "of-the-client" not in log + (fetcher.folder / "status.json").read_text()
    assert not [*fetcher.folder.glob("*.value")]


@pytest.mark.long
def test_a_token_endpoint_that_hangs_or_drips_ends_in_time_and_holds_up_no_other(
    fetcher: Fetcher, server: TokenServer
) -> None:
    put(fetcher, "secret", "x")
    kinds: dict[str, Respond] = {
        "hang": server.hang,
        "drip": server.drip,
        "well": lambda _: token("well"),
    }
    server.respond = lambda request: kinds[request.form["scope"]](request)
    fields = client_fields(server)
    sources = ", ".join(
        f"{name}: {{oauth2: {{{fields}, scope: {name}}}}}" for name in kinds
    )
    policy = fetcher.start(
        f"{{s: {{file: secret}}, secret: {{file: secret}}, {sources}}}"
    )
    assert fetcher.value(policy, "well") == "well"
    for name in ("hang", "drip"):
        assert fetcher.failure(name) == "no whole answer within 10 s"


@pytest.mark.system
def test_a_ca_that_is_a_fifo_is_a_failure_that_holds_up_no_other_secret_and_no_end(
    fetcher: Fetcher, server: TokenServer
) -> None:
    fifo = fetcher.run.parent / "fifo"
    os.mkfifo(fifo)
    server.respond = lambda _: token("well")
    put(fetcher, "secret", "x")
    fields = f"token_url: '{server.url}', grant: client_credentials, client_id: me, client_secret: secret, ca: "
    faulty = ", ".join(
        f"f{number}: {{oauth2: {{{fields} {fifo}, scope: f{number}}}}}"
        for number in range(70)
    )
    well = f"s: {{oauth2: {{{fields} {server.ca}}}}}, secret: {{file: secret}}"
    policy = fetcher.start(f"{{{faulty}, {well}}}")
    assert (
        fetcher.failure("f7")
        == f"the file of 'ca' cannot be used ({fifo}): not a regular file"
    )
    assert fetcher.value(policy) == "well"
    begun = time.monotonic()
    fetcher.stop()
    assert time.monotonic() - begun < 3


@pytest.mark.long
def test_the_certificate_of_a_source_is_verified(
    fetcher: Fetcher, server: TokenServer
) -> None:
    put(fetcher, "secret", "x")
    fetcher.start(oauth2(server, CLIENT).replace(f", ca: {server.ca}", ""))
    assert "certificate verify failed" in fetcher.failure()
    fetcher.write(oauth2(server, CLIENT).replace("127.0.0.1", "localhost"))
    wait_for(
        lambda: "not valid for 'localhost'" in fetcher.failure(),
        "a failure for the name",
    )
    assert server.requests == []


@pytest.mark.long
def test_a_valid_value_is_used_while_its_source_fails_and_denied_once_expired(
    fetcher: Fetcher, server: TokenServer
) -> None:
    put(fetcher, "secret", "x")
    server.respond = lambda _: token("first", expires_in=6)
    policy = fetcher.start(oauth2(server, CLIENT))
    store = SecretStore(policy.secrets, {}, fetcher.folder)
    assert fetcher.value(policy) == "first"
    server.respond = lambda _: response(500, b"")
    assert fetcher.failure() == "status 500, expected 200"
    assert value_of(store) == "first"
    wait_for(lambda: not value_of(store), "the expiry")
    with pytest.raises(
        SecretUnavailable, match=r"the value fetched from oauth2 \S+ has expired"
    ) as raised:
        store.get("s")
    assert not raised.value.pending
    server.respond = lambda _: token("second", expires_in=60)
    wait_for(lambda: value_of(store) == "second", "the value after the failure")


@pytest.mark.system
def test_a_token_of_a_github_app_is_narrowed_and_asked_for_by_a_signed_jwt(
    fetcher: Fetcher, server: TokenServer
) -> None:
    key = rsa.generate_private_key(65537, 2048)
    kinds = (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    put(fetcher, "key.pem", key.private_bytes(*kinds).decode())
    expires = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = json.dumps({"token": "ghs_x", "expires_at": expires}).encode()
    server.respond = lambda _: response(201, answer)
    fields = "app_id: 12, installation_id: 34, private_key: key, repositories: [a, b.c], permissions: {contents: read}"
    api = server.url.removesuffix("/token") + "/api/v3"
    secrets = f"{{key: {{file: key.pem}}, s: {{github_app: {{{fields}, api_url: '{api}', ca: {server.ca}}}}}}}"
    renewal, store = renewal_in(fetcher, secrets)
    asyncio.run(until(renewal, 0, lambda: renewal.status.fetches))
    assert value_of(store) == "ghs_x"
    request = server.requests[0]
    assert request.line == "POST /api/v3/app/installations/34/access_tokens HTTP/1.1"
    assert json.loads(request.body) == {
        "repositories": ["a", "b.c"],
        "permissions": {"contents": "read"},
    }
    from joserfc import jwt
    from joserfc.jwk import RSAKey

    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = jwt.decode(
        request.headers["authorization"].removeprefix("Bearer "),
        RSAKey.import_key(public),
    )
    assert signed.header["alg"] == "RS256"
    assert signed.claims["iss"] == "12"
    assert signed.claims["exp"] - signed.claims["iat"] <= 600
    assert renewal.status.expires_at == datetime.fromisoformat(expires).timestamp()


@pytest.mark.system
def test_a_private_key_that_is_none_is_a_failure_that_does_not_show_it(
    fetcher: Fetcher, server: TokenServer
) -> None:
    put(fetcher, "key.pem", CANARY)
    fields = "app_id: 1, installation_id: 2, private_key: key, repositories: [a], permissions: {contents: read}"
    secrets = f"{{key: {{file: key.pem}}, s: {{github_app: {{{fields}, api_url: '{server.url}'}}}}}}"
    renewal, _ = renewal_in(fetcher, secrets)
    asyncio.run(until(renewal, 0, lambda: renewal.status.failure))
    assert (
        renewal.status.failure
        == "the private key is not an RSA key in PEM, as GitHub gives it"
    )


@needs_root
@pytest.mark.long
def test_a_secret_that_another_one_needs_may_be_fetched_itself(
    fetcher: Fetcher, server: TokenServer
) -> None:
    fetcher.command("read", "echo from-the-program")
    policy = fetcher.start(
        oauth2(server, CLIENT).replace(
            "secret: {file: secret}", "secret: {command: {run: [read]}}"
        )
    )
    assert fetcher.value(policy) == "a-token"
    assert (
        b64decode(server.requests[0].headers["authorization"].removeprefix("Basic "))
        == b"me:from-the-program"
    )


# --- the store ------------------------------------------------------------------------


def test_a_fetched_value_that_is_removed_or_damaged_is_unavailable_at_once(
    tmp_path: Path,
) -> None:
    secrets = {
        "s": NamedSecret("s", Location("p.yaml"), CommandSource(("read",), 10, 300))
    }
    file = value_file(tmp_path, source_key("s", secrets))
    store = SecretStore(secrets, {}, tmp_path)
    with pytest.raises(
        SecretUnavailable, match="no value has been fetched from command read"
    ) as first:
        store.get("s")
    assert first.value.pending
    file.write_bytes(format_value(FetchedValue("one", time.time() + 60)))
    assert store.get("s").reveal() == "one"
    file.write_bytes(f'{{"value": ["{CANARY}"]}}'.encode())
    with pytest.raises(
        SecretUnavailable, match="is not what 'squidkeeper secrets' writes"
    ) as damaged:
        store.get("s")
    assert CANARY not in str(damaged.value)
    file.unlink()
    with pytest.raises(SecretUnavailable, match="no value has been fetched") as removed:
        store.get("s")
    assert not removed.value.pending
    with pytest.raises(SecretUnavailable, match="are not read here"):
        SecretStore(secrets, {}).get("s")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def read(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""


@pytest.mark.system
def test_a_policy_that_does_not_load_is_told_by_the_publisher(
    tmp_path: Path,
) -> None:
    (tmp_path / "policy.yaml").write_text("version: 2\n")
    folders = (
        "--policy",
        tmp_path,
        "--state",
        tmp_path / "state",
        "--run",
        tmp_path / "run",
    )
    command = (sys.executable, "-m", "squidkeeper", "secrets", *map(str, folders))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            assert process.stderr.readline().endswith(
                f"squidkeeper: {tmp_path} does not load, everything is denied:\n"
            )
        finally:
            process.terminate()
