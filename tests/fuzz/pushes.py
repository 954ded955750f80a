"""Pushes of git: what is allowed is read by each server as it was judged, and a part of
a push decides nothing else.

An input is the body of a push. The oracle is read_head_info of git's
builtin/receive-pack.c, line by line, also as it was before git 2.21, where an empty
packet was a flush. A server that fails reads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from squidkeeper.policy.bodies.git_push import Push, read_push
from squidkeeper.policy.bodies.sent_request import HOLDS, Fit, SentRequest
from tests.pushes import (
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

from .target import Target

LIMIT = 2048
HEADERS = (("Content-Type", PUSH_TYPE),)
LARGEST_PACKET = 65_524  # what git takes, which is more than it documents
NOTHING: tuple[list[str], list[str]] = ([], [])


def check(data: bytes) -> None:
    whole = read(data, complete=True)
    check_prefixes(data, whole)
    if whole.outcome is not HOLDS:
        assert whole.outcome.fit is Fit.UNREADABLE
        return
    judged = [command.ref for command in whole.commands], whole.options
    for id_size in (40, 64):
        for empty_is_flush in (False, True):
            assert by_git(data, id_size, empty_is_flush=empty_is_flush) in (
                judged,
                NOTHING,
            )
    assert judged in [
        by_git(data, id_size, empty_is_flush=False) for id_size in (40, 64)
    ]


def read(data: bytes, *, complete: bool) -> Push:
    return read_push(
        SentRequest("POST", "/git-receive-pack", HEADERS, data, complete), LIMIT
    )


def check_prefixes(data: bytes, whole: Push) -> None:
    """A part of a body waits for more, or is decided as the whole is."""
    for end in {0, len(data) // 3, len(data) // 2, len(data) - 1} & set(
        range(len(data))
    ):
        part = read(data[:end], complete=False)
        if part.outcome.fit is Fit.HOLDS:
            assert (part.commands, part.options, part.outcome) == (
                whole.commands,
                whole.options,
                whole.outcome,
            )
        elif part.outcome.fit is Fit.UNREADABLE:
            assert whole.outcome.fit is Fit.UNREADABLE


class Dies(Exception):
    """git ends with an error."""


def by_git(
    data: bytes, id_size: int, *, empty_is_flush: bool
) -> tuple[list[str], list[str]]:
    """Return the refs and the push options that git reads, in a repository with IDs of
    this size.
    """
    packets = packets_of(data, empty_is_flush=empty_is_flush)
    refs: list[str] = []
    has_options = False
    try:
        for line in until_flush(packets):
            if len(line) > 8 and line.startswith(b"shallow "):
                check_id(line[8:], id_size)
                continue
            text, _, features = line.partition(b"\0")
            has_options |= has_feature(features.partition(b"\0")[0], b"push-options")
            refs.append(ref_of(text, id_size))
        options = (
            [text_of(line.partition(b"\0")[0]) for line in until_flush(packets)]
            if refs and has_options
            else []
        )
    except Dies:
        return NOTHING
    return refs, options


def until_flush(packets: Iterator[bytes | None]) -> Iterator[bytes]:
    while (line := next(packets)) is not None:
        yield line


def text_of(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def packets_of(data: bytes, *, empty_is_flush: bool) -> Iterator[bytes | None]:
    at = 0
    while True:
        digits = data[at : at + 4]
        if not re.fullmatch(b"[0-9a-fA-F]{4}", digits):
            raise Dies
        length = int(digits, 16)
        if length < 3 or (length == 4 and empty_is_flush):
            at += max(4, length)
            yield None
            continue
        if length == 3 or length >= LARGEST_PACKET or at + length > len(data):
            raise Dies
        line = data[at + 4 : at + length].removesuffix(b"\n")
        if line.startswith(b"ERR "):
            raise Dies
        at += length
        yield line


def has_feature(features: bytes, name: bytes) -> bool:
    return (
        re.search(
            rb"(?:^|[ \t\n\v\f\r])%b(?:$|[ \t\n\v\f\r=])" % re.escape(name), features
        )
        is not None
    )


def check_id(text: bytes, size: int) -> None:
    if not re.match(rb"[0-9a-fA-F]{%d}" % size, text):
        raise Dies


def ref_of(text: bytes, id_size: int) -> str:
    match = re.match(rb"[0-9a-fA-F]{%d} [0-9a-fA-F]{%d} " % (id_size, id_size), text)
    if not match:
        raise Dies
    return text_of(text[match.end() :])


def seeds() -> Iterable[bytes]:
    agent, main = "refs/heads/agent/a", "refs/heads/main"
    yield b"0000"
    yield push(agent)
    yield push(agent, main, capabilities="")
    yield push_with_options(["ci.skip", "a=b"], agent)
    yield packet(f"shallow {OLD}\n") + push(agent)
    yield (
        commands(
            update(agent, old=NONE),
            update(main, new=NONE),
            capabilities=f"{OF_GIT} atomic",
        )
        + PACK
    )
    yield commands(update(agent, old="0" * 64, new="a" * 64)) + PACK
    yield push(agent) + packet(update(main)) + b"0000"
    yield commands(update(agent))[:-4] + b"0004" + packet(update(main)) + b"0000" + PACK
    yield (
        packet(f"{update(agent)}\0{OF_GIT}")
        + packet(f"{update(main)}\0push-options")
        + b"0000"
        + packet("a")
        + b"0000"
    )
    yield commands(update(main, new=NONE))
    yield packet(update(agent, old="1" * 39, new="2" * 39)) + b"0000" + PACK
    for option in ("a\0b", "a\nb", ""):
        yield push_with_options([option, "b"], agent)
    yield packet(f"shallow {OLD}{main}") + push(agent)
    yield push("refs/heads/agent/../main")


TARGET = Target(
    check,
    seeds,
    (
        b"0000",
        b"0004",
        b"0001",
        b"\0",
        b"push-options",
        b"shallow ",
        b"refs/heads/",
        b"PACK",
    ),
)
