"""Grants for all gateways: a signed commit to the repository that they pull from, made
by a person.

The policy is copied out of a clone, so that the commands for one gateway edit it as
they do there: the file in the repository lies beside the copy, as grants.yaml does. git
is the person's own, with its access and its signing key.

A signature vouches for the whole tree, so a commit is made only on a tip that gateways
take: else it would sign what anyone has pushed.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from squidkeeper.base.errors import EditRefused, PullFailed, PullRefused
from squidkeeper.base.formatting import quantity
from squidkeeper.policy.language.grants import FLEET_GRANTS
from squidkeeper.policy.policy_edit import load_or_refuse
from squidkeeper.policy.policy_store.sources import (
    grants_file,
    local_file,
    read_sources,
)
from squidkeeper.services.pulling.git_command import what_git_told
from squidkeeper.services.pulling.signatures import commit_signer

_SECONDS: Final = 120
_COMMITS_AT_MOST: Final = 100  # in which the last signed one is looked for


@dataclass(frozen=True, slots=True)
class FleetRepository:
    """Where a fleet's policy is: the folder of a branch.

    `key` signs, and `allowed_signers` says whose commits count; without them, what git
    has for both.
    """

    url: str
    branch: str
    folder: str
    key: Path | None
    allowed_signers: Path | None


@dataclass(frozen=True, slots=True)
class Checkout:
    """A clone, and a copy of its policy in which the grants of the fleet lie beside the
    folder.
    """

    repository: FleetRepository
    clone: Path
    policy: Path
    allowed_signers: Path

    @property
    def person(self) -> str:
        """Name the person who makes the commit, as git has it; `EditRefused` where git
        knows nobody.
        """
        return _git(self.clone, "var", "GIT_AUTHOR_IDENT").partition(" <")[0]

    def publish(self, title: str, now: datetime) -> str:
        """Commit and push the grants beside the copy, if they have changed; give the
        commit, or nothing.

        `EditRefused` where a gateway would not load the policy with them, or git does
        not take them.
        """
        inside = self.clone / self.repository.folder / FLEET_GRANTS
        shutil.copyfile(grants_file(self.policy), inside)
        if not _git(self.clone, "status", "--porcelain", "--", str(inside)):
            return ""
        sources = read_sources(inside.parent)
        load_or_refuse(sources, now, "would not load on a gateway")
        _git(self.clone, "add", "--", str(inside))
        _git(
            self.clone,
            *self._signing(),
            "commit",
            "--quiet",
            "--gpg-sign",
            "--message",
            title,
        )
        if refusal := _refusal(self.clone, self.allowed_signers):
            raise EditRefused(
                f"gateways would refuse the new commit: {refusal}; sign with a key that {self.allowed_signers} allows"
                " (--key FILE); nothing was changed in the repository"
            )
        _git(
            self.clone,
            "push",
            "--quiet",
            "origin",
            f"HEAD:refs/heads/{self.repository.branch}",
        )
        return _git(self.clone, "rev-parse", "HEAD")

    def _signing(self) -> tuple[str, ...]:
        key = self.repository.key
        own = ("-c", f"user.signingKey={key.absolute()}") if key else ()
        return ("-c", "gpg.format=ssh", *own)


@contextmanager
def checked_out(repository: FleetRepository) -> Iterator[Checkout]:
    """Clone a repository for the time of one command; `EditRefused` if that fails, or
    gateways refuse its tip.
    """
    with TemporaryDirectory(prefix="squidkeeper-grant-") as place:
        clone, policy = Path(place) / "clone", Path(place) / "policy"
        options = (
            "--quiet",
            "--single-branch",
            "--no-tags",
            "--no-recurse-submodules",
            "-c",
            "core.symlinks=false",
        )
        _git(
            Path(place),
            "clone",
            *options,
            f"--branch={repository.branch}",
            "--",
            repository.url,
            str(clone),
        )
        allowed_signers = _allowed_signers(repository, clone)
        _check_tip(repository, clone, allowed_signers)
        inside = clone / repository.folder
        if not inside.resolve().is_relative_to(clone.resolve()) or not inside.is_dir():
            raise EditRefused(
                f"{repository.url} has no folder {repository.folder!r}: name it by --path"
            )
        shutil.copytree(
            inside, policy, ignore=shutil.ignore_patterns(".git", FLEET_GRANTS)
        )
        for there, here in (
            (inside / FLEET_GRANTS, grants_file(policy)),
            (local_file(inside), local_file(policy)),
        ):
            if there.is_file():
                shutil.copyfile(there, here)
        yield Checkout(repository, clone, policy, allowed_signers)


def _allowed_signers(repository: FleetRepository, clone: Path) -> Path:
    configured = (
        "config",
        "--type=path",
        "--default",
        "",
        "--get",
        "gpg.ssh.allowedSignersFile",
    )
    file = repository.allowed_signers or _git(clone, *configured)
    if not file:
        raise EditRefused(
            "no file of allowed signers is known, so nobody can tell who has signed the branch: name the one that"
            " gateways have, by --allowed-signers FILE or `git config --global gpg.ssh.allowedSignersFile FILE`;"
            " nothing was changed"
        )
    return Path(file)


def _check_tip(repository: FleetRepository, clone: Path, allowed_signers: Path) -> None:
    if refusal := _refusal(clone, allowed_signers):
        commit = _git(clone, "rev-parse", "HEAD")
        author = _git(
            clone,
            "show",
            "--no-patch",
            "--no-show-signature",
            "--format=%an <%ae>",
            "HEAD",
        )
        raise EditRefused(
            f"{repository.url}: commit {commit} by {author}, the tip of {repository.branch}, is refused: {refusal}."
            f" A grant on top of it would sign its content too. {_remedy(clone, commit, allowed_signers)} Nothing was"
            " changed"
        )


def _remedy(clone: Path, tip: str, allowed_signers: Path) -> str:
    """Tell how to sign on top of a refused tip: after reading all that is unsigned, or
    by dropping it.

    One commit drops it. Of several reverts, each but the last would sign what is left.
    """
    keep = "If all of it is right, push an empty signed commit (git commit -S --allow-empty)."
    listed = _git(
        clone, "rev-list", "--first-parent", f"--max-count={_COMMITS_AT_MOST}", "HEAD"
    ).split()
    signed = next(
        (commit for commit in listed if not _refusal(clone, allowed_signers, commit)),
        "",
    )
    if not signed:
        return (
            f"None of the last {quantity(len(listed), 'commit')} is signed by an allowed signer now: read the whole"
            f" content (git ls-tree -r {tip}). {keep}"
        )
    return (
        f"The last commit that is signed by an allowed signer is {signed}: read what has changed since"
        f" (git diff {signed}..{tip}). {keep} Otherwise restore its content and push that as one signed commit"
        f" (git restore --source={signed} --staged --worktree :/ && git commit -S). Do not revert one commit after the"
        " other: each revert would sign what is left."
    )


def _refusal(clone: Path, allowed_signers: Path, commit: str = "HEAD") -> str:
    try:
        commit_signer(_output(clone, "cat-file", "commit", commit), allowed_signers)
    except (PullFailed, PullRefused) as error:
        return str(error)
    return ""


def _git(folder: Path, *arguments: str) -> str:
    return _output(folder, *arguments).decode("utf-8", "replace").strip()


def _output(folder: Path, *arguments: str) -> bytes:
    command = ("git", "-c", "protocol.ext.allow=never", *arguments)
    try:
        done = subprocess.run(  # noqa: S603 - the person's own git
            command, cwd=folder, capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EditRefused(f"git cannot be run: {error}; nothing was changed") from error
    if done.returncode != 0:
        told = (
            what_git_told(done.stderr.decode("utf-8", "replace"))
            or f"status {done.returncode}"
        )
        name = next(
            argument
            for argument in arguments
            if not argument.startswith("-") and "=" not in argument
        )
        raise EditRefused(
            f"git {name} failed: {told}; nothing was changed in the repository"
        )
    return done.stdout
