"""What a rule's `git:` reads of a push, what it allows and denies, and git's report of
a denial.
"""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.policy.bodies.git_form import answer, examine, may_hold
from squidkeeper.policy.bodies.sent_request import Fit, SentRequest
from squidkeeper.policy.language.bodies import MAX_BYTES, GitBody
from tests.pushes import (
    NEW,
    NONE,
    OF_GIT,
    OLD,
    PACK,
    PUSH_TYPE,
    commands,
    packet,
    push,
    push_with_options,
    update,
)

AGENT, MAIN = "refs/heads/agent/fix", "refs/heads/main"
AGENTS = GitBody(("refs/heads/agent/**",))
ONLY_MAIN = GitBody((MAIN,))
HEADERS = (("Content-Type", PUSH_TYPE),)
PATH = "/acme/app.git/git-receive-pack"


def sent(
    body: bytes,
    *headers: tuple[str, str],
    target: str = PATH,
    method: str = "POST",
    complete: bool = True,
) -> SentRequest:
    return SentRequest(
        method, target, headers or HEADERS, body, complete, has_body=True
    )


def bodiless(method: str, target: str) -> SentRequest:
    return SentRequest(method, target, (), has_body=False)


def allows(body: GitBody, request: SentRequest) -> bool:
    return examine(body, request, deny=False).fit is Fit.HOLDS


# --- what is allowed and denied -------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "ref", "holds"),
    [
        ("refs/heads/agent/**", "refs/heads/agent/a", True),
        ("refs/heads/agent/**", "refs/heads/agent/a/b", True),
        ("refs/heads/agent/**", "refs/heads/agent", False),
        ("refs/heads/agent/**", "refs/heads/agents/a", False),
        ("refs/heads/agent/**", "refs/heads/Agent/a", False),
        ("refs/heads/agent/**", "refs/tags/agent/a", False),
        ("refs/heads/agent/*", "refs/heads/agent/a", True),
        ("refs/heads/agent/*", "refs/heads/agent/a/b", False),
        ("refs/heads/*-bot", "refs/heads/fix-bot", True),
        ("refs/heads/*-bot", "refs/heads/a/fix-bot", False),
        ("refs/heads/main", "refs/heads/main", True),
        ("refs/heads/main", "refs/heads/main2", False),
        ("refs/for/main", "refs/for/main%submit", False),
        ("refs/for/*", "refs/for/main%submit", True),
        ("refs/heads/größe", "refs/heads/größe", True),
        ("refs/heads/a.b", "refs/heads/a-b", False),
    ],
)
def test_a_glob_is_for_whole_refs(glob: str, ref: str, holds: bool) -> None:
    assert allows(GitBody((glob,)), sent(push(ref))) is holds


@pytest.mark.parametrize(
    ("command", "allowing"),
    [
        (update(AGENT), {"neither", "create", "delete", "both"}),
        (update(AGENT, old=NONE), {"create", "both"}),
        (update(AGENT, new=NONE), {"delete", "both"}),
        (update(AGENT, old=NONE, new=NONE), {"both"}),
        (update(AGENT, old="0" * 64, new="a" * 64), {"create", "both"}),
        (
            update(AGENT, old="0" * 39 + "1", new="A" * 40),
            {"neither", "create", "delete", "both"},
        ),
    ],
)
def test_creating_and_deleting_are_allowed_apart(
    command: str, allowing: set[str]
) -> None:
    kinds = {
        "neither": (False, False),
        "create": (True, False),
        "delete": (False, True),
        "both": (True, True),
    }
    bodies = {
        name: GitBody(AGENTS.push, create=create, delete=delete)
        for name, (create, delete) in kinds.items()
    }
    assert {
        name
        for name, body in bodies.items()
        if allows(body, sent(commands(command) + PACK))
    } == allowing


def test_a_push_is_allowed_whole_and_denied_by_any_part() -> None:
    both = sent(push(AGENT, MAIN))
    assert examine(AGENTS, both, deny=False) == (
        Fit.FAILS,
        "the push is for a ref that the rule does not list",
    )
    assert examine(ONLY_MAIN, both, deny=True).fit is Fit.HOLDS
    assert examine(ONLY_MAIN, sent(push(AGENT)), deny=True).fit is Fit.FAILS


@pytest.mark.parametrize(
    ("body", "command", "reason"),
    [
        (AGENTS, update(MAIN), "the push is for a ref that the rule does not list"),
        (
            AGENTS,
            update(MAIN, new=NONE),
            "the push is for a ref that the rule does not list",
        ),
        (AGENTS, update(AGENT, new=NONE), "the push deletes a ref"),
        (
            GitBody(AGENTS.push, create=False),
            update(AGENT, old=NONE),
            "the push creates a ref",
        ),
    ],
)
def test_a_denied_push_tells_which_kind_of_command_is_not_allowed(
    body: GitBody, command: str, reason: str
) -> None:
    assert examine(body, sent(commands(command) + PACK), deny=False) == (
        Fit.FAILS,
        reason,
    )


def test_a_deny_compares_refs_without_case() -> None:
    for ref in ("refs/heads/Main", "refs/Heads/MAIN"):
        assert examine(ONLY_MAIN, sent(push(ref)), deny=True).fit is Fit.HOLDS
        assert not allows(ONLY_MAIN, sent(push(ref)))
    assert (
        examine(GitBody(("refs/heads/Main",)), sent(push(MAIN)), deny=True).fit
        is Fit.HOLDS
    )


@pytest.mark.parametrize(
    ("listed", "options", "holds"),
    [
        ((), (), True),
        ((), ("ci.skip",), False),
        (("ci.skip",), ("ci.skip",), True),
        (("ci.skip",), ("ci.skip", "merge_request.create"), False),
        (("ci.*",), ("ci.skip", "ci.variable=A=1"), True),
        (("ci.*",), ("CI.skip",), False),
        (("merge_request.title=*",), ("merge_request.title=a/b",), True),
        (("**",), ("merge_request.title=a/b",), True),
        (("ci.skip",), ("",), None),
    ],
)
def test_push_options_are_denied_unless_listed(
    listed: tuple[str, ...], options: tuple[str, ...], holds: bool | None
) -> None:
    outcome = examine(
        GitBody(AGENTS.push, options=listed),
        sent(push_with_options(options, AGENT)),
        deny=False,
    )
    assert (
        outcome.fit is {True: Fit.HOLDS, False: Fit.FAILS, None: Fit.UNREADABLE}[holds]
    )


def test_a_deny_reads_refs_alone() -> None:
    body = GitBody(("refs/heads/**",), delete=True, options=("**",))
    assert (
        examine(
            body, sent(push_with_options(("ci.skip",), "refs/tags/v1")), deny=True
        ).fit
        is Fit.FAILS
    )


@pytest.mark.parametrize(
    "body",
    [
        b"0000",  # what git sends ahead of a long push, to learn whether it may
        packet(f"shallow {OLD}") + b"0000",  # a shallow clone that is up to date
    ],
)
def test_a_push_without_commands_is_allowed(body: bytes) -> None:
    assert allows(AGENTS, sent(body))
    assert examine(ONLY_MAIN, sent(body), deny=True).fit is Fit.FAILS


READABLE = [
    push(AGENT),
    push(AGENT, capabilities=""),
    push(AGENT, capabilities="report-status"),
    packet(update(AGENT)) + b"0000" + PACK,  # no capabilities
    packet(update(AGENT) + "\n") + b"0000" + PACK,
    packet(f"{update(AGENT)}\0{OF_GIT}\n") + b"0000" + PACK,
    packet(f"{update(AGENT)}\0{OF_GIT}")
    .upper()
    .replace(AGENT.upper().encode(), AGENT.encode())
    + b"0000"
    + PACK,
    packet(f"shallow {OLD}\n") + packet("shallow " + "a" * 64) + push(AGENT),
    commands(
        update(AGENT, new=NONE), capabilities=OF_GIT + " atomic quiet"
    ),  # a delete has no pack
    push(AGENT, AGENT),
]


@pytest.mark.parametrize("body", READABLE)
def test_what_clients_send_is_read(body: bytes) -> None:
    assert allows(GitBody(AGENTS.push, delete=True), sent(body))


# --- which requests -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "in_allow", "in_deny"),
    [
        ("POST", PATH, True, True),
        ("POST", "/git-receive-pack", True, True),
        ("PUT", PATH, False, True),
        ("GET", PATH, False, True),
        ("POST", f"{PATH}?", False, True),
        ("POST", f"{PATH}?service=git-upload-pack", False, True),
        ("POST", f"{PATH}/", False, True),
        ("POST", "/acme/app.git/Git-Receive-Pack", False, True),
        ("POST", "/acme/app.git/git%2Dreceive-pack", True, True),
        ("POST", "/acme/app.git/x/../git-receive-pack", True, True),
        ("POST", "/acme/app.git%2Fgit-receive-pack", False, True),
        ("POST", "/acme/app.git/git-receive-pack/..", False, True),
        ("POST", "/acme/app.git/git-receive-pack;x", False, True),
        ("POST", "/acme/app.git/git-receive-pack%2e", False, True),
        ("POST", "/acme/app.git/git-receive-packs", False, True),
        ("POST", "/acme/app.git/git-receive-pack.json", False, True),
        ("POST", "/acme/app.git/Git-Receive-Pack%3Fx", False, True),
        ("POST", "/x%23/git-receive-pack", False, True),
        ("POST", "/x;/git-receive-pack", False, True),
        ("POST", "/x%5C/git-receive-pack", False, True),
        ("POST", "/acme/app.git/git-upload-pack", False, False),
        ("POST", "/acme/app.git/info/lfs/objects/batch", False, False),
        ("POST", "/acme/app.git/info/refs?service=git-receive-pack", False, False),
    ],
)
def test_an_allow_is_for_what_can_only_be_a_push_and_a_deny_for_what_may_be_one(
    method: str, target: str, in_allow: bool, in_deny: bool
) -> None:
    request = sent(push(MAIN), method=method, target=target)
    assert allows(ONLY_MAIN, request) is in_allow
    assert (examine(ONLY_MAIN, request, deny=True).fit is Fit.HOLDS) is in_deny
    path, mark, query = target.partition("?")
    assert may_hold(method, path, query if mark else None) is (in_allow or in_deny)


@pytest.mark.parametrize(
    ("method", "target", "holds"),
    [
        ("GET", "/acme/app.git/info/refs?service=git-receive-pack", True),
        ("GET", "/info/refs?service=git-receive-pack", True),
        ("GET", "/acme/app.git/info/refs?service=git-upload-pack", False),
        ("GET", "/acme/app.git/info/refs", False),
        ("GET", "/acme/app.git/info/refs?", False),
        (
            "GET",
            "/acme/app.git/info/refs?service=git-receive-pack&service=git-upload-pack",
            False,
        ),
        ("GET", "/acme/app.git/info/refs?service=git%2Dreceive-pack", False),
        ("GET", "/acme/app.git/info/refs?service=git-receive-pack&", False),
        ("GET", "/acme/app.git/info/refs/?service=git-receive-pack", False),
        ("GET", "/acme/app.git/info/refs/..?service=git-receive-pack", False),
        ("HEAD", "/acme/app.git/info/refs?service=git-receive-pack", False),
        ("POST", "/acme/app.git/info/refs?service=git-receive-pack", False),
    ],
)
def test_the_request_ahead_of_a_push_holds_in_an_allow_alone(
    method: str, target: str, holds: bool
) -> None:
    path, mark, query = target.partition("?")
    assert may_hold(method, path, query if mark else None) is holds
    assert allows(AGENTS, bodiless(method, target)) is holds
    assert examine(AGENTS, bodiless(method, target), deny=True).fit is Fit.FAILS
    assert not allows(AGENTS, sent(push(AGENT), method=method, target=target))


def test_a_push_without_a_body_holds_for_neither() -> None:
    for deny in (False, True):
        assert examine(ONLY_MAIN, bodiless("POST", PATH), deny=deny).fit is Fit.FAILS


def test_a_path_without_a_single_meaning_is_unreadable() -> None:
    request = sent(push(AGENT), target="/a%zz/git-receive-pack")
    for deny in (False, True):
        assert examine(AGENTS, request, deny=deny) == (
            Fit.UNREADABLE,
            "the path cannot be read",
        )


# --- what is unreadable ---------------------------------------------------------------

NO_LENGTH = "the length of a packet is not four hexadecimal digits"
ODD_LENGTH = "a packet has a length that a push does not use"
NO_COMMAND = "a command is not two object IDs and a ref"
NO_REF = "a ref has not the format of git"
NO_PACK = "what follows the commands is not a pack"
CUT_OFF = "the body ends within the commands"
FIRST = packet(f"{update(AGENT)}\0{OF_GIT}")
OPTIONS = commands(update(AGENT), capabilities=f"{OF_GIT} push-options")
HIDDEN = packet(update(MAIN))

UNREADABLE = {
    # lengths
    "empty": (b"", CUT_OFF),
    "sign": (b"+0a4" + FIRST[4:] + b"0000", NO_LENGTH),
    "space": (b" 0a4" + FIRST[4:] + b"0000", NO_LENGTH),
    "prefix": (b"0x8c" + FIRST[4:] + b"0000", NO_LENGTH),
    "underscore": (b"0_ff" + FIRST[4:] + b"0000", NO_LENGTH),
    "fullwidth": ("００００".encode(), NO_LENGTH),
    "delimiter": (FIRST + b"0001" + HIDDEN + b"0000" + PACK, ODD_LENGTH),
    "end of response": (FIRST + b"0002" + HIDDEN + b"0000" + PACK, ODD_LENGTH),
    "three": (FIRST + b"0003" + HIDDEN + b"0000" + PACK, ODD_LENGTH),
    "empty packet, a flush to some": (
        FIRST + b"0004" + HIDDEN + b"0000" + PACK,
        ODD_LENGTH,
    ),
    "longer than a packet may be": (b"fff1" + b"a" * 0xFFED + b"0000", ODD_LENGTH),
    "cut off in a length": (FIRST + b"00", CUT_OFF),
    "cut off in a command": (FIRST[:60], CUT_OFF),
    "no flush": (FIRST, CUT_OFF),
    # what follows
    "commands after the flush": (FIRST + b"0000" + HIDDEN + b"0000" + PACK, NO_PACK),
    "commands after a delete": (
        commands(update(AGENT, new=NONE)) + HIDDEN + b"0000" + PACK,
        NO_PACK,
    ),
    "two flushes": (FIRST + b"00000000" + PACK, NO_PACK),
    "commands after a probe": (b"0000" + FIRST + b"0000" + PACK, NO_PACK),
    "a pack without commands": (b"0000" + PACK, NO_PACK),
    "options without the capability": (
        FIRST + b"0000" + packet("ci.skip") + b"0000" + PACK,
        NO_PACK,
    ),
    "a part of PACK": (FIRST + b"0000PAC", CUT_OFF),
    # commands
    "another line": (packet("hello") + b"0000", NO_COMMAND),
    "error line": (packet("ERR no") + b"0000", NO_COMMAND),
    "shallow after a command": (
        FIRST + packet(f"shallow {OLD}") + b"0000" + PACK,
        NO_COMMAND,
    ),
    "shallow with more": (
        packet(f"shallow {OLD} {MAIN}") + FIRST + b"0000" + PACK,
        NO_COMMAND,
    ),
    "no ref": (packet(f"{OLD} {NEW} \0{OF_GIT}") + b"0000" + PACK, NO_COMMAND),
    "short ID": (packet(update(AGENT, old="1" * 39)) + b"0000" + PACK, NO_COMMAND),
    "IDs of two kinds": (
        packet(update(AGENT, old="1" * 64)) + b"0000" + PACK,
        NO_COMMAND,
    ),
    "two spaces": (packet(f"{OLD}  {NEW} {AGENT}") + b"0000" + PACK, NO_COMMAND),
    "tab": (packet(f"{OLD} {NEW}\t{AGENT}") + b"0000" + PACK, NO_COMMAND),
    "HEAD": (push("HEAD"), NO_COMMAND),
    "not under refs/": (push("agent/fix"), NO_COMMAND),
    "longer than a path": (push("refs/heads/agent/" + "a" * 4080), NO_COMMAND),
    "capabilities twice": (
        FIRST + packet(f"{update(AGENT)}\0push-options") + b"0000" + PACK,
        NO_COMMAND,
    ),
    "a second NUL": (
        packet(f"{update(AGENT)}\0{OF_GIT}\0push-options") + b"0000" + PACK,
        "printable ASCII",
    ),
    "line feed in capabilities": (
        packet(f"{update(AGENT)}\0a\npush-options") + b"0000" + PACK,
        "printable ASCII",
    ),
    "options with a value": (
        push(AGENT, capabilities="push-options=1"),
        "push-options has a value",
    ),
    "signed": (
        packet(f"push-cert\0{OF_GIT}") + packet("certificate version 0.1\n") + b"0000",
        "the push is signed",
    ),
    "signed later": (FIRST + packet("push-cert") + b"0000", "the push is signed"),
    # refs
    **{
        f"ref {ref!r}": (push(ref), NO_REF)
        for ref in (
            *(
                "refs/heads/../main",
                "refs/heads/agent/../main",
                "refs/heads/agent/a..b",
                "refs/heads//agent/a",
            ),
            *(
                "refs/heads/agent/",
                "refs/heads/agent/.a",
                "refs/heads/agent/a.",
                "refs/heads/agent/a.lock",
            ),
            *(
                "refs/heads/agent/a.lock/b",
                "refs/heads/agent/a b",
                "refs/heads/agent/a~1",
                "refs/heads/agent/a^",
            ),
            *(
                "refs/heads/agent/a:b",
                "refs/heads/agent/a?",
                "refs/heads/agent/*",
                "refs/heads/agent/[a",
            ),
            *(
                "refs/heads/agent/a\\b",
                "refs/heads/agent/@{1}",
                "refs/heads/agent/a\x7f",
                "refs/heads/agent/a\tb",
            ),
            *("refs/heads/agent/a\nrefs/heads/main", "refs/heads/agent/a\r"),
        )
    },
    "ref not UTF-8": (
        packet(update(AGENT).encode() + b"\xff") + b"0000" + PACK,
        "not UTF-8",
    ),
    "ref in overlong UTF-8": (
        packet(update(AGENT).encode() + b"\xc0\xaf") + b"0000" + PACK,
        "not UTF-8",
    ),
    # options
    "NUL in an option": (
        OPTIONS + packet("ci.skip\0merge_request.create") + b"0000" + PACK,
        "control character",
    ),
    "line feed in an option": (
        OPTIONS + packet("a\nmerge_request.create") + b"0000" + PACK,
        "control character",
    ),
    "empty option": (
        OPTIONS + b"0004" + packet("merge_request.create") + b"0000" + PACK,
        ODD_LENGTH,
    ),
    "no flush after options": (OPTIONS + packet("ci.skip"), CUT_OFF),
    "a pack in place of options": (OPTIONS + PACK, NO_LENGTH),
    "options twice": (
        OPTIONS + b"0000" + packet("merge_request.create") + b"0000" + PACK,
        NO_PACK,
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_servers_can_read_differently_holds_for_no_allow_and_every_deny(
    name: str,
) -> None:
    body, reason = UNREADABLE[name]
    for rule in (
        GitBody(("**",), delete=True, options=("**",)),
        GitBody(("refs/none",)),
    ):
        for deny in (False, True):
            outcome = examine(rule, sent(body), deny=deny)
            assert outcome.fit is Fit.UNREADABLE, outcome
            assert reason in outcome.reason


@pytest.mark.parametrize(
    "headers",
    [
        (("Host", "git.example"),),
        (("Content-Type", "application/json"),),
        (("Content-Type", f"{PUSH_TYPE}; charset=utf-8"),),
        (("Content_Type", PUSH_TYPE),),
        (("Content-Type", "application/x-git-upload-pack-request"),),
        (*HEADERS, *HEADERS),
        (*HEADERS, ("content-type", "application/json")),
    ],
)
def test_a_body_behind_another_content_type_is_unreadable(
    headers: tuple[tuple[str, str], ...],
) -> None:
    for deny in (False, True):
        assert (
            examine(AGENTS, sent(push(AGENT), *headers), deny=deny).fit
            is Fit.UNREADABLE
        )


GZIP, TWO_GZIPS = (
    gzip.compress(push(AGENT)),
    gzip.compress(b"0000") + gzip.compress(push(MAIN)),
)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
def test_a_compressed_push_is_read_once_it_has_come_whole(encoding: str) -> None:
    headers = (*HEADERS, ("Content-Encoding", encoding))
    assert allows(AGENTS, sent(GZIP, *headers))
    assert (
        examine(ONLY_MAIN, sent(gzip.compress(push(MAIN)), *headers), deny=True).fit
        is Fit.HOLDS
    )
    assert (
        examine(AGENTS, sent(GZIP[:-1], *headers, complete=False), deny=False).fit
        is Fit.NEEDS_MORE
    )


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ((), GZIP),
        ((("Content-Encoding", "gzip"),), push(AGENT)),
        ((("Content-Encoding", "gzip"),), GZIP[:-1]),
        ((("Content-Encoding", "gzip"),), GZIP[:-8] + bytes(8)),  # the wrong checksum
        (
            (("Content-Encoding", "gzip"),),
            TWO_GZIPS,
        ),  # git reads the first, others read both
        ((("Content-Encoding", "gzip"),), GZIP + push(MAIN)),
        (
            (("Content-Encoding", "gzip"),),
            gzip.compress(push(AGENT) + bytes(MAX_BYTES)),
        ),
        ((("Content-Encoding", "GZIP"),), GZIP),  # git reads it as it is
        ((("Content-Encoding", "gzip, identity"),), GZIP),
        ((("Content-Encoding", "deflate"),), zlib.compress(push(AGENT))),
        ((("Content-Encoding", "deflate"),), push(AGENT)),
        ((("Content-Encoding", "identity"),), push(AGENT)),
        ((("Content-Encoding", "br"),), push(AGENT)),
        ((("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")), GZIP),
        (
            (("Content_Encoding", "gzip"),),
            push(AGENT),
        ),  # a gateway to CGI takes it for the other
        ((("Content-Encoding", "gzip"), ("Content_Encoding", "identity")), GZIP),
    ],
    ids=range(16),
)
def test_an_encoding_that_servers_can_read_differently_is_unreadable(
    headers: tuple[tuple[str, str], ...], body: bytes
) -> None:
    for deny in (False, True):
        assert (
            examine(AGENTS, sent(body, *HEADERS, *headers), deny=deny).fit
            is Fit.UNREADABLE
        )


# --- bodies that have not come whole --------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        push(AGENT, "refs/heads/agent/b"),
        push_with_options(["ci.skip"], AGENT),
        packet(f"shallow {OLD}") + push(AGENT),
    ],
)
def test_a_push_is_decided_with_the_first_bytes_of_its_pack(body: bytes) -> None:
    rule = GitBody(AGENTS.push, options=("ci.skip",))
    decided = body.index(b"PACK") + len(b"PACK")
    for end in range(len(body)):
        for deny in (False, True):
            fit = examine(rule, sent(body[:end], complete=False), deny=deny).fit
            assert fit is (Fit.NEEDS_MORE if end < decided else Fit.HOLDS), end


def test_a_probe_is_decided_with_its_end() -> None:
    assert (
        examine(AGENTS, sent(b"0000", complete=False), deny=False).fit is Fit.NEEDS_MORE
    )
    assert allows(AGENTS, sent(b"0000"))


def test_more_than_max_is_unreadable_and_the_pack_is_not_counted() -> None:
    body = push(AGENT)
    commands_end = body.index(b"PACK")
    assert allows(
        GitBody(AGENTS.push, max_bytes=commands_end), sent(body + bytes(1_000_000))
    )
    for complete in (False, True):
        short = GitBody(AGENTS.push, max_bytes=commands_end - 1)
        outcome = examine(short, sent(body, complete=complete), deny=False)
        assert outcome == (
            Fit.UNREADABLE,
            f"the commands are longer than {commands_end - 1} bytes",
        )


def test_thousands_of_refs_are_read() -> None:
    refs = [f"refs/heads/agent/{number}" for number in range(9_000)]
    assert allows(AGENTS, sent(push(*refs)))
    assert not allows(AGENTS, sent(push(*refs, MAIN)))
    assert len(push(*refs)) < MAX_BYTES


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_any_bytes_have_an_outcome_and_a_report(
    body: bytes, complete: bool, deny: bool
) -> None:
    request = sent(body, complete=complete)
    assert examine(AGENTS, request, deny=deny).fit is not Fit.HOLDS or body == b"0000"
    assert answer(AGENTS, request, "agents", "No.") is None


@given(st.data())
def test_a_changed_byte_never_opens_another_ref(data: st.DataObject) -> None:
    body = bytearray(push(AGENT, "refs/heads/agent/b"))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    request = sent(bytes(body))
    if allows(AGENTS, request):
        assert bytes(body).count(b"refs/heads/agent/") == 2


# --- the report of a denial -----------------------------------------------------------


def report_of(
    body: bytes, rule: str = "agents", reason: str = "Push to agent/."
) -> bytes | None:
    found = answer(AGENTS, sent(body), rule, reason)
    assert found is None or found[:2] == (200, "application/x-git-receive-pack-result")
    return found and found.body


def test_a_report_rejects_each_ref_and_shows_the_reason() -> None:
    report = b"".join(
        (
            packet("unpack ok\n"),
            packet(f"ng {AGENT} squidkeeper: rule agents\n"),
            packet(f"ng {MAIN} squidkeeper: rule agents\n"),
            b"0000",
        )
    )
    lines = "squidkeeper: rule agents denies this push.\nPush to agent/.\n"
    assert report_of(push(AGENT, MAIN, capabilities="report-status")) == report
    for capabilities in ("report-status side-band-64k", OF_GIT):
        shown = packet("\x02" + lines) + packet(b"\x01" + report) + b"0000"
        assert report_of(push(AGENT, MAIN, capabilities=capabilities)) == shown


def test_a_client_that_reads_no_report_gets_none() -> None:
    assert report_of(push(MAIN, capabilities="side-band-64k quiet")) is None
    assert (
        report_of(push(MAIN, capabilities="no-report-status report-status-v3")) is None
    )
    assert (
        answer(
            AGENTS,
            bodiless("GET", "/acme/app/info/refs?service=git-receive-pack"),
            "default",
            "",
        )
        is None
    )


def test_an_unreadable_push_is_reported_as_not_unpacked() -> None:
    signed = (
        packet(f"push-cert\0{OF_GIT}") + packet("certificate version 0.1\n") + b"0000"
    )
    report = report_of(signed)
    assert report is not None
    assert packet("unpack squidkeeper: rule agents\n") in report
    assert b"certificate" not in report


def test_a_report_has_refs_of_the_push_and_no_other_bytes_of_it() -> None:
    canary = "canary7"
    body = b"".join(
        (
            commands(
                update(AGENT, old="c" * 40),
                update(MAIN),
                capabilities=f"{OF_GIT} session-id={canary} push-options",
            ),
            packet(canary),
            b"0000",
            PACK + canary.encode(),
        )
    )
    report = report_of(body)
    assert report is not None
    assert canary.encode() not in report
    assert b"c" * 40 not in report


def test_a_report_of_thousands_of_refs_is_hardly_longer_than_its_push_and_in_packets() -> (
    None
):
    body = push(*(f"refs/heads/{number}" for number in range(9_000)))
    report = report_of(body)
    assert report is not None
    assert len(report) < len(body)
    at, bands = 0, []
    while length := int(report[at : at + 4], 16):
        assert length <= 65_520
        bands.append(report[at + 4])
        at += length
    assert at == len(report) - 4
    assert bands == [2, *[1] * (len(bands) - 1)]


def test_a_reason_of_any_text_is_lines_of_printable_characters() -> None:
    report = report_of(
        push(MAIN), reason="Größe\r\nsecond\x1b[31m\x00 line" + "x" * 70_000
    )
    assert report is not None
    for control in (b"\x1b", b"\r", b"\x00"):
        assert control not in report
    assert "Größe\nsecond".encode() in report
