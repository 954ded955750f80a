"""`squidkeeper tighten`: what it prints, and the edit that it writes."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from squidkeeper.base.errors import EditRefused
from squidkeeper.change.tightening.edits import edited_documents
from squidkeeper.cli import main
from squidkeeper.policy.policy_store.loading import load, load_sources
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.published.places import mark_in_force

from ..conftest import NOW
from ..markup import HOSTILE
from ..records import after_noon, record_line

POLICY = """\
# The policy of a test.
version: 1
clients:
  vms: {networks: [192.168.137.0/24]}
  nobody: {networks: [203.0.113.0/24]}
rules:
  # Never from here.
  - {name: no-push, action: deny, hosts: [code.example], paths: ["/**/git-receive-pack"]}
  - name: code # read and written
    action: allow
    hosts:
      - code.example # the forge
      - old-code.example
    methods: [GET, "PUT", POST]

  # Gone next year.
  - {name: legacy, action: allow, hosts: [legacy.example], schemes: [https]}
  - {name: packages, action: allow, hosts: ['*.packages.example'], schemes: [https], methods: [GET]} # pinned
defaults: {action: deny}
"""
NARROWED = """\
# The policy of a test.
version: 1
clients:
  vms: {networks: [192.168.137.0/24]}
  nobody: {networks: [203.0.113.0/24]}
rules:
  # Never from here.
  - {name: no-push, action: deny, hosts: [code.example], paths: ["/**/git-receive-pack"]}
  - name: code # read and written
    action: allow
    hosts:
      - code.example # the forge
    schemes: [https]
    paths: ["/acme/*/info", "/acme/app"]
    methods: [GET, "PUT"]

  # Gone next year.
  - {name: packages, action: allow, hosts: ["a.packages.example"], paths: ["/simple/x"], schemes: [https], methods: [GET]} # pinned
defaults: {action: deny}
"""  # noqa: E501
GRANTS = """\
version: 1
grants:
  - {name: g, hosts: [g.example], any_client: true, expires: "2099-01-01T00:00:00Z", reason: Now.}
"""
REQUESTS = (
    *(("GET", f"https://code.example/acme/{number}/info") for number in range(20)),
    ("PUT", "https://code.example/acme/app"),
    ("GET", "https://a.packages.example/simple/x?v=1"),
)
TABLE = """\
22 requests from 1 address judged by revision {revision}, in force, 2026-11-25 12:00:00 to 2026-11-25 12:00:21 UTC.
The access log covers 21 s: too short to narrow a policy by it, expected 30 days (--min-days 30; 0 takes any length). \
What a monthly job needs looks unused.

never used, and closed without them: 1 rule
RULE    PLACE           CLOSES
legacy  policy.yaml:17  legacy.example; schemes https

wider than their use: 2 rules; narrower, they still allow all 22 requests
RULE      REQUESTS  SHARE  DAYS  CLIENTS  LAST                 FIELD    CLOSES                          NARROWER
code            21  95 %      1        1  2026-11-25 12:00:20  hosts    old-code.example                code.example
                                                               schemes  http                            https
                                                               methods  POST                            GET, PUT
                                                               paths    every other path                /acme/*/info, /acme/app
packages         1  4.5 %     1        1  2026-11-25 12:00:21  hosts    the rest of *.packages.example  a.packages.example
                                                               paths    every other path                /simple/x

never used, and kept: 1 rule
RULE     PLACE          ACTION  BECAUSE
no-push  policy.yaml:8  deny    it may be what protects

clients from which no request came: nobody
"""  # noqa: E501


class Site:
    """A folder with a policy that is in force, its state and an access log."""

    def __init__(self, folder: Path) -> None:
        self.policy, self.state, self.log = (
            folder / "policy",
            folder / "state",
            folder / "access.log",
        )
        self.policy.mkdir()
        self.revision = self.in_force(POLICY)
        self.logged(*REQUESTS)

    def in_force(self, text: str) -> str:
        (self.policy / "policy.yaml").write_text(text)
        sources = read_sources(self.policy)
        revision = load_sources(sources, NOW).compiled.revision
        store_revision(sources, revision, self.state / "revisions")
        mark_in_force(self.state / "revisions", revision)
        return revision

    def logged(self, *requests: tuple[str, str], **fields: Any) -> None:
        lines = (
            record_line(
                time=after_noon(second),
                method=method,
                url=url,
                sni=host,
                tunnel=f"{host}%3A443",
                **fields,
            )
            for second, (method, url) in enumerate(requests)
            for host in [url.split("/")[2]]
        )
        self.log.write_bytes(b"".join(line + b"\n" for line in lines))

    def tighten(self, *arguments: object) -> Result:
        given = ("tighten", *arguments, "--state", self.state, self.log)
        return CliRunner(catch_exceptions=False).invoke(
            main, [*map(str, given)], prog_name="squidkeeper"
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    # of this process
    monkeypatch.setattr(
        "squidkeeper.record.table.database.yield_to_squid", lambda: None
    )
    return Site(tmp_path)


def test_a_table_shows_what_is_not_used_and_what_is_wider_than_its_use(
    site: Site,
) -> None:
    done = site.tighten()
    assert done.output == TABLE.format(revision=site.revision)
    assert done.exit_code == 0


def test_the_edit_keeps_comments_order_and_quotes(site: Site, tmp_path: Path) -> None:
    done = site.tighten("--min-days", 0, "--output", tmp_path / "narrow")
    assert done.exit_code == 0
    assert (tmp_path / "narrow" / "policy.yaml").read_text() == NARROWED
    assert [
        rule.name for rule in load(tmp_path / "narrow", NOW).compiled.source.rules
    ] == [
        "no-push",
        "code",
        "packages",
    ]


@pytest.mark.system
def test_a_diff_is_one_that_patch_applies(site: Site) -> None:
    done = site.tighten("--min-days", 0, "--diff")
    subprocess.run(
        ["patch", "-p0", "-s", site.policy / "policy.yaml"],
        input=done.output,
        text=True,
        check=True,
    )
    assert (site.policy / "policy.yaml").read_text() == NARROWED


def test_the_narrowed_policy_denies_nothing_of_the_record(
    site: Site, tmp_path: Path
) -> None:
    site.tighten("--min-days", 0, "--output", tmp_path / "narrow")
    arguments = [
        "replay",
        "--policy",
        tmp_path / "narrow",
        "--state",
        site.state,
        site.log,
    ]
    done = CliRunner(catch_exceptions=False).invoke(main, [*map(str, arguments)])
    assert "nothing would be denied, opened or changed" in done.output


@pytest.mark.parametrize("option", [["--diff"], ["--output", "narrow"]])
def test_a_short_record_gives_no_edit(
    site: Site, option: list[str], tmp_path: Path
) -> None:
    done = site.tighten(
        *[str(tmp_path / word) if word == "narrow" else word for word in option]
    )
    assert done.output == (
        "Error: the access log covers 21 s: too short to narrow a policy by it, expected 30 days"
        " (--min-days 30; 0 takes any length)\n"
    )
    assert done.exit_code == 1
    assert not (tmp_path / "narrow").exists()


@pytest.mark.parametrize("option", [[], ["--json"], ["--diff"], ["--output", "narrow"]])
def test_where_no_request_was_judged_nothing_is_told_or_edited(
    site: Site, option: list[str], tmp_path: Path
) -> None:
    site.logged()
    done = site.tighten(
        "--min-days",
        0,
        *[str(tmp_path / word) if word == "narrow" else word for word in option],
    )
    assert (
        done.output
        == f"Error: no request of {site.log} was judged: nothing can be told\n"
    )
    assert done.exit_code == 2
    assert not (tmp_path / "narrow").exists()


def test_a_record_that_begins_later_than_asked_for_is_named(site: Site) -> None:
    done = site.tighten("--since", "2026-10-26T12:00:00Z")
    assert (
        "The access log begins on 2026-11-25 12:00:00, not at 2026-10-26 12:00:00.\n"
        in done.output
    )


def test_the_policy_of_a_folder_is_narrowed(site: Site) -> None:
    (site.policy / "policy.yaml").write_text(POLICY.replace("legacy", "other"))
    found = json.loads(
        site.tighten("--policy", site.policy, "--json", "--min-days", 0).output
    )
    assert found["unused"] == [
        {
            "rule": "other",
            "place": f"{site.policy}/policy.yaml:17:5",
            "holds": None,
            "closes": "other.example; schemes https",
        }
    ]
    assert [rule["rule"] for rule in found["narrowed"]] == ["code", "packages"]
    assert found["narrowed"][1]["fields"][0] == {
        "field": "hosts",
        "now": ["*.packages.example"],
        "narrower": ["a.packages.example"],
        "closes": "the rest of *.packages.example",
    }
    assert found["too_short"] is None


def test_when_a_rule_holds_is_shown(site: Site) -> None:
    site.in_force("""version: 1
rules:
  - {name: a, action: allow, hosts: [code.example], expires: "2099-01-01T00:00:00Z"}
  - {name: b, action: allow, hosts: [b.example], when: {hours: "22:00-06:00", timezone: Europe/Berlin}}
""")
    found = json.loads(site.tighten("--json").output)
    assert found["narrowed"][0]["holds"] == "until 2099-01-01 00:00:00"
    assert (found["kept"][0]["holds"], found["kept"][0]["reason"]) == (
        "22:00-06:00 Europe/Berlin",
        "scheduled",
    )
    assert "HOLDS" in site.tighten().output


def test_a_policy_that_has_grants_beside_it_is_narrowed_without_them(
    site: Site, tmp_path: Path
) -> None:
    (site.policy.parent / "grants.yaml").write_text(GRANTS)
    for named in ([], ["--policy", site.policy]):
        site.in_force(POLICY)
        done = site.tighten(
            *named, "--min-days", 0, "--output", tmp_path / f"narrow-{len(named)}"
        )
        assert done.exit_code == 0
        assert [
            file.name for file in (tmp_path / f"narrow-{len(named)}").iterdir()
        ] == ["policy.yaml"]


def test_a_rule_that_does_not_begin_a_line_is_edited_by_hand(site: Site) -> None:
    site.in_force(
        "version: 1\nrules: [{name: a, action: allow, hosts: [code.example]}]\n"
    )
    done = site.tighten("--min-days", 0, "--diff")
    assert done.output == (
        f"Error: {site.policy}/policy.yaml:2: a rule here does not begin a line: edit it by hand\n"
    )
    assert done.exit_code == 1


def test_an_edit_that_would_change_another_rule_is_made_by_hand(site: Site) -> None:
    site.in_force("""version: 1
rules:
  - {name: a, action: allow, hosts: &both [code.example, b.example]}
  - {name: b, action: deny, hosts: *both, ports: [8443]}
""")
    done = site.tighten("--min-days", 0, "--diff")
    assert done.output.endswith(
        "the policy does not load with these edits: edit it by hand\n"
    )
    assert done.exit_code == 1


def test_files_that_do_not_become_what_was_proven_are_edited_by_hand(
    site: Site,
) -> None:
    sources = read_sources(site.policy)
    policy = load_sources(sources, NOW).compiled.source
    legacy = next(rule for rule in policy.rules if rule.name == "legacy")
    other = replace(policy, rules=(*policy.rules, replace(legacy, name="elsewhere")))
    with pytest.raises(
        EditRefused, match="has a form that this command cannot edit: edit it by hand"
    ):
        edited_documents(sources, other, {"legacy": None}, None)


def test_an_unused_rule_that_a_quota_names_stays_and_the_others_are_edited(
    site: Site,
) -> None:
    site.in_force(
        f"{POLICY}quotas: [{{name: few, per: client, rules: [legacy, packages], requests: 5, every: day}}]\n"
    )
    done = site.tighten("--min-days", 0, "--diff")
    assert done.exit_code == 0
    assert "-  - {name: packages" in done.output
    assert "-  - {name: legacy" not in done.output
    assert (
        "legacy   policy.yaml:17  allow   a test or a quota needs it"
        in site.tighten().output
    )


def test_a_file_in_which_no_rule_is_used_keeps_none(site: Site) -> None:
    (site.policy / "10-other.yaml").write_text(
        "version: 1\nrules:\n  - {name: b, action: allow, hosts: [b.example]}\n"
    )
    site.in_force(POLICY)
    done = site.tighten("--min-days", 0, "--diff")
    assert (
        "-rules:\n-  - {name: b, action: allow, hosts: [b.example]}\n--- "
        in done.output
    )


def test_what_clients_sent_cannot_write_to_a_terminal_or_into_yaml(site: Site) -> None:
    site.logged(
        *(
            ("GET", f"https://code.example/{sent}")
            for sent in HOSTILE
            if " " not in sent
        )
    )
    shown = site.tighten("--min-days", 0).output
    assert all(line.isprintable() for line in shown.splitlines())
    diff = site.tighten("--min-days", 0, "--diff")
    assert diff.exit_code == 0
    assert all(line.isprintable() for line in diff.output.splitlines())
