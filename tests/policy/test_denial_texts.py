"""Every text that a denied client reads, byte for byte, as tests/data/denials.txt has
them.

A row there is the policy, the helper and its line, as Squid writes it; then, indented,
the rule and the text. Values in braces are below. Headers follow as `NAME=VALUE`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import squidkeeper
from squidkeeper.base.faults import Location
from squidkeeper.policy.engine import CompiledPolicy, body_scope
from squidkeeper.policy.language.model import Token
from squidkeeper.policy.language.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.policy.language.sealed_tokens import format_content
from squidkeeper.policy.protocol.lines import LINE_LIMIT, Reply, Result
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.policy.protocol.request_headers import READ_HEADERS
from squidkeeper.serving.credentials.sealing import (
    LONGEST_TOKEN,
    SealingPrivateKey,
    seal_bytes,
)
from squidkeeper.serving.credentials.watched_values import WatchedValues
from squidkeeper.serving.helpers import credential, watch
from squidkeeper.serving.helpers.acl import (
    HostScope,
    RequestScope,
    answer_host,
    answer_url,
)
from squidkeeper.serving.helpers.loop import Answering
from squidkeeper.serving.helpers.meter import refusal_reason
from squidkeeper.serving.parts import not_rendered
from squidkeeper.serving.quotas.meter import Refusal
from squidkeeper.serving.replies import (
    acl_reply,
    broken_reply,
    denied_ticket,
    no_ticket,
    no_ticket_page,
)
from squidkeeper.serving.tickets.store import NoTicket

from ..conftest import NOW, compiled_of, decided

DENIALS = Path(__file__).parent.parent / "data/denials.txt"
SOURCE = Path(squidkeeper.__file__).parent
PAST = f"{{sha256: {Token.of('past').sha256}, expires: 2020-01-01T00:00:00Z}}"
MAIN = f"""
clients:
  vm: {{networks: [192.0.2.0/24]}}
  bot: {{networks: [192.0.2.0/24], token_sha256: [{PAST}]}}
rules:
  - {{name: closed, action: deny, hosts: [closed.example]}}
  - {{name: said, action: deny, hosts: [said.example], reason: 'It is "closed" </b>. Ask ünit.'}}
  - {{name: asked, action: ask, hosts: [asked.example]}}
  - {{name: no-admin, action: deny, hosts: [open.example], paths: [/admin/**]}}
  - {{name: open, action: allow, hosts: [open.example, api.example, "*.signed.example", 10.0.0.0/8]}}
rewrites:
  - {{name: long, hosts: [open.example], paths: [/long/**], to: "https://api.example/{"x" * 200}{{path}}"}}
  - {{name: out, hosts: [open.example], paths: ["/**/out"], to: "https://api.example/under{{path}}"}}
  - {{name: inside, hosts: [open.example], paths: [/inside], to: "https://10.1.1.1/"}}
secrets: {{lacking: {{env: SQUIDKEEPER_NOT_SET}}, id: {{file: id}}, key: {{file: id}}, sealing: {{file: sealing}}}}
credentials:
  - {{name: token, hosts: [api.example], paths: [/token], bearer: lacking, placeholder: dummy-key-for-sdks}}
  - {{name: added, hosts: [api.example], paths: [/added], parameters: {{key: "{{id}}"}}}}
  - name: s3
    hosts: [s3.signed.example]
    paths: [/a/**]
    aws_sigv4: {{access_key_id: id, secret_access_key: key, region: r}}
  - name: db
    hosts: [db.signed.example]
    aws_sigv4: {{access_key_id: id, secret_access_key: key, region: r, service: dynamodb}}
sealed_tokens: {{keys: [sealing]}}
defaults: {{watch_secrets: true}}
"""
SIGNED = MAIN.partition("sealed_tokens:")[0]
POLICIES = {
    "main": MAIN,
    "signed": SIGNED,
    "observing": f"{SIGNED}sealed_tokens: {{keys: [sealing]}}\ndefaults: {{observe: true}}\n",
    "open": "defaults: {action: allow}\n",
    "said": "defaults: {reason: Ask the team.}\n",
}
KEY = SealingPrivateKey.new()
GUARDS = {
    "hosts": ["other.example"],
    "ports": [8443],
    "paths": ["/other"],
    "methods": ["PUT"],
    "clients": ["bot"],
    "query": {"a": "1"},
    "expires": "2020-01-01T00:00:00Z",
    "secret": "sealed-value",
}
REFUSALS: dict[str, dict[str, Any]] = {
    "used up": {},
    "less left": {"left": 5},
    "held": {"held": True},
    "uncounted": {"unavailable": "no store"},
}
# The calls whose text a client reads; and pieces that no client sees, or that another
# test shows.
REASONS = ("deny", "InvalidUrl", "SealedTokenRefused", "SigningRefused")
UNSEEN = {
    # `parse_url` then says which
    "the request target is not an absolute URL without userinfo ('user@host')",
    "the target of a CONNECT has no port",  # `_no_authority` then says what is expected
    " does not start with '/'",  # no URL has such a path
    "The session that has asked has ended.",  # test_session_tickets.py
    ", as ",  # the extra for sealed tokens is missing (test_extras.py)
}


def values() -> dict[str, str]:
    """The values in braces."""
    content = {"hosts": ["*.signed.example"], "secret": "sealed-value"}
    tokens = {
        name: seal_bytes(format_content({**content, name: guard}), KEY.public)
        for name, guard in GUARDS.items()
    }
    tokens["other"] = seal_bytes(
        format_content(content), SealingPrivateKey.new().public
    )
    tokens["wrong"] = seal_bytes(b"[]", KEY.public)
    tokens["cut"], tokens["endless"] = (
        tokens["secret"][:-2],
        tokens["secret"] + "A" * LONGEST_TOKEN,
    )
    hosts = {name: f"{name}.example" for name in ("open", "api", "asked")}
    hosts |= {name: f"{name}.signed.example" for name in ("s3", "db", "any")}
    return {
        **{f"sealed-{name}": token for name, token in tokens.items()},
        **{
            name: f"192.0.2.1 - GET https {host} 443 {host} {host}:443 - https://{host}"
            for name, host in hosts.items()
        },
        "long": "x" * 7_900,
        "endless": "x" * LINE_LIMIT,
        "ligatures": quote(quote("\ufdfa" * 600)),
        "key": KEY.reveal(),
    }


def asked(policy: CompiledPolicy, line: bytes) -> Reply:
    """Decide a method and a target as `explain` does."""
    return acl_reply(
        decided(policy, request_to(*line.decode().split(" ")), NOW), "", policy
    )


def helpers_of(policy: CompiledPolicy | None) -> dict[str, Callable[[bytes], Any]]:
    if policy is None:
        return {"host": partial(answer_host, None)}
    injector = credential.Injector(policy)
    return {
        "host": HostScope(policy).answer,
        "url": partial(answer_url, RequestScope(policy)),
        "credential": partial(credential.answer, injector, concurrency=1),
        "headers": partial(
            credential.answer, injector, concurrency=1, with_headers=True
        ),
        "watch": partial(watch.answer, watch.Watch(policy, WatchedValues())),
        "explain": partial(asked, policy),
        "broken": int,
    }


def stated(helper: str, line: str) -> bytes:
    """Write a line as Squid does: with a token for each header that helpers read."""
    if helper not in ("headers", "watch"):
        return line.encode()
    words = [
        word for word in line.split(" ") if word.partition("=")[0] not in READ_HEADERS
    ]
    headers = {
        word.partition("=")[0]: word.partition("=")[2] for word in line.split(" ")
    }
    return " ".join(
        [*words, *(headers.get(name, "-") for name in READ_HEADERS)]
    ).encode()


def texts_of_state() -> Iterator[tuple[str, str | None]]:
    """The texts that depend on what a gateway has counted, kept or rendered."""
    quota = Quota(
        "uploads", Location(""), QuotaUnit.BYTES_OUT, 10**9, Window.DAY, Counted.CLIENT
    )
    denial = Reply(Result.ERR, message="The rule asked denies this.")
    yield from (
        (f"quota {name}", refusal_reason(Refusal(quota, 5.0, **fields)))
        for name, fields in REFUSALS.items()
    )
    yield from (
        (f"no ticket {why.name}", no_ticket(denial, why).message) for why in NoTicket
    )
    yield "denied ticket", denied_ticket(denial, "abcdefghijkl", "No.").message
    yield "no page", no_ticket_page(denial).message
    yield "not rendered", not_rendered(["watch", "ask"]).reason
    yield "body of too many rules", body_scope._TOO_MANY.reason
    yield "body of rules that differ", body_scope._DISAGREEING.reason
    yield "body that ends", body_scope._UNFINISHED.reason


def test_each_text_is_what_it_was(tmp_path: Path) -> None:
    helpers = {"none": helpers_of(None)}
    for policy, text in POLICIES.items():
        compiled = compiled_of(tmp_path / policy, text)
        for name, value in {"id": "AKIDEXAMPLE", "sealing": KEY.reveal()}.items():
            (tmp_path / policy / name).write_text(value)
            (tmp_path / policy / name).chmod(0o600)
        helpers[policy] = helpers_of(compiled)
    expected, named, told = DENIALS.read_text(), values(), dict(texts_of_state())
    for row in expected.splitlines()[2 * len(told) :: 2]:
        policy, helper, line = row.format(**named).split(" ", 2)
        answering = Answering(
            helpers[policy][helper],
            lambda reply, _: reply,
            partial(broken_reply, helper="acl"),
        )
        reply, _ = answering.answer(stated(helper, line), b"")
        told[row] = f"{dict(reply.annotations)['rule_']}: {reply.message}"
    assert "".join(f"{row}\n  {text}\n" for row, text in told.items()) == expected


def test_no_reason_is_left_out() -> None:
    """A text that is new needs a row."""
    files = [
        file for area in ("policy", "serving") for file in (SOURCE / area).rglob("*.py")
    ]
    calls = [
        node
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
    ]
    told = [call for call in calls if getattr(call.func, "id", "") in REASONS]
    texts = [
        part.value
        for call in told
        for part in ast.walk(call)
        if isinstance(part, ast.Constant)
    ]
    known = DENIALS.read_text()
    assert {
        text for text in texts if isinstance(text, str) and text not in known
    } == UNSEEN
