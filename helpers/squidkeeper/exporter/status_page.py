"""The status page (floor 5): a `GatewayStatus` as HTML."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from squidkeeper.errors import InvalidUrl
from squidkeeper.exporter.conditions import Condition, Urgency, conditions
from squidkeeper.exporter.recent import Denial
from squidkeeper.exporter.status import GatewayStatus, RuleStatus
from squidkeeper.pages.drawing import split_bar
from squidkeeper.pages.page import render
from squidkeeper.record.urls import redacted_url, truncate
from squidkeeper.url import parse_address

_RULES_SHOWN = 500
_FAULTS_SHOWN = 50
_SHORT_URL = 240  # characters of a request that a row shows; its command has the rest


def page(status: GatewayStatus, program: str) -> str:
    """Make the page: one HTML document that needs nothing else. Its commands call `program`."""
    found = conditions(status)
    rules = _rules_shown(status.rules)
    return render(
        "status.html",
        {
            "status": status,
            "troubles": found,
            "urgency": found[0].urgency if found else "",
            "headline": _headline(found),
            "denials": [
                (denial, explain_command(denial, program, status.policy.directory), _NOT_EXPLAINED.get(denial.rule))
                for denial in status.denials
            ],
            "rules": rules,
            "rules_left_out": len(status.rules) - len(rules),
            "faults": status.policy.faults[:_FAULTS_SHOWN],
            "most_hits": max((rule.allowed + rule.denied for rule in status.rules), default=0),
            "split_bar": split_bar,
            "redacted_url": redacted_url,
            "truncate": truncate,
            "shortest": _SHORT_URL,
        },
    )


def _rules_shown(rules: tuple[RuleStatus, ...]) -> list[tuple[int, RuleStatus]]:
    """Give the rules their numbers; of very many, only those that matched or lapse."""
    numbered = list(enumerate(rules, 1))
    if len(numbered) > _RULES_SHOWN:
        numbered = [(number, rule) for number, rule in numbered if rule.seen or rule.expires]
    return numbered[:_RULES_SHOWN]


def _headline(found: tuple[Condition, ...]) -> str:
    if not found:
        return "All is well: nothing to do."
    if len(found) == 1:
        return "One thing is wrong." if found[0].urgency is Urgency.NOW else "One thing to see to soon."
    urgent = sum(trouble.urgency is Urgency.NOW for trouble in found)
    if not urgent:
        return f"{len(found)} things to see to soon."
    return f"{len(found)} things are wrong, {urgent} of them to be mended now."


_NOT_EXPLAINED = {  # denials that do not follow from the policy, client, method and URL alone
    "authority-mismatch": "No command: CONNECT, TLS server name, Host or certificate did not fit together. "
    "`squidkeeper log --json --rule authority-mismatch | tail -n 1 | squidkeeper explain --record -` says which.",
    "credential-unavailable": "No command: a secret was not available, see Secrets.",
    "policy-unavailable": "No command: no helper answered, or none had a policy, see Helpers and cache.log.",
}
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")


_USER = re.compile(r"[!-~]{1,100}")


_TARGET = re.compile(r"https?://[!-~]+|[^/]+:[0-9]{1,5}")


def explain_command(denial: Denial, program: str, directory: Path) -> str | None:
    """Write the command that explains a denial; None where what was asked does not fit in one that is safe to paste.

    Every word is printable ASCII of bounded length, quoted where a shell would read more into it; `--` keeps what was
    asked from being an option. A backslash, which fish reads inside of quotes, is escaped as Squid escapes it.
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
    words = [program, "explain", "--policy", str(directory)]
    if _is_address(denial.client):
        words += ["--client", denial.client]
    if denial.user is not None:
        words.append(f"--user={denial.user}")
    return shlex.join([*words, "--", denial.method, url])


def _is_address(client: str) -> bool:
    try:
        parse_address(client)
    except InvalidUrl:
        return False
    return True
