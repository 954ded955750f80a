"""policy/ci: the script and the GitHub Action that check a policy in a git repository
before it is merged.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.records import record_line

pytestmark = pytest.mark.system

RECIPE = Path(__file__).parents[2] / "policy/ci"
STEPS = yaml.safe_load((RECIPE / "github-action.yaml").read_text())["jobs"]["check"][
    "steps"
]
CEILING = """\
version: 1
rules:
  - {name: all-that-may-be-open, action: allow, hosts: [.acme.example, open.example]}
"""
POLICY = """\
version: 1
rules:
  - {name: open, action: allow, hosts: [open.example]}
  - {name: own, action: allow, hosts: [api.acme.example]}
tests:
  - {request: "GET https://open.example/x", expect: allow}
"""
TUNNEL = {"tunnel": "open.example:443", "sni": "open.example"}
USED = [
    record_line(url=f"https://open.example/{number}", **TUNNEL) for number in range(3)
]
EDITS = {
    "narrower": POLICY.replace(
        "[api.acme.example]", "[api.acme.example], paths: [/v1/**]"
    ),
    "wider": POLICY.replace("[api.acme.example]", "[api.acme.example, evil.example]"),
    "denying": POLICY.replace(
        "hosts: [open.example]}", "hosts: [open.example], paths: [/x]}"
    ),
    "raising": POLICY.replace("[api.acme.example]", "[api.acme.example, evil.example]"),
    "faulty": POLICY.replace("action: allow", "action: alow"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a policy, a ceiling, and the recipe as its Action wants it; a branch
    for each edit.
    """
    upstream, clone = (
        tmp_path_factory.mktemp("upstream"),
        tmp_path_factory.mktemp("clone"),
    )
    shutil.copytree(RECIPE, upstream / "ci")
    for name, text in (("policy", POLICY), ("ceiling", CEILING)):
        (upstream / name).mkdir()
        (upstream / name / "policy.yaml").write_text(text)
    git(upstream, "init", "-q", "-b", "main")
    commit(upstream, "Begin")
    for branch, text in EDITS.items():
        git(upstream, "checkout", "-q", "-b", branch, "main")
        (upstream / "policy/policy.yaml").write_text(text)
        if branch == "raising":
            (upstream / "ceiling/policy.yaml").write_text(
                CEILING.replace("open.example", "open.example, evil.example")
            )
            (upstream / "ci/check-policy").write_text("exit 0\n")
        commit(upstream, branch)
    git(clone, "clone", "-q", upstream, ".")
    (clone / "record.log").write_bytes(b"\n".join(USED) + b"\n")
    return clone


def git(folder: Path, *words: str | Path) -> None:
    named = ("-c", "user.name=operator", "-c", "user.email=operator@example.com")
    subprocess.run(["git", *named, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, title: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", title)


def shell(
    folder: Path, script: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    done = subprocess.run(
        ["sh", "-ec", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done


@pytest.mark.parametrize(
    ("branch", "status", "shown"),
    [
        ("narrower", 0, ("This policy can be merged.",)),
        (
            "wider",
            1,
            ("evil.example", "Nothing is open beyond the ceiling (exit status 1)"),
        ),
        (
            "denying",
            1,
            (
                "would be denied: 3 requests",
                "origin/main:policy/policy.yaml:3",
                "Recorded requests (exit status 1)",
            ),
        ),
        (
            "faulty",
            1,
            (
                "'action' is 'alow'",
                "The policy loads, and its tests pass (exit status 1)",
            ),
        ),
    ],
)
def test_a_branch_is_checked(
    repository: Path, branch: str, status: int, shown: tuple[str, ...]
) -> None:
    git(repository, "checkout", "-q", branch)
    done = shell(repository, "ci/check-policy --ceiling ceiling --record record.log")
    assert done.returncode == status, done.stdout
    assert [text for text in shown if text not in done.stdout] == []


def test_some_denials_can_be_allowed(repository: Path) -> None:
    git(repository, "checkout", "-q", "denying")
    assert (
        shell(
            repository, "ci/check-policy --record record.log --allow-denials 3"
        ).returncode
        == 0
    )


def test_the_action_runs_the_script_and_writes_the_summary(
    repository: Path, tmp_path: Path
) -> None:
    [*_, last] = STEPS
    # it would raise its own ceiling, and replace the script
    git(repository, "checkout", "-q", "raising")
    summary = tmp_path / "summary.md"
    done = shell(
        repository,
        last["run"],
        GITHUB_BASE_REF="main",
        GITHUB_STEP_SUMMARY=str(summary),
        RUNNER_TEMP=str(tmp_path),
    )
    assert done.returncode == 1, done.stdout
    text = summary.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## The policy loads, and its tests pass",
        "## Nothing is open beyond the ceiling",
        "## What changes",
    ]
    assert "evil.example" in text


def test_the_action_installs_from_where_the_operator_says_and_from_no_index(
    tmp_path: Path,
) -> None:
    [install] = [step for step in STEPS if step.get("name") == "Install squidkeeper"]
    assert install["env"] == {"SOURCE": "${{ vars.SQUIDKEEPER_SOURCE }}"}
    pip = 'pip() { printf "%s\\n" "$@"; }\n'
    source = "git+https://git.example/platform/squidkeeper@v1.2.3"
    assert (
        shell(tmp_path, pip + install["run"], SOURCE=source).stdout
        == f"install\n{source}\n"
    )
    unset = subprocess.run(
        ["sh", "-ec", pip + install["run"]], capture_output=True, text=True, check=False
    )
    assert unset.returncode != 0
    assert (
        "set the variable SQUIDKEEPER_SOURCE in the settings of this repository"
        in unset.stderr
    )


UNUSABLE = (
    "--base",
    "--nonsense",
    "--record",
    "no-such-folder",
    "--base no-such-revision",
    "--ceiling no-such-folder",
)


@pytest.mark.parametrize("words", UNUSABLE)
def test_what_cannot_be_understood_is_refused(repository: Path, words: str) -> None:
    git(repository, "checkout", "-q", "narrower")
    done = subprocess.run(
        ["sh", "ci/check-policy", *words.split()],
        cwd=repository,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"check-policy: ")


def test_a_base_without_the_folder_is_named(repository: Path) -> None:
    git(repository, "checkout", "-q", "narrower")
    done = shell(repository, "cp -r policy other; ci/check-policy other; rm -r other")
    assert (
        "origin/main has no folder other: nothing to compare with, nothing is replayed"
        in done.stdout
    )
    assert "This policy can be merged." in done.stdout
