"""`squidkeeper replay`: which policies it takes, what it prints, and its exit
status.
"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from squidkeeper.change.replay.replay import SET_APART
from squidkeeper.cli import main
from squidkeeper.policy.policy_store.loading import load_sources
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import grants_file, read_sources
from squidkeeper.policy.published.places import mark_in_force

from ..conftest import NOW
from ..markup import HOSTILE, keys_in, keys_told
from ..records import after_noon, record_line

OLD = """
version: 1
rules:
  - {name: code, action: allow, hosts: [code.example]}
  - {name: api, action: allow, hosts: [api.example]}
secrets: {key: {env: REPLAY_KEY}}
"""
NEW = """
version: 1
rules:
  - {name: no-push, action: deny, hosts: [code.example], paths: [/**/git-receive-pack]}
  - {name: code, action: allow, hosts: [code.example, new.example]}
  - {name: api, action: allow, hosts: [api.example]}
secrets: {key: {env: REPLAY_KEY}}
credentials: [{name: key, hosts: [api.example], bearer: key}]
"""


class Site:
    """A state folder in which a policy is in force, a draft of another one, and an
    access log.
    """

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.old = self.write(folder / "old", OLD)
        self.draft = self.write(folder / "draft", NEW)
        self.log = folder / "access.log"
        self.in_force = self.store(self.old)
        mark_in_force(self.state / "revisions", self.in_force)

    @staticmethod
    def write(folder: Path, text: str) -> Path:
        folder.mkdir()
        (folder / "policy.yaml").write_text(text)
        return folder

    def store(self, folder: Path) -> str:
        """Store a policy as a revision that was in force."""
        sources = read_sources(folder)
        revision = load_sources(sources, NOW).compiled.revision
        store_revision(sources, revision, self.state / "revisions")
        return revision

    def logged(self, *requests: dict[str, Any]) -> None:
        lines = (
            record_line(
                **{
                    "time": after_noon(second),
                    "rule": "code",
                    "revision": self.in_force,
                    "sni": host,
                    **asked,
                }
            )
            for second, asked in enumerate(requests)
            for host in [asked["url"].split("/")[2]]
        )
        self.log.write_bytes(b"".join(line + b"\n" for line in lines))

    def replay(self, *arguments: object) -> Result:
        given = ("replay", *arguments, "--state", self.state, self.log)
        return CliRunner(catch_exceptions=False).invoke(
            main, [*map(str, given)], prog_name="squidkeeper"
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    # of this process
    monkeypatch.setattr(
        "squidkeeper.record.table.database.yield_to_squid", lambda: None
    )
    found = Site(tmp_path)
    found.logged(*REQUESTS)
    return found


def inside(method: str, url: str, **fields: Any) -> dict[str, Any]:
    return {
        "method": method,
        "url": url,
        "tunnel": f"{url.split('/')[2]}%3A443",
        "request_id": "1.2.3.4",
        **fields,
    }


PUSH = "https://code.example/acme/app/git-receive-pack"
REQUESTS = (
    *(
        inside("POST", f"{PUSH}?token=hidden", client=f"192.168.137.{number}")
        for number in range(6)
    ),
    inside("GET", "https://code.example/acme/app"),
    inside("GET", "https://new.example/", verdict="deny", rule="default", status=403),
    inside("GET", "https://api.example/v1", rule="api"),
    inside("GET", "https://code.example/", verdict=None)
    | {"verdict": "-", "rule": "-"},
)
TABLE = """\
9 requests judged by both policies, 2026-11-25 12:00:00 to 2026-11-25 12:00:08 UTC.
OLD: revision {old}, in force
NEW: {draft} (revision {new})

would be denied: 6 requests, 6 of them used
RULE     WAS   CLIENT         HOST          REQUESTS  USED  URLS  LAST                 EXAMPLE
no-push  code  192.168.137.0  code.example         1     1     1  2026-11-25 12:00:00  POST {push}
no-push  code  192.168.137.1  code.example         1     1     1  2026-11-25 12:00:01  POST {push}
no-push  code  192.168.137.2  code.example         1     1     1  2026-11-25 12:00:02  POST {push}
no-push  code  3 others       code.example         3     3     -  2026-11-25 12:00:05  POST {push}

would be opened: 1 request, 0 of them used
RULE  WAS      CLIENT         HOST         REQUESTS  USED  URLS  LAST                 EXAMPLE
code  default  192.168.137.2  new.example         1     0     1  2026-11-25 12:00:07  GET https://new.example/

would get another credential or rewrite: 1 request, 1 of them used
RULE  WAS  CLIENT         HOST         REQUESTS  USED  URLS  LAST                 CHANGES  EXAMPLE
api   api  192.168.137.2  api.example         1     1     1  2026-11-25 12:00:08  +key     GET https://api.example/v1

not judged (unasked): 1 request: {unasked}
"""
UNASKED = "no helper was asked: Squid refused the request, or a line of the operator's own decided"


def test_a_draft_is_replayed_against_the_policy_in_force(site: Site) -> None:
    done = site.replay("--policy", site.draft)
    new = site.store(site.draft)
    assert done.output == TABLE.format(
        old=site.in_force, draft=site.draft, new=new, push=PUSH, unasked=UNASKED
    )
    assert done.exit_code == 1


@pytest.mark.parametrize(("allowed", "status"), [(5, 1), (6, 0)])
def test_more_denials_of_used_requests_than_are_allowed_fail(
    site: Site, allowed: int, status: int
) -> None:
    assert (
        site.replay("--policy", site.draft, "--allow-denials", allowed).exit_code
        == status
    )


def test_what_was_not_used_may_be_denied(site: Site) -> None:
    site.logged(
        inside("POST", PUSH, status=404),
        inside("POST", PUSH, verdict="deny", status=403),
    )
    done = site.replay("--policy", site.draft)
    assert "would be denied: 2 requests, 0 of them used" in done.output
    assert done.exit_code == 0


def test_stored_revisions_are_replayed_by_their_names(site: Site) -> None:
    new = site.store(site.draft)
    done = site.replay("--policy", site.in_force, "--against", new, "--json")
    found = json.loads(done.output)
    assert (found["old"], found["new"]) == (
        {"name": f"revision {new}", "revision": new},
        {"name": f"revision {site.in_force}", "revision": site.in_force},
    )
    assert found["totals"]["denied"] == {"requests": 1, "used": 0, "groups": 1}
    assert found["disagreeing"] == 7, "another policy decided these"


def test_json_has_every_group(site: Site) -> None:
    found = json.loads(site.replay("--policy", site.draft, "--json").output)
    (pushed, *others) = [flip for flip in found["flips"] if flip["kind"] == "denied"]
    assert len(others) == 5
    assert pushed == {
        "kind": "denied",
        "rule": "no-push",
        "was": "code",
        "asks": False,
        "observed": None,
        "credentials_gained": [],
        "credentials_lost": [],
        "rewrite": None,
        "rewrite_was": None,
        "client": "192.168.137.0",
        "user": None,
        "policy_clients": [],
        "host": "code.example",
        "requests": 1,
        "used": 1,
        "urls": 1,
        "first": "2026-11-25T12:00:00.000Z",
        "last": "2026-11-25T12:00:00.000Z",
        "example": {
            "time": "2026-11-25T12:00:00.000Z",
            "method": "POST",
            "url": PUSH,
            "request_id": "1.2.3.4",
        },
    }
    assert found["set_apart"] == {"unasked": 1}
    (gained,) = [flip for flip in found["flips"] if flip["kind"] == "changed"]
    assert gained["credentials_gained"] == ["key"]


def test_a_policy_replayed_against_itself_says_so(site: Site) -> None:
    done = site.replay("--policy", site.old)
    assert "\nnothing would be denied, opened or changed\n" in done.output
    assert done.exit_code == 0


def test_the_access_log_can_disagree_with_the_old_policy(site: Site) -> None:
    site.logged(
        inside("GET", "https://code.example/", verdict="deny", rule="no", status=403)
    )
    done = site.replay("--policy", site.draft)
    assert (
        "decided otherwise than by OLD when they were logged: 1 request\n"
        in done.output
    )


def test_what_a_policy_would_observe_is_told(site: Site) -> None:
    draft = "version: 1\nrules: [{name: old, action: deny, observe: true, hosts: [code.example]}]\n"
    draft += "defaults: {action: allow}\n"
    done = site.replay("--policy", site.write(site.state / "observing", draft))
    assert (
        "NEW would record deny:old as observed: 7 requests, 7 of them used\n"
        in done.output
    )


CLIENTS = """
clients:
  agents: {networks: [192.168.137.0/29]}
  people: {users: [ann, tom]}
  builders: {networks: [192.168.138.0/24]}
"""
BY_CLIENT = """
RULE     WAS   CLIENT                               HOST          REQUESTS  USED  URLS  LAST                 EXAMPLE
no-push  code  agents: 4 addresses                  code.example         6     4     -  2026-11-25 12:00:11  POST {push}
no-push  code  people: 2 users, 2 addresses         code.example         3     3     -  2026-11-25 12:00:06  POST {push}
no-push  code  people, builders: tom@192.168.138.1  code.example         1     1     1  2026-11-25 12:00:07  POST {push}
no-push  code  192.168.139.1                        code.example         1     1     1  2026-11-25 12:00:08  POST {push}
no-push  code  192.168.139.2                        code.example         1     1     1  2026-11-25 12:00:09  POST {push}
"""


def test_addresses_of_a_client_of_the_policy_are_one_row(site: Site) -> None:
    (site.old / "policy.yaml").write_text(OLD + CLIENTS)
    askers = [
        *(("-", f"192.168.137.{number}") for number in range(4)),
        *(
            ("ann", "192.168.1.1"),
            ("ann", "192.168.1.2"),
            ("tom", "192.168.1.1"),
            ("tom", "192.168.138.1"),
        ),
        *(("-", f"192.168.139.{number}") for number in (1, 2)),
    ]
    site.logged(
        *(inside("POST", PUSH, client=address, user=user) for user, address in askers),
        inside("POST", PUSH, client="192.168.137.0", verdict="deny"),
        inside(
            "POST", PUSH.replace("app", "other"), client="192.168.137.3", status=404
        ),
    )
    done = site.replay("--policy", site.draft, "--against", site.old)
    assert BY_CLIENT.format(push=PUSH) in done.output
    found = json.loads(
        site.replay("--policy", site.draft, "--against", site.old, "--json").output
    )
    named = {
        (flip["user"], flip["client"]): flip["policy_clients"]
        for flip in found["flips"]
    }
    assert len(named) == len(askers), "JSON has each address"
    assert (named["tom", "192.168.138.1"], named[None, "192.168.139.1"]) == (
        ["people", "builders"],
        [],
    )


def test_a_client_that_only_the_draft_has_is_named(site: Site) -> None:
    (site.draft / "policy.yaml").write_text(NEW + CLIENTS)
    assert (
        "no-push  code  agents: 6 addresses"
        in site.replay("--policy", site.draft).output
    )


GRANT = """\
version: 1
grants: [{name: g, any_client: true, hosts: [ask.example], expires: 2036-01-01T00:00:00Z, reason: x}]
"""


def test_a_draft_has_the_grants_of_the_old_policy_and_says_so(site: Site) -> None:
    granted = grants_file(site.old)
    granted.write_text(GRANT)
    mark_in_force(site.state / "revisions", site.store(site.old))
    site.logged(inside("GET", "https://ask.example/", rule="g"))
    draft = site.write(site.state / "draft", OLD + "# a draft\n")
    done = site.replay("--policy", draft)
    assert "nothing would be denied, opened or changed" in done.output
    assert re.search(
        r"^NEW: .*draft \(revision [0-9a-f]{12}, with the grants of OLD\)$",
        done.output,
        re.MULTILINE,
    )
    assert site.replay("--policy", site.in_force).exit_code == 1, (
        "a stored revision is complete"
    )

    grants_file(draft).write_text(GRANT.replace("ask.example", "other.example"))
    done = site.replay("--policy", draft)
    assert (
        "would be denied: 1 request, 1 of them used" in done.output,
        done.exit_code,
    ) == (True, 1)
    assert "the grants of OLD" not in done.output, "a draft with its own"


def test_a_draft_that_is_put_in_force_keeps_the_revision_that_was_named(
    site: Site,
) -> None:
    grants_file(site.old).write_text(GRANT)
    draft = site.write(site.state / "draft", NEW)
    named = json.loads(
        site.replay("--policy", draft, "--against", site.old, "--json").output
    )["new"]["revision"]
    (site.old / "policy.yaml").write_text(NEW)
    assert named == read_sources(site.old).revision


MARKDOWN = r"""
### Would be opened: 1 request, 0 of them used

| rule | was | client | host | requests | used | urls | last | example |
|---|---|---|---|---|---|---|---|---|
| `code` | `default` | `a%60%7C@192.168.137.2` | `new.example` | 1 | 0 | 1 | `2026-11-25 12:00:00` | `G%60ET https://new.example/%7C%60[x](//y)@z` |
"""  # noqa: E501 - a row


def test_markdown_of_a_hostile_client_is_in_code_spans(site: Site) -> None:
    hostile = inside(
        "G`ET",
        "https://new.example/|`[x](//y)@z",
        user="a`|",
        verdict="deny",
        rule="no",
        status=403,
    )
    site.logged(hostile)
    done = site.replay("--policy", site.draft, "--markdown")
    assert MARKDOWN in done.output


@pytest.mark.parametrize("form", ["--markdown", "--json", None])
def test_nothing_of_a_client_reaches_the_output_unescaped(
    site: Site, form: str | None
) -> None:
    texts = [text for text in HOSTILE if text != "\ud800"]
    site.logged(
        *(
            inside(
                "GET",
                f"https://new.example/{text}"[:4000],
                user=text[:200],
                verdict="deny",
                rule="no",
            )
            for text in texts
        )
    )
    output = site.replay("--policy", site.draft, *((form,) if form else ())).output
    assert all(line.isprintable() and len(line) < 5_000 for line in output.splitlines())
    outside_of_code = "".join(output.split("`")[::2])
    assert form != "--markdown" or not {*"<>[]{}@"} & {*outside_of_code}


def test_the_guide_has_every_key_of_the_json_and_every_reason_why_a_request_is_not_judged(
    site: Site,
) -> None:
    guide = (Path(__file__).parents[2] / "policy/CHANGING.md").read_text()
    told = keys_told(
        guide.partition("\n## Replay\n")[2].partition("\n## Reload gate\n")[0]
    )
    assert told >= keys_in(
        json.loads(site.replay("--policy", site.draft, "--json").output)
    )
    assert told >= SET_APART.keys()


@pytest.mark.parametrize("form", ["--markdown", "--json", None])
@pytest.mark.parametrize(
    "content",
    [b"", b"# A document\n\nNot one.\n", record_line(verdict="-", rule="-") + b"\n"],
)
def test_where_no_request_was_judged_nothing_is_told(
    site: Site, content: bytes, form: str | None
) -> None:
    site.log.write_bytes(content)
    done = site.replay("--policy", site.draft, *((form,) if form else ()))
    assert done.exit_code == 2
    assert done.output.endswith(
        f"Error: no request of {site.log} was judged: nothing can be told\n"
    )
    assert "nothing would be denied" not in done.output
    assert ("3 invalid lines skipped" in done.output) == (b"document" in content)
    assert form or "No request was judged." in done.output


# --- what cannot be used --------------------------------------------------------------

UNUSABLE = [
    (
        ("--policy", "{draft}", "--against", "000000000000"),
        "'000000000000' is neither a folder nor a revision",
    ),
    (
        ("--policy", "{draft}", "--against", "../state"),
        "../state is no folder, as far as this account can read",
    ),
    (("--policy", "{state}/missing"), "/missing is no folder"),
    (("--policy", "{broken}"), "{broken} does not load"),
    (
        ("--policy", "{draft}", "--json", "--markdown"),
        "give one of --json and --markdown",
    ),
    (
        ("--policy", "{draft}", "--since", "1h", "--until", "2h"),
        "the period ends before it begins",
    ),
    (("--policy", "{draft}", "{state}/no.log"), "no.log"),
]


@pytest.mark.parametrize(("arguments", "message"), UNUSABLE)
def test_what_cannot_be_used_is_told_with_status_2(
    site: Site, arguments: tuple[str, ...], message: str
) -> None:
    broken = site.write(site.state / "broken", "version: 1\nrules: [{name: x}]\n")
    names = {"draft": site.draft, "state": site.state, "broken": broken}
    done = site.replay(*(argument.format(**names) for argument in arguments))
    assert message.format(**names) in done.output
    assert done.exit_code == 2


def test_without_a_policy_in_force_the_old_one_has_to_be_named(site: Site) -> None:
    (site.state / "revisions/in-force").unlink()
    done = site.replay("--policy", site.draft)
    assert (
        f"{site.state}: no policy is in force here" in done.output,
        done.exit_code,
    ) == (True, 2)
    assert site.replay("--policy", site.draft, "--against", site.old).exit_code == 1


def test_a_stored_revision_that_does_not_load_reaches_a_terminal_escaped(
    site: Site,
) -> None:
    """Its files are named as another account likes."""
    manifest = site.state / "revisions" / site.in_force / "sources.json"
    raw = json.loads(manifest.read_text())
    raw["directory"] += "\x07"
    stored = manifest.parent / "policy" / "policy.yaml"
    stored.write_text(f"{stored.read_text()}\nother: 1\n")
    raw["documents"]["policy.yaml"] = sha256(stored.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(raw))
    done = site.replay("--policy", site.in_force)
    assert done.exit_code == 2
    assert "unknown-key" in done.output
    assert "\x07" not in done.output
