"""Whether git itself reads the commands of a push as they are judged: the same bytes
for `git receive-pack`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import strategies as st

from squidkeeper.policy.bodies.git_push import Push, read_push
from squidkeeper.policy.bodies.sent_request import HOLDS
from squidkeeper.policy.language.bodies import MAX_BYTES
from tests.conftest import few_and_many, hold_for
from tests.pushes import NEW, OLD, packet, push_with_options

from .test_git_form import AGENT, MAIN, READABLE, UNREADABLE, sent

pytestmark = pytest.mark.system

SEEN = "seen"
HOOK = f"""#!/bin/sh
exec > {SEEN}
cat
i=0
while [ "$i" -lt "${{GIT_PUSH_OPTION_COUNT:-0}}" ]; do
    eval "printf 'option %s\\n' \\"\\$GIT_PUSH_OPTION_$i\\""
    i=$((i + 1))
done
exit 1
"""


class Repository:
    """A bare repository whose hook writes what git has read of a push, and
    rejects it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "-q", "--bare", ".")
        self.git("config", "receive.advertisePushOptions", "true")
        tree = self.git("mktree", "--missing").strip()
        author = ("-c", "user.name=A", "-c", "user.email=a@example.com")
        self.old = self.git(*author, "commit-tree", "-m", "1", tree).strip()
        self.new = self.git(
            *author, "commit-tree", "-m", "2", "-p", self.old, tree
        ).strip()
        for ref in (AGENT, MAIN):
            self.git("update-ref", ref, self.old)
        hook = folder / "hooks/pre-receive"
        hook.write_text(HOOK)
        hook.chmod(0o755)

    def git(self, *words: str) -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=self.folder,
            input="",
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def read(self, body: bytes) -> set[str]:
        """Return the commands and push options that git reads."""
        seen = self.folder / SEEN
        seen.unlink(missing_ok=True)
        command = ["git", "receive-pack", "--stateless-rpc", "."]
        subprocess.run(
            command, cwd=self.folder, input=body, capture_output=True, check=False
        )
        return (
            set(seen.read_bytes().decode("utf-8", "replace").splitlines())
            if seen.exists()
            else set()
        )

    def with_commits(self, body: bytes) -> bytes:
        return body.replace(OLD.encode(), self.old.encode()).replace(
            NEW.encode(), self.new.encode()
        )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("repository"))


def judged(push: Push) -> set[str]:
    """Return what was read as the judgement sees it: the ref, and whether it is created
    or deleted.
    """
    found = {
        f"{command.ref} {command.creates:d}{command.deletes:d}"
        for command in push.commands
    }
    return found | {f"option {option}" for option in push.options}


def as_judged(line: str) -> str:
    if line.startswith("option "):
        return line
    old, new, ref = line.split(" ", 2)
    return f"{ref} {not old.strip('0'):d}{not new.strip('0'):d}"


@pytest.mark.parametrize("body", READABLE)
def test_git_reads_the_same_commands(repository: Repository, body: bytes) -> None:
    body = repository.with_commits(body)
    push = read_push(sent(body), MAX_BYTES)
    assert push.outcome is HOLDS
    assert set(map(as_judged, repository.read(body))) == judged(push)


def test_git_reads_commands_and_options_in_what_is_held_unreadable(
    repository: Repository,
) -> None:
    """Rows that git understands.

    Each is read by one server and not by another, so it is denied.
    """
    read = {
        name
        for name, (body, _) in UNREADABLE.items()
        if repository.read(repository.with_commits(body))
    }
    assert read >= {
        *(
            "HEAD",
            "a second NUL",
            "shallow with more",
            "shallow after a command",
            "commands after a delete",
        ),
        *(
            "NUL in an option",
            "empty option",
            "line feed in an option",
            "ref not UTF-8",
        ),
        *(
            "ref 'refs/heads/agent/../main'",
            "ref 'refs/heads/agent/a\\nrefs/heads/main'",
        ),
    }


@few_and_many(20, 3000)
def test_git_reads_no_command_that_was_not_judged(
    repository: Repository, examples: int
) -> None:
    body = repository.with_commits(
        push_with_options(["ci.skip", "a"], AGENT, "refs/heads/b")
    )
    places = st.integers(0, body.index(b"PACK"))
    parts = st.sampled_from(
        [
            b"",
            b"\0",
            b"\n",
            b" ",
            b"0",
            b"4",
            b"f",
            b"0000",
            b"0001",
            b"0004",
            b"/",
            packet(MAIN),
        ]
    )
    edits = st.lists(
        st.tuples(places, st.integers(0, 4), parts), min_size=1, max_size=3
    )

    def check(edits: list[tuple[int, int, bytes]]) -> None:
        changed = body
        for at, left_out, part in edits:
            changed = changed[:at] + part + changed[at + left_out :]
        push = read_push(sent(changed), MAX_BYTES)
        if push.outcome is HOLDS:
            assert set(map(as_judged, repository.read(changed))) <= judged(push)

    hold_for(check, edits, examples=examples)
