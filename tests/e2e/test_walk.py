"""One walk of every capability through a real Squid: three gateways, one request or
command for each.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from websockets.sync.server import Server

from squidkeeper.policy.engine.explain import explain
from squidkeeper.policy.language.model import Token
from squidkeeper.record.log.drift import PastPolicies
from squidkeeper.record.log.record import NONE, parse_time
from squidkeeper.record.log.requests import request_of, told_by_body, unexplained
from tests import aws
from tests.waiting import wait_for

from .curl import curl
from .dns import Names
from .expect import allowed, denied
from .gateway import EXTRAS, REPOSITORY, Gateway, NewGateway, Site
from .network import run
from .observer import fetch
from .origin import Origins
from .raw import Raw, tunnel
from .test_drift import drift_of, records
from .websocket import open_websocket

pytestmark = pytest.mark.walk

TOKEN, KEY = "sqk_token-of-the-walk-0123456789", "e2e-key-of-the-walk-0123456789"
POLICY = f"""
version: 1
defaults: {{reason: Ask the platform team.}}
clients:
  builders: {{networks: [127.0.0.2/32]}}
  bot: {{token_sha256: {Token.of(TOKEN).sha256}}}
rules:
  - {{name: no-push, action: deny, hosts: [git.example], paths: ["/**/git-receive-pack"], reason: Read-only.}}
  - {{name: retired, action: deny, observe: true, hosts: [git.example], paths: [/acme/old]}}
  - {{name: git, action: allow, hosts: [git.example], paths: ["/acme/**"]}}
  - {{name: reading, action: allow, hosts: [api.example], methods: [GET, HEAD]}}
  - {{name: pages, action: allow, hosts: [query.example], query: {{page: "*"}}}}
  - {{name: builders-only, action: allow, clients: [builders], hosts: [build.example]}}
  - {{name: bot-only, action: allow, clients: [bot], hosts: [bot.example]}}
  - {{name: asked, action: ask, hosts: [asked.example], reason: Ask Ann.}}
  - {{name: pinned, action: allow, hosts: [pinned.example], tls: passthrough}}
  - {{name: by-name, action: allow, hosts: [.rebind.example]}}
  - {{name: inside, action: allow, hosts: [inside.example], private: true}}
  - {{name: chat, action: allow, hosts: [chat.example], ports: [9443], websocket: true}}
  - {{name: stripped, action: allow, hosts: [strip.example], strip: [Cookie]}}
  - {{name: counted, action: allow, hosts: [counted.example]}}
  - {{name: keyed, action: allow, hosts: [header.example, parameter.example, bucket.s3.example]}}
  - {{name: fronts, action: allow, hosts: [front.example]}}
  - {{name: small-model, action: allow, hosts: [llm.example], body: {{json: {{/model: [small]}}}}}}
rewrites:
  - {{name: front, hosts: [front.example], to: "https://header.example/moved{{path}}{{query}}"}}
secrets:
  key: {{file: secrets/key}}
  missing: {{file: secrets/missing}}
credentials:
  - {{name: header, hosts: [header.example], headers: {{Authorization: "Bearer {{key}}", X-Acme-Key: "{{key}}"}}}}
  - {{name: parameter, hosts: [parameter.example], parameters: {{api_key: "{{key}}"}}}}
  - name: s3
    hosts: [bucket.s3.example]
    aws_sigv4: {{access_key_id: key, secret_access_key: key, region: eu-central-1}}
  - {{name: lost, hosts: [api.example], paths: [/lost], bearer: missing}}
quotas:
  - {{name: few, per: client, rules: [counted], requests: 2, every: day}}
"""


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, names: Names) -> Gateway:
    names.set("inside.example", ["10.0.0.5"])
    names.set("moved.rebind.example", ["10.0.0.5"])
    made = new_gateway(POLICY, secrets={"key": KEY + "\n"})
    made.remember(TOKEN)
    return made.start()


def command(gateway: Gateway, *words: str | Path, status: int = 0) -> str:
    """Run a command of the gateway's own program; return what it prints."""
    done = gateway.command(*words)
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout


# ── One gateway, one policy with a rule for each thing ────────────────────────────────

ALLOWED: list[tuple[str, str, tuple[str, ...], str]] = [
    ("https://git.example/acme/app?x=1", "git", (), "127.0.0.1"),
    ("http://git.example/acme/app", "git", (), "127.0.0.1"),
    ("https://api.example/v1", "reading", (), "127.0.0.1"),
    ("https://query.example/x?page=2", "pages", (), "127.0.0.1"),
    ("https://build.example/", "builders-only", (), "127.0.0.2"),
    ("https://bot.example/", "bot-only", ("--proxy-user", f"bot:{TOKEN}"), "127.0.0.1"),
]
DENIED: list[tuple[str, str, tuple[str, ...]]] = [
    ("https://other.example/", "default", ()),
    ("http://other.example/", "default", ()),
    ("https://git.example/other/app", "default", ()),
    ("https://git.example/acme/app/git-receive-pack", "no-push", ()),
    ("https://api.example/v1", "default", ("--request", "DELETE")),
    ("https://query.example/x?pages=2", "default", ()),
    ("https://build.example/", "default", ()),
    ("http://127.0.0.1/", "default", ()),
]


@pytest.mark.parametrize(
    ("url", "rule", "options", "client"), ALLOWED, ids=[row[0] for row in ALLOWED]
)
def test_what_a_rule_allows_arrives_and_is_recorded(
    gateway: Gateway,
    origins: Origins,
    url: str,
    rule: str,
    options: tuple[str, ...],
    client: str,
) -> None:
    seen = allowed(gateway, origins, url, rule, *options, client=client)
    assert seen.url == url
    assert seen.values("Proxy-Authorization") == []


@pytest.mark.parametrize(
    ("url", "rule", "options"), DENIED, ids=[f"{row[0]}-{row[1]}" for row in DENIED]
)
def test_what_no_rule_allows_is_denied_and_recorded(
    gateway: Gateway, origins: Origins, url: str, rule: str, options: tuple[str, ...]
) -> None:
    before = len(gateway.log())
    reply = curl(gateway, url, *options)
    assert (reply.status, reply.rule) == (403, rule), reply.text
    line = gateway.logged(url, before)
    assert (line["status"], line["verdict"] in ("deny", "-")) == (403, True), line
    assert origins.seen == []


def test_an_https_request_is_bumped_with_a_certificate_of_the_gateways(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "git.example:443") as client:
        answers = [
            client.get(path, "git.example")
            for path in ("/acme/a", "/acme/git-receive-pack")
        ]
        assert client.names() == ["git.example"]
    assert [(answer.status, answer.rule) for answer in answers if answer] == [
        (200, None),
        (403, "no-push"),
    ]
    assert origins.seen[0].sni == "git.example"


def test_an_origin_with_a_certificate_of_no_known_ca_is_refused(
    gateway: Gateway, origins: Origins
) -> None:
    origins.untrusted.add("strip.example")
    assert curl(gateway, "https://strip.example/", "--insecure").status == 503
    assert origins.seen == []


def test_a_denial_has_a_page_in_the_form_that_the_client_takes(
    gateway: Gateway, origins: Origins
) -> None:
    url = "https://git.example/acme/app/git-receive-pack"
    text = curl(gateway, url)
    assert (text.header("Content-Type"), text.reason) == (
        "text/plain; charset=utf-8",
        "Read-only.",
    )
    told = curl(gateway, url, "-H", "Accept: application/json")
    assert (told.header("Content-Type"), told.json["rule"]) == (
        "application/problem+json",
        "no-push",
    )
    page = curl(gateway, url, "-H", "Accept: text/html")
    assert (page.header("Content-Type"), page.rule) == (
        "text/html; charset=utf-8",
        "no-push",
    )


@pytest.mark.parametrize(
    ("url", "arrives"),
    [("https://header.example/x", "/x"), ("http://front.example/x", "/moved/x")],
)
def test_a_credential_replaces_the_clients_header_also_behind_a_rewrite(
    gateway: Gateway, origins: Origins, url: str, arrives: str
) -> None:
    reply = curl(gateway, url, "-H", "Authorization: mine", "-H", "X-Acme-Key: mine")
    [seen] = origins.seen
    assert (reply.status, seen.url) == (200, f"https://header.example{arrives}")
    assert (seen.values("Authorization"), seen.values("X-Acme-Key")) == (
        [f"Bearer {KEY}"],
        [KEY],
    )
    assert gateway.logged(url)["credential"] == "header"


def test_a_credential_goes_into_the_query(gateway: Gateway, origins: Origins) -> None:
    assert curl(gateway, "https://parameter.example/x?a=b").status == 200
    assert origins.urls() == [f"https://parameter.example/x?api_key={KEY}&a=b"]
    assert KEY not in (gateway.root / "log/access.log").read_text()


def test_a_request_is_signed_for_aws(gateway: Gateway, origins: Origins) -> None:
    assert curl(gateway, "https://bucket.s3.example/a%20b?acl").status == 200
    [seen] = origins.seen
    headers = {name.lower(): value for name, value in seen.headers}
    assert aws.problem(KEY, seen.method, seen.target, headers, seen.body) is None


def test_a_body_decides(gateway: Gateway, origins: Origins) -> None:
    url, typed = (
        "https://llm.example/v1/chat",
        ("-H", "Content-Type: application/json", "--data"),
    )
    assert curl(gateway, url, *typed, '{"model": "small"}').status == 200
    assert [seen.body for seen in origins.seen] == [b'{"model": "small"}']
    reply = curl(gateway, f"{url}/large", *typed, '{"model": "large"}')
    assert (reply.status, reply.rule) == (403, "default")
    line = gateway.logged(f"{url}/large")
    assert (line["verdict"], line["found"]) == (
        "deny",
        "body:small-model: /model is not what the rule lists",
    )
    assert len(origins.seen) == 1


def test_a_missing_secret_denies(gateway: Gateway, origins: Origins) -> None:
    reply = curl(gateway, "https://api.example/lost")
    assert (reply.status, reply.rule) == (403, "credential-unavailable")
    assert origins.seen == []


def test_a_header_is_stripped(gateway: Gateway, origins: Origins) -> None:
    seen = allowed(
        gateway,
        origins,
        "https://strip.example/x",
        "stripped",
        "-H",
        "Cookie: a=b",
        "-H",
        "X-Kept: c",
    )
    assert (seen.values("Cookie"), seen.values("X-Kept")) == ([], ["c"])


def test_a_websocket_passes_where_a_rule_says_so(
    gateway: Gateway, echoing: Server
) -> None:
    with open_websocket(gateway, "/room") as client:
        client.send("hello")
        assert client.recv() == "hello"
    assert gateway.logged("https://chat.example:9443/room")["status"] == 101


def test_a_tunnel_passes_through_with_the_origins_own_certificate(
    gateway: Gateway, origins: Origins
) -> None:
    with Raw(gateway) as raw:
        raw.connect("pinned.example:443")
        reply = raw.tls("pinned.example", origins.authority.certificate).get(
            "/x", "pinned.example"
        )
    assert reply.status == 200
    assert gateway.logged("pinned.example:443")["rule"] == "pinned"


def test_a_private_address_is_reached_only_where_a_rule_opens_it(
    gateway: Gateway, origins: Origins
) -> None:
    assert (
        allowed(gateway, origins, "https://inside.example/", "inside").address
        == "10.0.0.5"
    )
    origins.forget()
    denied(gateway, origins, "https://moved.rebind.example/", "private-address")


def test_a_quota_ends(gateway: Gateway, origins: Origins) -> None:
    # a day may end between
    answers = [
        curl(gateway, "https://counted.example/", client="127.0.0.5") for _ in range(4)
    ]
    assert [answer.status for answer in answers[:2]] == [200, 200]
    assert (answers[3].status, answers[3].rule) == (403, "quota")


def test_what_a_rule_observes_passes_and_is_recorded(
    gateway: Gateway, origins: Origins
) -> None:
    allowed(gateway, origins, "https://git.example/acme/old", "git")
    assert gateway.logged("https://git.example/acme/old")["observed"] == "deny:retired"


def test_a_person_approves_what_a_client_asks_for(
    gateway: Gateway, origins: Origins
) -> None:
    url = "https://asked.example/x"
    number = denied(gateway, origins, url, "asked", reason="Ask Ann.").line("Ticket")
    assert number
    places = ("--policy", gateway.policy_folder, "--state", gateway.root / "state")
    command(
        gateway,
        "ask",
        "approve",
        number,
        "--for",
        "1h",
        "--any-client",
        "--yes",
        *places,
    )
    wait_for(lambda: curl(gateway, url).status == 200, "the approved request")
    state = curl(gateway, f"http://squidkeeper.internal/tickets/{number}")
    assert json.loads(state.body)["state"] == "approved"
    assert curl(gateway, "https://asked.example/y").status == 403


# ── What the record of all of this says ───────────────────────────────────────────────


def test_every_request_is_explained_as_it_was_decided_and_none_is_drift(
    gateway: Gateway,
) -> None:
    found, checker = drift_of(gateway)
    assert (found, checker.unchecked) == ([], 0)
    policies, rules = PastPolicies(gateway.root / "state/revisions"), set[str]()
    for record in records(gateway):
        is_told_elsewhere = (
            record.revision == NONE or unexplained(record) or told_by_body(record)
        )
        policy = None if is_told_elsewhere else policies(record.revision)
        if policy is not None:
            decision = explain(policy, request_of(record), parse_time(record)).decision
            assert (decision.action, decision.rule) == (record.verdict, record.rule), (
                record
            )
            rules.add(record.rule)
    assert rules >= {
        "git",
        "no-push",
        "reading",
        "pages",
        "builders-only",
        "bot-only",
        "pinned",
        "default",
        "asked",
    }


def test_the_commands_tell_what_happened_and_why(gateway: Gateway) -> None:
    log, policy = gateway.root / "log/access.log", ("--policy", gateway.policy_folder)
    lines = command(gateway, "log", log, "--rule", "no-push", "--json").splitlines()
    assert {json.loads(line)["status"] for line in lines} == {403}
    places = (*policy, "--state", gateway.root / "state", "--run", gateway.root / "run")
    why = json.dumps(
        json.loads(
            command(
                gateway,
                "why",
                log,
                "--host",
                "git.example",
                "--json",
                *places,
                status=1,
            )
        )
    )
    assert "Read-only." in why
    told = command(gateway, "explain", "GET", "https://git.example/acme/app", *policy)
    assert re.match(r"ALLOW +GET https://git\.example/acme/app\nrule +git \(", told)
    command(gateway, "check", *policy)


# ── A gateway whose policy is edited ──────────────────────────────────────────────────

CLOSED = (
    "version: 1\nrules:\n  - {name: always, action: allow, hosts: [always.example]}\n"
)
OPENED = CLOSED + "  - {name: opened, action: allow, hosts: [toggled.example]}\n"


def test_an_edit_is_in_force_in_an_open_tunnel_too_and_a_faulty_one_changes_nothing(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(OPENED).start()
    with tunnel(gateway, "toggled.example:443") as inside:
        before = inside.get("/x", "toggled.example")
        gateway.write(
            "policy.yaml",
            OPENED.replace("allow, hosts: [toggled", "alow, hosts: [toggled"),
        )
        checked = gateway.command("check", "--policy", gateway.policy_folder)
        assert "policy.yaml:4:28: fault: 'action' is 'alow'" in checked.stdout
        faulty = curl(gateway, "https://toggled.example/y")
        gateway.write("policy.yaml", CLOSED)
        wait_for(
            lambda: curl(gateway, "https://toggled.example/").status == 403,
            "the edit in force",
        )
        gateway.settle()
        after = inside.get("/z", "toggled.example")
    assert (before.status, faulty.status, after.status, after.rule) == (
        200,
        200,
        403,
        "default",
    )
    allowed(gateway, origins, "https://always.example/", "always")


# ── A gateway as install.sh leaves it ─────────────────────────────────────────────────


def test_an_installed_gateway_is_watched_found_well_and_removed(site: Site) -> None:
    root, port = site.folder / "installed", 3128
    root.mkdir()
    [venv] = site.prototype.glob("venv-*")
    (root / venv.name).symlink_to(venv)  # what takes the installer long
    installer, program = (
        (REPOSITORY / "install.sh", "--root", root),
        root / "bin/squidkeeper",
    )
    told = run(*installer, "--listen", f"127.0.0.1:{port}", "--extras", EXTRAS)
    try:
        assert "an edit is in force within 3 seconds" in told
        ask = (
            "--proxy",
            f"http://127.0.0.1:{port}",
            "--cacert",
            root / "etc/ca/ca.crt",
            "-w",
            "%{http_code}",
        )
        url = "https://en.wikipedia.org/wiki/Squid"
        assert run("curl", "-q", "-sS", "-o", "/dev/null", *ask, url) == "403"
        wait_for(
            lambda: "no-wikipedia" in fetch(port + 6000, "/metrics").text,
            "the denial in the metrics",
        )
        page = fetch(port + 6000, "/")
        assert (page.status, "no-wikipedia" in page.text) == (200, True)
        found = json.loads(
            run(program, "doctor", "--json", "--root", root, check=False)
        )
        of_this_machine = {"disk-space-low", "squid-outdated"}
        assert {finding["code"] for finding in found["findings"]} <= of_this_machine, (
            found
        )
    finally:
        run(*installer, "--uninstall")
    assert not program.exists()
    assert not run("ss", "-Hltn", f"sport = :{port}")
    assert (root / "etc/policy/policy.yaml").exists()
