"""`local.yaml` beside a policy's folder: whoever writes the folder gets no file,
program or secret of the gateway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from squidkeeper.base.errors import PatternError, PolicyError
from squidkeeper.base.faults import FaultCode
from squidkeeper.cli import main
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language import schema
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.language.local_setup import LOCAL_DEFAULTS, LOCAL_SECTIONS
from squidkeeper.policy.language.matching.host_fields import pattern_covers
from squidkeeper.policy.language.model import ReloadGate
from squidkeeper.policy.language.secret_sources import FileSource
from squidkeeper.policy.policy_store.loading import load, load_stored_revision
from squidkeeper.policy.policy_store.policy_watcher import PolicyWatcher
from squidkeeper.policy.policy_store.reload_gate import GateVerdict, write_verdict
from squidkeeper.policy.policy_store.revisions import (
    RevisionWriter,
    read_revision,
    revision_in_force,
    store_revision,
)
from squidkeeper.policy.policy_store.sources import (
    local_file,
    policy_files,
    read_sources,
)
from squidkeeper.policy.url import Host

from ..conftest import NOW, write_policy
from ..waiting import stays, wait_for

LOCAL = """version: 1
defaults: {reload_gate: {since: 1d, denials: 5}}
secrets:
  github: {file: github-token, hosts: [api.github.com, .internal.example]}
  unsent: {file: unsent}
"""
POLICY = """
defaults: {action: deny}
rules:
  - {name: api, action: allow, hosts: [api.github.com]}
credentials:
  - {name: github, hosts: [api.github.com], bearer: github}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "local.yaml").write_text(LOCAL)
    return write_policy(tmp_path / "policy", POLICY)


def faults(directory: Path, more: str = "") -> list[str]:
    if more:
        (directory / "more.yaml").write_text(f"version: 1\n{more}")
    with pytest.raises(PolicyError) as raised:
        load(directory, NOW)
    return [
        str(fault).replace(f"{directory.parent}/", "") for fault in raised.value.faults
    ]


def test_the_folder_names_secrets_and_the_local_setup_has_their_sources(
    directory: Path, tmp_path: Path
) -> None:
    loaded = load(directory, NOW)
    policy = loaded.compiled.source
    assert local_file(directory) == tmp_path / "local.yaml"
    assert policy.secrets["github"].source == FileSource(tmp_path / "github-token")
    assert policy.reload_gate == ReloadGate(86400, 5)
    assert policy.default_action == "deny"
    assert [path.name for path in policy_files(directory)] == [
        "policy.yaml",
        "local.yaml",
    ]
    assert read_sources(directory).gated


# --- every field of the language is decided -------------------------------------------

# A new field stands here, or in LOCAL_SECTIONS or LOCAL_DEFAULTS: whoever adds it
# decides whether others may write it. They may not, where it makes the gateway read a
# file, run a program, send a secret or connect.
OF_THE_FOLDER = {
    "PolicyFile": "version defaults clients roles session_networks lists rules presets grants rewrites credentials"
    " quotas prices tests end_required end",
    "Defaults": "action ask reason contact watch_secrets observe",
    "ClientEntry": "networks users token_sha256 connections",
    "TokenEntry": "sha256 expires",
    "RoleEntry": "variables ttl",
    "VariableEntry": "type pattern within many",
    "ListEntry": "file",  # within the folder: below
    "RuleEntry": "name action clients hosts lists schemes ports methods paths query reason private expires owner strip"
    " headers tls websocket connections observe when body meter reserve ask_usage",
    "BodyEntry": "in_json only git mcp max",
    "PlaceEntry": "values min max absent",
    "GitEntry": "push delete create options",
    "McpEntry": "tools arguments methods",
    "WhenEntry": "days hours timezone",
    "PresetEntry": "preset clients",
    "GrantEntry": "name clients any_client hosts urls schemes ports methods paths expires uses reason by made",
    "RewriteEntry": "name clients hosts lists schemes ports methods paths query to redirect private",
    # secrets within their hosts: below
    "CredentialEntry": "name clients hosts lists schemes ports methods paths query header bearer basic value aws_sigv4"
    " headers parameters placeholder",
    "Basic": "username password",
    "AwsSigV4Entry": "access_key_id secret_access_key session_token region service",
    "QuotaEntry": "name per clients rules requests tunnels tickets bytes_out bytes_in tokens_in tokens_out tokens cost"
    " every",  # the store is local
    "PriceEntry": "model tokens_in tokens_out cached_in cache_write",
    "TestEntry": "request expect client user at rule rewrite credentials observed body push session",
    "TestedSessionEntry": "role variables labels",
    "PushEntry": "update create delete options",
}
OF_LOCAL_SECTIONS = {
    "ReloadGateEntry",
    "SecretEntry",
    "CommandEntry",
    "OAuth2Entry",
    "GitHubAppEntry",
    "CanaryEntry",
    "SealedTokensEntry",
    "UpstreamEntry",
}


def models() -> Iterator[type[BaseModel]]:
    for model in vars(schema).values():
        if (
            isinstance(model, type)
            and issubclass(model, BaseModel)
            and model.__module__ == schema.__name__
        ):
            yield model


def test_every_field_of_the_language_is_decided_for_a_folder_that_others_write() -> (
    None
):
    bases = {base for model in models() for base in model.__mro__[1:]}
    decided = {name: set(fields.split()) for name, fields in OF_THE_FOLDER.items()}
    decided["PolicyFile"] |= set(LOCAL_SECTIONS)
    decided["Defaults"] |= set(LOCAL_DEFAULTS)
    fields = {
        model.__name__: set(model.model_fields)
        for model in models()
        if model not in bases and model.__name__ not in OF_LOCAL_SECTIONS
    }
    assert fields == decided


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("secrets: {x: {command: {run: [id]}}}", "secrets"),
        ("secrets: {x: {file: /etc/shadow, hosts: [a.example]}}", "secrets"),
        ("secrets: {x: {env: PATH}}", "secrets"),
        ("canaries: {x: {file: /etc/shadow}}", "canaries"),
        ("sealed_tokens: {keys: [github]}", "sealed_tokens"),
        ("upstreams: [{name: p, url: 'http://127.0.0.1:22'}]", "upstreams"),
        (
            "upstreams: [{name: p, url: 'http://a.example:1', basic: {username: a, password: github}}]",
            "upstreams",
        ),
    ],
)
def test_the_folder_names_no_file_program_password_or_parent(
    directory: Path, more: str, what: str
) -> None:
    found = faults(directory, more)
    message = (
        f"{what!r} is for this gateway's operator alone, expected it in "
        f"{directory.parent}/local.yaml [local-only]"
    )
    assert (
        f"policy/more.yaml:2:1: {message}".replace(f"{directory.parent}/", "") in found
    )


def test_the_folder_turns_no_reload_gate_off_or_on(directory: Path) -> None:
    policy = directory / "policy.yaml"
    policy.write_text(
        policy.read_text().replace(
            "{action: deny}", "{reload_gate: {since: 1d, denials: 100000}}"
        )
    )
    assert faults(directory) == [
        "policy/policy.yaml:3:12: 'reload_gate' is for this gateway's operator alone, expected it in local.yaml"
        " [local-only]"
    ]


@pytest.mark.parametrize(
    "file", ["/etc/hostname", "../local.yaml", "lists/../../local.yaml", "link"]
)
def test_a_list_is_in_the_folder(directory: Path, file: str) -> None:
    (directory / "lists").mkdir()
    (directory / "link").symlink_to("/etc/hostname")
    found = faults(directory, f"lists: {{l: {{file: {file}}}}}")
    assert len(found) == 1
    assert "it is not in the policy's folder" in found[0]
    assert found[0].endswith("[local-only]")


def test_a_policy_file_is_in_the_folder(directory: Path) -> None:
    (directory / "more.yaml").symlink_to("/etc/shadow")
    assert faults(directory)[0] == (
        "policy/more.yaml: the policy file cannot be read: it is not in the policy's folder, whose writers name no"
        " other file beside a local setup [local-only]"
    )


def test_a_volume_whose_files_are_links_within_it_loads(tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text(LOCAL)
    write_policy(
        tmp_path / "policy" / "..1", f"{POLICY}\nlists: {{l: {{file: list.txt}}}}"
    )
    (tmp_path / "policy/..1/list.txt").write_text("a.example\n")
    (tmp_path / "policy/..data").symlink_to("..1")
    for name in ("policy.yaml", "list.txt"):
        (tmp_path / "policy" / name).symlink_to(f"..data/{name}")
    assert "l" in load(tmp_path / "policy", NOW).compiled.source.lists


# --- hosts of a secret ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("credential", "beyond"),
    [
        ("hosts: [evil.example], bearer: github", "evil.example"),
        ("hosts: [api.github.com, evil.example], bearer: github", "evil.example"),
        ("hosts: ['*.github.com'], bearer: github", "*.github.com"),
        ("hosts: ['.api.github.com'], bearer: github", ".api.github.com"),
        ("hosts: [api.github.com], lists: [l], bearer: github", "list 'l'"),
        (
            "hosts: [evil.example], basic: {username: u, password: github}",
            "evil.example",
        ),
        ("hosts: [evil.example], value: 'x {github}'", "evil.example"),
        ("hosts: [evil.example], headers: {X-Api-Key: '{github}'}", "evil.example"),
        ("hosts: [evil.example], parameters: {key: '{github}'}", "evil.example"),
        (
            "hosts: [evil.example], aws_sigv4: {access_key_id: github, secret_access_key: github, region: a}",
            "evil.example",
        ),
    ],
)
def test_a_credential_sends_a_secret_to_its_hosts_alone(
    directory: Path, credential: str, beyond: str
) -> None:
    (directory / "l.txt").write_text("evil.example\n")
    found = faults(
        directory,
        f"lists: {{l: {{file: l.txt}}}}\ncredentials: [{{name: c, {credential}}}]",
    )
    expected = "expected hosts of the secret (api.github.com, .internal.example)"
    text = f"secret 'github' may not be sent to {beyond}, {expected} [secret-host]"
    assert set(found) == {f"policy/more.yaml:3:15: {text}"}


def test_a_local_secret_without_hosts_is_sent_nowhere(directory: Path) -> None:
    found = faults(
        directory, "credentials: [{name: c, hosts: [a.example], bearer: unsent}]"
    )
    assert found == [
        "policy/more.yaml:2:15: secret 'unsent' may not be sent to a.example, expected hosts of the secret (none: its"
        " 'hosts' are left out) [secret-host]"
    ]


def test_hosts_bind_a_secret_without_a_local_setup_too(tmp_path: Path) -> None:
    directory = write_policy(
        tmp_path / "policy", "secrets: {s: {env: A, hosts: [a.example]}, t: {env: A}}"
    )
    text = "credentials: [{name: c, hosts: [b.example], bearer: %s}]"
    (directory / "more.yaml").write_text(f"version: 1\n{text % 't'}")
    load(directory, NOW)
    assert "secret 's' may not be sent to b.example" in faults(directory, text % "s")[0]


NAMES = st.sampled_from(["a", "a.b", "b", "x.a.b", "y.x.a.b", "*", "**", "x"])
PATTERNS = st.builds(
    lambda form, name: f"{form}{name}", st.sampled_from(["", ".", "*.", "**."]), NAMES
) | st.just("*")


@given(PATTERNS, PATTERNS, st.lists(st.sampled_from("abxy"), min_size=1, max_size=5))
def test_what_a_covered_pattern_matches_the_covering_one_matches(
    one: str, other: str, labels: list[str]
) -> None:
    try:
        covering, covered = parse_host_pattern(one), parse_host_pattern(other)
    except PatternError:
        return
    host = Host(".".join(labels))
    if pattern_covers(covering, covered) and covered.matches(host):
        assert covering.matches(host)
    assert pattern_covers(covering, covering)


@pytest.mark.parametrize(
    ("covering", "covered", "covers"),
    [
        ("a.b", "a.b", True),
        ("x.a.b", "*.a.b", False),
        (".a.b", "**.a.b", True),
        ("**.a.b", ".a.b", False),
        ("*.a.b", "**.a.b", False),
        ("*.a.b", "x.a.b", True),
        ("192.0.2.0/24", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.0/24", False),
        ("192.0.2.0/24", "2001:db8::1", False),
        ("a.b", "192.0.2.7", False),
        ("192.0.2.0/24", "a.b", False),
        ("a.b", "*", False),
    ],
)
def test_which_patterns_cover_others(covering: str, covered: str, covers: bool) -> None:
    assert pattern_covers(*map(parse_host_pattern, (covering, covered))) is covers


# --- the file itself ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "version: 1\nrules: [{name: r, action: allow, hosts: [a.example]}]",
            "'rules' is no section of the local setup",
        ),
        (
            "version: 1\ndefaults: {action: allow}",
            "'action' is none of the local defaults, expected reload_gate",
        ),
        ("version: 1\nsecrets: {github: {}}", "is an empty mapping, expected entries"),
        ("nonsense", "the file holds no mapping"),
    ],
)
def test_what_a_local_setup_cannot_be(directory: Path, text: str, fault: str) -> None:
    local_file(directory).write_text(text)
    assert any(
        other.startswith("local.yaml:") and fault in other
        for other in faults(directory)
    )


def test_a_local_setup_that_cannot_be_read_is_not_as_if_there_were_none(
    directory: Path,
) -> None:
    local_file(directory).unlink()
    local_file(directory).mkdir()
    (directory / "policy.yaml").write_text(
        "version: 1\nsecrets: {x: {file: /etc/shadow}}\n"
    )
    assert faults(directory)[0].startswith(
        "local.yaml: the policy file cannot be read: is a directory"
    )


def test_a_stored_revision_has_the_local_setup(directory: Path, tmp_path: Path) -> None:
    sources = read_sources(directory)
    store_revision(sources, sources.revision, tmp_path / "revisions")
    local_file(directory).unlink()
    stored = load_stored_revision(tmp_path / "revisions", sources.revision)
    read = read_revision(tmp_path / "revisions", sources.revision)
    assert (stored.revision, read.revision) == (sources.revision, sources.revision)
    assert stored.source.secrets["github"].hosts
    assert read.local == sources.local


def test_an_edit_of_the_local_setup_is_a_revision_of_its_own(directory: Path) -> None:
    before = load(directory, NOW).compiled.revision
    local_file(directory).write_text(
        LOCAL.replace("api.github.com", "api.github.com, more.example")
    )
    assert load(directory, NOW).compiled.revision != before


def test_a_folder_that_is_to_replace_another_is_read_with_what_is_beside_that_one(
    directory: Path, tmp_path: Path
) -> None:
    draft = write_policy(tmp_path / "elsewhere" / "draft", POLICY)
    assert (
        read_sources(draft, beside=tmp_path).revision
        == read_sources(directory).revision
    )


# --- the swap of a link ---------------------------------------------------------------


def noting(taken: list[set[str]]) -> Callable[[CompiledPolicy], CompiledPolicy]:
    """Note how the names of the rules begin in each policy that comes in force."""

    def note(policy: CompiledPolicy) -> CompiledPolicy:
        taken.append({rule.name[:2] for rule in policy.source.rules})
        return policy

    return note


@pytest.mark.system
@pytest.mark.parametrize(
    "volume", [False, True], ids=["a link to the folder", "a volume of Kubernetes"]
)
def test_the_swap_of_a_folder_is_one_reload(tmp_path: Path, volume: bool) -> None:
    """Each version has many files, all of one rule: a mixture of two versions would
    have rules of both.

    In a volume each file is a link through `..data`, which the kubelet swaps.
    """
    policy = tmp_path / "policy"
    versions, current = (
        (policy, policy / "..data")
        if volume
        else (tmp_path / "versions", tmp_path / "current")
    )
    for version, file in product(range(2), range(20)):
        rule = (
            f"rules: [{{name: v{version}-{file}, action: allow, hosts: [a.example]}}]"
        )
        write_policy(versions / f"..{version}", rule, f"{file:02}.yaml")
        if volume and version:
            (policy / f"{file:02}.yaml").symlink_to(f"..data/{file:02}.yaml")
    current.symlink_to(versions / "..0")
    if not volume:
        policy.symlink_to("current")
    taken: list[set[str]] = []
    PolicyWatcher(policy, None, noting(taken)).start()
    wait_for(lambda: len(taken) == 1)
    for version in (1, 0, 1):
        (tmp_path / "new").symlink_to(versions / f"..{version}")
        (tmp_path / "new").rename(current)
        wait_for(partial(lambda now: taken[-1] == {now}, f"v{version}"))
    stays(
        lambda: taken == [{"v0"}, {"v1"}, {"v0"}, {"v1"}],
        0.5,
        lambda: f"one load for each swap: {taken}",
    )


@pytest.mark.system
def test_the_local_reload_gate_judges_what_is_swapped_in(tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text(LOCAL)
    for version in ("one", "two", "three"):
        write_policy(
            tmp_path / "versions" / version,
            f"rules: [{{name: {version}, action: allow, hosts: [a.example]}}]",
        )
    (tmp_path / "current").symlink_to("versions/one")
    (tmp_path / "policy").symlink_to("current")
    taken: list[set[str]] = []
    watcher = PolicyWatcher(
        tmp_path / "policy",
        None,
        noting(taken),
        tmp_path / "state" / "revisions",
    )
    watcher.start()
    wait_for(lambda: revision_in_force(tmp_path / "state/revisions"))
    old = watcher.state.revision or ""

    def swap(version: str) -> str:
        (tmp_path / "new").symlink_to(f"versions/{version}")
        (tmp_path / "new").rename(tmp_path / "current")
        return wait_for(lambda: watcher.state.held)

    refused = GateVerdict(
        old, swap("two"), time.time(), denials=6, counted=6, allowed=5
    )
    write_verdict(tmp_path / "state/revisions", refused)
    wait_for(lambda: watcher.state.faults)
    assert watcher.state.faults[0].code is FaultCode.RELOAD_GATED
    assert taken == [{"on"}]
    write_verdict(
        tmp_path / "state/revisions", GateVerdict(old, swap("three"), time.time())
    )
    wait_for(lambda: taken == [{"on"}, {"th"}])


# --- commands -------------------------------------------------------------------------


def test_no_command_edits_a_folder_that_others_write(directory: Path) -> None:
    (directory / "policy.yaml").write_text(
        (directory / "policy.yaml").read_text() + "clients: {a: {users: [a]}}\n"
    )
    done = CliRunner().invoke(main, ["client", "add", "b", "--policy", str(directory)])
    assert done.exit_code == 1
    assert "edit it where it comes from" in done.output


@pytest.mark.system
def test_check_warns_about_private_addresses_in_a_pulled_policy_without_a_ceiling(
    directory: Path,
) -> None:
    rules = (
        "rules: [{name: inner, action: allow, hosts: [10.0.0.0/8], private: true}]\n"
    )
    (directory / "policy.yaml").write_text(f"version: 1\n{rules}")
    pull = directory.parent / "pull.yaml"
    options = ["check", "--policy", str(directory)]
    assert "no-ceiling" not in CliRunner().invoke(main, options).output
    settings = "source: {git: 'https://h/x', branch: main}\nallowed_signers: /a\n"
    pull.write_text(settings)
    assert (
        "policy.yaml:2:9: warning: 'inner' opens private addresses"
        in CliRunner().invoke(main, options).output
    )
    pull.write_text(f"{settings}ceiling: /c\n")
    assert "no-ceiling" not in CliRunner().invoke(main, options).output


@pytest.mark.system
def test_check_warns_where_programs_and_policy_know_other_roles(
    directory: Path, tmp_path: Path
) -> None:
    rule = "{name: a, action: allow, clients: [agent], hosts: [a.example]}"
    text = f"version: 1\nroles: {{agent: {{ttl: 1h}}}}\nrules: [{rule}]\n"
    (directory / "policy.yaml").write_text(text)
    state = str(tmp_path / "state")
    options = ["check", "--policy", str(directory), "--state", state]

    def told() -> str:
        return CliRunner().invoke(main, options).output

    assert "[sessions-mismatch]" not in told()  # nothing of it is in force
    sources = read_sources(directory)
    writer = RevisionWriter(tmp_path / "state/revisions", None)
    writer.loaded(sources, sources.revision)
    writer.write()
    assert "sessions.yaml: warning: the policy has roles, but no program" in told()
    settings = directory.parent / "sessions.yaml"
    settings.write_text("version: 1\norchestrators:\n  local: {roles: [agent]}\n")
    assert "[sessions-mismatch]" not in told()
    settings.write_text("version: 1\norchestrators:\n  local: {roles: [agent, gone]}\n")
    assert "sessions.yaml:3:18: warning: 'local' may give the role 'gone'" in told()
