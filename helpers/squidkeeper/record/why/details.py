"""What is known beside the records: the policy that decided, secrets, DNS, cache.log.

A detail that is read now, and not as it was then, says so.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from shlex import quote
from typing import Final

from squidkeeper.base.faults import Location
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.explain import Explanation, PassedOver, explain
from squidkeeper.policy.language.model import Credential, Entry, Rule
from squidkeeper.policy.language.quotas import Counted
from squidkeeper.policy.protocol.request import Malformed
from squidkeeper.policy.url import Address, gives_credentials, is_private
from squidkeeper.record.log.record import (
    NONE,
    Record,
    client_name,
    decode_field,
    host_of,
    parse_time,
    truncated_fields,
)
from squidkeeper.record.log.recorded_sessions import (
    NO_SESSIONS,
    RecordedSessions,
    Unknown,
)
from squidkeeper.record.log.requests import request_of
from squidkeeper.record.why.cache_log import CacheLog
from squidkeeper.record.why.causes import OPENS_THE_MACHINE, SHOWN_OF_MESSAGE, shown
from squidkeeper.record.why.proposal import propose
from squidkeeper.record.why.search import Failure
from squidkeeper.serving.quotas.counts import holder, of_session
from squidkeeper.serving.squid_crashes import SquidCrash
from squidkeeper.serving.tickets.store import Ticket, TicketState
from squidkeeper.serving.tickets.ticket import AskedRequest

_ADDRESSES_SHOWN: Final = 4
_RULES_SHOWN: Final = 3
_SAME_SECOND: Final = timedelta(seconds=1)  # cache.log has no fractions


@dataclass(frozen=True, slots=True)
class Detail:
    """Facts for the sentence and the remedy, values for programs, and whether the cause
    is certain now.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, object] = field(default_factory=dict)
    is_sure: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where details come from.

    `policy_of` gives the policy of a revision, `current` the one on disk; either is
    None where there is none. `addresses_of` resolves a name now. `secret_problem` tells
    why a secret is unavailable now. `ticket_of` finds the ticket of a request as it is
    now; None where there is none, or it cannot be read. `counts_are_shared` tells
    whether other gateways count quotas with this one. `in_force` is the revision that
    helpers have; empty where it is unknown.
    `sessions` finds those of records.
    """

    policy_of: Callable[[str], CompiledPolicy | None]
    current: Callable[[], CompiledPolicy | None]
    addresses_of: Callable[[str], tuple[Address, ...]]
    secret_problem: Callable[[CompiledPolicy, str], str | None]
    ticket_of: Callable[[AskedRequest], Ticket | None]
    cache_log: CacheLog
    counts_are_shared: bool = False
    crashes: tuple[SquidCrash, ...] = ()
    in_force: str = ""
    sessions: RecordedSessions = NO_SESSIONS


def detail_of(failure: Failure, known: Surroundings) -> Detail:
    """Add what is known beside the record of a failure."""
    add = _DETAILS.get(failure.cause.code)
    return add(failure.record, known) if add else Detail()


def location_facts(rule: Rule) -> dict[str, str]:
    """Say where the policy has a rule, and its reason."""
    return {"at": f" ({place(rule.location)})", "reason": _stated(rule.reason)}


def _stated(reason: str | None) -> str:
    return (
        f": {shown(' '.join(reason.split()), SHOWN_OF_MESSAGE).rstrip('.')}"
        if reason
        else ""
    )


def place(location: Location) -> str:
    """Write a location as `file:line`."""
    return f"{location.file}:{location.line}"


# --- the policy -----------------------------------------------------------------------


def _policy(record: Record, known: Surroundings) -> CompiledPolicy | None:
    revision = record.revision
    return known.current() if revision == NONE else known.policy_of(revision)


def _explanation(
    record: Record, policy: CompiledPolicy, known: Surroundings
) -> Explanation | None:
    session = known.sessions.of(record)
    if truncated_fields(record) or record.url == NONE or session is Unknown.SESSION:
        return None
    return explain(policy, request_of(record, session), parse_time(record))


def _denied_by_rule(record: Record, known: Surroundings) -> Detail:
    policy = _policy(record, known)
    rule = _rule_that_denied(record, policy)
    if policy is None or rule is None:
        return Detail(values={"rule": decode_field(record.rule)})
    opened = _opening(record, policy, f"add above {shown(rule.name)}", known)
    values = {
        "rule": rule.name,
        "location": place(rule.location),
        "reason": rule.reason,
        **opened.values,
    }
    return Detail(
        {
            **location_facts(rule),
            "at": f" ({place(rule.location)}{_of_revision(policy, known)})",
            **opened.facts,
        },
        values,
    )


def _located(record: Record, known: Surroundings) -> Detail:
    rule = _rule_that_denied(record, _policy(record, known))
    if rule is None:
        return Detail(values={"rule": decode_field(record.rule)})
    return Detail(
        {"at": f" ({place(rule.location)})"},
        {"rule": rule.name, "location": place(rule.location)},
    )


def _rule_that_denied(record: Record, policy: CompiledPolicy | None) -> Rule | None:
    name = decode_field(record.rule)
    return (
        next(
            (rule for rule in policy.source.rules_and_grants if rule.name == name), None
        )
        if policy
        else None
    )


def _without_rule(record: Record, known: Surroundings) -> Detail:
    policy = _policy(record, known)
    if policy is None:
        return Detail(values={"rule": "default"})
    found = _explanation(record, policy, known)
    reason = found.decision.reason if found and not found.decision.location else None
    passed = found.passed_over if found else []
    opened = _opening(record, policy, "add this rule", known)
    facts = {"nearest": _nearest(passed), "reason": _stated(reason), **opened.facts}
    nearest = [
        {
            "rule": one.entry.name,
            "location": place(one.entry.location),
            "fields": one.fields,
        }
        for one in passed
    ]
    return Detail(
        facts,
        {"rule": "default", "location": None, "passed_over": nearest, **opened.values},
    )


def _denied_by_body(record: Record, known: Surroundings) -> Detail:
    """Name the rules whose `body` decided: another rule would open the request for
    every body.
    """
    policy = _policy(record, known)
    if policy is None:
        return Detail(values={"rule": decode_field(record.rule)})
    rule, found = _rule_that_denied(record, policy), _explanation(record, policy, known)
    judged = [
        one.rule
        for one in (found.by_body if found else ())
        if one.rule.body and not one.rule.observe
    ]
    facts = (
        location_facts(rule)
        if rule
        else {"reason": _stated(policy.source.default_reason)}
    )
    if _is_allowed_now(record, known):
        facts["judged"] = _opening(record, policy, "", known).facts["opens"]
    elif judged:
        named = ", ".join(
            f"{shown(one.name)} ({place(one.location)})"
            for one in judged[:_RULES_SHOWN]
        )
        facts["judged"] = f"change the `body` of {named}, or what the client sends"
    places = [{"rule": one.name, "location": place(one.location)} for one in judged]
    return Detail(facts, {"rule": decode_field(record.rule), "judged": places})


def _of_revision(policy: CompiledPolicy, known: Surroundings) -> str:
    current = known.current()
    is_edited = current is not None and current.revision != policy.revision
    return (
        f" of revision {policy.revision}; the policy was edited since"
        if is_edited
        else ""
    )


def _is_allowed_now(record: Record, known: Surroundings) -> bool:
    current = known.current()
    found = _explanation(record, current, known) if current else None
    return found is not None and found.decision.allowed and not found.undecided


def _is_not_in_force(known: Surroundings) -> bool:
    current = known.current()
    return bool(known.in_force and current and current.revision != known.in_force)


_NOT_IN_FORCE: Final = (
    "see why an edit is not in force: the policy on disk allows it. `squidkeeper check` says whether Squid's account"
    " can read it, `squidkeeper doctor` what else keeps the former one"
)


_FOR_THE_ROLE: Final = "Its address was that session's: add a rule for the role"


def _opening(
    record: Record, policy: CompiledPolicy, how: str, known: Surroundings
) -> Detail:
    """Tell what opens a request: an edit since, a rule that was tried, or why no rule
    does.
    """
    if _is_allowed_now(record, known):
        if _is_not_in_force(known):
            return Detail({"opens": _NOT_IN_FORCE}, {"opens": None})
        return Detail(
            {"opens": "do nothing: the policy was edited since, and allows it now"},
            {"opens": None},
        )
    session = known.sessions.of(record)
    if session is Unknown.SESSION:
        opens = f"find out its role: its session {shown(record.session)} is not known any more. {_FOR_THE_ROLE}"
        return Detail({"opens": opens}, {"opens": None})
    proposal = propose(record, policy, session)
    if proposal is None:
        return Detail(values={"opens": None})
    if proposal.unknown_client:
        return _unknown_client(record)
    if proposal.line is None:
        why = shown(proposal.obstacle, SHOWN_OF_MESSAGE).rstrip(".")
        return Detail(
            {"opens": f"a new rule is not enough: {why}"},
            {"opens": None, "obstacle": why},
        )
    private = (
        ", which opens a private address: the client reaches the gateway's own networks"
    )
    opens = f"{how}: `{proposal.line}`{private * proposal.private}"
    return Detail({"opens": opens}, {"opens": proposal.line})


def _unknown_client(record: Record) -> Detail:
    client = shown(client_name(record))
    opens = (
        f"make the client known: {client} is no client of the policy. `squidkeeper client add NAME` gives it a token to"
        " log in with; else add its address to the `networks` of a client. The rules for this client then decide"
    )
    return Detail({"opens": opens}, {"opens": None, "unknown_client": client})


def _nearest(passed: Iterable[PassedOver]) -> str:
    *_, last = [None, *passed]
    if last is None:
        return ""
    return (
        f" The rule {shown(last.entry.name)} ({place(last.entry.location)}) does "
        f"not match: {', '.join(last.fields)}."
    )


def _asked(record: Record, known: Surroundings) -> Detail:
    policy = _policy(record, known)
    rule = _rule_that_denied(record, policy)
    facts = (
        location_facts(rule)
        if rule
        else {"reason": _stated(policy.source.default_reason if policy else "")}
    )
    values = {
        "rule": decode_field(record.rule),
        "location": place(rule.location) if rule else None,
    }
    ticket = _ticket(record, known)
    if ticket is None:
        return Detail(facts, {**values, "ticket": None})
    why = _stated(ticket.reason) if ticket.state is TicketState.DENIED else ""
    facts |= {
        "number": ticket.number,
        "ticket": f" Its ticket {ticket.number} is {ticket.state} now{why}.",
    }
    return Detail(
        facts, {**values, "ticket": ticket.number, "ticket_state": ticket.state}
    )


def _ticket(record: Record, known: Surroundings) -> Ticket | None:
    request = None if truncated_fields(record) else request_of(record)
    if (
        request is None
        or isinstance(request, Malformed)
        or request.client is None
        or request.url is None
    ):
        return None
    return known.ticket_of(
        AskedRequest(
            request.client.text,
            request.user or "",
            request.method,
            request.url,
            _session_number(record),
        )
    )


def _session_number(record: Record) -> int:
    number = record.session
    return int(number) if number.isdecimal() and len(number) <= 18 else 0


# --- others ---------------------------------------------------------------------------


def _private_address(record: Record, known: Surroundings) -> Detail:
    policy = _policy(record, known)
    found = _explanation(record, policy, known) if policy else None
    facts: dict[str, str] = {}
    values: dict[str, object] = {}
    if found and found.grant:
        facts |= {
            "opener": "a grant",
            "opened": "add a rule that allows it with `private: true`: grants have none",
        }
    elif policy and found and found.resolved:
        name = found.resolved.opener.removeprefix("the rule ").removeprefix(
            "the rewrite "
        )
        entries: tuple[Entry, ...] = (*policy.source.rules, *policy.source.rewrites)
        location = next(
            (place(entry.location) for entry in entries if entry.name == name), None
        )
        facts["opener"] = shown(found.resolved.opener) + (
            f" ({location})" if location else ""
        )
        facts["opened"] = f"set `private: true` on {facts['opener']}"
        values |= {"rule": name, "location": location}
    host = host_of(record.url)
    if host.address is None and host.text != NONE:
        addresses = known.addresses_of(host.text)
        values["addresses_now"] = [str(address) for address in addresses]
        facts |= {"private": _about_addresses(addresses)} if addresses else {}
        if any(map(gives_credentials, addresses)):
            facts["warning"] = OPENS_THE_MACHINE
    return Detail(facts, values)


def _about_addresses(addresses: tuple[Address, ...]) -> str:
    private = [str(address) for address in addresses if is_private(address)]
    shown_ones = ", ".join(
        (private or [str(address) for address in addresses])[:_ADDRESSES_SHOWN]
    )
    if private:
        return f"has a private address (DNS gives {shown_ones} now)"
    return f"had a private address, or one of the gateway's own (DNS gives {shown_ones} now)"


def _credential(record: Record, known: Surroundings) -> Detail:
    """Say which credential is unavailable: why, as the helper told cache.log, or else
    why now.
    """
    policy = _policy(record, known)
    found = _explanation(record, policy, known) if policy else None
    credentials = found.decision.credentials if found else ()
    if policy is None or not credentials:
        return Detail()
    return _told_then(record, credentials, known) or _unavailable_now(
        policy, credentials, known
    )


def _told_then(
    record: Record, credentials: Iterable[Credential], known: Surroundings
) -> Detail | None:
    # as the helper writes them
    told = ", ".join(credential.name for credential in credentials)
    ended = parse_time(record) + _SAME_SECOND
    for line in known.cache_log.of("credential-unavailable"):
        if line.at <= ended and line.parts["told"].startswith(f"{told}: "):
            why = shown(line.parts["told"].removeprefix(f"{told}: "), SHOWN_OF_MESSAGE)
            facts = {
                "credential": f"The credential {shown(told)} is unavailable: {why.rstrip('.')}"
            }
            return Detail(facts, {"credential": told, "why": why})
    return None


def _unavailable_now(
    policy: CompiledPolicy, credentials: Iterable[Credential], known: Surroundings
) -> Detail:
    for credential in credentials:
        for secret in credential.form.secrets:
            problem = known.secret_problem(policy, secret)
            if problem:
                now = shown(problem, SHOWN_OF_MESSAGE).rstrip(".")
                told = f"The credential {shown(credential.name)} is unavailable. Now: {now}"
                return Detail(
                    {"credential": told},
                    {"credential": credential.name, "why": problem},
                )
    names = [credential.name for credential in credentials]
    told = f"The credential {', '.join(map(shown, names))} was unavailable, and is available now"
    return Detail({"credential": told}, {"credential": names})


def _distrust(record: Record, known: Surroundings) -> Detail:
    alert = known.cache_log.alert(record)
    if alert is None:
        return Detail()
    told = f"The client does not trust the gateway's CA: it ended TLS with the alert `{alert}`"
    return Detail({"distrust": told}, {"alert": alert}, is_sure=True)


def _parent(record: Record, known: Surroundings) -> Detail:
    return Detail(is_sure=known.cache_log.near("parent-failed", record) is not None)


def _no_policy(_record: Record, known: Surroundings) -> Detail:
    if known.current() is None:
        return Detail()
    again = "If it happens again, run `squidkeeper check` as Squid's account, then `./install.sh`"
    return Detail(
        {"repair": f"Nothing: the policy on disk loads by now. {again}"},
        {"loads_now": True},
    )


def _request(record: Record, _known: Surroundings) -> Detail:
    return Detail({"request": quote(shown(record.request_id))})


def _quota(record: Record, known: Surroundings) -> Detail:
    """Name the limit, whose count it is, when it begins again, and who can list the
    counts: of shared ones, no gateway.

    The record does not have the rule that allowed the request, whose name a count for
    each rule has.
    """
    facts: dict[str, str] = {}
    values: dict[str, object] = {}
    policy = _policy(record, known)
    name = (decode_field(record.found) or "").removeprefix("quota:")
    quota = (
        next((quota for quota in policy.source.quotas if quota.name == name), None)
        if policy
        else None
    )
    if quota is not None:
        ends = datetime.fromtimestamp(
            quota.window.end(parse_time(record).timestamp()), UTC
        )
        user = None if record.user == NONE else record.user
        whose = (
            "HOLDER"
            if quota.per in (Counted.RULE, Counted.LABEL)
            else of_session(record.session)
            if record.session != NONE and quota.per is not Counted.ALL
            else holder(quota, record.client, user, "") or "HOLDER"
        )
        facts = {
            "limit": f" ({quota.text})",
            "its_reset": f"its reset at {ends:%Y-%m-%dT%H:%M:%SZ}",
            "reset": f"{quote(shown(name))} --holder {quote(shown(whose))}",
        }
        values = {
            "quota": name,
            "limit": quota.limit,
            "unit": str(quota.unit),
            "holder": whose,
        }
    if known.counts_are_shared:
        facts["reset"] = f"{facts.get('reset', 'NAME --holder HOLDER')} --store FILE"
    return Detail(facts, values)


_DETAILS: Final[Mapping[str, Callable[[Record, Surroundings], Detail]]] = {
    "policy": _denied_by_rule,
    "asked": _asked,
    "ambiguous-path": _request,
    "no-policy": _no_policy,
    "machine-address": _located,
    "body": _denied_by_body,
    "no-rule": _without_rule,
    "private-address": _private_address,
    "credential-unavailable": _credential,
    "ca-not-trusted": _distrust,
    "parent-failed": _parent,
    "quota": _quota,
}
