"""Pushes of a real git through a gateway that reads their commands."""

from __future__ import annotations

import gzip
import os
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.pushes import NONE, PACK, PUSH_TYPE, commands, packet, push, update

from .curl import curl
from .gateway import Gateway
from .network import run
from .origin import Origins
from .raw import Raw
from .registries import git_http_backend
from .test_client_credentials import Machine

POLICY = """
version: 1
clients: {agents: {networks: [127.0.0.0/8]}}
rules:
  - name: agent-branches
    action: allow
    hosts: [git.example]
    paths: [/acme/**]
    body: {git: {push: [refs/heads/agent/**]}}
  - {name: main, action: deny, hosts: [git.example], body: {git: {push: [refs/heads/main]}}, reason: Ask Ann to merge.}
  - name: updates
    action: allow
    hosts: [update.example]
    body: {git: {push: [refs/heads/**], create: false}}
  - name: more
    action: allow
    hosts: [more.example]
    body:
      git: {push: ["refs/heads/agent/**", "refs/tags/*", "refs/for/main"], delete: true, options: ["ci.*"]}
  - {name: no-main, action: deny, hosts: [open.example], body: {git: {push: [refs/heads/main]}}}
  - {name: open, action: allow, hosts: [open.example]}
  - name: reading
    action: allow
    hosts: [git.example]
    methods: [GET]
    paths: ["/acme/*/info/refs"]
    query: {service: git-upload-pack}
  - {name: fetching, action: allow, hosts: [git.example], methods: [POST], paths: ["/acme/*/git-upload-pack"]}
"""
GIT = ("git", "-c", "user.name=agent", "-c", "user.email=agent@example.com")
AGENT, MAIN = "refs/heads/agent/fix", "refs/heads/main"
REFS_URL = "https://{}/acme/app.git/info/refs?service=git-receive-pack"
PUSH_URL = "https://{}/acme/app.git/git-receive-pack"


@dataclass
class Forge:
    """A bare repository at an origin, a clone of it on a client's machine, and the
    gateway in between.
    """

    gateway: Gateway
    origins: Origins
    machine: Machine
    repository: Path

    def git(self, *words: str | Path, status: int = 0) -> str:
        """Run git in the clone; return what it prints."""
        return self.machine.run(*GIT, "-C", "clone", *words, status=status)

    def commit(self) -> None:
        self.git("commit", "-q", "--allow-empty", "-m", "Change")

    def refs(self) -> dict[str, str]:
        """Return the refs at the origin."""
        lines = run(
            "git",
            "-C",
            self.repository,
            "for-each-ref",
            "--format=%(refname) %(objectname)",
        ).splitlines()
        return dict(line.split() for line in lines)

    def push_from_origin(self, ref: str) -> None:
        run("git", "-C", self.repository, "update-ref", ref, MAIN)

    def recorded(self, url: str, before: int) -> tuple[str, str]:
        """Return verdict and rule of the first record about a URL."""
        line = self.gateway.logged(url, before)
        return line["verdict"], line["rule"]

    def pushes(self) -> int:
        """Count the pushes that have reached the origin."""
        return sum(
            seen.method == "POST" and "git-receive-pack" in seen.target
            for seen in self.origins.seen
        )


def url_of(host: str) -> str:
    return f"https://{host}/acme/app.git"


@pytest.fixture
def forge(gateway: Gateway, origins: Origins, tmp_path: Path) -> Forge:
    repository, home = tmp_path / "srv/acme/app.git", tmp_path / "home"
    run("git", "init", "--quiet", "--bare", "--initial-branch", "main", repository)
    for key, value in {
        "http.receivepack": "true",
        "receive.advertisePushOptions": "true",
        "receive.certNonceSeed": "x",
    }.items():
        run("git", "-C", repository, "config", key, value)
    origins.fallback = partial(git_http_backend, tmp_path / "srv")
    home.mkdir()
    made = Forge(gateway, origins, Machine(gateway, home), repository)
    made.machine.run("git", "init", "--quiet", "--initial-branch", "main", "clone")
    made.commit()
    made.machine.run("git", "-C", "clone", "push", "-q", repository, "main")
    return made


# --- what passes ----------------------------------------------------------------------


def test_a_push_to_a_branch_of_the_agent_passes(forge: Forge) -> None:
    before = len(forge.gateway.log())
    printed = forge.git("push", url_of("git.example"), "HEAD:agent/fix")
    assert "[new branch]      HEAD -> agent/fix" in printed
    assert forge.refs() == {MAIN: forge.refs()[MAIN], AGENT: forge.refs()[MAIN]}
    for url in (REFS_URL, PUSH_URL):
        assert forge.recorded(url.format("git.example"), before) == (
            "allow",
            "agent-branches",
        )


PASSING: dict[str, tuple[str, list[str], list[str]]] = {
    "update": ("git.example", [], ["HEAD:agent/old"]),
    "force": ("git.example", ["--force"], ["HEAD:agent/old"]),
    "several refs": (
        "git.example",
        [],
        ["HEAD:agent/a", "HEAD:agent/b/c", "HEAD:agent/old"],
    ),
    "atomic": ("git.example", ["--atomic"], ["HEAD:agent/a", "HEAD:agent/b"]),
    "quiet": ("git.example", ["-q"], ["HEAD:agent/a"]),
    "porcelain": ("git.example", ["--porcelain"], ["HEAD:agent/a"]),
    "dry run": ("git.example", ["--dry-run"], ["HEAD:main"]),
    "nothing to do": ("git.example", [], ["main"]),
    "update alone": ("update.example", [], ["HEAD:agent/old"]),
    "delete": ("more.example", ["--delete"], ["agent/old"]),
    "delete and create": ("more.example", [], [":agent/old", "HEAD:agent/a"]),
    "lightweight tag": ("more.example", [], ["HEAD:refs/tags/v1"]),
    "ref of Gerrit": ("more.example", [], ["HEAD:refs/for/main"]),
    "push options": (
        "more.example",
        ["--push-option=ci.skip", "--push-option=ci.variable=A=1"],
        ["HEAD:agent/a"],
    ),
    "open": ("open.example", [], ["HEAD:refs/heads/any"]),
}


@pytest.mark.parametrize("name", PASSING)
def test_git_pushes_what_the_rule_allows(forge: Forge, name: str) -> None:
    host, options, refspecs = PASSING[name]
    forge.push_from_origin("refs/heads/agent/old")
    if name != "nothing to do":
        forge.commit()
    forge.git("push", *options, url_of(host), *refspecs)


def test_an_annotated_tag_passes(forge: Forge) -> None:
    forge.git("tag", "-a", "-m", "One", "v1")
    forge.git("push", url_of("more.example"), "v1")
    assert "refs/tags/v1" in forge.refs()


def test_a_repository_of_sha256_is_pushed_to(forge: Forge) -> None:
    format_ = "--object-format=sha256"
    run(
        "git", "init", "--quiet", "--bare", format_, forge.repository.parent / "new.git"
    )
    run(
        "git",
        "-C",
        forge.repository.parent / "new.git",
        "config",
        "http.receivepack",
        "true",
    )
    forge.machine.run(
        "git", "init", "--quiet", format_, "--initial-branch", "main", "new"
    )
    git, url = (*GIT, "-C", "new"), "https://git.example/acme/new.git"
    forge.machine.run(*git, "commit", "-q", "--allow-empty", "-m", "Change")
    forge.machine.run(*git, "push", url, "HEAD:agent/fix")
    assert "(squidkeeper: rule main)" in forge.machine.run(
        *git, "push", url, "main", status=1
    )


def test_a_shallow_clone_pushes(forge: Forge) -> None:
    forge.commit()
    forge.git("push", "-q", forge.repository, "main")
    forge.machine.run(
        *GIT, "clone", "-q", "--depth", "1", url_of("git.example"), "shallow"
    )
    assert (forge.machine.home / "shallow/.git/shallow").exists()
    shallow = (*GIT, "-C", "shallow")
    forge.machine.run(*shallow, "commit", "-q", "--allow-empty", "-m", "Change")
    forge.machine.run(*shallow, "push", "origin", "HEAD:agent/fix")
    assert AGENT in forge.refs()
    printed = forge.machine.run(*shallow, "push", "origin", "HEAD:main", status=1)
    assert "[remote rejected] HEAD -> main (squidkeeper: rule main)" in printed


def test_thousands_of_refs_pass_or_are_refused_whole(forge: Forge) -> None:
    names = "".join(
        f"create refs/heads/agent/{number} HEAD\n" for number in range(3_000)
    )
    update_refs: list[str | Path] = [
        "git",
        "-C",
        forge.machine.home / "clone",
        "update-ref",
        "--stdin",
    ]
    subprocess.run(update_refs, input=names.encode(), check=True)
    refspec = "refs/heads/agent/*:refs/heads/agent/*"
    forge.git("push", "-q", url_of("git.example"), refspec)
    assert len(forge.refs()) == 3_001
    forge.commit()
    printed = forge.git(
        "push", url_of("git.example"), "refs/heads/agent/*:refs/heads/other/*", status=1
    )
    assert printed.count("[remote rejected] agent/") == 3_000
    assert len(forge.refs()) == 3_001


def test_clones_and_fetches_are_allowed_by_their_own_rules(forge: Forge) -> None:
    for version in ("0", "2"):
        before = len(forge.gateway.log())
        clone = f"clone-{version}"
        forge.machine.run(
            *GIT,
            "-c",
            f"protocol.version={version}",
            "clone",
            "-q",
            url_of("git.example"),
            clone,
        )
        forge.machine.run(
            *GIT, "-c", f"protocol.version={version}", "-C", clone, "fetch", "-q"
        )
        rules = {
            line["rule"]
            for line in forge.gateway.log()[before:]
            if line["method"] != "CONNECT"
        }
        assert rules == {"reading", "fetching"}


# --- what is denied -------------------------------------------------------------------


def test_a_push_to_main_is_refused_in_the_words_of_git(forge: Forge) -> None:
    forge.commit()
    before, refs = len(forge.gateway.log()), forge.refs()
    printed = forge.git("push", url_of("git.example"), "main", status=1)
    assert [line.rstrip() for line in printed.splitlines()] == [
        "remote: squidkeeper: rule main denies this push.",
        "remote: Ask Ann to merge. agent-branches: the push is for a ref that the rule does not list.",
        "To https://git.example/acme/app.git",
        " ! [remote rejected] main -> main (squidkeeper: rule main)",
        "error: failed to push some refs to 'https://git.example/acme/app.git'",
    ]
    assert forge.recorded(PUSH_URL.format("git.example"), before) == ("deny", "main")
    assert forge.refs() == refs
    assert forge.pushes() == 0


def test_a_refusal_is_shown_to_programs_and_quietly(forge: Forge) -> None:
    forge.commit()
    rejected = "[remote rejected] (squidkeeper: rule main)"
    printed = forge.git("push", "--porcelain", url_of("git.example"), "main", status=1)
    assert f"!\trefs/heads/main:refs/heads/main\t{rejected}" in printed
    assert rejected.split("]")[1] in forge.git(
        "push", "-q", url_of("git.example"), "main", status=1
    )


REFUSED: dict[str, tuple[str, str, list[str], list[str]]] = {
    "another branch": ("git.example", "default", [], ["HEAD:fix"]),
    "main by force": ("git.example", "main", ["--force"], ["HEAD:main"]),
    "delete": ("git.example", "default", ["--delete"], ["agent/old"]),
    "tag": ("git.example", "default", [], ["HEAD:refs/tags/v1"]),
    "one of several": ("git.example", "main", [], ["HEAD:agent/a", "HEAD:main"]),
    "one of several, atomic": (
        "git.example",
        "main",
        ["--atomic"],
        ["HEAD:agent/a", "HEAD:main"],
    ),
    "push option": (
        "git.example",
        "default",
        ["--push-option=merge_request.create"],
        ["HEAD:agent/a"],
    ),
    "another push option": (
        "more.example",
        "default",
        ["--push-option=ci.skip", "--push-option=merge_request.create"],
        ["HEAD:agent/a"],
    ),
    "Gerrit's submit": ("more.example", "default", [], ["HEAD:refs/for/main%submit"]),
    "create": ("update.example", "default", [], ["HEAD:new"]),
    "delete where only updates are allowed": (
        "update.example",
        "default",
        ["--delete"],
        ["agent/old"],
    ),
    "denied ref": ("open.example", "no-main", [], ["HEAD:main"]),
    "denied ref in other case": (
        "open.example",
        "no-main",
        [],
        ["HEAD:refs/heads/MAIN"],
    ),
    "denied ref among others": (
        "open.example",
        "no-main",
        [],
        ["HEAD:any", "HEAD:main"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_git_is_refused_what_the_rule_does_not_allow(forge: Forge, name: str) -> None:
    host, rule, options, refspecs = REFUSED[name]
    forge.push_from_origin("refs/heads/agent/old")
    forge.commit()
    before, refs = len(forge.gateway.log()), forge.refs()
    printed = forge.git("push", *options, url_of(host), *refspecs, status=1)
    assert printed.count(f"(squidkeeper: rule {rule})") == len(refspecs), printed
    assert forge.recorded(PUSH_URL.format(host), before) == ("deny", rule)
    assert forge.refs() == refs
    assert forge.pushes() == 0


def test_a_signed_push_is_refused(forge: Forge) -> None:
    key = forge.machine.home / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    signing = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}")
    printed = forge.git(
        *signing, "push", "--signed", url_of("git.example"), "HEAD:agent/a", status=1
    )
    assert "remote unpack failed: squidkeeper: rule" in printed
    assert "the push is signed: its commands are in a certificate" in printed


def test_a_push_in_pieces_is_probed_and_judged(forge: Forge) -> None:
    """A push over `http.postBuffer` is chunked, and git sends `0000` ahead."""
    (forge.machine.home / "clone/large").write_bytes(os.urandom(3_000_000))
    forge.git("add", "large")
    forge.git("commit", "-qm", "Add")
    printed = forge.git("push", url_of("git.example"), "main", status=1)
    assert "! [remote rejected] main -> main (squidkeeper: rule main)" in printed
    assert [seen.body for seen in forge.origins.seen if seen.method == "POST"] == [
        b"0000"
    ]
    forge.git("push", url_of("git.example"), "HEAD:agent/fix")
    assert forge.pushes() == 3


@pytest.mark.long
def test_a_push_of_200_mb_passes_or_is_refused_in_the_words_of_git(
    forge: Forge,
) -> None:
    (forge.machine.home / "clone/large").write_bytes(os.urandom(200_000_000))
    forge.git("add", "large")
    forge.git("commit", "-qm", "Add")
    printed = forge.git("push", url_of("git.example"), "main", status=1)
    assert "! [remote rejected] main -> main (squidkeeper: rule main)" in printed
    forge.git("push", url_of("git.example"), "HEAD:agent/fix")
    assert AGENT in forge.refs()


# --- hostile requests -----------------------------------------------------------------

READ = {"Content-Type": PUSH_TYPE}
GZIP = {**READ, "Content-Encoding": "gzip"}
TO_MAIN, TO_AGENT = push(MAIN), push(AGENT)
HIDDEN = packet(update(MAIN)) + b"0000" + PACK


class Hostile(NamedTuple):
    """A request: its path below /acme, method, headers and body."""

    path: str
    method: str
    headers: dict[str, str]
    body: bytes


HOSTILE = {  # no rule allows it
    "a query": Hostile("app/git-receive-pack?x=1", "POST", READ, TO_AGENT),
    "another path": Hostile("app/git-receive-packs", "POST", READ, TO_AGENT),
    "a path that some decode": Hostile(
        "app%2Fgit-receive-pack", "POST", READ, TO_AGENT
    ),
    "another method": Hostile("app/git-receive-pack", "PUT", READ, TO_AGENT),
    "a body ahead of a push": Hostile(
        "app/info/refs?service=git-receive-pack", "GET", READ, TO_AGENT
    ),
    "two services": Hostile(
        "app/info/refs?service=git-receive-pack&service=x", "GET", {}, b""
    ),
    "HEAD of the refs": Hostile(
        "app/info/refs?service=git-receive-pack", "HEAD", {}, b""
    ),
    "another type": Hostile(
        "app/git-receive-pack", "POST", {"Content-Type": "application/json"}, TO_AGENT
    ),
    "no body": Hostile("app/git-receive-pack", "POST", READ, b""),
    "commands after the flush": Hostile(
        "app/git-receive-pack", "POST", READ, commands(update(AGENT)) + HIDDEN
    ),
    "commands after a probe": Hostile(
        "app/git-receive-pack", "POST", READ, b"0000" + TO_AGENT
    ),
    "an empty packet": Hostile(
        "app/git-receive-pack",
        "POST",
        READ,
        commands(update(AGENT))[:-4] + b"0004" + HIDDEN,
    ),
    "ref with a parent folder": Hostile(
        "app/git-receive-pack", "POST", READ, push("refs/heads/agent/../main")
    ),
    "two gzips": Hostile(
        "app/git-receive-pack",
        "POST",
        GZIP,
        gzip.compress(b"0000") + gzip.compress(TO_AGENT),
    ),
    "gzip in name alone": Hostile("app/git-receive-pack", "POST", GZIP, TO_AGENT),
    "gzip for CGI alone": Hostile(
        "app/git-receive-pack", "POST", {**READ, "Content_Encoding": "gzip"}, TO_AGENT
    ),
    "deflate": Hostile(
        "app/git-receive-pack",
        "POST",
        {**READ, "Content-Encoding": "deflate"},
        TO_AGENT,
    ),
    "a long list without its end": Hostile(
        "app/git-receive-pack", "POST", READ, packet(update(AGENT)) * 20_000
    ),
    "Git LFS": Hostile(
        "app/info/lfs/objects/batch",
        "POST",
        {"Content-Type": "application/vnd.git-lfs+json"},
        b"{}",
    ),
}


def options_of(folder: Path, request: Hostile) -> list[str | Path]:
    """Return the options of curl that send a request."""
    file = folder / "body"
    file.write_bytes(request.body)
    sending = ["--head"] if request.method == "HEAD" else ["-X", request.method]
    if request.body or request.method == "POST":
        sending += ["--data-binary", f"@{file}", "-H", "Expect:"]
    named = [
        option
        for name, value in request.headers.items()
        for option in ("-H", f"{name}: {value}")
    ]
    return [
        *sending,
        *named,
        *([] if "Content-Type" in request.headers else ["-H", "Content-Type:"]),
    ]


def line_of_refused(
    gateway: Gateway, folder: Path, host: str, request: Hostile
) -> dict[str, Any]:
    """Send a request, which is refused, and give its line."""
    url = f"https://{host}/acme/{request.path}"
    before = len(gateway.log())
    reply = curl(gateway, url, *options_of(folder, request))
    assert reply.status == 403 or b"squidkeeper: rule" in reply.body, reply.text
    return gateway.logged(url, before)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_allow_holds_for_what_servers_can_read_differently(
    gateway: Gateway, origins: Origins, tmp_path: Path, name: str
) -> None:
    line = line_of_refused(gateway, tmp_path, "git.example", HOSTILE[name])
    assert line["verdict"] == "deny"
    assert origins.seen == []


# The same for what some server can take for a push to main.
AGAINST_DENY = {
    "plain": Hostile("app/git-receive-pack", "POST", READ, TO_MAIN),
    "a query": Hostile("app/git-receive-pack?x=1", "POST", READ, TO_MAIN),
    "a slash": Hostile("app/git-receive-pack/", "POST", READ, TO_MAIN),
    "other case": Hostile("app/Git-Receive-Pack", "POST", READ, TO_MAIN),
    "a path that some decode": Hostile("app%2Fgit-receive-pack", "POST", READ, TO_MAIN),
    "a parameter": Hostile("app/git-receive-pack;x", "POST", READ, TO_MAIN),
    "another method": Hostile("app/git-receive-pack", "PUT", READ, TO_MAIN),
    "a method of nobody": Hostile("app/git-receive-pack", "FOO", READ, TO_MAIN),
    "GET": Hostile("app/git-receive-pack", "GET", READ, TO_MAIN),
    "another type": Hostile(
        "app/git-receive-pack", "POST", {"Content-Type": "text/plain"}, TO_MAIN
    ),
    "no type": Hostile("app/git-receive-pack", "POST", {}, TO_MAIN),
    "gzip": Hostile("app/git-receive-pack", "POST", GZIP, gzip.compress(TO_MAIN)),
    "gzip for CGI alone": Hostile(
        "app/git-receive-pack",
        "POST",
        {**READ, "Content_Encoding": "gzip"},
        gzip.compress(TO_MAIN),
    ),
    "other encoding": Hostile(
        "app/git-receive-pack", "POST", {**READ, "Content-Encoding": "br"}, TO_MAIN
    ),
    "hidden after the flush": Hostile(
        "app/git-receive-pack", "POST", READ, commands(update(AGENT, new=NONE)) + HIDDEN
    ),
    "long list": Hostile(
        "app/git-receive-pack",
        "POST",
        READ,
        push(*[f"refs/heads/{n}" for n in range(12_000)], MAIN),
    ),
}


@pytest.mark.parametrize("name", AGAINST_DENY)
def test_a_deny_holds_for_what_a_server_can_take_for_a_push(
    gateway: Gateway, origins: Origins, tmp_path: Path, name: str
) -> None:
    line = line_of_refused(gateway, tmp_path, "open.example", AGAINST_DENY[name])
    assert (line["verdict"], line["rule"]) == ("deny", "no-main")
    assert origins.seen == []


def test_a_push_without_a_report_is_answered_by_the_page(
    gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    request = Hostile(
        "app.git/git-receive-pack",
        "POST",
        READ,
        push(MAIN, capabilities="side-band-64k"),
    )
    reply = curl(
        gateway, PUSH_URL.format("git.example"), *options_of(tmp_path, request)
    )
    assert (reply.status, reply.rule) == (403, "main")
    assert origins.seen == []


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000])
def test_a_push_in_chunks_of_any_size_is_judged(
    gateway: Gateway, origins: Origins, size: int
) -> None:
    for body, allowed in (
        (TO_AGENT, True),
        (TO_MAIN, False),
        (push(AGENT, MAIN), False),
    ):
        before = len(gateway.log())
        head = f"POST /acme/app.git/git-receive-pack HTTP/1.1\r\nHost: git.example\r\nContent-Type: {PUSH_TYPE}\r\n"
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(body[at : at + size]), body[at : at + size])
            for at in range(0, len(body), size)
        )
        with Raw(gateway) as raw:
            assert raw.connect("git.example:443").status == 200
            raw.tls("git.example")
            reply = raw.send(
                head.encode()
                + b"Transfer-Encoding: chunked\r\n\r\n"
                + chunks
                + b"0\r\n\r\n"
            ).answer()
        assert reply.status == 200
        assert (b"squidkeeper: rule main" not in reply.body) is allowed
        verdict = gateway.logged(PUSH_URL.format("git.example"), before)["verdict"]
        assert verdict == ("allow" if allowed else "deny")
    assert [seen.body for seen in origins.seen] == [TO_AGENT]
