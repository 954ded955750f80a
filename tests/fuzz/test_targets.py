"""The fuzz targets in the default run: their seeds, what fuzzing has found, and that
they see what is broken.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy import url
from squidkeeper.policy.bodies import git_push, json_form
from squidkeeper.policy.language import document
from squidkeeper.policy.protocol import lines as helper_lines
from squidkeeper.policy.url import Reading
from squidkeeper.policy.usage import members, reserve
from squidkeeper.policy.usage import reader as usage_reader
from squidkeeper.policy.usage.tokens import Usage
from squidkeeper.record.log import follower, log_files
from squidkeeper.services.transparent import client_hello

from . import (
    answers,
    budgets,
    documents,
    hellos,
    lines,
    policies,
    pushes,
    records,
    urls,
)
from .target import Target

TARGETS = {
    "lines": lines.TARGET,
    "urls": urls.TARGET,
    "policies": policies.TARGET,
    "records": records.TARGET,
    "pushes": pushes.TARGET,
    "documents": documents.TARGET,
    "answers": answers.TARGET,
    "budgets": budgets.TARGET,
    "hellos": hellos.TARGET,
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_seed_holds(target: Target) -> None:
    check_seeds(target)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_stream_holds(data: bytes) -> None:
    lines.check(data)


@settings(deadline=None)
@given(st.lists(st.sampled_from(urls.WORDS), max_size=12).map(b"".join))
def test_any_url_holds(data: bytes) -> None:
    urls.check(data)


def changed_body(data: st.DataObject, target: Target) -> bytes:
    body = data.draw(st.sampled_from([*target.seeds()]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        body = (
            body[:at]
            + data.draw(st.sampled_from(target.words))
            + body[at + data.draw(st.integers(0, 8)) :]
        )
    return body


@pytest.mark.parametrize(
    "target",
    [
        pushes.TARGET,
        documents.TARGET,
        answers.TARGET,
        budgets.TARGET,
        hellos.TARGET,
    ],
    ids=["pushes", "documents", "answers", "budgets", "hellos"],
)
@settings(deadline=None)
@given(st.data())
def test_any_body_holds(target: Target, data: st.DataObject) -> None:
    target.check(changed_body(data, target))


def test_policies_that_were_changed_at_random_hold() -> None:
    seeds = list(policies.seeds())
    for number in range(60):
        changed = policies.mutate(random.Random(number).choice(seeds), number)
        policies.check(changed[: policies.TARGET.longest_bytes])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.sampled_from([b"a", b"", b"\r", b"bc" * 50])),
        max_size=12,
    )
)
def test_any_order_of_events_of_a_log_holds(events: list[tuple[int, bytes]]) -> None:
    records.check(b"\n".join(bytes([kind]) + piece for kind, piece in events))


# --- a target that holds whatever is broken would be none -----------------------------


def steps(reading: Reading, step: Callable[[str], str]) -> object:
    """Return the steps of readings with another one in its place."""
    return tuple(
        (named, step if named is reading else made) for named, made in url._STEPS
    )


def without(step: Callable[[str], str]) -> object:
    """Return the steps of readings without one of them."""
    return tuple((named, made) for named, made in url._STEPS if made is not step)


def check_seeds(target: Target) -> None:
    for seed in target.seeds():
        target.check(seed)


BROKEN: dict[str, tuple[Target, object, str, object]] = {
    "a line is cut at its limit": (
        lines.TARGET,
        helper_lines.LineBuffer,
        "feed",
        lambda self, data: data.split(b"\n")[:-1],
    ),
    "a reply is not escaped": (
        lines.TARGET,
        helper_lines,
        "_quoted",
        lambda text: f'"{text}"',
    ),
    "a reply has no bound": (
        lines.TARGET,
        helper_lines,
        "_message",
        lambda text, room: f" message={text!r}".encode(),
    ),
    "tokens are not decoded": (
        lines.TARGET,
        helper_lines,
        "decode_token",
        lambda token: token.decode("latin-1"),
    ),
    "dots are left": (urls.TARGET, url, "_STEPS", steps(Reading.RESOLVED, str)),
    "a reading fails in another way": (
        urls.TARGET,
        url,
        "_STEPS",
        steps(Reading.DECODED, lambda path: str(path[999])),
    ),
    "a step is left out": (urls.TARGET, url, "_STEPS", url._STEPS[:3]),
    "no name of a file is read": (urls.TARGET, url, "_STEPS", url._STEPS[:5]),
    "nothing is normalized": (urls.TARGET, url, "_STEPS", without(url._normalize)),
    "streams are left": (urls.TARGET, url, "_STEPS", without(url._drop_streams)),
    "what is invisible is left": (
        urls.TARGET,
        url,
        "_STEPS",
        without(url._drop_invisible),
    ),
    "an address has two spellings": (
        urls.TARGET,
        url,
        "address_host",
        lambda address: url.Host(f"{address}.", address),
    ),
    "a number is taken for a name": (
        urls.TARGET,
        url,
        "_PLAIN_NAME",
        re.compile("[a-z0-9.]+"),
    ),
    "a YAML error goes through": (
        policies.TARGET,
        document,
        "_hint",
        lambda text, error: 1 / 0,
    ),
    "a fault holds what was written": (
        policies.TARGET,
        document,
        "describe",
        lambda value: f"{value}\n",
    ),
    "a part of a push decides": (
        pushes.TARGET,
        git_push,
        "_UnfinishedError",
        UnreadableBody,
    ),
    "a command is not read": (
        pushes.TARGET,
        git_push,
        "_SHALLOW",
        re.compile(rb".*", re.DOTALL),
    ),
    "an ID has any length": (
        pushes.TARGET,
        git_push,
        "_COMMAND",
        re.compile(rb"(\d+) (\d+) (refs/.+)"),
    ),
    "an option ends at NUL": (pushes.TARGET, git_push, "_CONTROL", re.compile("\x01")),
    "a name is compared by its case": (documents.TARGET, json_form, "folded", str),
    "two members have one name": (
        documents.TARGET,
        json_form,
        "_DECODER",
        json.JSONDecoder(),
    ),
    "an object is an empty array": (documents.TARGET, json_form, "EACH", ""),
    "a limit is compared by its case": (budgets.TARGET, members, "folded", str),
    "a limit has any characters": (
        budgets.TARGET,
        members,
        "_NAME",
        re.compile(rb'"([^"\\]{0,1024}+)"[ \t\r\n]{0,64}+:'),
    ),
    "an option is compared by its case": (budgets.TARGET, reserve, "folded", str),
    "any text is JSON": (budgets.TARGET, reserve, "_is_json", bool),
    "a usage is made up": (
        answers.TARGET,
        usage_reader,
        "usage_of",
        lambda *_: Usage("gpt", 1, 1),
    ),
    "the name of a member has to come at once": (
        answers.TARGET,
        members,
        "_UNREAD_AT_MOST",
        0,
    ),
    "a name is taken as it came": (
        hellos.TARGET,
        client_hello,
        "_host",
        lambda name: name.decode("latin-1").lower(),
    ),
    "a hello is the first record": (
        hellos.TARGET,
        client_hello,
        "_hello",
        lambda data: data[9:],
    ),
    "a damaged log is not noticed": (records.TARGET, log_files, "DamagedLog", ()),
    "a log is forgotten when it is rotated": (
        records.TARGET,
        follower,
        "rotated",
        lambda path: [],
    ),
}


@pytest.mark.parametrize(
    ("target", "owner", "name", "broken"), BROKEN.values(), ids=BROKEN
)
def test_a_target_sees_what_is_broken(
    target: Target, owner: object, name: str, broken: Callable[..., object]
) -> None:
    url.parse_authority.cache_clear()
    with patch.object(owner, name, broken), pytest.raises(Exception):  # noqa: B017, PT011 - whatever shows it
        check_seeds(target)
    url.parse_authority.cache_clear()
