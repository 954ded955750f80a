"""The policies of bench.py's gateways.

The host `USED` uses the part in question, the host `HOST` does not.
"""

from __future__ import annotations

from typing import Final

HOST: Final = "bench.example"
USED: Final = "used.example"
PUSHES: Final = "pushes.example"
FAR_SHARED: Final = "far-shared.example"
FAR_OWN: Final = "far-own.example"
SECRET: Final = "bench-secret"

_RULES: Final = f"""\
version: 1
rules:
  - {{name: no-wikipedia, action: deny, hosts: [.wikipedia.org]}}
  - {{name: host, action: allow, hosts: [{HOST}]%s}}
  - {{name: used, action: allow, hosts: [{USED}, {PUSHES}]%s}}
"""
_SECRETS: Final = "secrets: {key: {file: key}}\n"


def _policy(host: str = "", used: str = "", more: str = "") -> str:
    """Write a policy: fields of the rule of each host, and what follows the rules."""
    return _RULES % (host, used) + more


def _credential(host: str, form: str) -> str:
    return f"{_SECRETS}credentials:\n  - {{name: key, hosts: [{host}], paths: [/a/**], {form}}}\n"


HOST_SCOPE: Final = _policy()
_SHARED: Final = ", methods: [GET, HEAD], connections: shared"
SHARED: Final = _policy(host=_SHARED)
REQUEST_SCOPE: Final = _policy(host=", paths: [/acme/**, /a/**]")
INJECTION: Final = _policy(more=_credential(HOST, "bearer: key"))
FAR: Final = (
    _policy()
    + f"  - {{name: far-shared, action: allow, hosts: [{FAR_SHARED}]{_SHARED}}}\n"
    + f"  - {{name: far-own, action: allow, hosts: [{FAR_OWN}]}}\n"
)
# Every request to `HOST` is covered: a GET by the deny, a POST by the first two.
BODIES: Final = _policy().replace(
    f"  - {{name: host, action: allow, hosts: [{HOST}]}}\n",
    f"""\
  - {{name: push, action: allow, hosts: [{PUSHES}], body: {{git: {{push: [refs/heads/**]}}}}}}
  - {{name: small, action: allow, hosts: [{HOST}], methods: [POST], body: {{json: {{/model: [small]}}}}}}
  - {{name: large, action: deny, hosts: [{HOST}], body: {{json: {{/model: [large]}}}}}}
  - {{name: host, action: allow, hosts: [{HOST}], methods: [GET, PUT]}}
""",
)
# Each part of the configuration, by a policy that has it in force.
PARTS: Final = {
    "ask": _policy(more="  - {name: ask, action: ask, hosts: [ask.example]}\n"),
    "credentials": _policy(more=_credential(USED, "bearer: key")),
    "login": _policy(more=f"clients: {{ci: {{token_sha256: {'a' * 64}}}}}\n"),
    "passthrough": _policy(
        more="  - {name: pinned, action: allow, hosts: [pinned.example], tls: passthrough}\n"
    ),
    "private": _policy(used=", private: true"),
    "quotas": _policy(
        more="quotas:\n  - {name: all, per: all, rules: [used], requests: 999999999, every: day}\n"
    ),
    "rewrites": _policy(
        more=f"rewrites:\n  - {{name: moved, hosts: [{USED}], schemes: [http], paths: [/a/**],"
        f' to: "http://{USED}/b{{path}}{{query}}"}}\n'
    ),
    "rewrites (parameters)": _policy(
        more=_credential(USED, 'parameters: {key: "{key}"}')
    ),
    "shared": _policy(used=_SHARED),
    "single": _policy(used=", connections: single"),
    "strip": _policy(used=", strip: [X-Debug]"),
    "upstreams": _policy(
        more="upstreams:\n  - {name: parent, hosts: [parent.example], url: http://192.0.2.1:3128}\n"
    ),
    "watch": _policy(more=_SECRETS + "defaults: {watch_secrets: true}\n"),
}
# whose use is no request to `USED`
WITHOUT_USE: Final = frozenset({"ask", "login", "passthrough", "upstreams"})
EVERY_REQUEST: Final = frozenset({"watch"})  # used by the requests to `HOST` too
