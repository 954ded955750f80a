"""`squidkeeper grant`: what it writes, what it refuses, and that nothing else
changes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import EditRefused, PatternError
from squidkeeper.base.faults import FaultCode
from squidkeeper.change.approvals import NewGrant, add_grant, prune_grants, remove_grant
from squidkeeper.change.approvals.new_grant import Effect, effect_of, parse_target
from squidkeeper.cli import main
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.lint import lint
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import grants_file, read_sources
from squidkeeper.policy.protocol.request import Request, request_to
from squidkeeper.policy.published.places import mark_in_force

from ..conftest import NOW, decided, write_policy

POLICY = """
clients:
  agents: {networks: [192.0.2.0/24]}
  ci: {token_sha256: 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b}
rules:
  - {name: no-uploads, action: deny, hosts: [.example], methods: [POST, PUT]}
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: open, action: allow, hosts: [open.example], methods: [GET, HEAD]}
  - {name: private, action: allow, hosts: [10.0.0.0/8], private: true, clients: [ci]}
secrets: {token: {env: TOKEN}}
credentials: [{name: api, hosts: [docs.example], bearer: token}]
"""
UNTIL = NOW + timedelta(hours=2)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "policy", POLICY)


def new(target: str, **fields: Any) -> NewGrant:
    given: dict[str, Any] = {
        "expires": UNTIL,
        "reason": "Ticket 7.",
        "by": "ops",
        "clients": ("agents",),
        **fields,
    }
    return NewGrant(**{**given, **parse_target(target)})


def verdict(
    directory: Path,
    asked: str,
    client: str | None = "192.0.2.7",
    user: str | None = None,
) -> str:
    method, _, url = asked.partition(" ")
    decision = decided(
        load(directory, NOW).compiled, request_to(method, url, client, user), NOW
    )
    return f"{decision.action} by {decision.rule}"


@pytest.mark.parametrize("before", [None, "an edit"])
def test_a_file_that_was_changed_meanwhile_is_not_replaced(
    directory: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """Somebody writes the file after it was read, and before the new one is put in
    place.
    """
    if before:
        add_grant(directory, new("first.example"), NOW)

    def edit_meanwhile(*given: Any) -> Effect:
        grants_file(directory).write_text("# by hand\n")
        return effect_of(*given)

    monkeypatch.setattr(
        "squidkeeper.change.approvals.granting.effect_of", edit_meanwhile
    )
    with pytest.raises(EditRefused, match="was changed meanwhile: try again"):
        add_grant(directory, new("docs.example"), NOW)
    assert grants_file(directory).read_text() == "# by hand\n"


def test_a_grant_may_be_for_a_role(directory: Path) -> None:
    roles = "roles: {agent: {variables: {repo: {type: path, pattern: '[a-z]+'}}}}"
    rule = "  - {name: own, action: allow, clients: [agent], hosts: [a.test], paths: ['/{session.repo}']}"
    write_policy(directory, f"{roles}{POLICY}".replace("secrets:", f"{rule}\nsecrets:"))
    add_grant(directory, new("docs.example", clients=("agent",)), NOW)
    loaded = load(directory, NOW)
    assert FaultCode.GRANT_FOR_NOBODY not in {one.code for one in loaded.warnings}
    session = Session.assumed("agent", {"repo": ("app",)})
    request = request_to("GET", "https://docs.example/")
    assert isinstance(request, Request)
    for asker, opened in ((session, True), (None, False)):
        asked = request._replace(session=asker)
        assert decided(loaded.compiled, asked, NOW).allowed is opened
    with pytest.raises(EditRefused, match="expected one of agents, ci, agent"):
        add_grant(directory, new("docs.example", clients=("agnt",)), NOW)


# --- what is granted ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "opened", "closed"),
    [
        (
            "docs.example",
            ["https://docs.example/", "http://docs.example/x?y"],
            ["https://a.docs.example/"],
        ),
        (
            "docs.example/manual/**",
            ["https://docs.example/manual/a/b"],
            ["https://docs.example/manuals"],
        ),
        (
            "docs.example/manual",
            ["https://docs.example/manual"],
            ["https://docs.example/manual/a"],
        ),
        (
            "docs.example:8443/x",
            ["https://docs.example:8443/x"],
            ["https://docs.example/x"],
        ),
        ("*.docs.example", ["https://a.docs.example/"], ["https://docs.example/"]),
        (
            "bücher.example",
            ["https://xn--bcher-kva.example/"],
            ["https://bucher.example/"],
        ),
        (
            "[2001:db8::7]:8443",
            ["http://[2001:db8::7]:8443/"],
            ["http://[2001:db8::8]:8443/"],
        ),
        ("2001:db8::7", ["http://[2001:db8::7]/"], ["http://[2001:db8::8]/"]),
        (
            "https://docs.example/a*?b=*",
            ["https://docs.example/a*?b=*"],
            ["https://docs.example/ab?b=c"],
        ),
    ],
)
def test_a_target_is_what_is_opened(
    directory: Path, target: str, opened: list[str], closed: list[str]
) -> None:
    granted = add_grant(directory, new(target), NOW)
    assert granted.file == grants_file(directory)
    for url in opened:
        assert verdict(directory, f"GET {url}") == f"allow by {granted.grant.name}"
        assert verdict(directory, f"GET {url}", "198.51.100.1") == "deny by default"
    for url in closed:
        assert verdict(directory, f"GET {url}") == "deny by default"


def test_methods_and_uses_are_as_given(directory: Path) -> None:
    grant = add_grant(
        directory, new("docs.example", methods=("GET",), uses=3), NOW
    ).grant
    assert (grant.match.methods, grant.uses, grant.owner, grant.made) == (
        frozenset({"GET"}),
        3,
        "ops",
        NOW,
    )
    assert verdict(directory, "HEAD https://docs.example/") == "deny by default"


def test_a_scheme_can_be_granted_alone(directory: Path) -> None:
    name = add_grant(directory, new("docs.example", schemes=("https",)), NOW).grant.name
    assert verdict(directory, "GET https://docs.example/") == f"allow by {name}"
    assert verdict(directory, "GET http://docs.example/") == "deny by default"


def test_a_client_that_logs_in_can_be_granted(directory: Path) -> None:
    granted = add_grant(directory, new("docs.example", clients=("ci",)), NOW)
    assert (
        verdict(directory, "GET https://docs.example/", None, "ci")
        == f"allow by {granted.grant.name}"
    )


def test_what_is_granted_tells_what_requests_get_and_what_stays_closed(
    directory: Path,
) -> None:
    effect = add_grant(directory, new("docs.example"), NOW).effect
    assert effect.opens
    assert effect.credentials == ("api",)
    assert [rule.name for rule in effect.closing] == ["no-uploads"]
    assert [rule.rule for rule in effect.deniers] == ["no-uploads"]


def test_names_are_those_of_hosts_and_free_again_when_a_grant_is_gone(
    directory: Path,
) -> None:
    names = [
        add_grant(directory, new(target), NOW).grant.name
        for target in ("a.example/x", "*.a.example", "b.example")
    ]
    assert names == ["grant-a-example", "grant-a-example-2", "grant-b-example"]
    remove_grant(directory, names[0], NOW)
    assert add_grant(directory, new("http://a.example/y"), NOW).grant.name == names[0]


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grant", "refused"),
    [
        (
            new("closed.example"),
            r"rule 'closed' \(\S+/policy.yaml:8:5\) denies it, and no grant overrides a deny",
        ),
        (
            new("docs.example", methods=("POST",)),
            r"rule 'no-uploads' \(\S+/policy.yaml:7:5\) denies it",
        ),
        (
            new("open.example"),
            "rule 'no-uploads' .* the rest is open already, by 'open'",
        ),
        (new("10.0.0.1"), "10.0.0.1 is private, and no grant opens a private address"),
        (
            new("docs.example", clients=("nobody",)),
            "there is no client 'nobody' in the policy, expected one of",
        ),
        (new("*.com"), r"too wide for a grant.*\[too-wide\]"),
        (new("docs.example", uses=0), "'uses' is the number 0"),
        (new("docs.example", methods=("get",)), "is not upper-case"),
        (new("docs.example", reason="\x1b[31m"), "control character"),
        (new("docs.example", reason=" "), "expected text"),
    ],
)
def test_what_cannot_be_granted_is_refused_and_nothing_is_written(
    directory: Path, grant: NewGrant, refused: str
) -> None:
    with pytest.raises(EditRefused, match=re.compile(refused, re.DOTALL)):
        add_grant(directory, grant, NOW)
    assert not grants_file(directory).exists()


def test_what_is_open_already_is_not_granted(directory: Path) -> None:
    granted = add_grant(directory, new("open.example", methods=("GET",)), NOW)
    assert granted.file is None
    assert [rule.rule for rule in granted.effect.openers] == ["open"]
    assert not grants_file(directory).exists()


def test_a_policy_that_does_not_load_is_not_touched(directory: Path) -> None:
    (directory / "policy.yaml").write_text("version: 1\nrules: no\n")
    with pytest.raises(EditRefused, match="does not load: fix it first"):
        add_grant(directory, new("docs.example"), NOW)


@pytest.mark.parametrize(
    "target",
    ["", "/x", "docs.example/x?y", "ftp://docs.example/", "https://u:p@docs.example/"],
)
def test_a_target_without_a_meaning_is_refused(target: str) -> None:
    with pytest.raises(PatternError):
        parse_target(target)


# --- the file -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "mode", "grants_mode"),
    [(0, 0o640, 0o640), (0, 0o644, 0o644), (9, 0o440, 0o640)],
)
def test_the_file_is_of_who_grants_and_readable_for_squids_account(
    directory: Path, owner: int, mode: int, grants_mode: int
) -> None:
    """Whoever owns the files of the policy, such as the account that has
    pulled them.
    """
    policy = directory / "policy.yaml"
    os.chown(policy, owner, 12)
    policy.chmod(mode)
    add_grant(directory, new("docs.example"), NOW)
    state = grants_file(directory).stat()
    assert (state.st_uid, state.st_gid, oct(state.st_mode & 0o777)) == (
        os.geteuid(),
        12,
        oct(grants_mode),
    )


def test_comments_and_order_stay_and_the_last_grant_can_go(directory: Path) -> None:
    file = grants_file(directory)
    file.write_text(
        "# ours\nversion: 1\ngrants:\n  # by hand\n  - name: hand\n    any_client: true\n"
    )
    with file.open("a") as opened:
        opened.write(
            '    hosts: [hand.example]  # this one\n    reason: x\n    expires: "2036-01-01T00:00:00Z"\n'
        )
    before = file.read_text()
    name = add_grant(directory, new("docs.example"), NOW).grant.name
    assert file.read_text().startswith(before)
    remove_grant(directory, name, NOW)
    assert file.read_text() == before
    remove_grant(directory, "hand", NOW)
    assert load(directory, NOW).compiled.source.grants == ()
    assert file.read_text().startswith("# ours\nversion: 1\n")
    add_grant(directory, new("docs.example"), NOW)


def test_a_grant_in_a_file_of_the_policy_is_not_revoked_here(directory: Path) -> None:
    own = "{name: own, any_client: true, hosts: [a.example], expires: 2036-01-01T00:00:00Z, reason: x}"
    (directory / "own.yaml").write_text(f"version: 1\ngrants: [{own}]")
    with pytest.raises(
        EditRefused,
        match=r"grant 'own' is not in \S+/grants.yaml: remove it at \S+/own.yaml:2",
    ):
        remove_grant(directory, "own", NOW)
    with pytest.raises(EditRefused, match="there is no grant 'other'"):
        remove_grant(directory, "other", NOW)


def test_a_grant_for_all_gateways_names_the_command_that_removes_it(
    directory: Path,
) -> None:
    far = "{name: far, any_client: true, hosts: [a.example], expires: 2026-11-30T00:00:00Z, reason: x}"
    (directory / "fleet-grants.yaml").write_text(f"version: 1\ngrants: [{far}]")
    with pytest.raises(
        EditRefused, match="by `squidkeeper grant --fleet REPOSITORY --revoke far`"
    ):
        remove_grant(directory, "far", NOW)
    later = datetime(2026, 12, 1, tzinfo=UTC)
    warnings = [
        fault.text for fault in lint(load(directory, later).compiled.source, later)
    ]
    assert any(
        "(`squidkeeper grant --fleet REPOSITORY --prune`)" in text for text in warnings
    )


def test_grants_that_have_lapsed_are_removed_and_no_other(directory: Path) -> None:
    short = add_grant(
        directory, new("a.example", expires=NOW + timedelta(minutes=1)), NOW
    ).grant.name
    long = add_grant(directory, new("b.example"), NOW).grant.name
    lapsed, left = prune_grants(directory, NOW + timedelta(minutes=1))
    assert ([grant.name for grant in lapsed], [grant.name for grant in left]) == (
        [short],
        [long],
    )
    assert [grant.name for grant in load(directory, NOW).compiled.source.grants] == [
        long
    ]


ADD = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from squidkeeper.change.approvals import NewGrant, add_grant
now = datetime(2026, 11, 24, 12, tzinfo=UTC)
for number in range(4):
    hosts = (f"h{number}.{sys.argv[2]}.example",)
    add_grant(Path(sys.argv[1]), NewGrant(now + timedelta(hours=1), "x", "x", ("agents",), hosts), now)
"""


@pytest.mark.system
def test_two_commands_at_once_lose_nothing(directory: Path) -> None:
    run = [sys.executable, "-c", ADD, str(directory)]
    both = [subprocess.Popen([*run, name]) for name in ("one", "two")]
    assert [answer.wait() for answer in both] == [0, 0]
    assert len(load(directory, NOW).compiled.source.grants) == 8


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=40), st.from_regex(r"/[ -~]{0,20}", fullmatch=True))
@example("on", "/22:22")
@example("&a *b !c {d} # e: - %f", "/&a,[b]{c}#d")
@example("line\nline", "/x")
def test_text_is_granted_as_it_is_or_refused(reason: str, path: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        directory = write_policy(Path(folder) / "policy", POLICY)
        try:
            grant = add_grant(
                directory,
                NewGrant(
                    UNTIL, reason, "ops", ("agents",), ("a.example",), paths=(path,)
                ),
                NOW,
            )
        except EditRefused:
            assert not grants_file(directory).exists()
            return
        [read] = load(directory, NOW).compiled.source.grants
        assert grant.file is not None
        assert (read.reason, [other.text for other in read.match.paths or ()]) == (
            reason.strip(),
            [path],
        )


# --- the command ----------------------------------------------------------------------


def run(directory: Path, *arguments: str, status: int = 0) -> str:
    places = ["--policy", str(directory), "--state", str(directory.parent / "state")]
    result = CliRunner().invoke(main, ["grant", *places, *arguments])
    assert result.exit_code == status, result.output
    return result.output


GRANT = ("--client", "agents", "--for", "2h", "--reason", "Ticket 7")


def test_the_command_grants_lists_revokes_and_prunes(directory: Path) -> None:
    told = run(
        directory, "docs.example/manual/**", *GRANT, "--uses", "3", "--method", "GET"
    )
    name = told.split()[1]
    assert "in grants.yaml" in told.replace(f"{directory.parent}/", "")
    assert re.search(r"credential +api\n", told)
    [grant] = load(directory, datetime.now(UTC)).compiled.source.grants
    GrantUses(directory.parent / "state").take(grant)
    assert f"{name}: until " in run(directory, "--list")
    assert ", 2 of 3 uses left" in run(directory, "--list")
    [listed] = json.loads(run(directory, "--list", "--json"))["grants"]
    assert (listed["name"], listed["left"], listed["paths"]) == (
        name,
        2,
        ["/manual/**"],
    )
    assert run(directory, "--prune") == "Removed 0 lapsed grants. 1 grant left.\n"
    assert (
        run(directory, "--revoke", name)
        == f"Revoked {name}. It ends within 3 seconds.\n"
    )
    assert run(directory, "--list") == "There are no grants.\n"


def test_the_command_names_the_deny_and_what_is_open(directory: Path) -> None:
    told = run(directory, "closed.example", *GRANT, status=1)
    assert told == (
        f"Error: rule 'closed' ({directory}/policy.yaml:8:5) denies it, and no grant overrides a deny;"
        " nothing was changed\n"
    )
    told = run(directory, "open.example", *GRANT, "--method", "GET")
    assert (
        told
        == f"Open already, by open ({directory}/policy.yaml:9:5): nothing was granted.\n"
    )


def test_the_command_tells_that_an_edit_which_is_not_in_force_holds_it_up(
    directory: Path,
) -> None:
    put_in_force(directory)
    assert run(directory, "docs.example", *GRANT).endswith(
        "In force within 3 seconds.\n"
    )
    assert (
        json.loads(run(directory, "first.example", *GRANT, "--json"))["waits_for_edit"]
        is False
    )
    # an edit that no helper has loaded
    (directory / "more.yaml").write_text("version: 1\n")
    assert "Not in force yet: it waits for an edit" in run(
        directory, "other.example", *GRANT
    )
    told = json.loads(run(directory, "last.example", *GRANT, "--json"))
    assert (told["granted"], told["waits_for_edit"]) == (True, True)
    assert "Not in force yet: it waits for an edit" in run(
        directory, "--revoke", "grant-docs-example"
    )
    assert (
        json.loads(run(directory, "--revoke", "grant-first-example", "--json"))[
            "waits_for_edit"
        ]
        is True
    )


def put_in_force(directory: Path) -> None:
    sources, revisions = read_sources(directory), directory.parent / "state/revisions"
    store_revision(sources, sources.revision, revisions)
    mark_in_force(revisions, sources.revision)


def count_old(directory: Path, name: str) -> Path:
    """Use a grant once, two hours ago; give the file of its count."""
    [grant] = [
        grant
        for grant in load(directory, datetime.now(UTC)).compiled.source.grants
        if grant.name == name
    ]
    GrantUses(directory.parent / "state").take(grant)
    folder = directory.parent / "state/grant-uses"
    newest = max(folder.iterdir(), key=lambda file: file.stat().st_mtime)
    os.utime(newest, (NOW.timestamp(), NOW.timestamp()))
    return newest


FAULTY = "version: 1\nrules: no\n"


def test_a_grant_is_listed_and_revoked_while_the_policy_does_not_load(
    directory: Path,
) -> None:
    names = [
        run(directory, f"{host}.example", *GRANT).split()[1]
        for host in ("docs", "other")
    ]
    (directory / "more.yaml").write_text(FAULTY)
    assert "does not load: fix it first" in run(directory, "--list", status=1)
    (directory / "more.yaml").unlink()
    put_in_force(directory)
    (directory / "more.yaml").write_text(FAULTY)
    told = run(directory, "--list")
    assert "These are the grants in force:" in told
    assert all(f"{name}: until " in told for name in names)
    assert "there is no grant 'none'" in run(directory, "--revoke", "none", status=1)
    told = run(directory, "--revoke", names[0])
    assert told.startswith(
        f"Revoked {names[0]}. Not in force yet: it waits for an edit"
    )
    (directory / "more.yaml").unlink()
    assert [
        grant.name for grant in load(directory, NOW).compiled.source.grants
    ] == names[1:]
    (directory / "more.yaml").write_text(FAULTY)
    assert json.loads(run(directory, "--revoke", names[1], "--json")) == {
        "revoked": names[1],
        "waits_for_edit": True,
    }
    (directory / "more.yaml").unlink()
    assert load(directory, NOW).compiled.source.grants == ()


def test_a_fault_of_the_grants_themselves_is_not_edited_by_a_command(
    directory: Path,
) -> None:
    name = run(directory, "docs.example", *GRANT).split()[1]
    file = grants_file(directory)
    file.write_text(file.read_text().replace('"agents"', '"agents", 7'))
    before = file.read_text()
    assert "does not load: fix it first" in run(directory, "--revoke", name, status=1)
    assert file.read_text() == before


def test_a_wide_grant_comes_with_the_warning_of_a_check(directory: Path) -> None:
    warning = "'*.co.uk' covers a public suffix, under which anyone can have a host [public-suffix]"
    told = run(directory, "*.co.uk", *GRANT)
    assert re.search(rf"  warning +grant 'grant-co-uk': {re.escape(warning)}\n", told)
    assert json.loads(run(directory, "*.org.uk", *GRANT, "--json"))["warnings"] == [
        "grant 'grant-org-uk': '*.org.uk' covers a public suffix, under which anyone can have a host [public-suffix]"
    ]


def test_what_cannot_be_granted_is_told_without_a_place_in_a_file(
    directory: Path,
) -> None:
    told = run(directory, "docs.example", *GRANT, "--method", "get", status=1)
    assert "'get' is not upper-case" in told
    assert "grants.yaml" not in told
    assert "expected at most 366d" in run(
        directory, "docs.example", *GRANT, "--for", "367d", status=2
    )
    assert "'--uses'" in run(directory, "docs.example", *GRANT, "--uses", "0", status=2)


def test_a_prune_of_another_policy_forgets_no_uses(
    directory: Path, tmp_path: Path
) -> None:
    name = run(directory, "docs.example", *GRANT, "--uses", "1").split()[1]
    put_in_force(directory)
    count = count_old(directory, name)
    other = write_policy(tmp_path / "other/policy", POLICY)
    places = ["--policy", str(other), "--state", str(directory.parent / "state")]
    assert CliRunner().invoke(main, ["grant", "--prune", *places]).exit_code == 0
    assert count.exists()


def test_a_prune_forgets_the_uses_of_a_revoked_grant_once_it_is_no_longer_in_force(
    directory: Path,
) -> None:
    name = run(directory, "docs.example", *GRANT, "--uses", "1").split()[1]
    put_in_force(directory)
    count = count_old(directory, name)
    run(directory, "--revoke", name)
    run(directory, "--prune")
    # helpers may go by it still: an edit of the policy holds the revocation up
    assert count.exists()
    put_in_force(directory)
    run(directory, "--prune")
    assert not count.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("docs.example", "--list"),
        ("--list", "--prune"),
        ("docs.example",),
        (
            "docs.example",
            "--client",
            "agents",
            "--any-client",
            "--for",
            "2h",
            "--reason",
            "x",
        ),
        ("docs.example", "--client", "agents", "--for", "2h"),
        ("docs.example", "--client", "agents", "--for", "2", "--reason", "x"),
        ("docs.example/x?y", *GRANT),
        ("docs.example", *GRANT, "--branch", "next"),
    ],
)
def test_the_command_tells_what_it_expects(
    directory: Path, arguments: tuple[str, ...]
) -> None:
    assert "xpected" in run(directory, *arguments, status=2)


def test_nothing_that_is_not_printable_reaches_the_terminal(directory: Path) -> None:
    grants_file(directory).write_text(
        'version: 1\ngrants: [{name: "g", any_client: true, hosts: [a.example], paths: ["/\\u202e"],'
        ' expires: 2036-01-01T00:00:00Z, reason: "x\\u202e"}]'
    )
    told = run(directory, "--list")
    assert all(line.isprintable() for line in told.splitlines())
