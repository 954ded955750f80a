"""Sealed tokens: round trips, what cannot be sealed, where a token may be presented,
and each of its guards.
"""

from __future__ import annotations

import json
import os
import re
import string
import tracemalloc
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import PatternError, SealedTokenRefused
from squidkeeper.base.faults import Location
from squidkeeper.base.squid_account import Account
from squidkeeper.cli import main
from squidkeeper.policy.engine import decide
from squidkeeper.policy.engine.sealed_guards import failing_guard
from squidkeeper.policy.language.forms import InjectedValue
from squidkeeper.policy.language.model import HostFacts
from squidkeeper.policy.language.sealed_tokens import (
    format_content,
    parse_content,
)
from squidkeeper.policy.language.secret_sources import FileSource, NamedSecret
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.policy.url import parse_url
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.sealed_tokens import SealedTokens, presented_token
from squidkeeper.serving.credentials.sealing import (
    LONGEST_TOKEN,
    SealingPrivateKey,
    SealingPublicKey,
    open_bytes,
    seal_bytes,
)
from squidkeeper.serving.credentials.store import Secret, filled
from squidkeeper.serving.helpers.fetched_request import FetchedRequest, Unsealer

from ..conftest import compiled_of

KEY, OTHER = SealingPrivateKey.new(), SealingPrivateKey.new()
SECRET = "ghp_theSealedSecret"
FIELDS: dict[str, object] = {"hosts": ["api.example"], "secret": SECRET}
NOW = datetime(2030, 1, 1, tzinfo=UTC)
TOKEN = seal_bytes(format_content(FIELDS), KEY.public)


@given(st.binary(max_size=2_000))
def test_what_is_sealed_is_opened_by_its_key_alone(content: bytes) -> None:
    token = seal_bytes(content, KEY.public)
    assert open_bytes(token, [OTHER, KEY]) == content
    with pytest.raises(SealedTokenRefused, match="a key that is not in force"):
        open_bytes(token, [OTHER])


@given(st.integers(0, len(TOKEN) - 1), st.integers(0, 7))
def test_a_token_with_one_bit_altered_is_refused(position: int, bit: int) -> None:
    altered = bytearray(TOKEN, "latin-1")
    altered[position] ^= 1 << bit
    with pytest.raises(SealedTokenRefused):
        open_bytes(altered.decode("latin-1"), [KEY])


@given(
    st.integers(0, len(TOKEN) - 1),
    st.text(st.sampled_from("sk1.-_Aa0=/+ ,"), max_size=3),
)
def test_a_token_that_is_cut_or_extended_is_refused(position: int, more: str) -> None:
    for altered in (
        TOKEN[:position],
        TOKEN[position + 1 :],
        TOKEN[:position] + more,
        TOKEN + more,
    ):
        if altered != TOKEN:
            with pytest.raises(SealedTokenRefused):
                open_bytes(altered, [KEY])


@pytest.mark.parametrize("size", range(3))
def test_no_other_last_character_spells_the_same_token(size: int) -> None:
    token = seal_bytes(b"x" * size, KEY.public)
    for last in string.ascii_letters + string.digits + "-_=":
        if last != token[-1]:
            with pytest.raises(SealedTokenRefused):
                open_bytes(token[:-1] + last, [KEY])


@given(st.text())
def test_any_text_in_place_of_a_token_is_refused(text: str) -> None:
    for token in (text, f"sks1.{text}", f"sks1.{KEY.public.id}.{text}"):
        with pytest.raises(SealedTokenRefused):
            open_bytes(token, [KEY])


def test_keys_are_read_from_their_texts_and_a_private_one_shows_nothing() -> None:
    assert SealingPrivateKey.parse(KEY.reveal() + "\n") == KEY
    assert SealingPublicKey.parse(str(KEY.public)) == KEY.public
    assert KEY.reveal()[5:] not in repr(KEY)
    for text in (KEY.reveal(), "skp1.", "skp1.AAAA", f"{KEY.public}A", ""):
        with pytest.raises(PatternError) as raised:
            SealingPublicKey.parse(text)
        assert KEY.reveal()[5:] not in str(raised.value)
    with pytest.raises(PatternError):
        SealingPrivateKey.parse(str(KEY.public))


def test_a_token_has_a_longest_length() -> None:
    with pytest.raises(PatternError, match="at most"):
        seal_bytes(b"x" * LONGEST_TOKEN, KEY.public)
    with pytest.raises(SealedTokenRefused, match="longer than"):
        open_bytes(f"sks1.{KEY.public.id}." + "A" * LONGEST_TOKEN, [KEY])


# --- its content ----------------------------------------------------------------------

names = st.text(st.sampled_from("abc-"), min_size=1, max_size=8).map(
    lambda text: f"x{text}x"
)


@given(
    hosts=st.lists(names.map(lambda name: f".{name}.example"), min_size=1, max_size=3),
    paths=st.lists(names.map(lambda name: f"/{name}/**"), max_size=3),
    methods=st.lists(st.sampled_from(["GET", "POST"]), max_size=2),
    clients=st.lists(names, max_size=2),
    secret=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1),
    header=st.sampled_from(["Authorization", "X-Api-Key", "private-token"]),
    expires=st.sampled_from(
        [None, "2036-12-01T18:00:00Z", "2036-12-01T18:00:00+01:00"]
    ),
)
def test_a_content_is_what_was_written(
    hosts: list[str],
    paths: list[str],
    methods: list[str],
    clients: list[str],
    secret: str,
    header: str,
    expires: str | None,
) -> None:
    fields = {
        "hosts": hosts,
        "paths": paths,
        "methods": methods,
        "clients": clients,
        "secret": secret,
    }
    token = seal_bytes(
        format_content({**fields, "header": header, "expires": expires}), KEY.public
    )
    content = parse_content(open_bytes(token, [KEY]))
    assert [pattern.text for pattern in content.hosts] == hosts
    assert [pattern.text for pattern in content.match.paths or ()] == paths
    assert content.match.methods == (frozenset(methods) or None)
    assert content.match.clients == (frozenset(clients) or None)
    assert (content.secret, content.header.lower()) == (secret, header.lower())
    assert content.expires == (expires and datetime.fromisoformat(expires))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"hosts": []}, "hosts"),
        ({"hosts": ["*"]}, "hosts.0: host pattern '*'"),
        ({"hosts": ["*.com"]}, "hosts.0"),
        ({"hosts": ["a..b"]}, "hosts.0"),
        ({"hosts": ["a.example"] * 17}, "hosts: expected at most 16"),
        ({"paths": ["x"]}, "paths.0"),
        ({"paths": ["/" + "x" * 256]}, "paths: expected text of at most 256"),
        ({"paths": ["regex:/.*"]}, "no expressions"),
        ({"methods": ["get"]}, "methods.0"),
        ({"methods": ["CONNECT"]}, "methods.0"),
        ({"expires": "2036-12-01"}, "expires"),
        ({"expires": "2036-12-01T18:00:00"}, "no time zone"),
        ({"header": "Host"}, "header: the gateway does not inject"),
        ({"header": "Cookie"}, "header"),
        ({"value": "Bearer"}, "only name"),
        ({"value": "{secret} {other}"}, "only name"),
        ({"value": "{secret}{secret}"}, "{secret} once"),
        ({"value": "{secret}\r\nX: y"}, "printable ASCII"),
        ({"value": "{secret}" + "x" * 249}, "value: expected text of at most 256"),
        ({"username": "x" * 257}, "username: expected text of at most 256"),
        ({"oops" * 100: "x" * 257}, "oops: a sealed token has no such field"),
        ({"username": "a:b"}, "username"),
        ({"secret": "two\r\nlines"}, "secret: "),
        ({"secret": "ü"}, "secret: "),
        ({"lists": ["x"]}, "lists: a sealed token has no such guard"),
        ({"schemes": ["http"]}, "schemes: a sealed token has no such guard"),
        ({"ports": [0]}, "ports.0"),
        ({"oops": "x"}, "oops"),
    ],
    ids=str,
)
def test_what_cannot_be_sealed(fields: dict[str, object], expected: str) -> None:
    content = {**FIELDS, **fields}
    with pytest.raises(PatternError, match=re.escape(expected)) as raised:
        format_content(content)
    assert str(content["secret"]) not in str(raised.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.text() | st.integers(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    )
)
def test_any_json_is_a_content_or_refused(value: object) -> None:
    for content in (
        value,
        {**FIELDS, "paths": value},
        {**FIELDS, "hosts": value},
        {**FIELDS, "query": value},
    ):
        try:
            parse_content(json.dumps(content).encode())
        except PatternError:
            continue


def test_what_tokens_hold_is_neither_kept_nor_shown() -> None:
    """Anyone can seal: a cache of what was sealed would grow as they like."""
    assert SECRET not in repr(parse_content(format_content(FIELDS)))
    texts = [f"{'x' * 200}{number} {{secret}}" for number in range(300)]
    values = [InjectedValue("X-Api-Key", text, ("secret",)) for text in texts]
    tracemalloc.start()
    try:
        assert filled(values[0], [Secret("secret", SECRET)]).endswith(f"0 {SECRET}")
        before = tracemalloc.get_traced_memory()[0]
        for value in values:
            filled(value, [Secret("secret", SECRET)])
        assert tracemalloc.get_traced_memory()[0] - before < 20_000  # bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[" * 4_000, b'{"a":' * 1_000, b"NaN", b'"x"', b"[1]"]
)
def test_bytes_that_are_no_content_are_refused(content: bytes) -> None:
    with pytest.raises(PatternError):
        parse_content(content)


# --- its guards -----------------------------------------------------------------------


GUARDED = {
    "hosts": ["api.example", ".sub.example"],
    "paths": ["/v1/**"],
    "methods": ["GET"],
    "clients": ["agents"],
    "query": {"a": "1"},
    "expires": "2036-12-01T18:00:00Z",
    "secret": SECRET,
}


@pytest.mark.parametrize(
    ("url", "changes", "expected"),
    [
        ("https://api.example/v1/x?a=1", {}, None),
        ("https://a.sub.example/v1/x?a=1", {}, None),
        ("http://api.example/v1/x?a=1", {}, "https alone"),
        ("https://api.example/v1/x?a=1", {"method": "OPTIONS"}, "not for OPTIONS"),
        ("https://api.example/v1/x?a=1", {"method": "POST"}, "another method"),
        ("https://api.example/v1/x?a=1", {"method": "get"}, "another method"),
        ("https://api.example/v1/x?a=1", {"clients": ("others",)}, "another client"),
        ("https://api.example/v1/x?a=1", {"clients": ()}, "another client"),
        ("https://evil.example/v1/x?a=1", {}, "another host"),
        ("https://api.example:8443/v1/x?a=1", {}, "another port"),
        ("https://api.example/v2/x?a=1", {}, "another path"),
        ("https://api.example/v1/../v2/x?a=1", {}, "another path"),
        ("https://api.example/v1/..%2fv2?a=1", {}, "another path"),
        ("https://api.example/v1/%2e%2e/v2?a=1", {}, "another path"),
        ("https://api.example/v1/x?a=2", {}, "another query"),
        ("https://api.example/v1/x?a=1&a=2", {}, "another query"),
        (
            "https://api.example/v1/x?a=1",
            {"at": datetime(2036, 12, 1, 18, tzinfo=UTC)},
            "expired",
        ),
    ],
    ids=str,
)
def test_each_guard_has_to_hold(
    url: str, changes: dict[str, Any], expected: str | None
) -> None:
    parsed = parse_url(url)
    clients, method = changes.get("clients", ("agents",)), changes.get("method", "GET")
    facts = HostFacts(clients, method, parsed.scheme, parsed.host, parsed.port)
    found = failing_guard(
        parse_content(format_content(GUARDED)), facts, parsed, changes.get("at", NOW)
    )
    assert found is None if expected is None else expected in (found or "")


# --- where it is presented ------------------------------------------------------------


def shown(value: object) -> str:
    """The name of a case, without the token, which is another one in each process."""
    return re.sub(r"[\w%=.-]{60,}", "TOKEN", str(value))


def basic(text: str) -> str:
    return f"Basic {b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer  {TOKEN}"},
        {"authorization": f"token {TOKEN}"},
        {"authorization": TOKEN},
        {"authorization": basic(f"x-access-token:{TOKEN}")},
        {"authorization": basic(f"{TOKEN}:")},
        *(
            {"authorization": basic(f"{user}:{TOKEN}").rstrip("=")}
            for user in ("a", "ab", "abc")
        ),
        {"authorization": basic(f"x:{TOKEN}").replace(" ", "\t")},
        {"authorization": f"Bearer\t{TOKEN}"},
        {"authorization": basic(f"{TOKEN}:x-oauth-basic")},
        {
            "x-api-key": TOKEN,
            "authorization": "Bearer of-the-client",
            "user-agent": "x",
        },
        {"private-token": TOKEN},
    ],
    ids=shown,
)
def test_a_token_is_taken_from_one_header_that_is_injected(
    headers: dict[str, str],
) -> None:
    assert presented_token(headers, "https://api.example/x") == TOKEN


@pytest.mark.parametrize(
    ("headers", "url", "reason"),
    [
        (
            {"authorization": f"Bearer {TOKEN}", "x-api-key": TOKEN},
            "https://a.example/",
            "more than one header",
        ),
        (
            {"authorization": f"Bearer {TOKEN}, Bearer {TOKEN}"},
            "https://a.example/",
            "more than the token",
        ),
        (
            {"authorization": basic(f"{TOKEN}:{TOKEN}")},
            "https://a.example/",
            "more than one",
        ),
        (
            {"authorization": f"Digest {TOKEN}"},
            "https://a.example/",
            "more than the token",
        ),
        (
            {"authorization": f"Basic {TOKEN}"},
            "https://a.example/",
            "more than the token",
        ),
        ({"cookie": f"a={TOKEN}"}, "https://a.example/", "does not inject"),
        ({"cookie": f"a={TOKEN.upper()}"}, "https://a.example/", "does not inject"),
        ({}, f"https://a.example/?key={TOKEN.upper()}", "a URL is no place"),
        ({"user-agent": f"x {TOKEN}"}, "https://a.example/", "does not inject"),
        ({}, f"https://a.example/?key={TOKEN}", "a URL is no place"),
        ({}, f"https://a.example/{TOKEN.replace('s', '%73')}", "a URL is no place"),
        (
            {"authorization": f"Bearer {TOKEN}"},
            f"https://a.example/?key={TOKEN}",
            "a URL is no place",
        ),
    ],
    ids=shown,
)
def test_a_token_elsewhere_is_refused(
    headers: dict[str, str], url: str, reason: str
) -> None:
    with pytest.raises(SealedTokenRefused, match=reason) as raised:
        presented_token(headers, url)
    assert TOKEN[-20:] not in str(raised.value)


@given(
    st.dictionaries(
        st.sampled_from(["authorization", "cookie", "x-api-key"]),
        st.text() | st.just("Basic !"),
    )
)
def test_requests_without_a_token_have_none(headers: dict[str, str]) -> None:
    if "sks1." not in str(headers).lower():
        assert presented_token(headers, "https://a.example/x?y=z%25") is None


# --- the keys in force ----------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> tuple[SealedTokens, Path, Path]:
    files = (tmp_path / "new", tmp_path / "old")
    sources = {
        file.name: NamedSecret(file.name, Location("policy.yaml"), FileSource(file))
        for file in files
    }
    for file, key in zip(files, (OTHER, KEY), strict=True):
        file.write_text(key.reveal() + "\n")
    return SealedTokens(SecretStore(sources, {}), ("new", "old")), *files


def test_two_keys_are_in_force_and_one_that_is_removed_opens_nothing_more(
    keys: tuple[SealedTokens, Path, Path],
) -> None:
    tokens, new, old = keys
    other = seal_bytes(format_content(FIELDS), OTHER.public)
    assert [tokens.open(token).secret for token in (TOKEN, other, TOKEN)] == [
        SECRET
    ] * 3
    old.unlink()
    with pytest.raises(SealedTokenRefused, match="a key that is not in force"):
        tokens.open(TOKEN)
    assert list(tokens.problems) == ["old"]
    assert tokens.open(other).secret == SECRET
    old.write_text(KEY.reveal())
    assert tokens.open(TOKEN).secret == SECRET
    assert tokens.problems == {}
    new.write_text("not a key")
    with pytest.raises(SealedTokenRefused):
        tokens.open(other)
    assert "not a key of sealed tokens" in str(tokens.problems["new"])


@pytest.mark.parametrize("unusable", ["", "not a key"])
def test_a_key_that_cannot_be_used_has_no_token_opened_again(
    keys: tuple[SealedTokens, Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    unusable: str,
) -> None:
    tokens, new, _ = keys
    opened: list[str] = []

    def counted(token: str, keys: list[SealingPrivateKey]) -> bytes:
        opened.append(token)
        return open_bytes(token, keys)

    monkeypatch.setattr(
        "squidkeeper.serving.credentials.sealed_tokens.open_bytes", counted
    )
    new.write_text(unusable)
    assert [tokens.open(TOKEN).secret for _ in range(3)] == [SECRET] * 3
    assert opened == [TOKEN]
    assert list(tokens.problems) == ["new"]


def test_a_content_that_is_not_understood_is_refused_without_showing_it(
    keys: tuple[SealedTokens, Path, Path],
) -> None:
    with pytest.raises(
        SealedTokenRefused, match="not one that this gateway understands"
    ) as raised:
        keys[0].open(
            seal_bytes(json.dumps({**FIELDS, "oops": SECRET}).encode(), KEY.public)
        )
    assert SECRET not in str(raised.value)


# --- the command ----------------------------------------------------------------------


def run(*options: str, stdin: str = SECRET) -> str:
    done = CliRunner().invoke(main, ["seal", *options], input=stdin)
    assert done.exit_code == 0, done.output
    return done.output.strip()


@pytest.mark.system
def test_the_command_makes_a_key_and_seals_for_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    public = run("--new-key", str(file))
    assert run("--public-key", str(file)) == public
    options = [
        "--to",
        public,
        "--host",
        "api.example",
        "--path",
        "/v1/**",
        "--method",
        "GET",
        "--client",
        "agents",
    ]
    content = parse_content(
        open_bytes(
            run(*options, "--days", "2", "--port", "8443"),
            [SealingPrivateKey.parse(file.read_text())],
        )
    )
    assert (content.secret, content.template, content.match.clients) == (
        SECRET,
        "Bearer {secret}",
        frozenset({"agents"}),
    )
    assert content.expires is not None
    assert content.match.ports == (range(8443, 8444),)


@pytest.mark.skipif(
    os.geteuid() != 0, reason="a file can be given to another group by root alone"
)
@pytest.mark.parametrize(
    ("account", "mode", "group"),
    [(None, 0o600, os.getegid()), (Account("squid", 7, 8), 0o640, 8)],
)
def test_a_new_key_can_be_read_by_squids_group_and_nobody_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    account: Account | None,
    mode: int,
    group: int,
) -> None:
    monkeypatch.setattr("squidkeeper.base.squid_account.squid_account", lambda: account)
    file = tmp_path / "key"
    run("--new-key", str(file))
    status = file.stat()
    assert (status.st_mode & 0o777, status.st_gid) == (mode, group)


def test_the_command_seals_a_basic_credential_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the file\n")
    options = [
        "--to",
        str(KEY.public),
        "--host",
        "git.example",
        "--basic",
        "x-access-token",
    ]
    content = parse_content(
        open_bytes(run(*options, "--secret-file", str(tmp_path / "secret")), [KEY])
    )
    assert (content.secret, content.username, content.template) == (
        "of the file",
        "x-access-token",
        "{secret}",
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "expected one of --new-key"),
        (["--to", "x", "--host", "a.example"], "not a key of sealed tokens"),
        (["--to", str(KEY.public)], "--host is required"),
        (["--to", str(KEY.public), "--host", "*"], "--host: host pattern '*'"),
        (
            ["--to", str(KEY.public), "--host", "a.example", "--method", "get"],
            "--method: ",
        ),
        (["--to", str(KEY.public), "--host", "a.example", "--value", "x"], "--value: "),
        (
            ["--to", str(KEY.public), "--host", "a.example", "--expires", "soon"],
            "--expires: ",
        ),
        (
            [
                "--to",
                str(KEY.public),
                "--host",
                "a.example",
                "--basic",
                "x",
                "--value",
                "{secret}",
            ],
            "--value and --basic",
        ),
        (["--public-key", "/nowhere/key"], "/nowhere/key: no such file"),
    ],
)
def test_the_command_says_what_is_wrong(options: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["seal", *options], input=SECRET)
    assert done.exit_code != 0
    assert said in done.output
    assert SECRET not in done.output


@pytest.mark.system
def test_the_command_never_replaces_a_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    run("--new-key", str(file))
    held = file.read_text()
    done = CliRunner().invoke(main, ["seal", "--new-key", str(file)])
    assert (done.exit_code, file.read_text()) == (1, held)
    assert os.fspath(file) in done.output


def test_a_default_that_only_observes_gives_nothing_of_a_token(tmp_path: Path) -> None:
    url = "https://api.example/x"
    (tmp_path / "key").write_text(KEY.reveal())
    secrets = SecretStore(
        {
            "key": NamedSecret(
                "key", Location("policy.yaml"), FileSource(tmp_path / "key")
            )
        },
        {},
    )
    found = []
    for default in "{action: allow}", "{observe: true}":
        policy = compiled_of(tmp_path / default, f"defaults: {default}")
        match = policy.match(request_to("GET", url))
        request = FetchedRequest(
            match, "GET", url, url, {"authorization": f"Bearer {TOKEN}"}
        )
        observes = policy.source.observe_default is not None
        unsealer = Unsealer(secrets, ("key",), default_observes=observes)
        found.append(unsealer.unseal(decide(policy, match, NOW), request, NOW))
    assert [(told.rule, len(told.credentials)) for told in found] == [
        ("default", 1),
        ("sealed-token-refused", 0),
    ]
    assert "no rule allows this request, and the default only observes" in (
        found[1].reason or ""
    )
