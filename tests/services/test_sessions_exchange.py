"""Signed tokens of a platform become sessions, over the socket of the real service."""

from __future__ import annotations

import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, KeySet, RSAKey

from squidkeeper.services.sessions.orchestrators import check_orchestrators

from .test_sessions_calls import OTHER_UID, Answered, Service, serving

pytestmark = pytest.mark.system

EXCHANGE: Final = "/v1/sessions/exchange"
ISSUER: Final = "https://ci.example"
RSA: Final = RSAKey.generate_key(2048, {"kid": "rsa"})
EC: Final = ECKey.generate_key("P-256", {"kid": "ec"})
FOREIGN: Final = RSAKey.generate_key(2048, {"kid": "rsa"})
TWINS: Final = [ECKey.generate_key("P-256", {"kid": "twin"}) for _ in range(2)]
SETTINGS: Final = f"""
version: 1
identities:
  ci:
    issuer: https://ci.example
    audience: squidkeeper
    algorithms: [RS256, ES256]
    keys: KEYS
    claims: {{owner: acme, ref: [refs/heads/main, refs/heads/release/*], /cluster/name: c-1}}
    roles: [coding-agent]
    variables: {{repo: repo, docs: docs}}
    labels: {{task: run}}
  roles:
    issuer: https://ci.example
    audience: squidkeeper
    algorithms: [RS256]
    keys: KEYS
    claims: {{owner: acme}}
    roles: [plain, third]
    role_claim: role
orchestrators:
  local: {{identities: [ci, roles]}}
  other: {{uid: {OTHER_UID}, roles: [plain], networks: [10.20.9.0/24], labels: [task], identities: [roles]}}
  third: {{uid: 61236, roles: [plain], identities: [ci]}}
"""


def claims(**others: object) -> dict[str, Any]:
    now = int(time.time())
    made = {
        "iss": ISSUER,
        "aud": "squidkeeper",
        "sub": "repo:acme/app",
        "exp": now + 600,
        "iat": now,
        "nbf": now,
        "jti": str(time.time_ns()),
        "owner": "acme",
        "ref": "refs/heads/main",
        "cluster": {"name": "c-1"},
        "repo": "acme/app",
        "docs": ["a.example"],
        "run": "4711",
        "role": "plain",
    }
    made |= others
    return {name: value for name, value in made.items() if value is not None}


def signed(
    key: RSAKey | ECKey = RSA,
    alg: str = "RS256",
    *,
    header: dict[str, Any] | None = None,
    **others: object,
) -> str:
    head = {"alg": alg, "kid": key.kid, **(header or {})}
    return signed_bytes(json.dumps(claims(**others)).encode(), head, key)


def signed_bytes(
    payload: bytes, head: dict[str, Any], key: RSAKey | ECKey = RSA
) -> str:
    registry = jws.JWSRegistry(algorithms=[head["alg"]], strict_check_header=False)
    registry.max_header_length = 10_000
    written = {name: value for name, value in head.items() if value is not None}
    return jws.serialize_compact(written, payload, key, registry=registry)


def part(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def signed_head(head: bytes) -> str:
    """Sign a header that no library writes."""
    text = f"{part(head)}.{part(json.dumps(claims()).encode())}"
    return (
        f"{text}.{part(jws.JWSRegistry.algorithms['RS256'].sign(text.encode(), RSA))}"
    )


def signed_by_public_key() -> str:
    head = b'{"alg":"HS256","kid":"rsa"}'
    text = f"{part(head)}.{part(json.dumps(claims()).encode())}"
    made = hmac.digest(RSA.as_pem(private=False), text.encode(), "sha256")
    return f"{text}.{part(made)}"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "jwks.json"
    public = KeySet([RSA, EC, *TWINS]).as_dict(private=False)
    file.write_text(json.dumps(public))
    return file


@pytest.fixture(scope="module")
def service(keys: Path) -> Iterator[Service]:
    for made in serving():
        made.settings.write_text(SETTINGS.replace("KEYS", str(keys)))
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(service: Service) -> Iterator[None]:
    yield
    for uid in (0, OTHER_UID):
        service.call("PUT", "/v1/sessions", {"sessions": []}, uid=uid)


def exchange(
    service: Service, token: str, uid: int = 0, identity: str = "ci", **others: object
) -> Answered:
    body = {"identity": identity, "token": token, **others}
    return service.call("POST", EXCHANGE, body, uid=uid)


def test_a_token_becomes_a_session_that_ends_with_it(service: Service) -> None:
    token = signed()
    made = exchange(service, token, address="10.20.0.7")
    assert made.status == 201, made.body
    assert made.body["role"] == "coding-agent"
    assert made.body["variables"] == {"repo": ["acme/app"], "docs": ["a.example"]}
    assert made.body["labels"] == {"task": "4711"}
    ends = datetime.fromisoformat(made.body["expires"]).timestamp()
    assert (
        abs(ends - json.loads(jws.extract_compact(token.encode()).payload)["exp"]) <= 1
    )
    longer = {"ttl": "8h"}
    place = f"/v1/sessions/{made.body['name']}"
    changed = service.call("PATCH", place, longer, If_Match=made.headers["etag"])
    assert changed.status == 200, changed.body
    assert changed.body["expires"] <= made.body["expires"]
    asked = {name: made.body[name] for name in ("role", "variables", "labels")}
    refused = service.put(made.body["name"], {**asked, "address": "10.20.0.7"})
    assert refused.status in (409, 422), "a PUT does not outlive the token"


@pytest.mark.parametrize(("key", "alg"), [(RSA, "RS256"), (EC, "ES256")])
def test_each_algorithm_that_is_allowed(
    service: Service, key: RSAKey | ECKey, alg: str
) -> None:
    made = exchange(service, signed(key, alg, ref="refs/heads/release/2"))
    assert made.status == 201, made.body
    assert made.body["env"]["HTTPS_PROXY"].startswith(f"http://{made.body['name']}:")


def test_what_else_a_header_names_is_ignored(service: Service) -> None:
    public = FOREIGN.as_dict(private=False)
    head = {"jku": "https://evil.example/k", "x5u": "https://evil.example/c"}
    assert exchange(service, signed(header={**head, "jwk": public})).status == 201
    refused = exchange(service, signed(FOREIGN, header={**head, "jwk": public}))
    assert (refused.status, refused.code) == (403, "token-refused")


ATTACKS: Final[dict[str, tuple[Callable[[], str], str]]] = {
    "none": (lambda: part(b'{"alg":"none","kid":"rsa"}') + ".e30.", "compact"),
    "none, with a signature": (
        lambda: signed_head(b'{"alg":"none","kid":"rsa"}'),
        "header alg",
    ),
    "HS256 with the public key": (
        signed_by_public_key,
        "header alg",
    ),
    "an algorithm that is not allowed": (lambda: signed(RSA, "RS512"), "header alg"),
    "a list of algorithms": (
        lambda: signed_head(b'{"alg":["RS256"],"kid":"rsa"}'),
        "header alg",
    ),
    "an algorithm of another type of key": (
        lambda: signed(EC, "ES256", header={"kid": "rsa"}),
        "header alg",
    ),
    "another issuer's key": (lambda: signed(FOREIGN), "signature"),
    "an altered payload": (
        lambda: ".".join(
            (signed().split(".")[0], part(json.dumps(claims()).encode()), "AAAA")
        ),
        "signature",
    ),
    "an unknown kid": (lambda: signed(header={"kid": "other"}), "header kid"),
    "no kid": (lambda: signed(header={"kid": None}), "header kid"),
    "two keys of one kid": (lambda: signed(TWINS[0], "ES256"), "header kid"),
    "crit": (
        lambda: signed_head(b'{"alg":"RS256","kid":"rsa","crit":["x"],"x":1}'),
        "header crit",
    ),
    "empty crit": (
        lambda: signed_head(b'{"alg":"RS256","kid":"rsa","crit":[]}'),
        "header crit",
    ),
    "b64": (lambda: signed_head(b'{"alg":"RS256","kid":"rsa","b64":false}'), "b64"),
    "typ": (lambda: signed(header={"typ": "logout+jwt"}), "header typ"),
    "a doubled member of the header": (
        lambda: signed_head(b'{"alg":"none","alg":"RS256","kid":"rsa"}'),
        "header",
    ),
    "a doubled claim": (
        lambda: signed_bytes(
            b'{"aud":"other",' + json.dumps(claims()).encode()[1:],
            {"alg": "RS256", "kid": "rsa"},
        ),
        "payload",
    ),
    "not UTF-8": (
        lambda: signed_bytes(b'{"iss":"\xff"}', {"alg": "RS256", "kid": "rsa"}),
        "payload",
    ),
    "half of a character": (
        lambda: signed_bytes(
            json.dumps(claims()).replace("4711", "\\ud800").encode(),
            {"alg": "RS256", "kid": "rsa"},
        ),
        "payload",
    ),
    "a list": (lambda: signed_bytes(b"[]", {"alg": "RS256", "kid": "rsa"}), "payload"),
    "deep": (
        lambda: signed_bytes(b"[" * 5000, {"alg": "RS256", "kid": "rsa"}),
        "payload",
    ),
    "NaN": (
        lambda: signed_bytes(
            json.dumps(claims(exp=float("nan"))).encode(),
            {"alg": "RS256", "kid": "rsa"},
        ),
        "payload",
    ),
    "huge": (lambda: signed(fill="x" * 9000), "8,192"),
    "no token": (lambda: "no-token", "compact"),
    "five parts": (lambda: "a.b.c.d.e", "compact"),
    "base64 with padding": (lambda: signed() + "=", "compact"),
    "expired": (lambda: signed(exp=int(time.time()) - 1), "claim exp"),
    "no exp": (lambda: signed(exp=None), "claim exp"),
    "exp as text": (lambda: signed(exp="9999999999"), "claim exp"),
    "exp true": (lambda: signed(exp=True), "claim exp"),
    "exp without an end": (lambda: signed(exp=10**400), "claim exp"),
    "exp in two days": (lambda: signed(exp=int(time.time()) + 172_800), "claim exp"),
    "not yet": (lambda: signed(nbf=int(time.time()) + 600), "claim nbf"),
    "issued later": (lambda: signed(iat=int(time.time()) + 600), "claim iat"),
    "iat as text": (lambda: signed(iat="now"), "claim iat"),
    "no aud": (lambda: signed(aud=None), "claim aud"),
    "another aud": (lambda: signed(aud="other"), "claim aud"),
    "aud is a part": (lambda: signed(aud="squidkeeper2"), "claim aud"),
    "several aud": (lambda: signed(aud=["other", "squidkeeper"]), "claim aud"),
    "no aud in a list": (lambda: signed(aud=[]), "claim aud"),
    "aud as a mapping": (lambda: signed(aud={"squidkeeper": 1}), "claim aud"),
    "another issuer": (lambda: signed(iss="https://ci.example/"), "claim iss"),
    "no issuer": (lambda: signed(iss=None), "claim iss"),
    "no subject": (lambda: signed(sub=None), "claim sub"),
    "a subject of another type": (lambda: signed(sub=["a"]), "claim sub"),
    "jti of another type": (lambda: signed(jti=["a"]), "claim jti"),
    "another owner": (lambda: signed(owner="evil"), "claim owner"),
    "an owner of another type": (lambda: signed(owner=["acme"]), "claim owner"),
    "no owner": (lambda: signed(owner=None), "claim owner"),
    "a ref beyond a part": (lambda: signed(ref="refs/heads/release/a/b"), "claim ref"),
    "a ref with an ending": (lambda: signed(ref="refs/heads/main\n"), "claim ref"),
    "another cluster": (lambda: signed(cluster={"name": "c-2"}), "claim /cluster/name"),
    "a cluster as a list": (lambda: signed(cluster=["c-1"]), "claim /cluster/name"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_token_that_does_not_hold_opens_nothing(
    service: Service, attack: str
) -> None:
    made, told = ATTACKS[attack]
    token = made()
    refused = exchange(service, token)
    assert (refused.status, refused.code) == (403, "token-refused"), refused.body
    assert told in refused.fields["/token"]
    assert token not in json.dumps(refused.body)
    assert service.rows() == []


@pytest.mark.parametrize(
    "value",
    ["../app", "acme/..", "acme/*", "acme/**", "acme%2fapp", "acme/a%2e%2e", "/acme/app",
     "acme//app", "acme/app\n", "acme/{session.docs}", "", 7, None, ["acme/app", "x/y"],
     {"a": "b"}, True],
)  # fmt: skip
def test_a_claim_does_not_leave_the_place_of_its_variable(
    service: Service, value: object
) -> None:
    payload = {**claims(), "repo": value}
    token = signed_bytes(json.dumps(payload).encode(), {"alg": "RS256", "kid": "rsa"})
    refused = exchange(service, token)
    assert (refused.status, refused.code) == (422, "invalid-session"), refused.body
    assert "claim repo" in refused.fields["/token"]
    assert service.rows() == []


@pytest.mark.parametrize(
    ("claim", "value"),
    [("docs", ["*.example"]), ("docs", ["a.other"]), ("run", 4711), ("run", "a\nb")],
)
def test_a_claim_of_a_host_or_a_label_is_held_to_its_type(
    service: Service, claim: str, value: object
) -> None:
    payload = {**claims(), claim: value}
    token = signed_bytes(json.dumps(payload).encode(), {"alg": "RS256", "kid": "rsa"})
    refused = exchange(service, token)
    assert (refused.status, refused.code) == (422, "invalid-session")
    assert f"claim {claim}" in refused.fields["/token"]


@pytest.mark.parametrize("jti", ["one-of-a-kind", None])
def test_a_token_has_one_session(service: Service, jti: str | None) -> None:
    token = signed(jti=jti and f"{jti}-{time.time_ns()}")
    first = exchange(service, token)
    assert first.status == 201
    again = exchange(service, token)
    assert (again.status, again.body["number"]) == (200, first.body["number"])
    assert "token" not in again.body, "the proxy's token is shown once"
    other = exchange(service, token, address="10.20.0.9")
    assert (other.status, other.code) == (409, "other-content")
    taken = exchange(service, token, uid=61236)
    assert (taken.status, taken.code) == (409, "name-taken")
    service.delete(first.body["name"])
    refused = exchange(service, token)
    assert (refused.status, refused.code) == (409, "token-used")
    refused = exchange(service, token, uid=61236)
    assert (refused.status, refused.code) == (409, "token-used")


def test_another_signature_of_the_same_token_is_the_same_token(
    service: Service,
) -> None:
    payload = json.dumps(claims(jti=None)).encode()
    first, second = (
        signed_bytes(payload, {"alg": "ES256", "kid": "ec"}, EC) for _ in range(2)
    )
    assert first != second
    made = exchange(service, first)
    again = exchange(service, second)
    assert (again.status, again.body["number"]) == (200, made.body["number"])


def test_a_used_token_is_known_after_a_restart(service: Service) -> None:
    token = signed()
    made = exchange(service, token)
    service.delete(made.body["name"])
    service.end()
    service.start()
    refused = exchange(service, token)
    assert (refused.status, refused.code) == (409, "token-used")


def test_the_rights_are_those_of_the_caller_and_of_the_identity(
    service: Service,
) -> None:
    assert service.put("vm", {"role": "plain"}).status == 422, "by tokens alone"
    made = exchange(service, signed(role="third"), identity="roles")
    assert (made.status, made.body["role"]) == (201, "third")
    refused = exchange(service, signed(role="coding-agent"), identity="roles")
    assert "claim role" in refused.fields["/token"]
    refused = exchange(service, signed(), uid=OTHER_UID)
    assert refused.fields == {
        "/identity": "the caller may not exchange it, expected roles"
    }
    refused = exchange(
        service, signed(), OTHER_UID, identity="roles", address="10.20.0.7"
    )
    assert [*refused.fields] == ["/address"]
    refused = exchange(service, signed(), OTHER_UID, identity="roles")
    assert [*refused.fields] == ["/labels/task"]
    with pytest.raises(ConnectionError):  # it is closed at once
        exchange(service, signed(), uid=61_299)
    assert service.call("GET", made_place(made), uid=OTHER_UID).status == 403


def made_place(made: Answered) -> str:
    return f"/v1/sessions/{made.body['name']}"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"token": "x"}, "/identity"),
        ({"identity": "ci"}, "/token"),
        ({"identity": "ci", "token": 7}, "/token"),
        ({"identity": ["ci"], "token": "x"}, "/identity"),
        ({"identity": "ci", "token": "x", "role": "third"}, "/role"),
        ({"identity": "ci", "token": "x", "variables": {}}, "/variables"),
        ({"identity": "ci", "token": "x", "until": 9e9}, "/until"),
    ],
)
def test_a_body_is_judged_by_field(service: Service, body: object, field: str) -> None:
    refused = service.call("POST", EXCHANGE, body)
    assert refused.status == 422
    assert [*refused.fields] == [field]


def test_the_audit_log_has_the_subject_and_no_token(service: Service) -> None:
    before = len(service.audit.read_text().splitlines())
    good, bad = signed(sub="repo:acme/one"), signed(owner="evil")
    exchange(service, good)
    exchange(service, bad)
    text = service.audit.read_text()
    lines = [json.loads(line) for line in text.splitlines()][before:]
    assert [(one["call"], one["status"], one["identity"]) for one in lines] == [
        ("POST", 201, "ci"),
        ("POST", 403, "ci"),
    ]
    assert (lines[0]["issuer"], lines[0]["subject"]) == (ISSUER, "repo:acme/one")
    for token in (good, bad):
        for piece in token.split("."):
            assert piece not in text
            assert piece not in service.told()


@pytest.mark.parametrize(
    "content",
    [
        None, b"", b"[]", b'{"keys": 7}', b'{"keys": [' + b" " * 300_000 + b"]}",
        json.dumps({"keys": [RSA.as_dict(private=True)]}).encode(),
        json.dumps({"keys": [{"kty": "RSA", "kid": "rsa"}]}).encode(),
    ],
)  # fmt: skip
def test_keys_that_cannot_be_read_open_nothing(
    service: Service, keys: Path, content: bytes | None
) -> None:
    good = keys.read_bytes()
    keys.unlink()
    try:
        if content is not None:
            keys.write_bytes(content)
        refused = exchange(service, signed())
        assert (refused.status, refused.code) == (503, "keys-unavailable")
    finally:
        keys.write_bytes(good)
    assert exchange(service, signed()).status == 201, "without a restart"


@pytest.mark.parametrize(
    "changed",
    [
        {"use": "enc"},
        {"alg": "RS512"},
        {"key_ops": ["sign"]},
        {"kty": "oct", "k": "eHg"},
    ],
)
def test_a_key_for_something_else_opens_nothing(
    service: Service, keys: Path, changed: dict[str, object]
) -> None:
    good = keys.read_bytes()
    other = {**RSA.as_dict(private=False), **changed}
    try:
        keys.write_text(json.dumps({"keys": [other]}))
        assert exchange(service, signed()).status in (403, 503)
    finally:
        keys.write_bytes(good)


ENTRY: Final = "{issuer: i, audience: a, algorithms: [RS256], keys: /k, claims: {sub: s}, roles: [r]}"


@pytest.mark.parametrize(
    ("old", "changed", "told"),
    [
        ("RS256", "none", "'none'"),
        ("RS256", "HS256", "'HS256'"),
        ("[RS256]", "[]", "'algorithms' is an empty list"),
        ("{sub: s}", "{}", "'claims' is an empty mapping"),
        ("{sub: s}", "{sub: [1]}", "expected text, or a list of texts"),
        ("[r]", "[r, s]", "expected one role, or 'role_claim'"),
        ("/k", "k", "no absolute path"),
        ("audience: a, ", "", "'audience' is missing"),
        ("claims: {sub: s}, ", "", "'claims' is missing"),
        ("[ci]", "[other]", "no identity 'other'"),
    ],
)
def test_faults_of_identities_are_told_with_their_place(
    old: str, changed: str, told: str
) -> None:
    whole = (
        f"version: 1\nidentities: {{ci: {ENTRY}}}\n"
        "orchestrators: {local: {identities: [ci]}}\n"
    )
    found, faults = check_orchestrators(Path("s.yaml"), whole.encode())
    assert found is not None, faults
    found, faults = check_orchestrators(
        Path("s.yaml"), whole.replace(old, changed, 1).encode()
    )
    assert found is None
    assert told in "\n".join(map(str, faults))
