"""Presets: which there are, what is in them, and how a policy takes them."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import PolicyError
from squidkeeper.change.learning.uses import newest_presets
from squidkeeper.cli import main
from squidkeeper.operate.client_kit.brief import write_brief
from squidkeeper.operate.client_kit.client import client_of
from squidkeeper.policy.bodies.json_form import format_pointer
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.engine import CompiledPolicy, decide_body
from squidkeeper.policy.engine.decide import decide
from squidkeeper.policy.engine.decision import Decision
from squidkeeper.policy.language.bodies import JsonBody
from squidkeeper.policy.language.document import parse_document
from squidkeeper.policy.language.hosts import HostForm
from squidkeeper.policy.language.lint import lint, open_to_any_client
from squidkeeper.policy.language.model import VERDICT_NAMES, Action, Rule
from squidkeeper.policy.policy_store.loading import (
    build_sources,
    load,
    load_preset,
    load_stored_revision,
)
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources, sources_of
from squidkeeper.policy.presets import preset_names, preset_text, read_preset
from squidkeeper.policy.presets.summary import summarize
from squidkeeper.policy.protocol.request import request_to
from tests.documents.preset_tables import render

from ..conftest import NOW, compiled_of, write_policy

NAMES = sorted(preset_names())
DOCUMENT = Path(__file__).parents[2] / "policy/PRESETS.md"
# What is shipped never changes. A preset that has to change gets another version, in a
# file of its own.
SHIPPED: dict[str, str] = {
    "anthropic@1": "9486a586ae0da369fa10f7b8ef1c0344d07f650bbc39679a3d9837508c115578",
    "crates@1": "1f26bbfab108c4a35427fe5f4d49f77c256ea4e5ad9edae0eeb2168d621b1e4d",
    "crates@2": "8d332ae8a7bcc406c177706571bcac75f19ac4a29142ba145db65e040a6afdc9",
    "debian@1": "e9eef14f4ce0270d213c00326524a87d9fb23a5d51f0040dd872053c69f0539b",
    "debian@2": "0d9f8a4dfe523b873e7106002179f443e11d5cd212f22a0318ca140b49f12b19",
    "github-read@1": "1f4304d759c859e741f5822a1b96b7f6beed709f17a56c18d0540f8513cc92ee",
    "github-read@2": "f6c7c6c543784605f18ab50374b5c22081acfbc94c00c9cab128eb1940a47d5b",
    "go@1": "2c26b3d59f727a1a18005be2ef1310f9324f13306e11d3f40d180cf1a08e950c",
    "go@2": "a83a937aff2a8173a855f5277581c33dfaeb7c4d1cde0c1ef94683ef95dd4edc",
    "npm@1": "0ba20aaf4588ade154661604811275babab24f5abed8be6960ae7bc2eba564a1",
    "npm@2": "8fa7179b5989e0e556c1a3dfe82987236b8f4eb3d61d240ed4e56b61da8635ce",
    "openai@1": "b1dc1677895c7d48285d6352cb4321c8b34a96a61868c9cfddfb45a50fd536fa",
    "pypi@1": "5f7a7c718401c69090cfc4a1b42d7afd0d2f0574024aa5c808b8e4254867e133",
    "pypi@2": "32652801bde4a57d2dbfb1a6608d7803e0fe7989053176f21f3d88b0bcfb7160",
}
SHARED_STORAGE = (
    "amazonaws.com",
    "blob.core.windows.net",
    "cloudfront.net",
    "googleapis.com",
    "r2.dev",
)
NEWEST = sorted(newest_presets())
EVERY_PRESET = f"presets: [{', '.join(NEWEST)}]\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "policy"
    directory.mkdir()
    return directory


def faults(directory: Path, text: str) -> list[str]:
    with pytest.raises(PolicyError) as raised:
        load(write_policy(directory, text), NOW)
    return [str(fault).replace(f"{directory}/", "") for fault in raised.value.faults]


def warnings(directory: Path, text: str) -> list[str]:
    policy = compiled_of(directory, text).source
    return [str(fault).replace(f"{directory}/", "") for fault in lint(policy, NOW)]


def judged(
    policy: CompiledPolicy, request: str, client: str = "192.0.2.1"
) -> tuple[str, str]:
    method, url = request.split(" ")
    decision = decide(policy, policy.match(request_to(method, url, client)), NOW)
    return decision.action, decision.rule


def ship(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, host: str) -> None:
    """Let the program ship one other preset."""
    folder.mkdir()
    rule = f"{{name: {name}/x, action: allow, hosts: [{host}]}}"
    (folder / f"{name}.yaml").write_text(f"version: 1\nrules: [{rule}]\n")
    monkeypatch.setattr("squidkeeper.policy.presets._FOLDER", folder)


def rules_of(name: str) -> tuple[Rule, ...]:
    return tuple(load_preset(name).source.rules)


# --- what is shipped ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_version_never_changes(name: str) -> None:
    content = read_preset(name).content
    assert hashlib.sha256(content).hexdigest() == SHIPPED.get(name), (
        f"{name} has changed: make another version of it"
    )


def test_no_shipped_version_is_missing() -> None:
    assert set(SHIPPED) == preset_names()


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_holds_rules_of_its_own_name_alone(name: str) -> None:
    assert read_preset(name).data.keys() == {"version", "rules"}
    assert all(
        re.fullmatch(rf"{re.escape(name)}/[a-z]+", rule.name) for rule in rules_of(name)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_only_opens_and_opens_named_hosts_and_methods_at_default_ports(
    name: str,
) -> None:
    """No rule closes, is for private addresses, is unseen, or opens whatever somebody
    else may have at a host.
    """
    for rule in rules_of(name):
        match = rule.match
        assert rule.action is Action.ALLOW, rule.name
        assert not any(
            (rule.private, rule.passthrough, rule.websocket, rule.strip, rule.observe)
        ), rule.name
        assert (rule.expires, rule.when) == (None, None), rule.name
        assert match.hosts
        assert all(pattern.form is HostForm.EXACT for pattern in match.hosts), rule.name
        assert match.methods
        assert match.methods <= {"GET", "HEAD", "POST"}, rule.name
        assert match.ports is None
        assert match.lists is None


@pytest.mark.parametrize("name", NAMES)
def test_storage_that_others_share_is_open_for_one_bucket_alone(name: str) -> None:
    shared = [
        rule
        for rule in rules_of(name)
        if any(host.text.endswith(SHARED_STORAGE) for host in rule.match.hosts or ())
    ]
    for rule in shared:
        assert all(
            re.match(r"/[a-z0-9-]+/", path.text) for path in rule.match.paths or ()
        ), rule.name
        assert rule.match.paths


@pytest.mark.parametrize("name", NAMES)
def test_what_is_sent_has_paths(name: str) -> None:
    """A POST carries data out: each is for paths that the provider's documents name."""
    assert all(
        rule.match.paths
        for rule in rules_of(name)
        if "POST" in (rule.match.methods or ())
    )


def test_no_preset_has_a_warning_of_its_own(directory: Path) -> None:
    assert warnings(directory, EVERY_PRESET) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_names_its_documents_and_the_day(name: str) -> None:
    summary = summarize(name)
    assert summary.opens.endswith(".")
    assert summary.leaves_out.endswith(".")
    assert summary.documents
    assert all(url.startswith("https://") for url in summary.documents)
    assert date.fromisoformat(summary.read) >= date(2026, 11, 26)
    assert [rule.name for rule in summary.rules] == [
        rule.name for rule in rules_of(name)
    ]


def test_the_document_has_the_tables() -> None:
    page = DOCUMENT.read_text()
    assert render(page) == page


CASES = """
pypi@2        allow index     GET https://pypi.org/simple/
pypi@2        allow index     GET https://pypi.org/simple/requests/
pypi@2        allow index     GET https://pypi.org/pypi/requests/json
pypi@2        allow index     GET https://pypi.org/pypi/requests/2.32.0/json
pypi@2        allow index     GET https://pypi.org/integrity/requests/2.32.0/requests-2.32.0.tar.gz/provenance
pypi@2        allow files     HEAD https://files.pythonhosted.org/packages/6f/be/99dc/requests-2.32.0.tar.gz
pypi@2        deny  default   POST https://upload.pypi.org/legacy/
pypi@2        deny  default   POST https://pypi.org/pypi
pypi@2        deny  default   GET https://pypi.org/manage/account/
pypi@2        deny  default   GET http://pypi.org/simple/requests/
npm@2         allow packages  GET https://registry.npmjs.org/left-pad
npm@2         allow packages  GET https://registry.npmjs.org/@types%2Fnode
npm@2         allow packages  GET https://registry.npmjs.org/left-pad/-/left-pad-1.3.0.tgz
npm@2         allow packages  GET https://registry.npmjs.org/-/v1/search?text=pad
npm@2         allow audit     POST https://registry.npmjs.org/-/npm/v1/security/advisories/bulk
npm@2         deny  default   PUT https://registry.npmjs.org/left-pad
npm@2         deny  default   PUT https://registry.npmjs.org/-/user/org.couchdb.user:me
npm@2         deny  default   POST https://registry.npmjs.org/-/v1/login
npm@2         deny  default   DELETE https://registry.npmjs.org/left-pad/-rev/1
debian@2      allow archive   GET http://deb.debian.org/debian/dists/trixie/InRelease
debian@2      allow archive   GET https://deb.debian.org/debian-security/dists/trixie-security/InRelease
debian@2      allow security  GET http://security.debian.org/debian-security/dists/trixie-security/InRelease
debian@2      deny  default   POST http://deb.debian.org/debian/
debian@2      deny  default   GET http://ftp.debian.org/debian/
crates@2      allow index     GET https://index.crates.io/se/rd/serde
crates@2      allow index     GET https://index.crates.io/config.json
crates@2      allow files     GET https://static.crates.io/crates/serde/serde-1.0.0.crate
crates@2      allow files     GET https://static.crates.io/crates/serde/1.0.0/download
crates@2      allow api       GET https://crates.io/api/v1/crates?q=serde
crates@2      allow api       GET https://crates.io/api/v1/crates/serde/1.0.0/download
crates@2      deny  default   PUT https://crates.io/api/v1/crates/new
crates@2      deny  default   DELETE https://crates.io/api/v1/crates/serde/1.0.0/yank
crates@2      deny  default   GET https://crates.io/api/v1/me
go@2          allow modules   GET https://proxy.golang.org/golang.org/x/text/@v/list
go@2          allow modules   GET https://proxy.golang.org/github.com/!burnt!sushi/toml/@v/v1.0.0.zip
go@2          allow checksums GET https://sum.golang.org/lookup/golang.org/x/text@v0.3.0
go@2          allow archives  GET https://storage.googleapis.com/proxy-golang-org-prod/1a2b-x.zip?Expires=1&Signature=s
go@2          deny  default   GET https://storage.googleapis.com/somebody-else/x.zip
go@2          deny  ambiguous-path GET https://storage.googleapis.com/proxy-golang-org-prod/../somebody-else/x
go@2          deny  ambiguous-path GET https://storage.googleapis.com/proxy-golang-org-prod/%2e%2e/somebody-else/x
go@2          deny  default   PUT https://storage.googleapis.com/proxy-golang-org-prod/x
go@2          deny  default   POST https://storage.googleapis.com/upload/storage/v1/b/proxy-golang-org-prod/o
github-read@2 allow refs      GET https://github.com/acme/app.git/info/refs?service=git-upload-pack
github-read@2 allow fetch     POST https://github.com/acme/app.git/git-upload-pack
github-read@2 allow pages     GET https://github.com/acme/app
github-read@2 allow pages     GET https://github.com/acme/app/issues/7
github-read@2 allow pages     GET https://github.com/acme/app/releases/download/v1/app.tar.gz
github-read@2 allow api       GET https://api.github.com/repos/acme/app/contents/README.md
github-read@2 allow files     GET https://raw.githubusercontent.com/acme/app/main/README.md
github-read@2 allow files     GET https://codeload.github.com/acme/app/tar.gz/refs/heads/main
github-read@2 allow files     GET https://objects.githubusercontent.com/github-production-release-asset-2e65be/1/2
github-read@2 allow files     GET https://release-assets.githubusercontent.com/github-production-release-asset/1/2?sp=r
github-read@2 deny  default   GET https://github.com/acme/app.git/info/refs?service=git-receive-pack
github-read@2 deny  default   GET https://github.com/acme/app.git/info/refs?service=git-upload-pack&service=git-receive-pack
github-read@2 deny  default   POST https://github.com/acme/app.git/git-receive-pack
github-read@2 deny  default   POST https://github.com/acme/app.git/info/lfs/objects/batch
github-read@2 deny  default   POST https://api.github.com/graphql
github-read@2 deny  default   POST https://api.github.com/repos/acme/app/issues
github-read@2 deny  default   PATCH https://api.github.com/repos/acme/app
github-read@2 deny  default   PUT https://api.github.com/repos/acme/app/contents/README.md
github-read@2 deny  default   POST https://api.github.com/repos/acme/app/git/refs
github-read@2 deny  default   PATCH https://api.github.com/repos/acme/app/git/refs/heads/main
github-read@2 deny  default   POST https://api.github.com/repos/acme/app/merges
github-read@2 deny  default   PUT https://api.github.com/repos/acme/app/pulls/7/merge
github-read@2 deny  default   POST https://uploads.github.com/repos/acme/app/releases/1/assets?name=x
github-read@2 deny  default   POST https://api.github.com/gists
anthropic@1   allow messages  POST https://api.anthropic.com/v1/messages
anthropic@1   allow messages  POST https://api.anthropic.com/v1/messages?beta=true
anthropic@1   allow messages  POST https://api.anthropic.com/v1/messages/count_tokens
anthropic@1   allow models    GET https://api.anthropic.com/v1/models?limit=1000
anthropic@1   deny  default   POST https://api.anthropic.com/v1/files
anthropic@1   deny  default   POST https://api.anthropic.com/v1/messages/batches
anthropic@1   deny  default   GET https://api.anthropic.com/v1/organizations/users
openai@1      allow chat      POST https://api.openai.com/v1/chat/completions
openai@1      allow responses POST https://api.openai.com/v1/responses
openai@1      allow others    POST https://api.openai.com/v1/responses/resp_1/cancel
openai@1      allow others    POST https://api.openai.com/v1/embeddings
openai@1      allow models    GET https://api.openai.com/v1/models
openai@1      allow models    GET https://api.openai.com/v1/responses/resp_1
openai@1      deny  default   POST https://api.openai.com/v1/files
openai@1      deny  default   POST https://api.openai.com/v1/uploads
openai@1      deny  default   GET https://api.openai.com/v1/files
openai@1      deny  default   DELETE https://api.openai.com/v1/models/ft:1
openai@1      deny  default   POST https://api.openai.com/v1/images/edits
"""


@pytest.mark.parametrize("case", CASES.strip().splitlines())
def test_a_preset_opens_this_and_not_that(case: str) -> None:
    name, action, rule, request = case.split(maxsplit=3)
    expected = rule if rule in VERDICT_NAMES else f"{name}/{rule}"
    assert judged(load_preset(name), request) == (action, expected)


CHAT, RESPONSES, MESSAGES = (
    f"POST https://{path}"
    for path in (
        "api.openai.com/v1/chat/completions",
        "api.openai.com/v1/responses",
        "api.anthropic.com/v1/messages",
    )
)
HOSTED: dict[
    str, tuple[str, str]
] = {  # a request of models, and what in it lets the provider reach other hosts
    "a hosted tool": (
        RESPONSES,
        '"tools": [{"type": "function", "name": "a"}, {"type": "web_search"}]',
    ),
    "an MCP server as a tool": (
        RESPONSES,
        '"tools": [{"type": "mcp", "server_url": "https://evil.example/"}]',
    ),
    "a hosted shell": (RESPONSES, '"tools": [{"type": "shell"}]'),
    "tools in a namespace": (
        RESPONSES,
        '"tools": [{"type": "namespace", "tools": [{"type": "mcp"}]}]',
    ),
    "tools in the input": (
        RESPONSES,
        '"input": [{"type": "additional_tools", "tools": [{"type": "web_search"}]}]',
    ),
    "a stored prompt": (RESPONSES, '"prompt": {"id": "p"}'),
    "the URL of an image": (
        RESPONSES,
        '"input": [{"content": [{"type": "input_image", "image_url": "https://e/"}]}]',
    ),
    "the URL of a file": (
        RESPONSES,
        '"input": [{"content": [{"type": "input_file", "file_url": "https://e/"}]}]',
    ),
    "the URL in the output of a tool": (
        RESPONSES,
        '"input": [{"output": [{"image_url": "https://e/"}]}]',
    ),
    "the file in the output of a tool": (
        RESPONSES,
        '"input": [{"output": [{"file_url": "https://e/"}]}]',
    ),
    "a search in a chat": (CHAT, '"web_search_options": {}'),
    "a hosted tool in a chat": (CHAT, '"tools": [{"type": "web_search"}]'),
    "the URL of an image in a chat": (
        CHAT,
        '"messages": [{"content": [{"image_url": {"url": "https://e/"}}]}]',
    ),
    "a server tool": (
        MESSAGES,
        '"tools": [{"name": "a"}, {"type": "web_fetch_20260318", "name": "web_fetch"}]',
    ),
    "the shell of a server tool": (
        MESSAGES,
        '"tools": [{"type": "code_execution_20260521"}]',
    ),
    "an MCP server": (
        MESSAGES,
        '"mcp_servers": [{"type": "url", "url": "https://e/"}]',
    ),
    "skills": (MESSAGES, '"container": {"skills": []}'),
    "a tool in a message": (
        MESSAGES,
        '"messages": [{"content": [{"tool": {"definition": {"type": "mcp_toolset"}}}]}]',
    ),
    "a tool in a compaction": (
        MESSAGES,
        '"messages": [{"content": [{"tool_changes": [{"definition": {"type": "mcp_toolset"}}]}]}]',
    ),
    "the URL of a document": (
        MESSAGES,
        '"messages": [{"content": [{"source": {"type": "url", "url": "https://e/"}}]}]',
    ),
    "the URL in a result": (
        MESSAGES,
        '"messages": [{"content": [{"content": [{"source": {"type": "url"}}]}]}]',
    ),
}
ORDINARY: dict[str, tuple[str, str]] = {
    "a text": (RESPONSES, '"input": "Hello"'),
    "tools of the client": (
        RESPONSES,
        '"tools": [{"type": "function", "name": "a"}, {"type": "apply_patch"}], "input": [{"role": "user", "content": '
        '[{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}, '
        '{"type": "function_call_output", "output": "a"}]',
    ),
    "a chat": (
        CHAT,
        '"tools": [{"type": "function", "function": {}}], "messages": [{"role": "user", "content": "a"}, '
        '{"role": "user", "content": [{"type": "text"}, {"image_url": {"url": "data:image/png;base64,"}}]}]',
    ),
    "a message": (
        MESSAGES,
        '"system": "a", "tools": [{"name": "a", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}], '
        '"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "tool_use", '
        '"input": {}}]}, {"role": "user", "content": [{"type": "tool_result", "content": "a"}, {"type": "tool_result", '
        '"content": [{"type": "image", "source": {"type": "base64", "data": "AA=="}}]}]}]',
    ),
}


def by_body(request: str, members: str) -> Decision:
    policy = load_preset("anthropic@1" if "anthropic" in request else "openai@1")
    method, url = request.split(" ")
    decision = decide(policy, policy.match(request_to(method, url)), NOW)
    headers = [("Content-Type", "application/json")]
    content = f'{{"model": "m", "stream": true, {members}}}'.encode()
    decided = decide_body(policy, decision, SentRequest(method, url, headers, content))
    assert decided is not None
    return decided


@pytest.mark.parametrize("case", ORDINARY)
def test_a_preset_of_models_opens_what_agents_send(case: str) -> None:
    assert by_body(*ORDINARY[case]).allowed


@pytest.mark.parametrize("case", HOSTED)
def test_a_preset_of_models_closes_what_lets_the_provider_reach_other_hosts(
    case: str,
) -> None:
    decision = by_body(*HOSTED[case])
    assert (decision.action, decision.rule) == ("deny", "default")


def test_each_place_that_a_preset_of_models_names_closes_something() -> None:
    found = [by_body(*request).found or "" for request in HOSTED.values()]
    bodies = [(rule.name, rule.body) for name in NAMES for rule in rules_of(name)]
    places = {
        f"{name}: {format_pointer(one.pointer)}"
        for name, body in bodies
        if isinstance(body, JsonBody)
        for one in body.members
    }
    assert {
        text.removesuffix(" is not what the rule lists") for text in found
    } == places


# --- a policy that names presets ------------------------------------------------------


def test_the_rules_of_presets_stand_below_those_of_the_operator_whatever_the_files(
    directory: Path,
) -> None:
    (directory / "10-presets.yaml").write_text("version: 1\npresets: [pypi@2, npm@2]\n")
    policy = compiled_of(
        directory,
        "rules: [{name: closed, action: deny, hosts: [pypi.org], paths: [/simple/evil/]}]",
    )
    names = [rule.name for rule in policy.source.rules]
    assert names == [
        "closed",
        "pypi@2/index",
        "pypi@2/files",
        "npm@2/packages",
        "npm@2/audit",
    ]
    assert judged(policy, "GET https://pypi.org/simple/evil/") == ("deny", "closed")
    assert judged(policy, "GET https://pypi.org/simple/good/") == (
        "allow",
        "pypi@2/index",
    )


REQUESTS = [
    case.split(maxsplit=3)[3]
    for case in CASES.strip().splitlines()
    if "ambiguous" not in case
]
HOSTS = sorted({request.split("/")[2] for request in REQUESTS})
OPERATORS_RULES = st.lists(
    st.fixed_dictionaries(
        {
            "action": st.sampled_from(["allow", "deny"]),
            "hosts": st.lists(st.sampled_from(HOSTS), min_size=1),
        },
        optional={
            "methods": st.lists(st.sampled_from(["GET", "POST", "PUT"]), min_size=1),
            "paths": st.just(["/simple/**", "/v1/**", "/acme/**"]),
        },
    ),
    max_size=4,
)


def test_a_preset_decides_where_no_rule_of_the_operator_does_and_nowhere_else() -> None:
    alone = {name: load_preset(name) for name in NAMES}
    opened = {
        (name, request): judged(alone[name], request)
        for name in NAMES
        for request in REQUESTS
    }

    @given(
        OPERATORS_RULES,
        st.lists(st.sampled_from(NAMES), unique=True),
        st.lists(st.sampled_from(REQUESTS)),
    )
    def check(
        rules: list[dict[str, object]], named: list[str], requests: list[str]
    ) -> None:
        own: dict[str, object] = (
            {
                "rules": [
                    {"name": f"own {number}", **rule}
                    for number, rule in enumerate(rules)
                ]
            }
            if rules
            else {}
        )
        of_presets: dict[str, object] = {"presets": named} if named else {}
        without, together = of_data(own), of_data({**own, **of_presets})
        for request in requests:
            action, rule = judged(without, request)
            if not rule.startswith("own "):
                verdicts = (opened[name, request] for name in named)
                action, rule = next(
                    (verdict for verdict in verdicts if verdict[0] == "allow"),
                    (action, rule),
                )
            assert judged(together, request) == (action, rule), request

    check()


def of_data(data: dict[str, object]) -> CompiledPolicy:
    document = parse_document(
        Path("policy.yaml"), json.dumps({"version": 1, **data}).encode()
    )
    return CompiledPolicy(build_sources(sources_of((document,))).policy)


def test_the_brief_of_a_client_has_the_presets_that_are_for_it(directory: Path) -> None:
    clients = "clients: {a: {networks: [10.0.0.0/8]}, b: {networks: [192.0.2.0/24]}}"
    policy = compiled_of(
        directory, f"{clients}\npresets: [{{preset: npm@2, clients: [a]}}, pypi@2]"
    ).source
    for_each = {"pypi@2/index", "pypi@2/files"}
    for name, shown in (
        ("a", {"npm@2/packages", "npm@2/audit", *for_each}),
        ("b", for_each),
    ):
        brief = write_brief(policy, client_of(policy, name), NOW)
        assert set(re.findall(r"rule `(\w+@2/\w+)`", brief)) == shown


def test_a_rule_of_a_preset_stands_where_it_is_shipped(directory: Path) -> None:
    policy = compiled_of(directory, "presets: [pypi@2]").source
    assert [(str(rule.location), rule.preset) for rule in policy.rules] == [
        ("preset pypi@2:9:5", "pypi@2"),
        ("preset pypi@2:17:5", "pypi@2"),
    ]


def test_a_preset_is_for_the_clients_that_are_named_with_it(directory: Path) -> None:
    text = "clients: {agents: {networks: [10.0.0.0/8]}}\npresets: [{preset: npm@2, clients: [agents]}, pypi@2]"
    policy = compiled_of(directory, text)
    assert judged(policy, "GET https://registry.npmjs.org/x", "10.0.0.1") == (
        "allow",
        "npm@2/packages",
    )
    assert judged(policy, "GET https://registry.npmjs.org/x", "192.0.2.1") == (
        "deny",
        "default",
    )
    assert judged(policy, "GET https://pypi.org/simple/x/", "192.0.2.1") == (
        "allow",
        "pypi@2/index",
    )
    assert warnings(directory, text) == []  # the client is used


def test_a_test_of_the_policy_can_name_a_rule_of_a_preset(directory: Path) -> None:
    test = "tests: [{request: GET https://pypi.org/simple/x/, expect: allow, rule: %s}]"
    compiled_of(directory, f"presets: [pypi@2]\n{test % 'pypi@2/index'}")
    assert len(faults(directory, f"presets: [pypi@2]\n{test % 'pypi@2/files'}")) == 1
    assert (
        "there is no rule or verdict 'pypi@2/index'"
        in faults(directory, test % "pypi@2/index")[0]
    )


THERE_ARE = f"expected one of {', '.join(NAMES[:12])} or one of {len(NAMES) - 12} others [unknown-name]"
FAULTS = {
    "presets: [npm@9]": [f"policy.yaml:2:11: there is no preset 'npm@9', {THERE_ARE}"],
    "presets: [npm]": [f"policy.yaml:2:11: there is no preset 'npm', {THERE_ARE}"],
    "presets: [../presets/npm@2]": [
        f"policy.yaml:2:11: there is no preset '../presets/npm@2', {THERE_ARE}"
    ],
    "presets: [{preset: NPM@1}]": [
        f"policy.yaml:2:20: there is no preset 'NPM@1', {THERE_ARE}"
    ],
    "presets: [npm@2, {preset: npm@2}]": [
        "policy.yaml:2:18: preset 'npm@2' is named twice, first at policy.yaml:2:11; "
        "expected it once, with all its clients [duplicate-name]"
    ],
    "presets: npm@2": [
        "policy.yaml:2:10: 'presets' is 'npm@2', expected a list, such as [one, two] [wrong-type]"
    ],
    "presets: [1]": [
        "policy.yaml:2:11: an entry of 'presets' is the number 1, expected a mapping (key: value) [wrong-type]"
    ],
    "presets: [{clients: [a]}]": [
        "policy.yaml:2:11: key 'preset' is missing, expected one such as npm@2 (`squidkeeper preset list`) "
        "[missing-key]",
        "policy.yaml:2:22: there is no client 'a', expected one that is defined in the section 'clients' of any file "
        "of the policy [unknown-name]",
    ],
    "presets: [{preset: npm@2, host: x}]": [
        "policy.yaml:2:27: unknown key 'host', expected one of clients, preset [unknown-key]"
    ],
    "presets: [npm@2]\nrules: [{name: npm@2/audit, action: deny}]": [
        "policy.yaml:3:16: rule 'npm@2/audit' is defined twice, first at preset npm@2:16:11 [duplicate-name]"
    ],
    # a test that names a rule of a preset that there is not: one fault, not two
    "presets: [no@1]\ntests: [{request: GET http://a.example/, expect: deny, rule: no@1/x}]": [
        f"policy.yaml:2:11: there is no preset 'no@1', {THERE_ARE}"
    ],
}


@pytest.mark.parametrize("text", FAULTS)
def test_what_is_no_preset_is_a_fault(directory: Path, text: str) -> None:
    assert faults(directory, text) == FAULTS[text]


def test_a_preset_whose_file_is_broken_is_a_fault_and_loads_nothing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squidkeeper.policy.presets._FOLDER", tmp_path)
    (tmp_path / "half@1.yaml").write_text(
        "version: 1\nrules: [{name: half@1/x, action: all"
    )
    (tmp_path / "lost@1.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "wide@1.yaml").write_text(
        "version: 1\nrules: [{name: wide@1/x, action: allow, hosts: ['*.com']}]\n"
    )
    shown = faults(directory, "presets: [half@1, lost@1, wide@1]")
    assert [(line.partition(":")[0], line.rpartition(" ")[2]) for line in shown] == [
        ("preset half@1", "[not-yaml]"),
        ("preset lost@1", "[unreadable]"),
        ("preset wide@1", "[too-wide]"),
    ]


# --- the command ----------------------------------------------------------------------


def preset_command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["preset", *arguments])


def test_the_list_names_each_preset_and_what_it_opens() -> None:
    result = preset_command("list")
    assert result.exit_code == 0
    assert [line.split("  ")[0] for line in result.output.splitlines()] == NAMES
    assert "Packages of the npm registry, for npm and pnpm." in result.output
    listed = json.loads(preset_command("list", "--json").output)["presets"]
    assert [
        f"{unproposed['name']}  {unproposed['opens']}" for unproposed in listed
    ] == [re.sub("  +", "  ", line) for line in result.output.splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_of_a_preset_is_a_policy_that_opens_the_same(
    directory: Path, name: str
) -> None:
    result = preset_command("show", name)
    assert result.output == preset_text(name)
    (directory / "policy.yaml").write_text(result.output)
    assert [rule.match for rule in load(directory, NOW).compiled.source.rules] == [
        rule.match for rule in rules_of(name)
    ]


@pytest.mark.parametrize("name", ["npm", "npm@9", "../__init__", "npm@2.yaml"])
def test_the_command_names_what_there_is_instead_of_an_unknown_preset(
    name: str,
) -> None:
    result = preset_command("show", name)
    assert result.exit_code == 2
    assert (
        f"there is no preset {name!r}, expected one of {', '.join(NAMES)}"
        in " ".join(result.output.split())
    )


# --- lint -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deny", "shown"),
    [
        (
            "hosts: [registry.npmjs.org], methods: [POST]",
            [],
        ),  # one rule of a preset may be closed above it
        ("hosts: [pypi.org], paths: [/simple/x/]", []),
        (
            "hosts: [registry.npmjs.org]",
            [
                "policy.yaml:2:19: preset 'npm@2' can never decide: rules above it decide all it could match"
                " [rule-unreachable]"
            ],
        ),
    ],
)
def test_only_a_preset_that_can_never_decide_is_shown_where_it_is_named(
    directory: Path, deny: str, shown: list[str]
) -> None:
    rule = f"rules: [{{name: closed, action: deny, {deny}}}]"
    assert warnings(directory, f"presets: [pypi@2, npm@2]\n{rule}") == shown


def test_a_preset_for_any_client_is_shown_once_where_it_is_named(
    directory: Path,
) -> None:
    text = "clients: {a: {networks: [10.0.0.0/8]}}\npresets: [npm@2, {preset: pypi@2, clients: [a]}]"
    found = open_to_any_client(compiled_of(directory, text).source, str(directory), NOW)
    assert [str(fault).replace(f"{directory}/", "") for fault in found] == [
        "policy.yaml:3:11: preset 'npm@2' allows any client, expected {preset: npm@2, clients: [...]} [any-client]"
    ]


# --- revisions ------------------------------------------------------------------------


def test_the_presets_of_a_policy_are_part_of_its_revision(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compiled_of(directory, "presets: [npm@2]").revision
    ship(tmp_path / "shipped", monkeypatch, "npm@2", "registry.npmjs.org")
    assert compiled_of(directory, "presets: [npm@2]").revision != before


def test_a_revision_does_not_depend_on_where_the_program_is(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compiled_of(directory, "presets: [npm@2]").revision
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "npm@2.yaml").write_text(preset_text("npm@2"))
    monkeypatch.setattr("squidkeeper.policy.presets._FOLDER", elsewhere)
    assert compiled_of(directory, "presets: [npm@2]").revision == before


def test_a_stored_revision_decides_as_it_did_when_its_presets_are_no_longer_shipped(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "clients: {agents: {networks: [10.0.0.0/8]}}\npresets: [{preset: npm@2, clients: [agents]}]"
    policy = compiled_of(directory, text)
    store_revision(read_sources(directory), policy.revision, tmp_path / "revisions")
    ship(tmp_path / "shipped", monkeypatch, "other@1", "other.example")
    stored = load_stored_revision(tmp_path / "revisions", policy.revision)
    for client in ("10.0.0.1", "192.0.2.1"):
        request = "GET https://registry.npmjs.org/x"
        assert judged(stored, request, client) == judged(policy, request, client)


def test_a_stored_preset_that_was_changed_or_lost_is_not_decided_by(
    directory: Path, tmp_path: Path
) -> None:
    policy = compiled_of(directory, "presets: [npm@2]")
    store_revision(read_sources(directory), policy.revision, tmp_path / "revisions")
    stored = tmp_path / "revisions" / policy.revision / "presets" / "npm@2"
    stored.write_bytes(stored.read_bytes().replace(b"[GET, HEAD]", b"[GET, PUT]"))
    with pytest.raises(OSError, match="not stored completely"):
        load_stored_revision(tmp_path / "revisions", policy.revision)
    # as at the next load
    store_revision(read_sources(directory), policy.revision, tmp_path / "revisions")
    assert (
        load_stored_revision(tmp_path / "revisions", policy.revision).revision
        == policy.revision
    )
    stored.unlink()
    store_revision(read_sources(directory), policy.revision, tmp_path / "revisions")
    assert (
        load_stored_revision(tmp_path / "revisions", policy.revision).revision
        == policy.revision
    )


def test_a_policy_without_presets_has_the_revision_that_it_had(directory: Path) -> None:
    """Requests of earlier releases are judged by their stored revisions, which keep
    their names.
    """
    assert (
        compiled_of(directory, "defaults: {action: allow}").revision == "532bc6b53ea3"
    )


def test_explain_advises_no_edit_of_a_rule_of_a_preset(directory: Path) -> None:
    write_policy(directory, "presets: [github-read@2]\n")
    url = "https://github.com/acme/app/info/refs?service=git-upload-pack"
    done = CliRunner().invoke(main, ["explain", "--policy", str(directory), "GET", url])
    own = "on an allow of your own above the rule github-read@2/refs would"
    assert f"(private: true {own} allow it)" in done.output
    assert f"(websocket: true {own} let it pass)" in done.output
