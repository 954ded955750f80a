"""From a directory to a policy, or to every fault in it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.faults import FaultCode, Location
from squidkeeper.policy.editor.fault_codes import fault_codes
from squidkeeper.policy.language import conflicts
from squidkeeper.policy.language.builder import BuiltPolicy
from squidkeeper.policy.language.forms import Headers
from squidkeeper.policy.language.model import Action, Policy
from squidkeeper.policy.language.secret_sources import (
    EnvironmentSource,
    FileSource,
    NamedSecret,
)
from squidkeeper.policy.policy_store.loading import build_sources
from squidkeeper.policy.policy_store.sources import (
    Fingerprint,
    fingerprint,
    read_sources,
)
from squidkeeper.policy.url import parse_host
from tests.documents.code_tables import render

DATA = Path(__file__).parents[1] / "data"
BAD = sorted((DATA / "bad").glob("*.yaml"))
ENVIRONMENT = {"MODEL_API_KEY": "k", "A": "a", "B": "b"}


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Make a policy directory with the files that the policies under test name."""
    directory = tmp_path / "policy"
    for name in ("lists", "secrets"):
        (directory / name).mkdir(parents=True)
    for name in ("list.txt", "lists/trackers.txt"):
        (directory / name).write_text("ads.example.com\n")
    (directory / "wide.txt").write_text("a.example\n*.com\n*\n")
    for name, mode in (("secrets/github-token", 0o640), ("open-secret", 0o644)):
        (directory / name).write_text("token\n")
        (directory / name).chmod(mode)
    return directory


def load(
    directory: Path, text: str | None = None, environment: dict[str, str] = ENVIRONMENT
) -> BuiltPolicy:
    if text is not None:
        (directory / "policy.yaml").write_text(f"version: 1\n{text}")
    return build_sources(read_sources(directory, environment))


def faults_of(directory: Path, text: str | None = None) -> list[str]:
    with pytest.raises(PolicyError) as raised:
        load(directory, text)
    return [str(fault).replace(f"{directory}/", "") for fault in raised.value.faults]


def warnings_of(loaded: BuiltPolicy, directory: Path) -> list[str]:
    return [str(warning).replace(f"{directory}/", "") for warning in loaded.warnings]


def test_every_code_has_a_meaning() -> None:
    rows = [codes for table in fault_codes().values() for codes in table]
    assert re.findall(r"[\w-]*[a-z]", " ".join(rows)) == list(FaultCode)


def test_the_reference_has_the_codes_and_what_they_mean() -> None:
    page = (Path(__file__).parents[2] / "policy/REFERENCE.md").read_text()
    assert "<!-- rendered: faults -->" in page
    assert "<!-- rendered: warnings -->" in page
    assert page == render(page), (
        "python -m tests.documents.code_tables policy/REFERENCE.md"
    )


# --- every fault at once --------------------------------------------------------------


def test_a_bad_policy_shows_every_conflict() -> None:
    shown = "\n".join(path.read_text(errors="replace") for path in BAD)
    for conflict in conflicts.CONFLICTS:
        message = conflict.message.format(key=conflict.key)
        assert f": {message} [{conflict.code}]" in shown


@pytest.mark.parametrize("bad", BAD, ids=[path.stem for path in BAD])
def test_a_bad_policy_shows_exactly_its_faults(policy: Path, bad: Path) -> None:
    shutil.copy(bad, policy / "policy.yaml")
    _, _, expected = bad.read_bytes().partition(b"# expected\n")
    assert faults_of(policy) == [
        line.removeprefix("# ") for line in expected.decode().splitlines()
    ]


@pytest.mark.parametrize(
    "text",
    [
        "sealed_tokens: {keys: MARKER}",
        "sealed_tokens: {keys: [MARKER]}",
        "sealed_tokens: {keys: {MARKER: 1}}",
        "secrets: MARKER",
        "secrets: [MARKER]",
        "secrets: {gh: MARKER}",
        "secrets: {gh: [MARKER]}",
        "secrets: {MARKER: MARKER}",
        "secrets: {MARKER}",
        "secrets: {gh: {MARKER}}",
        "secrets: {gh: {MARKER: MARKER}}",
        "secrets: {gh: {value: MARKER}}",
        "secrets: {gh: {file: [MARKER], env: {MARKER: 1}}}",
        "secrets: {gh: {env: MARKER=1}}",
        'secrets: {gh: {file: "MARKER\\t"}}',
        "secrets: {gh: {MARKER: 1, MARKER: 2}}",
        "secrets: {'MARKER!': {env: A}}",
        "secrets: {gh: !MARKER a}",
        "secrets: {gh: *MARKER}",
        "secrets: {gh: &MARKER [*MARKER]}",
        "secrets: {gh: {env: 'MARKER}",
        "secrets: {gh: {env: @MARKER}}",
        "secrets: {gh: MARKER: MARKER}",
        "secrets: {gh: {env: 123_456}}",
        "secrets: {gh: {env: 123456}}",
        "secrets: {123456: a}",
        "secrets: {MARKER}\ncredentials: [{name: c, hosts: [a.example], bearer: gh}]",
        "secrets: {MARKER: a}\ncredentials: [{name: c, hosts: [a.example], value: '{MARKERS}'}]",
        *(
            f"secrets: {{gh: {{{field}}}}}"
            for field in (
                "command: MARKER",
                "command: {MARKER: 1}",
                "command: {run: MARKER}",
                "command: {run: [/bin/x], timeout: MARKER}",
                "command: {run: [/bin/x], refresh: 123456}",
                "oauth2: MARKER",
                "oauth2: {MARKER: 1}",
                "oauth2: {token_url: 'https://u:MARKER@a.example/', grant: client_credentials, client_id: a}",
                "oauth2: {token_url: 'https://a.example/', grant: MARKER, client_id: a}",
                "oauth2: {token_url: 'https://a.example/', grant: refresh_token, client_id: a, refresh_token: MARKER}",
                "oauth2: {token_url: 'https://a.example/', grant: client_credentials, client_secret: MARKER}",
                "github_app: MARKER",
                "github_app: {MARKER: 1}",
                "github_app: {app_id: 1, installation_id: MARKER, private_key: MARKER, repositories: [MARKER]}",
                "github_app: {app_id: [MARKER], permissions: {MARKER: MARKER}, api_url: 'https://u:MARKER@x'}",
            )
        ),
        "canaries: MARKER",
        "canaries: [MARKER]",
        "canaries: {c: MARKER}",
        "canaries: {c: {MARKER: 1}}",
        "canaries: {c: {file: [MARKER]}}",
        *(
            f"clients: {{ci: {field}}}"
            for field in (
                "MARKER",
                "[MARKER]",
                "123456",
                "!MARKER a",
                "*MARKER",
                "{MARKER}",
                "{MARKER: 1}",
                "{MARKER: 1, MARKER: 2}",
                "{token_sha256: MARKER}",
                "{token_sha256: 123456}",
                "{token_sha256: [MARKER, 123456, [MARKER]]}",
                "{token_sha256: {MARKER: 1}}",
                "{token_sha256: {sha256: MARKER, MARKER: 1}}",
                "{token_sha256: [{sha256: [MARKER], expires: MARKER}]}",
            )
        ),
        "credentials: MARKER",
        "credentials: [MARKER]",
        *(
            f"secrets: {{gh: {{env: A}}}}\ncredentials: [{{name: c, hosts: [a.example], {field}}}]"
            for field in (
                "header: 'Authorization: MARKER', bearer: gh",
                "bearer: MARKER",
                "bearer: 123456",
                "bearer: [MARKER]",
                "bearer: {MARKER}",
                "bearer: *MARKER",
                "basic: MARKER",
                "basic: {username: a, password: MARKER}",
                "basic: {username: 'MARKER:x', password: gh}",
                "basic: {username: a, password: gh, MARKER: 1}",
                "basic: {username: a, password: {MARKER: 1}}",
                "value: MARKER",
                "value: '{MARKER}'",
                "value: '{MARKER'",
                "value: 'é{gh}MARKER'",
                "value: {MARKER}",
                "value: [MARKER]",
                "header: Proxy-MARKER, bearer: gh",
                "headers: MARKER",
                "headers: [MARKER]",
                "headers: {X-Api-Key: MARKER}",
                "headers: {X-Api-Key: '{MARKER}'}",
                "headers: {X-Api-Key: 123456}",
                "headers: {MARKER: '{gh}', MARKER: a}",
                "headers: {Proxy-MARKER: '{gh}'}",
                "headers: {'X: MARKER': '{gh}'}",
                "parameters: MARKER",
                "parameters: [MARKER]",
                "parameters: {key: MARKER}",
                "parameters: {key: '{MARKER}'}",
                "parameters: {key: 123456}",
                "parameters: {'MARKER/': '{gh}'}",
                "aws_sigv4: MARKER",
                "aws_sigv4: {access_key_id: MARKER, secret_access_key: gh, region: x}",
                "aws_sigv4: {access_key_id: gh, secret_access_key: [MARKER], session_token: MARKER, region: x}",
                "aws_sigv4: {access_key_id: gh, secret_access_key: gh, region: MARKER}",
                "aws_sigv4: {access_key_id: gh, secret_access_key: gh, region: x, service: MARKER}",
                "aws_sigv4: {access_key_id: gh, secret_access_key: gh, region: x, MARKER: 1}",
            )
        ),
        "sealed_tokens: MARKER",
        "sealed_tokens: [MARKER]",
        "upstreams: MARKER",
        "upstreams: [MARKER]",
        *(
            f"secrets: {{gh: {{file: a}}}}\nupstreams: [{{name: u, {field}}}]"
            for field in (
                "url: 'http://u:MARKER@proxy.example:3128'",
                "url: 'https://u:MARKER@proxy.example:3128'",
                "url: 'u:MARKER@proxy.example:3128'",
                "url: 'http://proxy.example:3128', basic: MARKER",
                "url: 'http://proxy.example:3128', basic: {username: a, password: MARKER}",
                "url: 'http://proxy.example:3128', basic: {username: a, password: 123456}",
                "url: 'http://proxy.example:3128', basic: {username: a, password: gh, MARKER: 1}",
                "url: 'http://proxy.example:3128', basic: {username: 'MARKER:x', password: gh}",
            )
        ),
    ],
)
def test_a_value_where_a_secret_is_named_is_in_no_fault(
    policy: Path, text: str
) -> None:
    found = faults_of(policy, text)
    assert found
    assert not any(
        value in fault for fault in found for value in ("MARKER", "123456", "123_456")
    )


def test_a_value_where_a_secret_has_its_source_is_in_no_warning(policy: Path) -> None:
    loaded = load(policy, "secrets: {a: {env: MARKER}, b: {file: MARKER}}")
    assert len(loaded.warnings) == 2
    assert not any("MARKER" in warning for warning in warnings_of(loaded, policy))


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        *(
            (f"methods: ['{one}']", "can never match")
            for one in ("*", "GET*", "-GET", "1GET", "GET|POST", "GÉT", "ſ")
        ),
        ("methods: [ALL]", "for all methods, leave 'methods' out [invalid-method]"),
        ("query: {q: 'regex:.*x.*'}", "a query has no expressions, expected text"),
    ],
)
def test_a_field_that_says_nothing_is_a_fault(
    policy: Path, field: str, expected: str
) -> None:
    (fault,) = faults_of(policy, f"rules: [{{name: a, action: deny, {field}}}]")
    assert expected in fault


def test_faults_of_all_files_are_shown_in_the_order_of_their_places(
    policy: Path,
) -> None:
    (policy / "b.yaml").write_text("version: 2\n")
    (policy / "a.yml").write_text("version: 1\nrulez: 1\nrules: [{name: a}]\n")
    assert [fault.split(": ")[0] for fault in faults_of(policy)] == [
        "a.yml:2:1",
        "a.yml:3:9",
        "b.yaml:1:10",
    ]


@pytest.mark.parametrize(
    "text", ["", "# nothing but a comment\n", "---\n", "~\n", "text\n"]
)
def test_a_file_without_a_mapping_is_a_fault(policy: Path, text: str) -> None:
    (policy / "policy.yaml").write_text(text)
    (fault,) = faults_of(policy)
    assert "expected 'version: 1' and" in fault


def test_deep_nesting_and_long_numbers_are_faults_not_crashes(policy: Path) -> None:
    assert "nest" in faults_of(policy, "rules: " + "[" * 100_000)[0]
    assert "nest" in faults_of(policy, "rules: " + "{a: " * 900)[0]
    assert (
        "expected a number from 1"
        in faults_of(
            policy, f"rules: [{{name: a, action: deny, ports: [{'9' * 9000}]}}]"
        )[0]
    )


@pytest.mark.parametrize("what", ["missing", "file", "empty", "hidden"])
def test_a_directory_without_a_policy_is_one_clear_fault(
    tmp_path: Path, what: str
) -> None:
    directory = tmp_path / "policy"
    if what == "file":
        directory.write_text("version: 1\n")
    elif what != "missing":
        directory.mkdir()
        (directory / (".policy.yaml" if what == "hidden" else "policy.txt")).write_text(
            "version: 1\n"
        )
    (fault,) = faults_of(directory)
    assert fault.startswith(f"{directory}: the policy directory ")


def test_what_is_no_regular_file_is_a_fault_and_never_waited_for(policy: Path) -> None:
    (policy / "policy.yaml").write_text(
        "version: 1\nlists: {a: {file: fifo}, b: {file: lists}}\n"
    )
    os.mkfifo(policy / "fifo.yaml")
    os.mkfifo(policy / "fifo")
    (policy / "directory.yaml").mkdir()
    (policy / "dangling.yaml").symlink_to("nowhere")
    assert faults_of(policy) == [
        "dangling.yaml: the policy file cannot be read: no such file or directory [unreadable]",
        "directory.yaml: the policy file cannot be read: is a directory [unreadable]",
        "fifo.yaml: the policy file cannot be read: it is not a regular file [unreadable]",
        "policy.yaml:2:19: list file 'fifo' cannot be read: it is not a regular file [unreadable]",
        "policy.yaml:2:36: list file 'lists' cannot be read: it is not a regular file [unreadable]",
    ]


def test_a_reference_that_may_be_to_what_cannot_be_read_is_no_fault(
    policy: Path,
) -> None:
    (policy / "directory.yaml").mkdir()
    (policy / "policy.yaml").write_text(
        "version: 1\nrules: [{name: r, action: deny, clients: [elsewhere]}]\n"
    )
    assert faults_of(policy) == [
        "directory.yaml: the policy file cannot be read: is a directory [unreadable]"
    ]


# --- merging --------------------------------------------------------------------------


def test_files_are_merged_in_name_order(policy: Path) -> None:
    (policy / "20.yaml").write_text(
        "version: 1\nrules: [{name: third, action: deny, clients: [c]}]\n"
    )
    (policy / "10.yml").write_text(
        "version: 1\nrules: [{name: first, action: deny, lists: [l]}, {name: second, action: deny}]\n"
    )
    (policy / "30.yaml").write_text(
        "version: 1\nclients: {c: {users: [u]}}\nlists: {l: {file: list.txt}}\n"
    )
    (policy / ".40.yaml").write_text("nonsense")
    assert [rule.name for rule in load(policy).policy.rules] == [
        "first",
        "second",
        "third",
    ]


def test_names_are_unique_and_defaults_stand_once_over_all_files(policy: Path) -> None:
    text = "version: 1\ndefaults: {action: allow}\nclients: {c: {users: [u]}}\nrules: [{name: r, action: deny}]\n"
    (policy / "a.yaml").write_text(text)
    (policy / "b.yaml").write_text(text)
    assert faults_of(policy) == [
        "b.yaml:2:1: 'defaults' is in two files, first at a.yaml:2:1, expected it in one at most [duplicate-key]",
        "b.yaml:3:11: client 'c' is defined twice, first at a.yaml:3:11 [duplicate-name]",
        "b.yaml:4:16: rule 'r' is defined twice, first at a.yaml:4:16 [duplicate-name]",
    ]


def test_the_same_name_may_stand_in_two_sections(policy: Path) -> None:
    loaded = load(
        policy,
        "clients: {x: {users: [u]}}\nlists: {x: {file: list.txt}}\nrules: [{name: x, action: deny}]\n",
    )
    assert loaded.policy.rules[0].name == "x"


# --- a file that is cut off -----------------------------------------------------------

ENDING = "version: 1\nrules:\n  - {name: a, action: deny, hosts: [a.example]}\n"


def load_after(directory: Path, text: str, *ended: str) -> BuiltPolicy:
    (directory / "policy.yaml").write_text(text)
    return build_sources(read_sources(directory, ENVIRONMENT), ended=frozenset(ended))


def test_a_file_that_requires_its_end_loads_with_it(policy: Path) -> None:
    shutil.copy(DATA / "good" / "end.yaml", policy / "policy.yaml")
    assert [rule.name for rule in load(policy).policy.rules] == ["a"]
    assert read_sources(policy).ended == {"policy.yaml"}


@pytest.mark.parametrize(
    ("text", "ended", "least"),
    [
        (ENDING + "end: true\n", ["policy.yaml"], 0),
        (
            (DATA / "good" / "end.yaml").read_text(),
            [],
            len("version: 1\nend: required"),
        ),
    ],
    ids=["one that ended before", "one that requires its end"],
)
def test_no_prefix_of_a_file_that_has_to_end_loads(
    policy: Path, text: str, ended: list[str], least: int
) -> None:
    for length in range(least, len(text.rstrip())):
        with pytest.raises(PolicyError):
            load_after(policy, text[:length], *ended)
    assert load_after(policy, text, *ended).policy.rules


def test_the_fault_of_a_file_that_is_cut_off_stands_where_it_ends_and_says_how_to_do_without(
    policy: Path,
) -> None:
    with pytest.raises(PolicyError) as raised:
        load_after(policy, ENDING, "policy.yaml")
    [fault] = raised.value.faults
    assert (fault.location.line, fault.location.column) == (3, 1)
    assert fault.message == (
        "the file does not end with 'end: true', as it did before: is it cut off? "
        "To do without that line, put a file with 'end: false' as its last line in force first"
    )
    assert load_after(policy, ENDING + "end: false\n", "policy.yaml").policy.rules
    assert load_after(policy, ENDING, "other.yaml").policy.rules


# --- a text that a comment cuts off ---------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "warned"),
    [
        ("reason: Closed. Ask #platform", (7, 25, "#platform")),
        (
            "reason: Closed.\n      Ask #platform or #security",
            (8, 11, "#platform or #security"),
        ),
        ("owner: team #1", (7, 17, "#1")),
        ("DEFAULTS {action: deny,\n  reason: Ask #platform\n  }", (3, 15, "#platform")),
        ("DEFAULTS\n  contact: platform@example.com, #agents", (3, 34, "#agents")),
        ("DEFAULTS\n  contact: 'platform@example.com, #agents'", None),
        ("reason: Closed. # until the audit is over", None),
        ("reason: Closed. #", None),
        ("reason: 'Closed. Ask #platform'", None),
        ("reason: 'Closed.' #platform", None),
        ("reason: Ask on channel#platform", None),
        ("reason: |\n      Closed. Ask #platform", None),
        ("ports: [443] #https", None),
    ],
)
def test_a_text_that_stops_at_a_word_with_a_hash_is_warned_about(
    policy: Path, reason: str, warned: tuple[int, int, str] | None
) -> None:
    above = f"rules:\n  - {{name: b, action: deny, hosts: [b.example]}}\n{RULE}    "
    text = f"{'' if reason.startswith('DEFAULTS') else above}{reason}\n".replace(
        "DEFAULTS", "defaults:"
    )
    loaded = load(policy, text)
    warnings = [
        (warning.location.line, warning.location.column, warning.message)
        for warning in loaded.warnings
    ]
    if warned is None:
        assert warnings == []
        return
    line, column, word = warned
    [key] = re.findall("reason|owner|contact", reason)
    expected = f"{key!r} ends before {word!r}, which YAML reads as a comment; quote the text, or put a space after"
    assert [
        (line, column, message.startswith(expected))
        for line, column, message in warnings
    ] == [(line, column, True)], warnings


RULE = "  - name: a\n    action: deny\n    hosts: [a.example]\n"


# --- what a good policy becomes -------------------------------------------------------


def test_the_example_of_the_language_loads_without_a_fault_or_a_warning(
    policy: Path,
) -> None:
    shutil.copy(DATA / "good" / "language.yaml", policy)
    loaded = load(policy)
    assert loaded.warnings == ()
    made = loaded.policy
    assert [rule.name for rule in made.rules] == [
        "no-wikipedia",
        "no-trackers",
        "no-push",
        "acme-repositories",
        "internal-registry",
        "hotfix-window",
    ]
    assert made.default_reason == "Ask the platform team to open a host."
    assert made.rules[5].expires == datetime(2026, 12, 1, 18, tzinfo=UTC)
    assert made.rules[4].match.ports == (range(443, 444), range(8443, 8444))
    assert made.rules[4].private
    assert made.rules[0].location == Location(str(policy / "language.yaml"), 18, 5)
    values = [
        value
        for held in made.credentials
        if isinstance(held.form, Headers)
        for value in held.form.values
    ]
    assert [(value.name, value.template, value.username) for value in values] == [
        ("Authorization", "Bearer {github-token}", None),
        ("Authorization", "{github-token}", "x-access-token"),
        ("X-Api-Key", "{model-key}", None),
    ]
    assert made.secrets["github-token"].source == FileSource(
        policy / "secrets/github-token"
    )
    assert parse_host("ads.example.com") in made.lists["trackers"]
    assert made.tests[1].client == ip_address("192.168.137.10")
    assert made.tests[1].credentials == ("github-api",)


def test_every_unusual_form_is_understood(policy: Path) -> None:
    shutil.copy(DATA / "good" / "edges.yaml", policy)
    loaded = load(policy)
    assert loaded.warnings == ()
    closed, is_open, quoted = loaded.policy.rules
    networks = loaded.policy.clients[0].networks
    assert networks == (
        ip_network("fd00:137::/64"),
        ip_network("192.168.137.7"),
        ip_network("10.1.0.0/16"),
    )
    assert closed.reason == "Two lines\nof text."
    assert is_open.match.ports == (range(80, 81), range(443, 445), range(8443, 8444))
    assert is_open.expires == datetime(
        2026, 12, 1, 18, 0, 0, 500_000, timezone(timedelta(hours=2))
    )
    assert quoted.expires == datetime(2026, 12, 1, 18, tzinfo=UTC)
    assert quoted.match.hosts == is_open.match.hosts
    assert loaded.policy.credentials[0].form.secrets == ("a", "b.c-d")
    assert loaded.policy.credentials[0].form.places == ("X-Api-Key",)
    assert isinstance(form := loaded.policy.credentials[1].form, Headers)
    assert form.values[0].username == ""


def test_the_smallest_policy_denies_everything(policy: Path) -> None:
    shutil.copy(DATA / "good" / "smallest.yaml", policy)
    made = load(policy).policy
    assert made == Policy(made.revision)
    assert made.default_action is Action.DENY


def test_relative_paths_start_from_the_directory_of_the_file_as_it_is_named(
    policy: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere.yaml").write_text(
        "version: 1\nlists: {l: {file: list.txt}}\n"
    )
    (policy / "link.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    assert parse_host("ads.example.com") in load(policy).policy.lists["l"]


# --- secrets --------------------------------------------------------------------------


def test_a_secret_that_is_unavailable_is_a_warning(policy: Path) -> None:
    (policy / "empty").touch(0o600)
    text = "secrets:\n  a: {file: gone}\n  b: {env: UNSET}\n  c: {file: empty}\n  d: {env: BLANK}\n  e: {env: A}\n"
    loaded = load(policy, text, {"BLANK": "", "A": "a"})
    assert warnings_of(loaded, policy) == [
        "policy.yaml:3:13: secret 'a' is unavailable: its file: no such file or directory [secret-unreadable]",
        "policy.yaml:4:12: secret 'b' is unavailable: its environment variable is unset or empty [secret-unset]",
        "policy.yaml:5:13: secret 'c' is unavailable: its file: it is empty [secret-empty]",
        "policy.yaml:6:12: secret 'd' is unavailable: its environment variable is unset or empty [secret-unset]",
    ]
    place = Location(str(policy / "policy.yaml"), 4, 3)
    assert loaded.policy.secrets["b"] == NamedSecret(
        "b", place, EnvironmentSource("UNSET")
    )


@pytest.mark.parametrize(
    ("mode", "loads"),
    [(0o600, True), (0o640, True), (0o660, True), (0o644, False), (0o604, False)],
)
def test_a_secret_file_that_everyone_can_read_is_a_fault(
    policy: Path, mode: int, loads: bool
) -> None:
    (policy / "secret").write_text("s")
    (policy / "secret").chmod(mode)
    (policy / "link").symlink_to("secret")
    text = "secrets: {s: {file: link}}\n"
    if loads:
        assert load(policy, text).policy.secrets["s"].source == FileSource(
            policy / "link"
        )
    else:
        assert (
            "can be read by everyone, expected mode 0640" in faults_of(policy, text)[0]
        )


# --- lists ----------------------------------------------------------------------------


def test_lines_of_a_list_that_are_not_understood_are_one_warning(policy: Path) -> None:
    (policy / "list.txt").write_text(
        "# mine\n||ads.example^$script\nads.example\na b\nhttps://x/\n*.*.x\n"
    )
    loaded = load(policy, "lists: {l: {file: list.txt}}\n")
    assert warnings_of(loaded, policy) == [
        "list.txt:2:1: 4 lines were not understood and left out: lines 2, 4, 5 "
        "and so on; expected host patterns, or lines of hosts(5), Adblock (||host^ alone), "
        "dnsmasq or RPZ (CNAME . alone) [list-lines-ignored]"
    ]


@pytest.mark.parametrize("secret", ["TOKEN=s3cret", "@@||s3cret^", "||com^"])
def test_no_text_of_a_list_is_shown(policy: Path, secret: str) -> None:
    """Whoever checks an edit can read more than who wrote it: the list may be
    any file.
    """
    (policy / "secret").write_text(f"{secret}\n")
    (policy / "list.txt").unlink(missing_ok=True)
    (policy / "list.txt").symlink_to("secret")
    lists = "lists: {l: {file: list.txt}}\nsecrets: {s: {file: secrets/github-token}}\n"
    said = [*warnings_of(load(policy, lists), policy)]
    for rule in (
        "rules: [{name: a, action: allow, lists: [l]}]\n",
        "credentials: [{name: a, lists: [l], bearer: s}]\n",
    ):
        try:
            said += warnings_of(load(policy, lists + rule), policy)
        except PolicyError as error:
            said.append(str(error))
    assert said
    assert secret not in " ".join(said)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<html>\n", "nothing in the list was understood"),
        ("# nothing yet\n127.0.0.1 localhost\n", "the list holds no host pattern"),
    ],
)
def test_a_list_without_a_pattern_is_a_warning_of_its_own(
    policy: Path, text: str, found: str
) -> None:
    (policy / "list.txt").write_text(text)
    shown = warnings_of(load(policy, "lists: {l: {file: list.txt}}\n"), policy)
    assert (
        shown[0]
        == f"list.txt: {found}, so an entry that names it matches nothing [list-empty]"
    )


@pytest.mark.parametrize(
    "line",
    ["@@||good.example^", "good.example CNAME rpz-passthru.", "server=/good.example/#"],
)
def test_a_list_that_takes_hosts_out_serves_a_deny_but_no_allow_and_no_credential(
    policy: Path, line: str
) -> None:
    (policy / "list.txt").write_text(f"||example^$all\n{line}\n")
    lists = "lists: {l: {file: list.txt}}\nsecrets: {s: {file: secrets/github-token}}\n"
    deny = "rules: [{name: a, action: deny, lists: [l]}]\n"
    assert parse_host("good.example") in load(policy, lists + deny).policy.lists["l"]
    for rule in (
        "rules: [{name: a, action: allow, lists: [l]}]\n",
        "credentials: [{name: a, lists: [l], bearer: s}]\n",
    ):
        kind = "an allow" if "allow" in rule else "a credential"
        assert any(
            f"list 'l' excludes hosts by its line 2, which is not understood: not safe for {kind}"
            in fault
            for fault in faults_of(policy, lists + rule)
        )


@pytest.mark.parametrize("line", ["||com^", "address=/com/", "*.com CNAME ."])
def test_a_list_in_another_format_may_not_open_a_whole_top_level_domain(
    policy: Path, line: str
) -> None:
    (policy / "list.txt").write_text(f"{line}\n")
    faults = faults_of(
        policy,
        "lists: {l: {file: list.txt}}\nrules: [{name: a, action: allow, lists: [l]}]\n",
    )
    assert len(faults) == 1
    assert "list 'l' holds too wide a pattern for an allow: its line 1" in faults[0]


def test_a_list_that_changes_while_it_is_read_does_not_load(policy: Path) -> None:
    (policy / "policy.yaml").write_text("version: 1\nlists: {l: {file: list.txt}}\n")
    sources = read_sources(policy)
    (policy / "list.txt").write_text("other.example.com\n")
    with pytest.raises(PolicyError, match="it changed while it was read"):
        build_sources(sources)
    assert fingerprint(policy, sources.named) != sources.fingerprint


# --- noticing a change ----------------------------------------------------------------


@pytest.fixture
def watched(policy: Path) -> Path:
    """Make a policy that names a list and a secret, all at rest for long."""
    (policy / "policy.yaml").write_text(
        "version: 1\nlists: {l: {file: list.txt}}\nsecrets: {s: {file: secrets/github-token}}\n"
    )
    for path in policy.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return policy


def state(directory: Path) -> Fingerprint:
    """Take the fingerprint with every file named, the change time (which a test cannot
    set back) left to one side.
    """
    sources = read_sources(directory)
    return tuple(
        (name, reading and reading[:-1]) for name, reading in sources.fingerprint
    )


@pytest.fixture(autouse=True)
def nothing_is_hot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squidkeeper.policy.policy_store.sources._HOT_NANOSECONDS", -1)


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited in place": lambda folder: (folder / "policy.yaml").write_text(
        "version: 1\n"
    ),
    "replaced by rename": lambda folder: Path(
        shutil.copy2(folder / "policy.yaml", folder / ".new")
    ).replace(folder / "policy.yaml"),
    "a file more": lambda folder: (folder / "z.yaml").write_text("version: 1\n"),
    "a file less": lambda folder: (folder / "policy.yaml").unlink(),
    "list edited": lambda folder: (folder / "list.txt").write_text("sda.example.com\n"),
    "list removed": lambda folder: (folder / "list.txt").unlink(),
    "secret rotated": lambda folder: (folder / "secrets/github-token").write_text(
        "other\n"
    ),
    "secret opened": lambda folder: (folder / "secrets/github-token").chmod(0o644),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_shows_in_the_fingerprint(watched: Path, change: str) -> None:
    sources = read_sources(watched)
    before = state(watched)
    assert fingerprint(watched, sources.named) == sources.fingerprint
    CHANGES[change](watched)
    assert state(watched) != before
    assert fingerprint(watched, sources.named) != sources.fingerprint


def test_a_swapped_directory_of_links_shows_as_with_a_mounted_config_map(
    tmp_path: Path,
) -> None:
    for version in ("1", "2"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "policy.yaml").write_text(f"version: {version}\n")
        os.utime(
            tmp_path / f"..{version}" / "policy.yaml", (1_000_000_000, 1_000_000_000)
        )
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "policy.yaml").symlink_to("..data/policy.yaml")
    sources = read_sources(tmp_path)
    assert sources.documents[0].data == {"version": 1}
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert fingerprint(tmp_path, sources.named) != sources.fingerprint
    assert read_sources(tmp_path).documents[0].data == {"version": 2}


def test_what_a_broken_policy_names_is_watched_too(policy: Path) -> None:
    (policy / "policy.yaml").write_text(
        "version: 7\nlists: {l: {file: gone.txt}}\nsecrets: {s: {file: gone, x: 1}}\n"
    )
    sources = read_sources(policy)
    assert sources.named == (policy / "gone.txt", policy / "gone")
    (policy / "gone.txt").touch()
    assert fingerprint(policy, sources.named) != sources.fingerprint


def test_a_file_written_a_moment_ago_equals_no_reading(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.sources._HOT_NANOSECONDS", 60_000_000_000
    )
    (policy / "policy.yaml").write_text("version: 1\n")
    assert fingerprint(policy) != fingerprint(policy)


def test_what_is_no_part_of_the_policy_changes_nothing(watched: Path) -> None:
    before = state(watched)
    (watched / ".policy.yaml.swp").touch()
    (watched / "notes.txt").touch()
    assert state(watched) == before


def test_the_revision_is_of_names_and_contents_secrets_left_out(
    watched: Path, tmp_path: Path
) -> None:
    revision = load(watched).policy.revision
    CHANGES["secret rotated"](watched)
    shutil.copytree(watched, tmp_path / "copy", symlinks=True)
    assert (
        load(watched).policy.revision
        == load(tmp_path / "copy").policy.revision
        == revision
    )
    CHANGES["list edited"](watched)
    changed = load(watched).policy.revision
    (watched / "policy.yaml").rename(watched / "other.yaml")
    assert len({revision, changed, load(watched).policy.revision}) == 3
