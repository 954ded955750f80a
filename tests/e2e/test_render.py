"""`squidkeeper render`: an edit that brings the first use of a part is in force without
install.sh.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from squidkeeper.configuration.rendering import decode_values
from tests.waiting import stays, wait_for

from .curl import answer
from .gateway import Gateway, NewGateway
from .maintained import maintained
from .origin import Origins
from .raw import Raw
from .reply import Reply

POLICY = """
version: 1
rules:
  - {name: plain, action: allow, hosts: [plain.example], paths: [/x]}
"""
SECRET = "e2e-render-secret-0123456789"
RULE = "rules:\n  - {name: new, action: allow, hosts: [new.example], paths: [/x]%s}\n"
SECRETS = "secrets: {key: {file: secrets/key}}\n"
# What is added to the policy, and the key that it needs.
EDITS = {
    "strip": (RULE % ", strip: [X-Debug]", "strip.x-debug"),
    "known headers": (RULE % ", headers: known", "strip.all"),
    "own header": (
        RULE % ""
        + SECRETS
        + "credentials: [{name: c, hosts: [new.example], headers: {X-Own: '{key}'}}]\n",
        "inject.x-own",
    ),
    "upstream": (
        RULE % ""
        + "upstreams: [{name: u, hosts: [new.example], url: 'http://127.0.0.1:9'}]\n",
        "upstreams",
    ),
    "watch": (RULE % "" + SECRETS + "defaults: {watch_secrets: true}\n", "watch"),
    "quota": (
        RULE % "" + "quotas: [{name: q, per: client, requests: 5, every: day}]\n",
        "quotas",
    ),
    "rewrite": (
        RULE % ""
        + "rewrites: [{name: r, hosts: [new.example], to: 'https://plain.example/x'}]\n",
        "rewrites",
    ),
    "single": (RULE % ", connections: single", "single"),
}


# rules that deny the new host until the edit is in force
PASSING = (
    "not-rendered",
    "default",
    "tunnel-outdated",
)


@pytest.fixture(scope="module")
def shared(new_gateway: NewGateway) -> Iterator[Gateway]:
    """A gateway whose maintenance process and `render` run, as an installed
    one's do.
    """
    gateway = new_gateway(POLICY)
    gateway.secret("key", SECRET)
    gateway.start()
    gateway.renders = False
    command = [
        f"{gateway.root}/bin/squidkeeper",
        "render",
        "--root",
        str(gateway.root),
        "--follow",
    ]
    with (
        maintained(gateway, "--policy", str(gateway.policy_folder)),
        subprocess.Popen(command) as render,
    ):
        wait_for(
            (gateway.root / "state/own-addresses.told").exists,
            "the start of the maintenance process",
        )
        yield gateway
        render.terminate()


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    wait_for(lambda: is_idle(shared), "the last run")
    os.utime(shared.layout.rendered, (0, 0))  # rendered long ago
    wait_for(lambda: status(shared, "plain.example") == 200, "the helpers")
    yield shared
    (shared.policy_folder / "new.yaml").unlink(missing_ok=True)
    wait_for(lambda: status(shared) == 403, "the end of the edit")


def is_idle(gateway: Gateway) -> bool:
    return not gateway.layout.render_request.exists()


def files_of(gateway: Gateway) -> dict[Path, str]:
    layout = gateway.layout
    return {
        path: path.read_text() for path in (layout.fragment, *layout.parts.iterdir())
    }


def asked(gateway: Gateway, host: str = "new.example") -> Reply:
    return answer(
        gateway, f"https://{host}/x", "-H", "X-Debug: client's", "-H", "X-Own: client's"
    )


def status(gateway: Gateway, host: str = "new.example") -> int:
    return asked(gateway, host).status


def in_force(gateway: Gateway) -> frozenset[str]:
    return decode_values(gateway.layout.rendered.read_text()).keys


def reconfigures(gateway: Gateway) -> int:
    # of the first worker
    return gateway.cache_log().count("kid1| Reconfiguring Squid Cache")


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_with_a_new_part_is_in_force_within_seconds_and_until_then_denied(
    gateway: Gateway, origins: Origins, name: str
) -> None:
    text, key = EDITS[name]
    assert key not in in_force(gateway)
    origins.forget()
    gateway.write("new.yaml", f"version: 1\n{text}")
    replies: list[Reply] = []

    def is_in_force() -> bool:
        replies.extend(filter(None, [asked(gateway)]))
        return (
            key in in_force(gateway)
            and bool(replies)
            and replies[-1].rule not in PASSING
        )

    wait_for(
        is_in_force,
        lambda: f"{key}: {replies[-1:]}, in force: {sorted(in_force(gateway))}",
    )
    assert {reply.rule for reply in replies[:-1] if reply.status == 403} <= {
        *PASSING,
        None,
    }
    for seen in origins.seen:
        assert seen.values("X-Debug") == [] or name not in ("strip", "known headers")
        assert "client's" not in seen.values("X-Own") or name not in (
            "own header",
            "known headers",
            "watch",
        )
    if name == "own header":
        assert {
            *(value for seen in origins.seen for value in seen.values("X-Own"))
        } == {SECRET}


PASSTHROUGH = "version: 1\nrules: [{name: new, action: allow, hosts: [new.example], tls: passthrough}]\n"


def test_passthrough_is_in_force_within_seconds_and_until_then_nothing_passes(
    gateway: Gateway, origins: Origins
) -> None:
    assert "passthrough" not in in_force(gateway)
    gateway.write("new.yaml", PASSTHROUGH)
    wait_for(lambda: passes_through(gateway, origins), "the edit")
    assert "passthrough" in in_force(gateway)
    assert {len(seen.headers) for seen in origins.seen} == {1}, (
        "a request that the gateway has decrypted came through"
    )


def passes_through(gateway: Gateway, origins: Origins) -> bool:
    """Ask in a tunnel whose certificate is the origin's own."""
    with suppress(OSError), Raw(gateway) as client:
        opened = client.connect("new.example:443")
        if opened and opened.status == 200:
            return (
                client.tls("new.example", origins.authority.certificate)
                .get("/x", "new.example")
                .status
                == 200
            )
    return False


def test_an_edit_without_a_new_part_reconfigures_nothing(gateway: Gateway) -> None:
    before, told = files_of(gateway), reconfigures(gateway)
    gateway.write("new.yaml", "version: 1\n" + RULE % "")
    wait_for(lambda: status(gateway) == 200, "the edit")
    wait_for(lambda: is_idle(gateway), "the run")
    assert (files_of(gateway), reconfigures(gateway)) == (before, told)


def test_an_edit_that_is_taken_back_and_made_again_reconfigures_once(
    gateway: Gateway,
) -> None:
    told = reconfigures(gateway)
    for _ in range(2):
        gateway.write("new.yaml", "version: 1\n" + RULE % ", strip: [X-Again]")
        wait_for(lambda: "strip.x-again" in in_force(gateway), "the part")
        wait_for(lambda: status(gateway) == 200, "the edit")
        (gateway.policy_folder / "new.yaml").unlink()
        wait_for(lambda: status(gateway) == 403, "the end of the edit")
        wait_for(lambda: is_idle(gateway), "the run")
    assert reconfigures(gateway) == told + 1


HOSTILE = (
    'rules: [{name: a, action: allow, hosts: [a.example], strip: ["X\\nhttp_access allow all"]}]\n',
    'upstreams: [{name: u, hosts: [a.example], url: "http://127.0.0.1:9\\nhttp_access allow all"}]\n',
    SECRETS
    + "credentials: [{name: c, hosts: [a.example], headers: {\"X-Own\\nhttp_access\": '{key}'}}]\n",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_value_of_a_policy_changes_nothing(
    gateway: Gateway, text: str
) -> None:
    before, told = files_of(gateway), reconfigures(gateway)
    gateway.write("new.yaml", f"version: 1\n{text}")
    wait_for(lambda: not is_idle(gateway), "the request")
    wait_for(lambda: is_idle(gateway), "the run")
    stays(
        lambda: (files_of(gateway), reconfigures(gateway)) == (before, told),
        2,
        "what Squid was told",
    )
    assert status(gateway, "plain.example") == 200


def test_what_squid_does_not_parse_changes_nothing(gateway: Gateway) -> None:
    gateway.edit(
        "squidkeeper.conf",
        "\ncache deny all\n",
        "\ncache deny all\nno_such_directive on\n",
    )
    gateway.layout.fragment.write_text(
        gateway.layout.fragment.read_text().replace("no_such_directive on\n", "")
    )
    before, told = files_of(gateway), reconfigures(gateway)
    gateway.write("new.yaml", "version: 1\n" + RULE % ", strip: [X-Never]")
    wait_for(
        lambda: (reply := asked(gateway)) and reply.rule == "not-rendered", "the edit"
    )
    wait_for(lambda: is_idle(gateway), "the run")
    stays(
        lambda: (files_of(gateway), reconfigures(gateway)) == (before, told),
        2,
        "what Squid was told",
    )
    assert status(gateway, "plain.example") == 200
    assert (
        "strip.x-never yet: requests that need it are denied"
        in gateway.command(
            "check",
            "--policy",
            gateway.policy_folder,
            "--fragment",
            gateway.layout.fragment,
        ).stdout
    )
    gateway.edit("squidkeeper.conf", "no_such_directive on\n", "")


def shown(gateway: Gateway, *words: str | Path) -> str:
    done = gateway.command("render", "--root", gateway.root, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_ladders_are_printed_as_squid_reads_them_with_reasons(
    gateway: Gateway,
) -> None:
    text = shown(gateway, "--ladder")
    heading = "http_access: whether a request passes, by its own URL\n"
    _, _, rest = text.partition(heading)
    ladder = rest.splitlines()[: rest.splitlines().index(next(other(rest)))]
    rungs = re.split(r"(?m)^(?= *\d+\. )", "\n".join(ladder))[1:]
    lines = [rung.splitlines()[0].strip() for rung in rungs]
    about = [" ".join(rung.split("\n", 1)[1].split()) for rung in rungs]
    assert [int(line.split(".")[0]) for line in lines] == [*range(1, len(lines) + 1)]
    assert (
        lines[0].split(". ")[1].startswith("http_access allow localhost sk_is_own_name")
    )
    assert lines[-1].endswith(". http_access allow all")
    assert re.fullmatch(r"What the .* \(squid\.conf:\d+\)", about[-1])
    host = next(i for i, line in enumerate(lines) if "!sk_ask_host" in line)
    assert re.fullmatch(r"The host\. .* \(squidkeeper\.conf:\d+\)", about[host])
    assert all(re.fullmatch(r"\S.* \(\S+:\d+\)", one) for one in about)


def other(text: str) -> Iterator[str]:
    """The headings of ladders."""
    return (line for line in text.splitlines() if not line.startswith(" "))


def test_what_an_edit_would_change_is_shown_and_changes_nothing(
    gateway: Gateway,
) -> None:
    draft, before = gateway.root / "draft", files_of(gateway)
    draft.mkdir()
    shutil.copytree(gateway.policy_folder / "secrets", draft / "secrets")
    shutil.chown(draft / "secrets/key", group="proxy")
    (draft / "policy.yaml").write_text(DRAFT)
    told = reconfigures(gateway)
    text = shown(gateway, "--diff", "--policy", draft)
    assert "\n+acl sk_is_stripped_" in text
    assert re.search(
        r"\n\+request_header_access x-diff deny sk_is_stripped_\w+\n", text
    )
    [peer] = re.findall(r"(?m)^\+cache_peer 127\.0\.0\.1 parent 9 .*$", text)
    assert peer.endswith(" login=…")
    assert not re.search(r"(?m)^[+-]# (\d|For \w+ \d)", text), "numbers are no change"
    assert "\n-http_access" not in text
    assert SECRET not in text
    assert (files_of(gateway), reconfigures(gateway)) == (before, told)
    same = "Squid's configuration has what the policy needs.\n"
    assert shown(gateway, "--diff") == same
    (draft / "policy.yaml").write_text("version: 1\nrules: [{}]\n")
    failed = gateway.command(
        "render", "--root", gateway.root, "--diff", "--policy", draft
    )
    assert (failed.returncode, failed.stderr) == (
        1,
        f"Error: {draft} does not load: `squidkeeper check --policy {draft}` says why\n",
    )
    shutil.rmtree(draft)


DRAFT = (
    "version: 1\n"
    + RULE % ", strip: [X-Diff]"
    + SECRETS
    + "upstreams: [{name: diff, hosts: [new.example], url: 'http://127.0.0.1:9',"
    " basic: {username: u, password: key}}]\n"
)


@pytest.mark.parametrize(
    "words", [("--diff", "--ladder"), ("--follow", "--diff"), ("--policy", "/")]
)
def test_options_that_exclude_each_other_are_refused(
    gateway: Gateway, words: tuple[str, ...]
) -> None:
    done = gateway.command("render", "--root", gateway.root, *words)
    assert done.returncode == 2
