"""`body:` as people write it: the model that is made of it, tests that send bodies,
`check` and `explain`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import PolicyError
from squidkeeper.base.faults import FaultCode
from squidkeeper.cli import main
from squidkeeper.policy.bodies.written_request import push_body, written_request
from squidkeeper.policy.engine import decide_body
from squidkeeper.policy.engine.explain import explain
from squidkeeper.policy.language import body_faults
from squidkeeper.policy.language.bodies import (
    MAX_BYTES,
    Allowed,
    Body,
    GitBody,
    JsonBody,
    McpBody,
    Member,
    WrittenPush,
)
from squidkeeper.policy.language.lint import lint
from squidkeeper.policy.language.matching.table import overlap
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.protocol.request import request_to

from ..conftest import NOW, compiled_of, decided, write_policy
from ..records import record_line

CHAT = "https://api.example/chat"
PUSH = "https://git.example/acme/app.git/git-receive-pack"
MCP = "https://mcp.example/mcp"
RULES = """
rules:
  - name: no-search
    action: deny
    hosts: [api.example]
    body: {json: {/tools/*/type: [web_search]}}
  - name: chat
    action: allow
    hosts: [api.example]
    paths: [/chat]
    body:
      json:
        /model: [small, "small-*"]
        /max_tokens: {max: 4096, absent: true}
        /temperature: {max: 0.7, absent: true}
        /stop: {absent: true}
  - {name: push, action: allow, hosts: [git.example], paths: [/acme/**], body: {git: {push: [refs/heads/agent/**]}}}
  - name: mcp
    action: allow
    hosts: [mcp.example]
    body: {mcp: {tools: [search, "read_*"], arguments: {read_file: {/path: ["/data/**"]}}, methods: [resources/read]}}
"""


def call(tool: str, **arguments: str) -> str:
    return json.dumps(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": tool, "arguments": arguments},
        }
    )


# The request of a test, what it sends, and what is decided.
TESTS = [
    (
        f"POST {CHAT}",
        "body: {model: small-2, messages: [], seed: null, temperature: 0.5}",
        "allow, rule: chat",
    ),
    (f"POST {CHAT}", "body: {model: large}", "deny, rule: default"),
    (f"POST {CHAT}", "body: {model: small, stop: x}", "deny, rule: default"),
    (f"POST {CHAT}", "body: {model: small, max_tokens: 4097}", "deny, rule: default"),
    (f"POST {CHAT}", "body: {model: small, temperature: 0.8}", "deny, rule: default"),
    (
        f"POST {CHAT}",
        "body: {model: small, tools: [{type: web_search}]}",
        "deny, rule: no-search",
    ),
    (f"POST {CHAT}", 'body: \'{"model": "small"}\'', "allow, rule: chat"),
    (
        f"POST {CHAT}",
        'body: \'{"model": "large", "model": "small"}\'',
        "deny, rule: no-search",
    ),
    (f"POST {CHAT}", "body: model=small", "deny, rule: no-search"),
    (f"POST {CHAT}", "", "deny, rule: default"),
    (f"POST {PUSH}", "push: {update: [refs/heads/agent/a]}", "allow, rule: push"),
    (
        f"POST {PUSH}",
        "push: {create: [refs/heads/agent/a, refs/heads/agent/b]}",
        "allow, rule: push",
    ),
    (
        f"POST {PUSH}",
        "push: {create: [refs/heads/agent/a], update: [refs/heads/main]}",
        "deny, rule: default",
    ),
    (f"POST {PUSH}", "push: {delete: [refs/heads/agent/a]}", "deny, rule: default"),
    (
        f"POST {PUSH}",
        "push: {update: [refs/heads/agent/a], options: [merge_request.create]}",
        "deny, rule: default",
    ),
    (
        "GET https://git.example/acme/app.git/info/refs?service=git-receive-pack",
        "",
        "allow, rule: push",
    ),
    (f"POST {MCP}", f"body: '{call('read_file', path='/data/x')}'", "allow, rule: mcp"),
    (
        f"POST {MCP}",
        f"body: '{call('read_file', path='/etc/x')}'",
        "deny, rule: default",
    ),
    (
        f"POST {MCP}",
        f"body: '{call('write_file', path='/data/x')}'",
        "deny, rule: default",
    ),
    (f"GET {MCP}", "", "allow, rule: mcp"),
]


def written(tests: list[tuple[str, str, str]]) -> str:
    entries = (
        f"{{request: '{request}', {sent and f'{sent}, '}expect: {said}}}"
        for request, sent, said in tests
    )
    return "tests:\n" + "".join(f"  - {entry}\n" for entry in entries)


def test_a_policy_loads_whose_tests_with_bodies_pass(tmp_path: Path) -> None:
    load(write_policy(tmp_path / "policy", RULES + written(TESTS)), NOW)


@pytest.mark.parametrize("test", TESTS)
def test_a_test_with_a_body_that_fails_keeps_the_policy_from_loading(
    tmp_path: Path, test: tuple[str, str, str]
) -> None:
    request, sent, said = test
    wrong = [(request, sent, "deny" if said.startswith("allow") else "allow")]
    with pytest.raises(PolicyError) as raised:
        load(write_policy(tmp_path / "policy", RULES + written(wrong)), NOW)
    assert [fault.code for fault in raised.value.faults] == [FaultCode.TEST_FAILED]


BODIES: dict[str, Body] = {
    "{json: {/a~1b/*/~0: x}}": JsonBody((Member(("a/b", "*", "~"), Allowed(("x",))),)),
    "{json: {/x: [1, 1.5, -2, true, null, '1', 123456789012]}}": JsonBody(
        (Member(("x",), Allowed((1, 1.5, -2, True, None, "1", 123456789012))),)
    ),
    "{json: {/x: {min: 0, max: 0.5}}, max: 5MB}": JsonBody(
        (Member(("x",), Allowed(None, 0, 0.5)),), None, 5_000_000
    ),
    "{json: {/x: {absent: true}, /y: {absent: false}, /z: {values: [1], absent: true}}, only: [/x, /y, /z]}": JsonBody(
        (
            Member(("x",), Allowed((), absent=True)),
            Member(("y",), Allowed()),
            Member(("z",), Allowed((1,), absent=True)),
        ),
        (("x",), ("y",), ("z",)),
    ),
    "{git: {push: [refs/heads/**], delete: true, create: false, options: []}}": GitBody(
        ("refs/heads/**",), delete=True, create=False
    ),
    "{mcp: {tools: [a], arguments: {a: {/x: 1}}, methods: [prompts/*]}, max: 2MB}": McpBody(
        ("a",), {"a": (Member(("x",), Allowed((1,))),)}, ("prompts/*",), 2_000_000
    ),
}


@pytest.mark.parametrize("written", BODIES)
def test_a_body_is_read_as_it_is_written(tmp_path: Path, written: str) -> None:
    policy = compiled_of(
        tmp_path,
        f"rules: [{{name: a, action: allow, hosts: [a.example], body: {written}}}]",
    )
    assert policy.source.rules[0].body == BODIES[written]
    assert MAX_BYTES == 1_000_000


# --- warnings -------------------------------------------------------------------------

BODY = "body: {json: {/x: 1}}"


@pytest.mark.parametrize(
    ("first", "later", "found"),
    [
        (f"action: allow, {BODY}", "action: deny", None),
        (f"action: allow, {BODY}", "action: allow", None),
        (f"action: deny, {BODY}", f"action: allow, {BODY}", None),
        (f"action: deny, {BODY}, observe: true", f"action: allow, {BODY}", None),
        ("action: allow", f"action: allow, {BODY}", FaultCode.RULE_UNREACHABLE),
        ("action: deny", f"action: allow, {BODY}", FaultCode.RULE_UNREACHABLE),
        ("action: allow", f"action: deny, {BODY}", FaultCode.DENY_TOO_LATE),
        ("action: allow, methods: [GET]", f"action: allow, {BODY}", None),
    ],
)
def test_a_rule_with_a_body_makes_no_later_one_pointless(
    tmp_path: Path, first: str, later: str, found: FaultCode | None
) -> None:
    rules = (
        f"{{name: {name}, hosts: [a.example], {text}}}"
        for name, text in (("first", first), ("later", later))
    )
    policy = compiled_of(tmp_path, f"rules: [{', '.join(rules)}]")
    warned = {warning.code for warning in lint(policy.source, NOW)}
    assert warned & {FaultCode.RULE_UNREACHABLE, FaultCode.DENY_TOO_LATE} == (
        {found} if found else set()
    )


JSON, PUSH_TO, CALL = (
    "body: {json: {%s}}",
    "body: {git: {push: [%s]}}",
    "body: {mcp: {tools: [%s]}}",
)
EVERY_REF = "'**'"
AGENT = PUSH_TO % "refs/heads/agent/**"
ANY_BODY = "allows the same requests whatever their body"
NONE_OF_THE_SAME = "allows the same requests, and limits none of the same"


@pytest.mark.parametrize(
    ("rule", "below", "opened"),
    [
        (BODY, ["action: allow"], ANY_BODY),
        (BODY, ["action: allow, observe: true"], None),
        (f"{BODY}, observe: true", ["action: allow"], None),
        (f"{BODY}, expires: 2020-01-01T00:00:00Z", ["action: allow"], None),
        (BODY, ["action: allow, expires: 2099-01-01T00:00:00Z"], None),
        (BODY, ["action: allow, methods: [POST], schemes: [https]"], ANY_BODY),
        (BODY, ["action: allow, methods: [GET]"], None),
        (BODY, ["action: allow, paths: [/x]"], None),
        (f"{BODY}, paths: [/x/*]", ["action: allow, paths: [/x/**]"], ANY_BODY),
        (f"{BODY}, paths: [/x/**]", ["action: allow, paths: [/x/*, /x/*/*/*]"], None),
        (f"{BODY}, clients: [c]", ["action: allow"], ANY_BODY),
        (BODY, ["action: allow, clients: [c]"], None),
        (BODY, ["action: deny", "action: allow"], None),
        (BODY, ["action: deny, methods: [POST]", "action: allow"], None),
        (BODY, [f"action: deny, {BODY}", "action: allow"], None),
        (BODY, ["action: deny, methods: [GET]", "action: allow"], ANY_BODY),
        (JSON % "/x: 1", [f"action: allow, {JSON % '/y: 1'}"], NONE_OF_THE_SAME),
        (JSON % "/x: 1", [f"action: allow, {JSON % '/x: 2'}"], None),
        (
            JSON % "/x: 1, /y: 1",
            [f"action: allow, {JSON % '/x: [1, 2]'}"],
            NONE_OF_THE_SAME,
        ),
        (JSON % "/x: 1, /y: 1", [f"action: allow, {JSON % '/x: 2'}"], None),
        (JSON % "/x: 1", [f"action: allow, {CALL % 'a'}"], None),
        (AGENT, [f"action: allow, {PUSH_TO % EVERY_REF}"], NONE_OF_THE_SAME),
        (AGENT, [f"action: allow, {PUSH_TO % 'refs/heads/main'}"], None),
        (
            "body: {git: {push: [refs/x], delete: true}}",
            [f"action: allow, {PUSH_TO % EVERY_REF}"],
            None,
        ),
        (CALL % "a", [f"action: allow, {CALL % 'a, b'}"], NONE_OF_THE_SAME),
        (CALL % "a, c", [f"action: allow, {CALL % 'a, b'}"], None),
    ],
)
def test_a_body_is_warned_about_that_a_rule_below_opens(
    tmp_path: Path, rule: str, below: list[str], opened: str | None
) -> None:
    texts = [f"{{name: x, action: allow, hosts: [a.example], {rule}}}"]
    texts += [
        f"{{name: y{n}, hosts: [.example], {text}}}" for n, text in enumerate(below)
    ]
    directory = write_policy(
        tmp_path / "p", f"clients: {{c: {{users: [c]}}}}\nrules: [{', '.join(texts)}]"
    )
    found = [
        one
        for one in lint(load(directory, NOW).compiled.source, NOW)
        if one.code is FaultCode.NARROWS_NOTHING
    ]
    last = f"'y{len(below) - 1}' ({directory}/policy.yaml:3:"
    assert [
        (last in one.message, opened is not None and opened in one.message)
        for one in found
    ] == ([(True, True)] if opened else [])


MINI = "{name: mini, action: allow, hosts: [api.openai.com], paths: [/v1/chat/completions], body: {json: {/model: m}}}"
DENIED_BELOW = "{name: other, action: deny, hosts: [api.openai.com], methods: [POST]}"


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        (f"rules: [{MINI}]\npresets: [openai@1]", "'openai@1/chat' (preset openai@1:"),
        (f"rules: [{MINI}, {DENIED_BELOW}]\npresets: [openai@1]", None),
        (f"rules: [{MINI}]\npresets: [anthropic@1]", None),
        (
            f"defaults: {{action: allow}}\nrules: [{MINI}]",
            "the default allows the same requests",
        ),
        (f"defaults: {{action: allow}}\nrules: [{MINI}, {DENIED_BELOW}]", None),
        ("defaults: {action: allow}\npresets: [openai@1]", None),
    ],
)
def test_a_body_is_warned_about_that_a_preset_or_the_default_opens(
    tmp_path: Path, text: str, opened: str | None
) -> None:
    policy = load(write_policy(tmp_path / "p", text), NOW).compiled.source
    found = [
        one.message
        for one in lint(policy, NOW)
        if one.code is FaultCode.NARROWS_NOTHING
    ]
    assert [opened is not None and opened in one for one in found] == (
        [True] if opened else []
    )


# --- explain --------------------------------------------------------------------------


@pytest.fixture
def explained(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    directory, file = write_policy(tmp_path / "policy", RULES), tmp_path / "body"

    def run(
        method: str, url: str, body: bytes | None = None, *options: str
    ) -> tuple[int, str]:
        if body is not None:
            file.write_bytes(body)
            options = ("--body", str(file), *options)
        fragment = ("--fragment", str(tmp_path / "none"))
        result = CliRunner().invoke(
            main,
            ["explain", "--policy", str(directory), *fragment, *options, method, url],
        )
        return result.exit_code, result.output.replace(f"{directory}/", "")

    return run


Explained = Callable[..., tuple[int, str]]


def rows(output: str) -> list[str]:
    lines = output.splitlines()
    return [
        lines[0].split()[0],
        *(
            line[13:]
            for line in lines
            if line.startswith(("rule ", "reason ", "missing ", "body "))
        ),
    ]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (
            b'{"model": "small"}',
            0,
            [
                "ALLOW",
                "chat (policy.yaml:8)",
                "no-search (policy.yaml:4): did not hold",
                "chat (policy.yaml:8): allow",
            ],
        ),
        (
            b'{"model": "large"}',
            1,
            [
                "DENY",
                "default",
                "No rule of the policy allows this request. chat: /model is not what the rule lists.",
                "no-search (policy.yaml:4): did not hold",
                "chat (policy.yaml:8): did not hold (/model is not what the rule lists)",
            ],
        ),
        (
            None,
            2,
            [
                "UNDECIDED",
                "chat (policy.yaml:8)",
                "--body FILE, or --push REF: the body of the request, which is on no record, decides",
                "the first of these that holds decides:",
                "no-search (policy.yaml:4): deny, where its body holds",
                "chat (policy.yaml:8): allow, where its body holds",
                "default",
            ],
        ),
    ],
)
def test_explain_says_which_rules_the_body_decides_among(
    explained: Explained, body: bytes | None, status: int, told: list[str]
) -> None:
    code, output = explained("POST", CHAT, body)
    assert (code, rows(output)) == (status, told)


def test_explain_says_that_a_record_has_no_body_and_takes_one(tmp_path: Path) -> None:
    directory = write_policy(tmp_path / "policy", RULES)
    line, file = tmp_path / "line", tmp_path / "body"
    line.write_bytes(
        record_line(
            method="POST",
            url=CHAT,
            tunnel="api.example:443",
            sni="api.example",
            rule="chat",
        )
    )
    file.write_bytes(b'{"model": "large"}')
    options = [
        "explain",
        "--policy",
        str(directory),
        "--fragment",
        str(tmp_path / "none"),
        "--record",
        str(line),
    ]
    without = CliRunner().invoke(main, options)
    assert (without.exit_code, "\nmissing      --body FILE, " in without.output) == (
        2,
        True,
    )
    assert CliRunner().invoke(main, [*options, "--body", str(file)]).exit_code == 1


def test_explain_in_json_has_what_each_body_came_to(explained: Explained) -> None:
    found = json.loads(explained("POST", CHAT, b'{"model": "large"}', "--json")[1])
    assert [
        (one["name"], one["verdict"], one["judged"]["fit"]) for one in found["by_body"]
    ] == [
        ("no-search", "deny", "fails"),
        ("chat", "allow", "fails"),
    ]
    undecided = json.loads(explained("POST", CHAT, None, "--json")[1])
    assert (undecided["verdict"], [one["judged"] for one in undecided["by_body"]]) == (
        "undecided",
        [None, None],
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((), 0),
        (("--header", "Content-Type: application/json; charset=utf-8"), 0),
        (("--header", "content-type: text/plain"), 1),
        (("--header", "Content-Encoding: gzip"), 1),
    ],
)
def test_explain_sends_a_body_with_its_headers(
    explained: Explained, headers: tuple[str, ...], status: int
) -> None:
    assert explained("POST", CHAT, b'{"model": "small"}', *headers)[0] == status


@pytest.mark.parametrize(
    ("pushed", "status", "said"),
    [
        (["refs/heads/agent/a"], 0, ""),
        (["update:refs/heads/agent/a", "create:refs/heads/agent/b"], 0, ""),
        (["refs/heads/agent/a", "refs/heads/main"], 1, ""),
        (["delete:refs/heads/agent/a"], 1, ""),
        (["refs/heads/agent/a", "option:ci.skip"], 1, "an option of the push"),
        (["option:ci.skip"], 2, "an option alone is no push"),
        (["main"], 2, "does not start with 'refs/'"),
        (["refs/heads/*"], 2, "is a glob"),
    ],
)
def test_explain_makes_a_push_as_tests_do(
    explained: Explained, pushed: list[str], status: int, said: str
) -> None:
    code, output = explained(
        "POST", PUSH, None, *(word for text in pushed for word in ("--push", text))
    )
    assert code == status
    assert said in output


def test_explain_takes_a_body_or_a_push(explained: Explained) -> None:
    assert explained("POST", PUSH, b"0000", "--push", "refs/heads/agent/a")[0] == 2


def test_explain_refuses_a_header_without_a_colon(explained: Explained) -> None:
    assert explained("POST", CHAT, b"{}", "--header", "gzip")[0] == 2


def test_explain_takes_a_get_for_one_without_a_body(explained: Explained) -> None:
    assert (
        explained(
            "GET", "https://git.example/acme/a.git/info/refs?service=git-receive-pack"
        )[0]
        == 0
    )
    assert rows(explained("GET", CHAT)[1])[:2] == ["DENY", "default"]


def test_explain_names_the_body_of_a_rule_that_its_url_rules_out(
    explained: Explained,
) -> None:
    output = explained("POST", "https://git.example/acme/app.git/git-upload-pack")[1]
    assert "passed over  push (policy.yaml:18): body did not hold" in output


with TemporaryDirectory() as folder:
    POLICY = compiled_of(Path(folder), RULES)


def test_explain_names_what_is_passed_over_below_a_rule_that_reads_bodies(
    tmp_path: Path,
) -> None:
    rules = (
        "{name: a, action: allow, hosts: [a.example], %s}, {name: b, action: "
        "allow, hosts: [a.example], paths: [/b]}"
    )
    policy = compiled_of(tmp_path, f"rules: [{rules % BODY}]")
    found = explain(policy, request_to("POST", "https://a.example/x"), NOW)
    assert [(one.entry.name, one.fields) for one in found.passed_over] == [
        ("b", ("paths",))
    ]


AROUND = """
rules:
  - {name: above, action: allow, hosts: [a.example], methods: [GET]}
  - {name: chat, action: allow, hosts: [a.example], body: {json: {/x: 1}}}
  - {name: between, action: allow, hosts: [a.example], methods: [PUT]}
  - {name: others, action: deny, hosts: [a.example]}
  - {name: late, action: deny, hosts: [a.example], methods: [POST]}
"""


@pytest.mark.parametrize(
    ("body", "decides", "passed", "late"),
    [
        (b'{"x": 1}', "chat", ["above"], ["late"]),
        (b'{"x": 2}', "others", ["above", "between"], []),
        (None, "chat", ["above", "between"], ["late"]),
    ],
)
def test_what_explain_passes_over_stands_above_what_decides_and_what_it_does_not_reach_below(
    tmp_path: Path, body: bytes | None, decides: str, passed: list[str], late: list[str]
) -> None:
    url = "https://a.example/"
    sent = written_request("POST", url, body) if body else None
    found = explain(compiled_of(tmp_path, AROUND), request_to("POST", url), NOW, sent)
    assert found.decision.rule == decides
    assert [one.entry.name for one in found.passed_over] == passed
    assert [rule.name for rule in found.not_reached] == late


@given(
    st.sampled_from([CHAT, PUSH, MCP]),
    st.sampled_from(["POST", "GET", "PUT", "post"]),
    st.one_of(
        st.none(),
        st.sampled_from(
            [
                b"{}",
                b'{"model": "small"}',
                b'{"model": "small", "tools": [{"type": "web_search"}]}',
                b"[",
                b"",
            ]
        ),
        st.sampled_from(["search", "read_file", "other"]).map(
            lambda tool: call(tool, path="/data/x").encode()
        ),
        st.sampled_from(["refs/heads/agent/x", "refs/heads/main"]).map(
            lambda ref: push_body(WrittenPush((ref,)))
        ),
    ),
)
def test_explain_and_the_tests_of_a_policy_say_what_decide_body_does(
    url: str, method: str, body: bytes | None
) -> None:
    sent, request = written_request(method, url, body), request_to(method, url)
    before = decided(POLICY, request, NOW)
    enforced = decide_body(POLICY, before, sent) if before.by_body else before
    assert enforced is not None
    found = explain(POLICY, request, NOW, sent).decision
    assert (found.action, found.rule, found.reason) == (
        enforced.action,
        enforced.rule,
        enforced.reason,
    )


def test_faults_of_many_rules_are_found_without_comparing_all_pairs(
    tmp_path: Path,
) -> None:
    bodies, others = (
        [
            f"{{name: {kind}{n}, action: allow, hosts: [h{n}.example]%s}}"
            for n in range(40)
        ]
        for kind in "ab"
    )
    rules = ", ".join(
        [*(rule % f", {BODY}" for rule in bodies), *(rule % "" for rule in others)]
    )
    policy = compiled_of(tmp_path, f"rules: [{rules}]").source
    with patch.object(body_faults, "overlap", wraps=overlap) as compared:
        assert list(body_faults.conflicts(policy)) == []
    assert compared.call_count == 40
