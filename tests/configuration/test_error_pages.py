"""The table of pages, and what it makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from squidkeeper.configuration.error_pages import (
    DENIALS,
    FAILURES,
    DenialPage,
    FailurePage,
    Form,
    files,
    fill_denial,
    placeholders,
    template,
)

SQUID = Path("/usr/sbin/squid")
# Squid's names of errors that are logged, and never sent: there is no client, no time
# or no file for a page.
NEVER_SENT = {
    *(
        "ERR_NONE",
        "ERR_MAX",
        "ERR_SQUID_SIGNATURE",
        "ERR_CLIENT_GONE",
        "ERR_SECURE_ACCEPT_FAIL",
    ),
    *("ERR_REQUEST_START_TIMEOUT", "ERR_REQUEST_PARSE_TIMEOUT"),
}
denials = pytest.mark.parametrize("page", DENIALS, ids=[page.name for page in DENIALS])


def noted(page: DenialPage) -> dict[str, str]:
    """What squid.conf notes for a page, as Squid reads it."""
    text = placeholders()[f"PAGE_{page.name}"]
    found = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', text)
    assert " ".join(f'{name}="{value}"' for name, value in found) == text
    return {
        name: value.replace("\\n", "\n").replace('\\"', '"') for name, value in found
    }


def filled(form: Form, page: DenialPage, **notes: str) -> str:
    """A page as Squid fills it, with `7` for what is not given."""
    notes |= {
        name: re.sub("%'?{.*?}note", "7", value)
        for name, value in noted(page).items()
        if name not in notes
    }

    def value(code: re.Match[str]) -> str:
        text = notes.get(code["note"], "7")
        return json.dumps(text)[1:-1] if code["quoting"] == '"' else text

    return re.sub(
        r"@Squid\{%(?P<quoting>['\"#]?)(\{(?P<note>.*?)\})?[a-z>_S]+\}",
        value,
        dict(files())[template(form)],
    )


def test_each_error_of_squids_has_one_page() -> None:
    named = [name for failure in FAILURES for name in failure.errors]
    assert sorted(named) == sorted(set(named))
    known = {
        name.decode()
        for name in re.findall(rb"\0(ERR_[A-Z_]+)(?=\0)", SQUID.read_bytes())
    }
    assert len(known) > 40
    assert known - NEVER_SENT == {*named}
    assert placeholders()["SQUID_ERRORS"].split() == named
    assert {*named} < dict(files()).keys()


@denials
def test_the_texts_of_a_denial_need_no_escapes_and_say_to_retry_only_where_that_can_help(
    page: DenialPage,
) -> None:
    for text in (
        page.title,
        page.advice,
        page.rule or "",
        page.reason or "",
        page.cause,
    ):
        assert not set(text) & set('"\\<>&%\n{}')
        assert text.isascii()
    assert page.advice.startswith("Retrying does not help") is not page.retryable


@denials
def test_problem_details_are_json_with_the_members_of_the_standard(
    page: DenialPage,
) -> None:
    hostile = 'a "quoted"\n\\ <rule>'
    details = json.loads(filled(Form.JSON, page, rule_=hostile, reason_=hostile))
    assert (details["status"], details["title"], details["retryable"]) == (
        403,
        page.title,
        page.retryable,
    )
    assert details["type"] == f"urn:squidkeeper:{page.name.replace('_', '-')}"
    assert (details["rule"], details["reason"], details["cause"]) == (
        hostile,
        hostile,
        page.cause,
    )
    assert (
        details["detail"]
        == f"{page.title}. Nothing was sent to the origin. {page.advice}"
    )
    assert {"contact", "request_id", "time", "client", "method", "url"} <= {*details}
    assert details.get("resets_in_seconds", 7) == 7
    assert ("ticket" in details) is (page.name == "asked")


@denials
@pytest.mark.parametrize("form", [Form.TEXT, Form.HTML])
def test_a_page_has_all_its_lines(page: DenialPage, form: Form) -> None:
    text = filled(form, page, rule_="the rule", reason_="the reason", contact_="ann")
    assert f"{page.title}. Nothing was sent to the origin.\n" in text
    assert "\nRule: the rule\nReason: the reason\nCause: the " in text
    assert f"\nRetry: {'can help' if page.retryable else 'does not help'}\n" in text
    assert "\nContact: ann\nRequest ID: gateway.7.7.7\nTime: 7\n" in text
    assert (
        "\nState of the ticket: http://squidkeeper.internal/tickets/7\n" in text
    ) is (page.name == "asked")
    assert ("\nResets: 7 (in 7 s)\n" in text) is (page.name == "quota")
    assert (
        f"\n\n{page.advice}\nFor the operator: sudo squidkeeper explain --client 7 '7' '7'\n"
        in text
    )
    assert "\nFor the operator: sudo squidkeeper why gateway.7.7.7\n" in text


@pytest.mark.parametrize(
    "failure", FAILURES, ids=[failure.errors[0] for failure in FAILURES]
)
def test_a_page_of_a_failure_names_the_error_and_the_command_that_shows_why(
    failure: FailurePage,
) -> None:
    for error in failure.errors:
        text = dict(files())[error]
        assert re.search(f"^Error: {error}( |$)", text, re.MULTILINE)
        assert re.findall("^For the operator: (.*)$", text, re.MULTILINE)[0].startswith(
            "sudo squidkeeper why gateway."
        )
        assert failure.cause != "policy"
    for text in (
        failure.title,
        failure.reason,
        failure.advice,
        failure.cause,
        failure.retry,
    ):
        assert not set(text) & set('"\\<>&%\n{}'), "a code of Squid's"
    assert ("does not help" in failure.advice) <= failure.retry.startswith(
        "does not help"
    )


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("name", ["denied", "passing"])
def test_a_service_fills_the_page_of_a_denial_as_squid_does(
    form: Form, name: str
) -> None:
    page = next(page for page in DENIALS if page.name == name)
    notes = {"rule_": "rule <1>", "reason_": 'a "reason"', "contact_": "ann"}
    codes = {">rm": "7", ">ru": "7", ">a": "7", "tg": "7"}
    text = fill_denial(
        dict(files())[template(form)], page, notes | codes, "gateway.7.7.7"
    )
    shown = notes | ({"rule_": "rule%20%3C1%3E"} if form is Form.HTML else {})
    assert text == filled(form, page, **shown)


def test_the_page_of_a_body_that_is_not_inspected_says_what_a_user_can_do() -> None:
    [failure] = [one for one in FAILURES if "ERR_ICAP_FAILURE" in one.errors]
    assert failure.reason.startswith(
        "A request with a body: the gateway could not inspect the body of the request"
    )
    assert "petabyte" not in failure.reason
    assert (
        failure.advice
        == "Try again in a minute. If this page comes back, show it to the contact."
    )
