"""The lines of Squid's configuration that depend on the policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from squidkeeper.credentials import SecretStore
from squidkeeper.engine import decide
from squidkeeper.engine.decide import Stage
from squidkeeper.engine.explain import explain
from squidkeeper.errors import PolicyError, SecretUnavailable
from squidkeeper.policy.faults import FaultCode
from squidkeeper.policy.lint import lint
from squidkeeper.policy.model import Policy
from squidkeeper.policy_lines import default_upstream, lacks_lines, not_rendered, policy_lines, with_own_body_bound
from squidkeeper.protocol.request import request_to
from squidkeeper.protocol.request_headers import FIRST_COPY_HEADERS, READ_HEADERS
from squidkeeper.replies import acl_reply, rewrite_reply

from .conftest import NOW, Ask, compiled_of

NO_SECRETS = SecretStore({}, {})
TWO_RULES = """
    rules:
      - {name: a, action: allow, hosts: [a.example], strip: [Cookie, X-Debug]}
      - {name: b, action: allow, hosts: [b.example], strip: [x_debug, COOKIE, cookie]}
      - {name: c, action: allow, hosts: [c.example], strip: [Cookie]}
"""


def policy_of(folder: Path, text: str) -> Policy:
    return compiled_of(folder, text).source


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_policy_that_needs_no_lines_has_the_acls_that_the_fragment_names(tmp_path: Path) -> None:
    text = policy_lines(policy_of(tmp_path, "rules: [{name: a, action: allow, hosts: [a.example]}]"), NO_SECRETS)
    assert directives(text) == [
        "acl sk_strip_rendered note strip_ -",
        "acl sk_inject_rendered note inject_lines_ -",
        "acl sk_upstream_rendered note upstream_ default direct",
        "acl sk_never_searched all-of !all",
    ]


def test_each_header_is_denied_in_every_spelling_where_a_set_holds_it(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, TWO_RULES)
    both, one = (rule.strip for rule in policy.rules[1:] if rule.strip)
    cookie, debug = both.header_keys
    assert one.header_keys == (cookie,)
    assert directives(policy_lines(policy, NO_SECRETS)) == [
        f"acl sk_strip_rendered note strip_ - {both.key} {one.key}",
        f"acl sk_strip_0 note strip_header_ {cookie}",
        "acl sk_stripped_0 any-of CONNECT sk_strip_0",
        "request_header_access cookie deny sk_stripped_0",
        f"acl sk_strip_1 note strip_header_ {debug}",
        "acl sk_stripped_1 any-of CONNECT sk_strip_1",
        "request_header_access x-debug deny sk_stripped_1",
        "request_header_access x_debug deny sk_stripped_1",
        "acl sk_inject_rendered note inject_lines_ -",
        "acl sk_upstream_rendered note upstream_ default direct",
        "acl sk_never_searched all-of !all",
    ]


def test_case_order_and_underscores_make_no_other_set(tmp_path: Path) -> None:
    first, second, third = (rule.strip.key for rule in policy_of(tmp_path, TWO_RULES).rules if rule.strip)
    assert first == second != third


def test_what_is_not_rendered_is_named_by_its_rule(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, TWO_RULES)
    other = policy_of(tmp_path / "other", "rules: [{name: c, action: allow, hosts: [c.example], strip: [Cookie]}]")
    assert not_rendered(policy, policy_lines(policy, NO_SECRETS), NO_SECRETS) == ()
    for rendered in (policy_lines(other, NO_SECRETS), ""):
        found = not_rendered(policy, rendered, NO_SECRETS)
        assert [fault.message.partition(":")[0] for fault in found] == ["rule 'a'", "rule 'b'", "rule 'c'"][
            : 2 if rendered else 3
        ]
        assert {fault.code for fault in found} == {"not-rendered"}


def test_a_decision_names_its_set_only_where_it_is_about_a_request(asker: Callable[[str], Ask]) -> None:
    ask = asker("""
        rules:
          - {name: part, action: allow, hosts: [a.example], paths: [/x/**], strip: [Cookie]}
          - {name: all, action: allow, hosts: [a.example]}
          - {name: closed, action: deny, hosts: [b.example]}
    """)
    decision = ask("GET https://a.example/x/y")
    annotations = dict(acl_reply(decision, "request", None).annotations)
    assert decision.strip is not None
    assert (annotations["strip_"], annotations["tag"]) == (decision.strip.key, "sk_needs_lines")
    for asked in ("GET https://a.example/y", "GET https://b.example/", "CONNECT a.example:443"):
        assert "strip_" not in dict(acl_reply(ask(asked), "request", None).annotations)


def test_readings_that_lose_other_headers_are_ambiguous(asker: Callable[[str], Ask]) -> None:
    ask = asker("""
        rules:
          - {name: part, action: allow, hosts: [a.example], paths: [/x/**], strip: [Cookie]}
          - {name: all, action: allow, hosts: [a.example]}
    """)
    assert ask("GET https://a.example/x/../y").rule == "ambiguous-path"


# --- headers of credentials ---------------------------------------------------------------------------------------

KEYS = """
    secrets: {s: {file: secret}}
    credentials:
      - {name: a, hosts: [a.example], bearer: s}
      - {name: b, hosts: [b.example], header: X-Acme-Key, value: "{s}"}
      - {name: c, hosts: [c.example], headers: {Rule: acme, x-acme-key: "{s}", Authorization: "{s}"}}
"""


def test_a_header_that_squid_conf_lacks_is_removed_in_every_spelling_and_added_once(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, KEYS)
    (tmp_path / "secret").write_text("s3cret")
    shipped, one, two = (credential.form.lines_key for credential in policy.credentials)
    assert (shipped, one == two) == ("", False)
    assert directives(policy_lines(policy, NO_SECRETS))[1:-2] == [
        f"acl sk_inject_rendered note inject_lines_ - {one} {two}",
        "acl sk_injects_0 note inject_rule_",  # `rule_` is the rule that decided
        "request_header_access Rule deny sk_takes_injectable",
        """request_header_add Rule "%'{inject_rule_}note" sk_https !sk_final sk_injects_0""",
        "acl sk_injects_1 note inject_x_acme_key_",
        "request_header_access x-acme-key deny sk_takes_injectable",
        "request_header_access x-acme_key deny sk_takes_injectable",
        "request_header_access x_acme-key deny sk_takes_injectable",
        "request_header_access x_acme_key deny sk_takes_injectable",
        """request_header_add x-acme-key "%'{inject_x_acme_key_}note" sk_https !sk_final sk_injects_1""",
    ]


def test_a_credential_whose_headers_are_not_rendered_is_named(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, KEYS)
    assert not_rendered(policy, policy_lines(policy, NO_SECRETS), NO_SECRETS) == ()
    fewer = replace(policy, credentials=policy.credentials[:2])
    [fault] = not_rendered(policy, policy_lines(fewer, NO_SECRETS), NO_SECRETS)
    assert fault.message.startswith("credential 'c': its headers are not in Squid's configuration yet")
    assert fault.location == policy.credentials[2].location
    for credential, lacks in zip(policy.credentials, (False, False, True), strict=True):
        assert lacks_lines(None, None, (credential,), policy_lines(fewer, NO_SECRETS)) == lacks


def test_of_two_credentials_with_rendered_headers_the_first_applies(asker: Callable[[str], Ask]) -> None:
    ask = asker("""
        rules: [{name: a, action: allow, hosts: [a.example]}]
        secrets: {s: {env: S}}
        credentials:
          - {name: first, hosts: [a.example], header: X-One, value: "{s}"}
          - {name: second, hosts: [a.example], header: X-Two, value: "{s}"}
          - {name: third, hosts: [a.example], bearer: s}
    """)
    assert [one.name for one in ask("GET https://a.example/").credentials] == ["first", "third"]


SIGNED = """
    defaults: {watch_secrets: true}
    rules: [{name: a, action: allow, hosts: [a.example], strip: [X-Debug, Range]}]
    secrets: {id: {file: secret}, key: {file: secret}}
    credentials:
      - {name: a, hosts: [a.example], aws_sigv4: {access_key_id: id, secret_access_key: key, region: eu-central-1}}
      - {name: b, hosts: [b.example], headers: {X-Amz-Date: "{id}", X-Amz-Content-Sha256: "{id}"}}
      - {name: c, hosts: [c.example], headers: {X-Amz-Date: "{id}", X-Amz-Content-Sha256: "{id}",
                                                X-Amz-Security-Token: "{id}"}}
"""


def test_beside_a_signature_no_header_passes_that_no_helper_reads(tmp_path: Path) -> None:
    lines = directives(policy_lines(policy_of(tmp_path, SIGNED), NO_SECRETS))
    assert "acl sk_signs note inject_x_amz_date_" in lines
    others = [line for line in lines if line.startswith("request_header_access Other ")]
    assert [line.split()[3] for line in others] == ["sk_signs", "CONNECT", "sk_watching"]
    assert {f"request_header_access {name} deny CONNECT" for name in READ_HEADERS if name != "Via"} <= {*lines}
    assert {line.split()[1] for line in lines if line.endswith(" deny sk_signs")} == {"Other", "X-Debug", "X_Debug"}


def test_the_lines_of_the_headers_of_a_signature_are_not_those_of_signatures(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, SIGNED)
    signing, *others = policy.credentials
    unsigned = policy_lines(replace(policy, credentials=tuple(others)), NO_SECRETS)
    assert not any(" sk_signs" in line for line in directives(unsigned))
    assert [fault.location for fault in not_rendered(policy, unsigned, NO_SECRETS)] == [signing.location]


HOSTILE = ("\nhttp_access allow all", "\r", " all # ", " y", '"', "'", "${x}", "%'{x}note", ";", "\\\n", "`", "\u2028")
NAMED = [  # what of a policy stands in Squid's configuration as it is, each with a value that is good
    ("X-Debug", "rules: [{name: a, action: allow, hosts: [a.example], strip: [TEXT]}]"),
    (
        "X-Key",
        'secrets: {s: {env: S}}\ncredentials: [{name: c, hosts: [a.example], headers: {TEXT: "{s}"}}]',
    ),
    ("corp", "upstreams: [{name: TEXT, hosts: [a.example], url: 'http://192.0.2.1:3128'}]"),
    ("http://192.0.2.1:3128", "upstreams: [{name: corp, hosts: [a.example], url: TEXT}]"),
]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize(("good", "policy"), NAMED)
def test_what_squid_could_take_for_more_than_a_word_is_refused(
    tmp_path: Path, good: str, policy: str, hostile: str
) -> None:
    policy_of(tmp_path, policy.replace("TEXT", json.dumps(good)))
    for place in (0, 3, len(good)):
        text = json.dumps(good[:place] + hostile + good[place:])
        with pytest.raises(PolicyError):
            policy_of(tmp_path, policy.replace("TEXT", text))


# --- parent proxies -----------------------------------------------------------------------------------------------

PARENTS = """
    rules: [{name: all, action: allow, hosts: ["*"]}]
    secrets: {s: {file: secret}}
    upstreams:
      - {name: inside, hosts: [.inside.example], direct: true}
      - {name: other, hosts: [.other.example], url: "http://192.0.2.1:3128", resolve: upstream}
      - {name: corp, url: "http://Proxy.Example:8080", basic: {username: "a b", password: s}}
"""


def parents(folder: Path, text: str = PARENTS, password: str = "p@ss: w%rd") -> tuple[Policy, SecretStore]:
    folder.mkdir(exist_ok=True)
    (folder / "secret").write_text(f"{password}\n")
    (folder / "secret").chmod(0o640)
    policy = policy_of(folder, text)
    return policy, SecretStore(policy.secrets, {})


def test_a_parent_is_a_peer_for_what_is_annotated_with_it_and_for_nothing_that_is_closed(tmp_path: Path) -> None:
    policy, secrets = parents(tmp_path)
    _, other, corp = (one.key for one in policy.upstreams)
    options = "no-query no-digest no-netdb-exchange connect-timeout=3"
    assert directives(policy_lines(policy, secrets))[2:] == [
        f"acl sk_upstream_rendered note upstream_ default direct {other} {corp}",
        f"acl sk_to_other note upstream_ {other}",
        f"cache_peer 192.0.2.1 parent 3128 0 name=sk_other {options}",
        "cache_peer_access sk_other allow sk_to_other !sk_closed",
        "cache_peer_access sk_other deny all",
        "acl sk_through_parent any-of sk_to_other",
        "never_direct allow CONNECT sk_to_other sk_marks_parent !all",
        "never_direct allow sk_to_other",
        "adapted_http_access deny !CONNECT sk_https sk_connects_by_request sk_to_other sk_denied_as_not_rendered",
        f"acl sk_to_corp note upstream_ {corp}",
        f"cache_peer proxy.example parent 8080 0 name=sk_corp {options} login=a%20b:p%40ss%3A%20w%25rd",
        "cache_peer_access sk_corp allow sk_to_corp !sk_closed",
        "cache_peer_access sk_corp deny all",
        "acl sk_through_parent any-of sk_to_corp",
        "never_direct allow CONNECT sk_to_corp sk_marks_parent !all",
        "never_direct allow sk_to_corp",
        "adapted_http_access deny !CONNECT sk_https sk_connects_by_request sk_to_corp sk_denied_as_not_rendered",
        "acl sk_never_searched all-of !all",
        "request_header_access All deny CONNECT",
        "request_header_access Host allow all",
        "request_header_access Proxy-Authorization allow all",
        "request_header_access Via allow all",
    ]


def test_the_default_parent_is_kept_in_what_is_rendered(tmp_path: Path) -> None:
    text = policy_lines(
        policy_of(tmp_path, "rules: [{name: a, action: deny}]"), NO_SECRETS, "http://proxy.example:3128"
    )
    assert default_upstream(text) == "http://proxy.example:3128"
    assert "acl sk_to_default any-of !sk_chooses_upstream sk_upstream_is_default" in directives(text)
    assert default_upstream("") == ""


def test_a_password_that_is_unavailable_is_no_line(tmp_path: Path) -> None:
    policy, secrets = parents(tmp_path)
    (tmp_path / "secret").unlink()
    with pytest.raises(SecretUnavailable):
        policy_lines(policy, secrets)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("8080", "8081"),
        ("Proxy.Example", "proxy2.example"),
        ('"a b"', '"a c"'),
        ('basic: {username: "a b", password: s}', "resolve: upstream"),
        ("name: corp", "name: corp2"),
    ],
)
def test_another_parent_of_the_same_name_is_not_rendered(tmp_path: Path, old: str, new: str) -> None:
    policy, secrets = parents(tmp_path)
    rendered = policy_lines(policy, secrets)
    edited, secrets = parents(tmp_path, PARENTS.replace(old, new))
    [fault] = not_rendered(edited, rendered, secrets)
    assert fault.code == "not-rendered"
    assert "so its requests are denied" in fault.message


def test_hosts_clients_and_resolve_need_no_rendering(tmp_path: Path) -> None:
    policy, secrets = parents(tmp_path)
    rendered = policy_lines(policy, secrets)
    edited = PARENTS.replace(".other.example", ".more.example").replace(", resolve: upstream", "")
    assert not_rendered(parents(tmp_path, edited)[0], rendered, secrets) == ()


def test_a_rotated_password_is_reported_and_not_shown(tmp_path: Path) -> None:
    policy, secrets = parents(tmp_path)
    rendered = policy_lines(policy, secrets)
    assert not_rendered(policy, rendered, secrets) == ()
    (tmp_path / "secret").write_text("rotated\n")
    [fault] = not_rendered(policy, rendered, secrets)
    assert fault.message == (
        "upstream 'corp': its secret has changed, and Squid still sends the former password: run install.sh"
    )


# --- which upstream -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "upstream"),
    [
        ("GET https://a.inside.example/", "inside"),
        ("CONNECT a.other.example:443", "other"),
        ("CONNECT a.other.example:8443", None),
        ("GET http://a.other.example/", "other"),
        ("GET https://x.example/", "corp"),
    ],
)
def test_the_first_upstream_that_matches_is_the_way(tmp_path: Path, asked: str, upstream: str | None) -> None:
    parents(tmp_path)
    compiled = compiled_of(tmp_path, PARENTS)
    method, _, target = asked.partition(" ")
    request = request_to(method, target)
    found = explain(compiled, request, NOW).upstream
    assert (found.name if found else None) == upstream
    decision = decide(compiled, compiled.match(request), NOW, Stage.HOST)
    annotations = dict(acl_reply(decision, "host", compiled).annotations)
    assert annotations.get("upstream_", "").partition(":")[0] == ((upstream or "").replace("inside", "direct"))


def test_a_policy_without_upstreams_annotates_nothing(tmp_path: Path) -> None:
    compiled = compiled_of(tmp_path, "rules: [{name: all, action: allow, hosts: ['*']}]")
    decision = decide(compiled, compiled.match(request_to("GET", "https://a.example/")), NOW)
    annotations = dict(acl_reply(decision, "host", compiled).annotations)
    assert annotations.keys() & {"upstream_", "resolve_", "strip_"} == set()
    assert annotations["tag"] == "sk_final"


def test_a_rewritten_request_goes_the_way_of_its_target(tmp_path: Path) -> None:
    policy = """
        rules: [{name: all, action: allow, hosts: ["*"]}]
        rewrites: [{name: r, hosts: [front.example], paths: [/r/**], to: "https://back.inside.example{path}"}]
        upstreams:
          - {name: inside, hosts: [.inside.example], direct: true}
          - {name: front, hosts: [front.example], url: "http://192.0.2.1:3128"}
    """
    compiled = compiled_of(tmp_path, policy)
    request = request_to("GET", "https://front.example/r/x")
    decision = decide(compiled, compiled.match(request), NOW, Stage.URL)
    annotations = dict(rewrite_reply(decision, "https://front.example/r/x", "r").annotations)
    assert (annotations["upstream_"], annotations["resolve_"]) == ("direct", "gateway")
    found = explain(compiled, request, NOW).upstream
    assert found is not None
    assert found.name == "inside"


def test_what_cannot_hold_is_warned_of(tmp_path: Path) -> None:
    policy = policy_of(
        tmp_path,
        """
        rules: [{name: all, action: allow, hosts: [front.example]}]
        rewrites:
          - {name: https, hosts: [front.example], to: "https://back.example{path}"}
          - {name: http, hosts: [front.example], schemes: [http], to: "http://back.example{path}"}
          - {name: straight, hosts: [front.example], to: "https://back.inside.example{path}"}
        upstreams:
          - {name: inside, hosts: [.inside.example], direct: true}
          - {name: all, url: "http://192.0.2.1:3128", resolve: upstream}
        """,
    )
    found = {(fault.code.value, fault.message.split("'")[1]) for fault in lint(policy, NOW)}
    assert found == {("resolved-upstream", "all"), ("rewrite-upstream", "https")}


# --- what must not leave ------------------------------------------------------------------------------------------


def test_a_policy_that_watches_lets_no_header_pass_that_no_helper_reads(tmp_path: Path) -> None:
    policy = policy_of(
        tmp_path,
        """
        defaults: {watch_secrets: true}
        rules: [{name: a, action: allow, hosts: [a.example], strip: [X-Debug, Cookie]}]
    """,
    )
    lines = directives(policy_lines(policy, NO_SECRETS))
    assert "acl sk_never_searched all-of !sk_judged" in lines
    assert "request_header_access All deny sk_watching" in lines
    assert {f"request_header_access {name} deny CONNECT" for name in READ_HEADERS if name != "Via"} <= {*lines}
    unread = {"X-Debug", "X_Debug", "X_Api-Key", "Private_Token"}
    assert {f"request_header_access {name} deny sk_watching" for name in unread} <= {*lines}
    assert not {"request_header_access Cookie deny sk_watching", "request_header_access Host deny CONNECT"} & {*lines}


READS = "acl sk_reads_headers any-of sk_watching sk_needs_headers"
READING = {
    "defaults: {watch_secrets: true}": "",
    "canaries: {bait: {file: bait}}": "",
    "secrets: {k: {file: key}}\nsealed_tokens: {keys: [k]}": "",
    "placeholder": "{name: c, hosts: [a.example], bearer: s, placeholder: dummy-key-for-sdks}",
    "signature": "{name: c, hosts: [a.example], aws_sigv4: "
    "{access_key_id: s, secret_access_key: s, region: us-east-1, service: s3}}",
}


@pytest.mark.parametrize("reading", READING)
def test_where_helpers_read_headers_no_second_copy_passes(tmp_path: Path, reading: str) -> None:
    credential = READING[reading]
    made = f"secrets: {{s: {{file: secret}}}}\ncredentials: [{credential}]" if credential else reading
    policy = policy_of(tmp_path, "rules: [{name: a, action: allow, hosts: [a.example], strip: [Cookie]}]\n" + made)
    rendered = policy_lines(policy, NO_SECRETS)
    lines = directives(rendered)
    assert READS in lines
    for number, name in enumerate(FIRST_COPY_HEADERS):
        acls = {"Authorization": " !sk_injected", "Cookie": f" !sk_removes_{number}"}.get(name, "")
        assert f"acl sk_sends_{number} req_header {name} ." in lines
        assert f"request_header_access {name} deny sk_reads_headers" in lines
        again = f"""request_header_add {name} "%'{{{name}}}>h" sk_reads_headers !CONNECT sk_sends_{number}{acls}"""
        assert again in lines
    [fault] = not_rendered(policy, rendered.replace(READS, ""), NO_SECRETS)
    assert (fault.code, "not searched" in fault.message) == ("not-rendered", True)
    assert not_rendered(policy, rendered, NO_SECRETS) == ()


def test_a_policy_that_watches_is_warned_about_until_its_lines_are_rendered(tmp_path: Path) -> None:
    plain = policy_of(tmp_path / "plain", "rules: [{name: a, action: allow, hosts: [a.example]}]")
    for text in ("defaults: {watch_secrets: true}", "canaries: {bait: {file: bait}}"):
        policy = policy_of(tmp_path / text[:8], text)
        [fault] = not_rendered(policy, policy_lines(plain, NO_SECRETS), NO_SECRETS)
        assert (fault.code, fault.location.line) == ("not-rendered", 2)
        assert not_rendered(policy, policy_lines(policy, NO_SECRETS), NO_SECRETS) == ()


UPLOADS = """
rules: [{name: a, action: allow, hosts: [a.example]}]
quotas:
  - {name: small, per: client, bytes_out: 1MB, every: minute}
  - {name: large, per: client, bytes_out: 20MB, every: day}
  - {name: requests, per: client, requests: 5, every: day}
"""


def test_a_body_is_bounded_by_the_largest_quota_of_bytes_or_by_the_operators_own_bound(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, UPLOADS)
    rendered = policy_lines(policy, NO_SECRETS)
    assert "request_body_max_size 20000000 bytes" in rendered.splitlines()
    assert not_rendered(policy, rendered, NO_SECRETS) == ()
    assert with_own_body_bound(rendered, "# request_body_max_size 5 MB\n") == rendered
    own = with_own_body_bound(rendered, "cache allow all\nrequest_body_max_size 5 MB\n")
    assert [line for line in own.splitlines() if "body_max" in line] == [
        "# request_body_max_size: as your own configuration has it"
    ]
    assert not_rendered(policy, own, NO_SECRETS) == ()
    without = policy_of(tmp_path / "other", UPLOADS.partition("quotas:")[0])
    found = not_rendered(policy, policy_lines(without, NO_SECRETS), NO_SECRETS)
    assert [(one.code, one.location.line) for one in found] == [(FaultCode.NOT_RENDERED, line) for line in (5, 6)]
    assert "request_body_max_size" not in policy_lines(without, NO_SECRETS)
