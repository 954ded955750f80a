"""The policy loader: any files give a policy or `PolicyError`, and a policy that loads
can be asked anything.

An input is the policy's files, parted by `SEPARATOR`. Beside them lie the list and
secret files that the examples name. Half of the mutations are of the YAML's tree: what
is put in comes from the examples and from a table of odd values.
"""

from __future__ import annotations

import copy
import random
import re
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from squidkeeper.base.errors import InvalidUrl, PolicyError
from squidkeeper.policy.engine import CompiledPolicy, Stage, decide
from squidkeeper.policy.engine.explain import (
    by_reading,
    not_applied,
    not_reached,
    passed_over,
    websocket,
)
from squidkeeper.policy.language.builder import build  # noqa: F401 - loading imports it late, and atheris only follows what it has seen
from squidkeeper.policy.language.lint import lint
from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.policy_store.loading import LoadedPolicy, load
from squidkeeper.policy.protocol.request import Malformed, Request, request_to
from squidkeeper.policy.url import bracketed, parse_host

from .target import Target

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SEPARATOR = b"\n%%%\n"
FILES_AT_MOST = 3
PLACES_AT_MOST = 10_000  # of a tree that aliases make endless
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
PATHS = (
    "/",
    "/acme/x?q=1",
    "/a/..%2fb;v=1/c?q=1;q=2",
    "/simple/%2e%2e/%252e/",
    "/%zz",
    "/é//\\..\\",
)
METHODS = ("GET", "POST", "OPTIONS")

_folder = tempfile.TemporaryDirectory(prefix="squidkeeper-fuzz-")
_directory = Path(_folder.name) / "policy"


def check(data: bytes) -> None:
    lay_out(data)
    first, second = attempt(), attempt()
    assert said_of(first) == said_of(second), "two loads of the same files differ"
    for fault in said_of(first)[1:]:
        assert not CONTROL.search(fault), (
            "a fault is one line, which nobody's text can break"
        )
    if isinstance(first, LoadedPolicy):
        check_policy(first.compiled)


def lay_out(data: bytes) -> None:
    if not _directory.exists():
        lay_out_what_is_named()
    parts = data.split(SEPARATOR, FILES_AT_MOST - 1)
    for number in range(FILES_AT_MOST):
        path = _directory / f"{number}.yaml"
        if number < len(parts):
            path.write_bytes(parts[number])
        else:
            path.unlink(missing_ok=True)


def lay_out_what_is_named() -> None:
    for name in (
        "list.txt",
        "lists/trackers.txt",
        "wide.txt",
        "secrets/github-token",
        "secrets/open",
    ):
        path = _directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "ads.example\n192.0.2.0/24\n.x\n" if name.endswith(".txt") else "token\n"
        )
        path.chmod(0o644 if name.endswith("open") else 0o640)


def attempt() -> LoadedPolicy | PolicyError:
    try:
        return load(_directory, NOW)
    except PolicyError as error:
        return error


def said_of(result: LoadedPolicy | PolicyError) -> list[str]:
    if isinstance(result, PolicyError):
        assert result.faults, "a policy that does not load says why"
        return ["", *map(str, result.faults), *map(str, result.warnings)]
    return [result.compiled.revision, *map(str, result.warnings)]


# --- a policy that loads --------------------------------------------------------------


def check_policy(compiled: CompiledPolicy) -> None:
    for warning in lint(compiled.source, NOW):
        assert not CONTROL.search(str(warning))
    for host in hosts_of(compiled.source):
        for number, path in enumerate(PATHS):
            method = METHODS[number % len(METHODS)]
            scheme = "http" if number == len(PATHS) - 1 else "https"
            url = f"{scheme}://{host}{path}"
            asked = request_to(method, url, "192.168.137.10", "ci-bot")
            check_request(compiled, asked)
            for session in sessions_of(compiled.source):
                if isinstance(asked, Request):
                    check_request(compiled, asked._replace(session=session))
        check_request(compiled, request_to("CONNECT", f"{host}:443"))


def sessions_of(policy: Policy) -> Iterator[Session]:
    """Sessions of tests, and one of each role with the same text for every variable."""
    yield from [test.session for test in policy.tests if test.session][:2]
    for role in policy.roles[:2]:
        values = {variable.name: ("ads.example",) for variable in role.variables}
        yield Session.assumed(role.name, values)


def hosts_of(policy: Policy) -> list[str]:
    """Hosts that entries of the policy are for, and one that hardly any is for."""
    matches = [
        entry.match
        for section in (policy.rules, policy.rewrites, policy.credentials)
        for entry in section
    ]
    patterns = [pattern for match in matches for pattern in match.hosts or ()]
    texts = [
        str(pattern.network.network_address)
        if pattern.network
        else f"sub.{pattern.name}"[-253:].lstrip(".")
        for pattern in patterns[:4]
    ]
    names = [pattern.name for pattern in patterns[:4] if pattern.name]
    return [
        host
        for text in ("other.test", *names, *texts)
        if (host := host_in_url(text)) is not None
    ]


def host_in_url(text: str) -> str | None:
    try:
        return bracketed(parse_host(f"[{text}]" if ":" in text else text))
    except InvalidUrl:
        return None


def check_request(compiled: CompiledPolicy, request: Request | Malformed) -> None:
    """What holds for every URL of the host holds for this one, and every decision can
    be explained.
    """
    decision = decide(compiled, compiled.match(request), NOW)
    passed_over(compiled, request, NOW)
    not_reached(compiled, request, decision, NOW)
    websocket(compiled, request, decision, NOW)
    not_applied(compiled, request, decision)
    by_reading(compiled, request, NOW)
    if request.url is None:
        return
    at_host = decide(compiled, compiled.match(request), NOW, Stage.HOST)
    if decision.allowed:
        assert at_host.allowed, "what passes at request scope is never stopped before"
        assert at_host.outlook.may_rewrite or decision.rewritten is None
        assert (
            at_host.outlook.may_inject
            or at_host.outlook.may_rewrite
            or not decision.credentials
        )
    elif decision.rule not in ("invalid-request", "ambiguous-path"):
        assert (
            not at_host.allowed
            or at_host.outlook.needs_url
            or at_host.outlook.may_rewrite
        )


# --- where to start -------------------------------------------------------------------


def seeds() -> Iterator[bytes]:
    """Yield the tests' policies, the examples, and each of their sections alone."""
    for path in (
        *sorted((ROOT / "tests/data").rglob("*.yaml")),
        ROOT / "policy/policy.yaml",
    ):
        yield path.read_bytes()
    documents = "".join(
        (ROOT / f"policy/{name}.md").read_text() for name in ("README", "REFERENCE")
    )
    for text in re.findall(r"```yaml\n(.*?)```", documents, re.DOTALL):
        yield text.encode()
    for tree in _examples():
        for section, entries in tree.items():
            if section != "version":
                yield dump({"version": 1, section: entries})
    tested = (
        b"tests:\n- {request: 'GET https://a.example/', expect: deny, rule: gone}\n"
    )
    yield (
        b'version: 1\nrules:\n- {name: "a\\tb", action: deny, hosts: [a.example]}\n'
        + tested
    )
    yield b'version: 1\ntests:\n- {request: "GET https://a.example/\\t\\n2", expect: allow}\n'
    yield (
        b"version: 1\n"
        + SEPARATOR
        + b"version: 1\ndefaults: {action: allow}\n"
        + SEPARATOR
        + b"version: 1\n"
    )


def _examples() -> list[dict[str, Any]]:
    texts = [
        path.read_text() for path in sorted((ROOT / "tests/data/good").glob("*.yaml"))
    ]
    return [tree for tree in map(parse, texts) if isinstance(tree, dict)]


def parse(text: str | bytes) -> object:
    try:
        return yaml.load(text, Loader=yaml.CBaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return None


def dump(tree: object, *, flow: bool | None = None) -> bytes:
    text = yaml.dump(
        tree,
        Dumper=yaml.CSafeDumper,
        sort_keys=False,
        default_flow_style=flow,
        allow_unicode=True,
    )
    return re.sub(r"(?m)^version: '1'$", "version: 1", text).encode(
        "utf-8", "surrogatepass"
    )


# --- mutations of the tree ------------------------------------------------------------

ODD: tuple[object, ...] = (
    *(
        "",
        "-",
        "*",
        "**",
        ".",
        "..",
        "*.com",
        "**.a.example",
        "::1",
        "[::1]:443",
        "0.0.0.0/0",
        "::/0",
        "é.example",
    ),
    *(
        "/",
        "/**",
        "/*/%2f*",
        "/%zz",
        "regex:",
        "regex:/(?P<a>.*)",
        "regex:(",
        "regex:/(a{1000}){1000}",
        "{query}",
    ),
    *(
        "https://{host}{path}{query}",
        "https://a.example/{a}?{query}",
        "http://a.example",
        "https://u@a.example/#x",
    ),
    *(
        "Bearer {github-token}",
        "{{}}",
        "{",
        "allow",
        "deny",
        "default",
        "GET https://a.example/%2e%2e",
        "CONNECT a:1",
    ),
    *(
        "2026-11-24T12:00:00Z",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "\x85",
        "\u2028",
        "x" * 5000,
    ),
    *(
        0,
        -1,
        65535,
        65536,
        10**30,
        1.5,
        True,
        False,
        None,
        [],
        {},
        [[]],
        {"": ""},
        list(range(50)),
        {"a": {"a": []}},
    ),
)


def mutate(data: bytes, seed: int) -> bytes:
    """Change the tree of one of the files: put another value in, take one out, double
    one, or swap two.
    """
    chance = random.Random(seed)
    parts = data.split(SEPARATOR)
    number = chance.randrange(len(parts))
    tree = parse(parts[number])
    if not isinstance(tree, dict):
        tree = parse(dump(chance.choice(_EXAMPLES)))
    for _ in range(chance.choice((1, 1, 2, 4))):
        _change(tree, chance)
    try:
        parts[number] = dump(tree, flow=chance.choice((None, False, True)))
    except (yaml.YAMLError, UnicodeEncodeError, RecursionError):
        return data
    return SEPARATOR.join(parts)


def _change(tree: object, chance: random.Random) -> None:
    places = list(islice(_places(tree), PLACES_AT_MOST))
    if not places:
        return
    holder, key = chance.choice(places)
    action = chance.randrange(5)
    if action == 0:
        del holder[key]
    elif action == 1:
        holder[key] = chance.choice(ODD)
    elif action == 2 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        example, at = chance.choice(_places_of_examples())
        into = (
            at
            if isinstance(holder, dict) and isinstance(at, str) and action == 3
            else key
        )
        holder[into] = copy.deepcopy(example[at])


def _places(tree: object, levels: int = 50) -> Iterator[tuple[Any, Any]]:
    """List every place in a tree; by its anchors a YAML tree can hold itself, so only
    so many levels of it.
    """
    if not levels:
        return
    keys: Iterable[Any] = (
        list(tree)
        if isinstance(tree, dict)
        else range(len(tree))
        if isinstance(tree, list)
        else ()
    )
    for key in keys:
        yield tree, key
        yield from _places(tree[key], levels - 1)  # type: ignore[index] # it has keys, so it can be indexed


def _places_of_examples() -> list[tuple[Any, Any]]:
    if not _PLACES:
        _PLACES.extend(place for tree in _EXAMPLES for place in _places(tree))
    return _PLACES


_EXAMPLES = _examples()
_PLACES: list[tuple[Any, Any]] = []
WORDS = (
    *(
        b"version: 1\n",
        b"rules:",
        b"name: ",
        b"action: ",
        b"hosts: ",
        b"paths: ",
        b"query: ",
        b"to: ",
        b"clients:",
    ),
    *(
        b"credentials:",
        b"secrets:",
        b"tests:",
        b"rewrites:",
        b"lists:",
        b"defaults:",
        b"expires: ",
        b"regex:",
        b"- ",
    ),
    *(
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!",
        b"? ",
        b"|\n",
        b"{",
        b"}",
        b"[",
        b"]",
        b": ",
        b"\t",
        b"---\n",
        SEPARATOR,
        b"\xc2\x85",
    ),
)
TARGET = Target(check, seeds, WORDS, longest_bytes=8192, mutate=mutate)
