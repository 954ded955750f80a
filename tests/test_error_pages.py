"""The table of pages, and the files and lines that it makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from squidkeeper.setup.error_pages import FAILURES, PAGES, ErrorPage, Form, failure_lines, files
from squidkeeper.setup.templates import main

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "squid/errors"
STOCK = Path("/usr/share/squid/errors/templates")
SQUID = Path("/usr/sbin/squid")
# Squid's names of errors that are logged, and never sent: there is no client, no time or no file for a page.
NEVER_SENT = {
    *("ERR_NONE", "ERR_MAX", "ERR_SQUID_SIGNATURE", "ERR_CLIENT_GONE", "ERR_SECURE_ACCEPT_FAIL"),
    *("ERR_REQUEST_START_TIMEOUT", "ERR_REQUEST_PARSE_TIMEOUT", "ERR_RELAY_REMOTE"),
}
pages = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


def test_the_committed_pages_are_those_that_are_rendered() -> None:
    written = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert written == dict(files()), "run: python -m squidkeeper.setup.templates squid/*.conf squid/errors"


def test_a_folder_is_rendered_with_all_pages(tmp_path: Path) -> None:
    main([str(tmp_path)])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict(files())


def test_every_page_of_squids_is_replaced() -> None:
    stock = {path.name for path in STOCK.glob("ERR_*")}
    known = set(re.findall(rb"\0(ERR_[A-Z_]+)(?=\0)", SQUID.read_bytes()))
    assert len(known) > 40
    assert (stock | {name.decode() for name in known}) - NEVER_SENT <= dict(files()).keys()


def test_each_error_of_squids_belongs_to_one_page() -> None:
    named = [name for page in PAGES for name in page.squid_errors]
    assert sorted(named) == sorted(set(named))
    lines = "\n".join(failure_lines())
    for page in PAGES:
        if page.has_ticket:  # only a helper gives one
            continue
        assert page.chosen_by or page.squid_errors
        assert f"acl sk_replaced any-of {page.acl}_replaced" in lines


@pages
def test_the_texts_of_a_page_need_no_escapes(page: ErrorPage) -> None:
    for text in (page.title, page.outcome, page.advice, page.rule or "", page.reason or "", page.cause):
        assert not set(text) & set('"\\<>&%\n')
        assert text.isascii()


@pages
def test_problem_details_are_json_with_the_members_of_the_standard(page: ErrorPage) -> None:
    written = dict(files())[page.template(Form.JSON)]
    written = re.sub(r": @Squid\{.*?\}note\}(?=,)", ": 7", written)  # a number
    details = json.loads(re.sub(r"@Squid\{.*?\}(?=[.\" ])", "x", written))
    assert details.get("resets_in_seconds", 7) == 7
    assert (details["status"], details["title"], details["retryable"]) == (page.status, page.title, page.retryable)
    assert details["type"].startswith("urn:squidkeeper:")
    assert {"detail", "rule", "reason", "cause", "contact", "request_id", "time", "client", "method", "url"} <= {
        *details
    }
    assert ("error" in details) is (page in FAILURES and page.shows_error)


@pages
def test_a_page_says_to_retry_only_where_that_can_help(page: ErrorPage) -> None:
    assert page.advice.startswith("Retrying does not help") is not page.retryable


@pages
def test_a_page_names_the_command_that_shows_why(page: ErrorPage) -> None:
    [command] = re.findall("^For the operator: (.*)$", dict(files())[page.template()], re.MULTILINE)
    known = {"denied": "explain --client ", "invalid": "explain --client ", "asked": "ask approve "}
    assert command.startswith(f"sudo squidkeeper {known.get(page.name, 'why ')}")


@pages
def test_a_page_of_a_failure_tells_that_it_is_not_the_policys(page: ErrorPage) -> None:
    if page in FAILURES:
        assert page.status != 403
        assert page.cause != "the policy of the gateway"
