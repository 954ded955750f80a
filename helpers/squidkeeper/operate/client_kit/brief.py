"""What one client may reach, as Markdown for the instructions of its agent.

It holds what the policy says about this client, no value of a secret, and nothing about
other clients.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final, TypeVar

from squidkeeper.base.formatting import quantity
from squidkeeper.operate.client_kit.client import ANY_CLIENT, KitClient
from squidkeeper.policy.engine.quotas import token_quotas
from squidkeeper.policy.language.body_texts import body_text
from squidkeeper.policy.language.forms import QueryParameters
from squidkeeper.policy.language.headers import UNKNOWN_HEADERS
from squidkeeper.policy.language.matching.table import written
from squidkeeper.policy.language.model import (
    Action,
    Credential,
    Match,
    Policy,
    Rewrite,
    Rule,
)
from squidkeeper.policy.language.quotas import Quota
from squidkeeper.policy.url import OWN_HOST

_ITEMS_SHOWN = 20  # of one field: hosts, paths
_ENTRIES_SHOWN = 150  # of one list
_LONGEST = 300  # characters of one text
_SPECIAL = re.compile(r"([\\`*_\[\]<>~&])")
_SPACE = re.compile(r"\s+")
ItemT = TypeVar("ItemT")

_HEAD = """\
# Network access

{way}
This is the policy{who}, revision `{revision}`, of {day}. It can change at any time; the gateway's answer counts.

"""
_BY_PROXY = """\
All network traffic of this machine goes through an HTTP proxy that enforces a policy. The variables `http_proxy` and
`HTTPS_PROXY` name it. There is no other way out: names do not resolve here, and direct connections fail."""
_TRANSPARENT = """\
All network traffic of this machine goes through a gateway that enforces a policy. Programs need no proxy settings:
every name has the gateway's address here. There is no other way out: connections to other addresses fail."""
_IN_QUERY = ", and parameters such as `?name=` to the query"
_SEND_NONE = "Send none of your own: it is removed.\n\n"
_SEND_PLACEHOLDERS = """\
Send none of your own: it is removed. A program
that does not start without a key takes the placeholder that is named here. The gateway replaces it. Anywhere else a
request with a placeholder is denied.

"""
_RULES = """\
## What you may reach

The first rule that matches a request decides. A rule matches if all that it names holds.

"""
_NO_RULE = """\
## What you may reach

No rule of the policy is for this client.
"""
_DENIED = """\
## When a request is denied

- The answer has status 403 and says which rule denied it, and why. For `Accept: application/json` it is a JSON object
  (`application/problem+json`) with `rule`, `reason`, `retryable` and `request_id`.
{by_body}- Do not repeat the request, and do not look for another way to the same data: the answer stays the same
  until the operator changes the policy{again}.
- If the task needs it, say so in your answer, with the URL, the rule and the request ID of the page, so that somebody
  can ask {contact}.
- A status of {unread}502, 503 or 504 with a page of the gateway is no denial: the host does not exist, does not answer,
  or has a bad certificate{why_unread}. The page says whether to retry (`retryable` in JSON).

"""
_BY_BODY = """\
- Where a rule reads the body, a denied push gets git's own report, and a denied call of MCP an error with status 200 or
  400. Both have the rule and the reason, and no request ID.
"""
_TICKETS = f"""\
## When the answer has a ticket

The request waits for a person, who may answer in minutes or in days. Stop repeating it, and go on with other work.

- The page names the ticket and the address of its state; in JSON these are `ticket` and `ticket_state`.
- Read `http://{OWN_HOST}/tickets/TICKET` at most every 10 seconds, from this machine and with the same login.
- `pending`: nobody has answered yet. `approved`: send exactly the same request again, before `until`. `denied`: the
  answer is no, and `reason` says why. `lapsed`: the approval has ended; the same request asks again.
- If you end before there is an answer, name the ticket and the URL in your answer.

"""
_BUDGETS = """\
## Budgets

What models use is counted. Once one of these is spent, the requests that it counts are denied by the rule `quota` until
the time that the denial names (`resets` in JSON). Then they can pass again.

"""
_LIMITS = """\
## Also

- Only `http://` and `https://` URLs work, on ports 80 and 443{ports}. No ssh, no `git://`.{fetch}
  HTTP/2 and gRPC work only where a rule says "not decrypted", WebSockets where a rule says so or opens a whole host.
- Use host names. An `https://` URL with an address in place of the name fails, unless a rule says "not decrypted".
- Private addresses are closed, also those that a name resolves to, except where a rule opens them.
- The gateway reads https, except where a rule says "not decrypted": certificates here are signed by its own CA, which
  the variables of this machine name. If a program reports an unknown issuer, give it that CA. Never turn verification
  off.
"""


_LIMITS_BY_PROXY = _LIMITS.format(
    ports=" unless a rule names others",
    fetch="\n  Node's `fetch` reaches `https://` URLs only: for plain `http://` use `http.get`, or `curl`.",
)
_LIMITS_TRANSPARENT = _LIMITS.format(ports=" alone", fetch="")


def write_brief(
    policy: Policy, client: KitClient, at: datetime, *, transparent: bool = False
) -> str:
    """Write the brief of one client, which has proxy settings unless it is
    transparent.
    """
    who = "" if client.name == ANY_CLIENT else f" for {code(client.name)}"
    contact = (
        escape(policy.contact) if policy.contact else "the operator of the gateway"
    )
    rules = [
        rule
        for rule in client.own(policy.rules)
        if not rule.lapsed(at) and not rule.observe
    ]
    grants = [grant for grant in client.own(policy.grants) if not grant.lapsed(at)]
    asks = policy.ask_default or any(rule.action is Action.ASK for rule in rules)
    reaches = policy.default is Action.ALLOW or any(
        rule.action is Action.ALLOW for rule in (*rules, *grants)
    )
    credentials = [*client.own(policy.credentials)] if reaches else []
    rewrites = [*client.own(policy.rewrites)] if reaches else []
    budgets = [
        *_budgets(policy, client, [rule for rule in rules if rule.meter is not None])
    ]
    way, limits = (
        (_TRANSPARENT, _LIMITS_TRANSPARENT)
        if transparent
        else (_BY_PROXY, _LIMITS_BY_PROXY)
    )
    parts = [
        _HEAD.format(way=way, who=who, revision=policy.revision, day=f"{at:%Y-%m-%d}"),
        _RULES if rules else _NO_RULE,
        *_bounded(rules, "rule", lambda rule: _rule(rule, policy)),
        _default(policy, len(rules)),
        *_grants(grants, policy),
        *_credentials(credentials, policy),
        *_rewrites(rewrites, policy),
        *budgets,
        _denied(
            contact,
            reads_bodies=any(rule.body is not None for rule in rules),
            has_budgets=bool(budgets),
        ),
        _TICKETS * asks,
        limits,
    ]
    return "".join(parts)


def _denied(contact: str, *, reads_bodies: bool, has_budgets: bool) -> str:
    again = ", or a budget begins again" if has_budgets else ""
    unread, why_unread = (
        ("500, ", ", or the gateway could not read the body (500)")
        if reads_bodies
        else ("", "")
    )
    by_body = _BY_BODY * reads_bodies
    return _DENIED.format(
        contact=contact,
        again=again,
        by_body=by_body,
        unread=unread,
        why_unread=why_unread,
    )


def escape(text: str) -> str:
    """Write a text so that Markdown and HTML show it as it is, on one line."""
    short = _shorten(_SPACE.sub(" ", text).strip())
    return _SPECIAL.sub(r"\\\1", short)


def code(text: str) -> str:
    """Write a text as a code span, whatever backquotes it holds."""
    short = _shorten(text)
    longest = max(map(len, re.findall("`+", short)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest or short != short.strip() else ""
    return f"{fence}{space}{short}{space}{fence}"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _bounded(
    entries: Sequence[ItemT], noun: str, line: Callable[[ItemT], str]
) -> Iterator[str]:
    yield from (
        f"{number}. {line(entry)}\n"
        for number, entry in enumerate(entries[:_ENTRIES_SHOWN], 1)
    )
    left = len(entries) - _ENTRIES_SHOWN
    if left > 0:
        yield f"\n{quantity(left, noun)} more, not shown here.\n"


def _rule(rule: Rule, policy: Policy) -> str:
    until = f", until {rule.expires:%Y-%m-%d %H:%M} UTC" if rule.expires else ""
    until += f", {rule.when}" if rule.when else ""
    reason = f". {escape(rule.reason)}" if rule.reason else ""
    what = "; ".join([_match(rule.match, policy), *_effects(rule)])
    return f"{_VERDICTS[rule.action]} (rule {code(rule.name)}){until}: {what}{reason}"


_ASKED = "**denied until a person allows it**"
_VERDICTS = {
    Action.ALLOW: "**Allowed**",
    Action.DENY: "**Denied**",
    Action.ASK: "**Denied until a person allows it**",
}


def _grants(grants: Sequence[Rule], policy: Policy) -> Iterator[str]:
    """Write what is granted for a time, without the reasons, which are for the
    gateway's operators.
    """
    if grants:
        yield "## Granted for a time\n\nWhere no rule above denies it:\n\n"
        yield from _bounded(grants, "grant", lambda grant: _granted(grant, policy))
        yield "\n"


def _granted(grant: Rule, policy: Policy) -> str:
    times = (
        f", {quantity(grant.uses, 'request')} at most" if grant.uses is not None else ""
    )
    return f"{_match(grant.match, policy)} (grant {code(grant.name)}), until {grant.expires:%Y-%m-%d %H:%M} UTC{times}"


def _effects(rule: Rule) -> Iterator[str]:
    if rule.body is not None:
        yield f"where the body is {code(body_text(rule.body))}"
    if rule.meter is not None:
        yield "the tokens that it uses are counted"
    if rule.private:
        yield "also at private addresses"
    if rule.passthrough:
        yield "not decrypted: the origin's own certificate arrives, and HTTP/2 works"
    if rule.websocket:
        yield "WebSockets too"
    if rule.strip and (
        named := [header for header in rule.strip.headers if header != UNKNOWN_HEADERS]
    ):
        yield f"without the headers {_items(named)}, which the gateway removes"
    if rule.strip and UNKNOWN_HEADERS in rule.strip.headers:
        yield "with usual headers alone: the gateway removes those that it does not know"


def _default(policy: Policy, rules: int) -> str:
    rest = "Everything else" if rules else "Everything"
    if policy.observe_default:
        for_now = (
            "for now, and recorded: it will be denied later. It gets no credential"
        )
        return f"\n{rest} is **allowed** {for_now} (rule `default`), on port 80 for http and 443 for https.\n\n"
    if policy.default_action is Action.ALLOW:
        return f"\n{rest} is **allowed** (rule `default`), on port 80 for http and 443 for https.\n\n"
    reason = f" {escape(policy.default_reason)}" if policy.default_reason else ""
    return f"\n{rest} is {_ASKED if policy.ask_default else '**denied**'} (rule `default`).{reason}\n\n"


def _match(match: Match, policy: Policy) -> str:
    fields = [
        f"{_LABELS.get(name, name)} {_items(texts)}"
        for name, texts in written(match).items()
        if name not in _BY_HOSTS_OR_CLIENT
    ]
    return "; ".join([_hosts(match, policy), *fields])


_LABELS: Final = {"urls": "URL"}
_BY_HOSTS_OR_CLIENT: Final = ("clients", "hosts", "lists")  # told apart from the rest


def _hosts(match: Match, policy: Policy) -> str:
    lists = [policy.lists[name] for name in match.lists or ()]
    known = _items(written(match).get("hosts", []))
    listed = (
        [
            f"{quantity(sum(listed.summary.patterns for listed in lists), 'host')} of a list"
        ]
        if lists
        else []
    )
    return " and ".join(filter(None, [known, *listed])) or "every host"


def _items(texts: Sequence[str]) -> str:
    shown = ", ".join(map(code, texts[:_ITEMS_SHOWN]))
    left = len(texts) - _ITEMS_SHOWN
    return f"{shown} and {left:,} more" if left > 0 else shown


def _credentials(credentials: Sequence[Credential], policy: Policy) -> Iterable[str]:
    if not credentials:
        return
    in_query = any(
        isinstance(credential.form, QueryParameters) for credential in credentials
    )
    yield f"## Credentials\n\nThe gateway adds these headers{_IN_QUERY if in_query else ''}. "
    has_placeholder = any(credential.placeholder for credential in credentials)
    yield _SEND_PLACEHOLDERS if has_placeholder else _SEND_NONE
    yield from _bounded(
        credentials,
        "credential",
        lambda held: f"{_places(held)}: {_match(held.match, policy)}{_sent(held)}",
    )
    yield "\n"


def _sent(credential: Credential) -> str:
    shown = credential.placeholder
    return f"; placeholder {code(shown)}" if shown else ""


def _places(credential: Credential) -> str:
    return ", ".join(map(code, credential.form.places))


def _budgets(
    policy: Policy, client: KitClient, metered: Sequence[Rule]
) -> Iterator[str]:
    """Write the quotas of tokens and cost that count rules of the client."""
    quotas = {
        quota.name: quota
        for rule in metered
        for quota in token_quotas(policy, client.names, rule.name)
    }
    if quotas:
        yield _BUDGETS
        yield from _bounded(
            list(quotas.values()), "budget", lambda quota: _budget(quota, metered)
        )
        yield "\n"


def _budget(quota: Quota, metered: Sequence[Rule]) -> str:
    counted = [rule.name for rule in metered if quota.counts(rule.name)]
    of_rules = f", of {_items(counted)}" if quota.rules is not None else ""
    return f"{quota.text}{of_rules} (quota {code(quota.name)})"


def _rewrites(rewrites: Sequence[Rewrite], policy: Policy) -> Iterable[str]:
    if not rewrites:
        return
    yield "## Requests that are answered from another place\n\n"
    yield from _bounded(rewrites, "rewrite", lambda rewrite: _rewrite(rewrite, policy))
    yield "\n"


def _rewrite(rewrite: Rewrite, policy: Policy) -> str:
    """Write a rewrite; path and query of its target stay with the operator."""
    target = code(f"{rewrite.target.scheme}://{rewrite.target.authority}")
    how = f"redirected ({rewrite.redirect}) to" if rewrite.redirect else "fetched from"
    return f"{_match(rewrite.match, policy)}: {how} {target}"
