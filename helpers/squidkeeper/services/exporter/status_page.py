"""The status page: a snapshot as HTML."""

import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.base.gateway_commands import command, with_commands
from squidkeeper.base.layout import Layout
from squidkeeper.base.release import release
from squidkeeper.policy.language.model import Action
from squidkeeper.policy.language.quotas import shown_cost
from squidkeeper.policy.url import parse_address
from squidkeeper.record.log.record import redacted_url, truncate
from squidkeeper.record.log.requests import NOT_BY_THE_POLICY
from squidkeeper.record.pages.page import render, split_bar, used_bar
from squidkeeper.record.why.causes import BODY_CAUSE, BY_CODE
from squidkeeper.record.why.details import location_facts
from squidkeeper.services.exporter.conditions import (
    ActiveCondition,
    Severity,
    active_conditions,
    policy_faults,
    worst,
)
from squidkeeper.services.exporter.recent import Denial
from squidkeeper.services.exporter.snapshot import Snapshot
from squidkeeper.services.exporter.status_rows import (
    RuleRow,
    UsageRow,
    helper_rows,
    logged_time,
    rule_rows,
    secret_rows,
    transparent_rows,
    usage_rows,
)
from squidkeeper.serving.parts import named_parts, read_in_force
from squidkeeper.serving.quotas.token_uses import NEARLY

_RULES_SHOWN = 500
_FAULTS_SHOWN = 50
_USES_SHOWN = 20
_SHORT_URL = 240  # characters that a row shows; its command has the rest


def page(view: Snapshot, program: str) -> str:
    """Make the page: one HTML document without links to others.

    Its commands call `program`.
    """
    active = active_conditions(view)
    rules = tuple(rule_rows(view))
    shown, faults, counts = (
        _rules_shown(rules),
        policy_faults(view),
        view.log.checkpoint.counts,
    )
    usage, layout = usage_rows(view), _layout(view)
    write = partial(with_commands, layout=layout, program=program)
    return render(
        "status.html",
        {
            "view": view,
            "version": release(),
            "conditions": [
                (
                    condition.condition,
                    write(condition.first.text),
                    write(condition.condition.remedy),
                    [write(detail) for detail in condition.details[1:]],
                )
                for condition in active
            ],
            "severity": worst(active) or "",
            "headline": _headline(active),
            "loaded": _moment(view.policies.policy_state.loaded),
            "pull_placed": _moment(view.services.pull.placed)
            if view.services.pull
            else None,
            "pull_read": _moment(view.services.pull.succeeded)
            if view.services.pull
            else None,
            "parts": named_parts(read_in_force(view.proxy.fragment)),
            "default_action": view.policies.policy.default
            if view.policies.policy
            else Action.DENY,
            "default_observes": bool(
                view.policies.policy and view.policies.policy.observe_default
            ),
            "commands": {
                name: command(name, layout, program)
                for name in ("check", "log", "quota")
            },
            "counts": counts,
            "last_line": logged_time(counts.last_line),
            "counted_since": logged_time(view.log.checkpoint.since),
            "drift_total": sum(number for _, number in counts.drift),
            "denials": [
                (
                    denial,
                    _why(denial, view, write),
                    explain_command(denial, layout, program),
                )
                for denial in view.log.checkpoint.denials
            ],
            "not_explained": {
                rule: write(text) for rule, text in _NOT_EXPLAINED.items()
            },
            "rules": shown,
            "rules_total": sum(not rule.built_in for rule in rules),
            "rules_left_out": len(rules) - len(shown),
            "helpers": tuple(helper_rows(view)),
            "transparent": transparent_rows(view),
            "secrets": tuple(secret_rows(view)),
            "usage": usage,
            "spent": UsageRow.total(usage),
            "budgets": sorted(view.policies.token_uses, key=lambda use: -use.ratio)[
                :_USES_SHOWN
            ],
            "budgets_total": len(view.policies.token_uses),
            "nearly": NEARLY,
            "shown_cost": shown_cost,
            "used_bar": used_bar,
            "faults": faults[:_FAULTS_SHOWN],
            "faults_total": len(faults),
            "most_hits": max((rule.allowed + rule.denied for rule in rules), default=0),
            "split_bar": split_bar,
            "redacted_url": redacted_url,
            "truncate": truncate,
            "shortest": _SHORT_URL,
        },
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _rules_shown(rules: tuple[RuleRow, ...]) -> list[tuple[int, RuleRow]]:
    """Return the rules with their numbers; of very many, keep those that matched or
    expire.
    """
    numbered = list(enumerate(rules, 1))
    if len(numbered) > _RULES_SHOWN:
        numbered = [
            (number, rule) for number, rule in numbered if rule.seen or rule.expires
        ]
    return numbered[:_RULES_SHOWN]


def _headline(active: tuple[ActiveCondition, ...]) -> str:
    critical = sum(
        condition.condition.severity is Severity.CRITICAL for condition in active
    )
    if not active:
        return "All is well: nothing to do."
    if len(active) == 1:
        return f"1 {active[0].condition.severity} condition."
    return (
        f"{len(active)} conditions, {critical} of them critical."
        if critical
        else f"{len(active)} conditions."
    )


def _layout(view: Snapshot) -> Layout:
    others = {"fragment": view.place.fragment_file} if view.place.fragment_file else {}
    return Layout.around(
        view.place.directory,
        view.place.state,
        access_log=view.place.access_log,
        **others,
    )


def _why(
    denial: Denial, view: Snapshot, write: Callable[[str], str]
) -> tuple[str, str]:
    """Say why a request was denied, and what to do, as `squidkeeper why` does; empty if
    it is not known.

    The place of a rule is the one in the policy in force.
    """
    cause = BY_CODE.get(denial.cause)
    if cause is None:
        return "", ""
    rules = view.policies.policy.rules_and_grants if view.policies.policy else ()
    rule = next((rule for rule in rules if rule.name == denial.rule), None)
    facts = {**denial.facts, **(location_facts(rule) if rule else {})}
    return cause.say(facts), write(cause.advise(facts))


_NO_COMMAND = (
    "No command: the denial depends on more than policy, client, method and URL."
)
_NOT_EXPLAINED = {
    "authority-mismatch": f"{_NO_COMMAND} "
    "`squidkeeper log --json --rule authority-mismatch | tail -n 1 | squidkeeper explain --record -` shows what does"
    " not match.",
    **dict.fromkeys(NOT_BY_THE_POLICY, _NO_COMMAND),
    "quota": "No command: what was used decided, and not the request.",
}
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")


_USER = re.compile(r"[!-~]{1,100}")


_TARGET = re.compile(r"https?://[!-~]+|[^/]+:[0-9]{1,5}")


def explain_command(denial: Denial, layout: Layout, program: str) -> str | None:
    """Write the command that explains a denial; None if no command for this request is
    safe to paste.

    Every word is printable ASCII of bounded length and quoted for the shell; after `--`
    no word is read as an option. A backslash, which fish interprets inside quotes, is
    percent-encoded, as Squid does it.
    """
    url = denial.url.replace("\\", "%5C")
    if (
        denial.rule in _NOT_EXPLAINED
        or denial.cut
        or not _TARGET.fullmatch(url)
        or not _METHOD.fullmatch(denial.method)
    ):
        return None
    if denial.user is not None and not _USER.fullmatch(denial.user):
        return None
    words = ["--body", "FILE"] if denial.cause == BODY_CAUSE else []
    if _is_address(denial.client):
        words += ["--client", denial.client]
    if denial.user is not None:
        words.append(f"--user={denial.user}")
    return f"{command('explain', layout, program)} {shlex.join([*words, '--', denial.method, url])}"


def _is_address(client: str) -> bool:
    try:
        parse_address(client)
    except InvalidUrl:
        return False
    return True
