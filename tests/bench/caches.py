"""What each cache of the helpers saves: the processor time of a line with it and without it.

    .venv/bin/python tests/bench/lines.py --caches

The lines are answered in this process, in turn with and without, in the scenario for which the cache is there. The
lowest time of the rounds counts.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.policy import url
from squidkeeper.policy.engine import CompiledPolicy, fields
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.protocol import request
from squidkeeper.policy.protocol.lines import Reply, format_reply
from squidkeeper.serving.certificates.authority import CertificateAuthority, make_ca
from squidkeeper.serving.helpers import credential
from squidkeeper.serving.helpers.acl import HostScope, RequestScope, answer_host, answer_url
from squidkeeper.serving.helpers.certificate import Certificates

ROUNDS, LINES, WARM = 7, 3000, 20
RULES = "".join(f"  - {{name: r{n}, action: allow, hosts: [h{n}.example], paths: [/a/**]}}\n" for n in range(10))
CLIENTS = "".join(f"  c{n}: {{networks: [10.{n}.0.0/16]}}\n" for n in range(22))
POLICY = f"""version: 1
defaults: {{action: allow}}
rules:
{RULES}  - {{name: query, action: allow, hosts: [query.example], query: {{q: '1*'}}}}
secrets: {{token: {{env: TOKEN}}}}
credentials: [{{name: token, hosts: [api.example], bearer: token}}]
"""
Make = Callable[[CompiledPolicy], tuple[Callable[[bytes], Reply], object]]


@dataclass(frozen=True)
class Cache:
    """A cache: its owner, the attribute that is the cache, the helper, and the n-th line of its scenario."""

    owner: Callable[[Any], object]  # of a helper's scope
    name: str
    make: Make
    line: Callable[[int], str]
    text: str = POLICY


def host_scope(policy: CompiledPolicy) -> tuple[Callable[[bytes], Reply], object]:
    scope = HostScope(policy)
    return partial(answer_host, scope), scope


def request_scope(policy: CompiledPolicy) -> tuple[Callable[[bytes], Reply], object]:
    scope = RequestScope(policy)
    return partial(answer_url, scope), scope


def injector(policy: CompiledPolicy) -> tuple[Callable[[bytes], Reply], object]:
    made = credential.Injector(policy)
    return partial(credential.answer, made, concurrency=4), made


def certificates(_: CompiledPolicy) -> tuple[Callable[[bytes], Reply], object]:
    made = Certificates()
    return lambda request: Reply(made.answer(request).result), made


def unknown_host(number: int) -> str:
    return f"10.3.0.1 - GET http h{number}.open.example 80 - - - -"


def new_url(number: int) -> str:
    return f"10.3.0.1 - GET http h1.example 80 - - - http%3A%2F%2Fh1.example%2Fa%2F{number} -"


def new_query(number: int) -> str:
    target = f"http%3A%2F%2Fquery.example%2F%252e%252e%2Fa%3Bb%2F{number}%3Fq%3D1{'%26r%3D1' * 1000}"
    return f"10.3.0.1 - GET http query.example 80 - - - {target} -"


def injected(number: int) -> str:
    target = f"https%3A%2F%2Fapi.example%2Fa%2F{number}"
    return f"10.3.0.1 - GET https api.example 443 api.example api.example%3A443 - {target} {target} -"


@lru_cache
def _authority() -> CertificateAuthority:
    return make_ca(datetime.now(UTC))


def new_leaf(number: int) -> str:
    pair = _authority()
    body = f"host=h{number}.example\nSign=signTrusted\nSignHash=SHA256\n{pair.certificate.decode()}{pair.key.decode()}"
    return f"new_certificate {len(body)} {body}"


CACHES = (
    Cache(lambda scope: scope, "_replies", host_scope, lambda _: unknown_host(0)),
    Cache(lambda scope: scope, "_replies", request_scope, new_url),
    Cache(lambda scope: scope, "_replies", injector, injected),
    Cache(lambda scope: scope._matches, "_known", request_scope, new_url),
    Cache(lambda scope: scope.policy, "_candidates", host_scope, unknown_host),
    Cache(lambda scope: scope.policy, "_clients", host_scope, unknown_host, f"{POLICY}clients:\n{CLIENTS}"),
    Cache(lambda scope: scope.policy, "_decisions", injector, injected),
    Cache(lambda made: made, "_replies", certificates, lambda _: new_leaf(0)),
    Cache(lambda made: made, "_signers", certificates, new_leaf),
    Cache(lambda _: request, "_known_sender", host_scope, unknown_host),
    Cache(lambda _: url, "parse_authority", request_scope, new_url),
    Cache(lambda _: fields, "parse_query", request_scope, new_query),
)


def print_caches() -> None:
    """Print a row for each cache."""
    os.environ["TOKEN"] = "secret"
    print("| cache | us a line | without | saved |\n|---|---|---|---|")
    for cache in CACHES:
        times = [(_microseconds(cache, without=False), _microseconds(cache, without=True)) for _ in range(ROUNDS)]
        kept, left_out = (min(column) for column in zip(*times, strict=True))
        owner = cache.owner(cache.make(_compiled(cache.text))[1])
        name = getattr(owner, "__name__", type(owner).__name__)
        print(f"| {name} {cache.name} | {kept:.1f} | {left_out:.1f} | {1 - kept / left_out:.0%} |", flush=True)
    print(f"Python {sys.version.split()[0]}, lowest of {ROUNDS} rounds of {LINES} lines", file=sys.stderr)


def _microseconds(cache: Cache, *, without: bool) -> float:
    answer, scope = cache.make(_compiled(cache.text))
    lines = [cache.line(number).encode() for number in range(LINES + WARM)]
    with _left_out(cache.owner(scope), cache.name) if without else nullcontext():
        for line in lines[:WARM]:
            format_reply(answer(line), b"1")
        began = time.process_time()
        for line in lines[WARM:]:
            format_reply(answer(line), b"1")
        return (time.process_time() - began) / LINES * 1e6


@contextmanager
def _left_out(owner: object, name: str) -> Iterator[None]:
    """Put a cache that holds nothing, or the function itself, where the cache is."""
    cache = getattr(owner, name)
    setattr(owner, name, BoundedCache[object, object](0) if isinstance(cache, BoundedCache) else cache.__wrapped__)
    try:
        yield
    finally:
        setattr(owner, name, cache)


def _compiled(text: str) -> CompiledPolicy:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "policy.yaml").write_text(text)
        return load(Path(folder), datetime.now(UTC)).compiled
