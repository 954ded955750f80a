"""`install.sh --dry-run` ahead of an installation: an environment that borrows the
packages of the one in use; where there is none, an outline of what would be done.

install.sh runs this file by the system's Python, without packages.
"""

import shutil
import subprocess
import sys
from pathlib import Path

_HELPERS = Path(__file__).parents[3]
_PROGRAM = """#!{python}
from squidkeeper.cli import main
main()
"""


def borrow(lender: Path, build: Path) -> bool:
    """Make an environment of these sources with the packages of another; tell whether
    it works.
    """
    done = _quietly(lender / "bin/python", "-m", "venv", "--without-pip", build)
    if not done:
        return False
    [site] = build.glob("lib/python3*/site-packages")
    shutil.copytree(_HELPERS / "squidkeeper", site / "squidkeeper")
    lent = lender.glob("lib/python3*/site-packages")
    (site / "borrowed.pth").write_text("".join(f"{folder}\n" for folder in lent))
    program = build / "bin/squidkeeper"
    program.write_text(_PROGRAM.format(python=build / "bin/python"))
    program.chmod(0o755)
    return _quietly(program, "setup", "--help")


def _quietly(*command: str | Path) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - no shell
    except OSError:
        return False
    return done.returncode == 0


def outline(root: Path | None) -> list[str]:
    """List what an installation does first, and where it writes."""
    sys.path.insert(0, str(_HELPERS))
    from squidkeeper.base.layout import Layout

    layout = Layout.of(root)
    written = (
        layout.conf,
        layout.fragment,
        layout.generations,
        layout.logformat,
        layout.local,
        layout.errors,
        layout.signing_cert,
        layout.ca_cert,
        layout.policy,
        layout.commands,
        layout.exports,
        layout.observe,
        layout.program,
        layout.command,
        layout.logrotate,
    )
    return [
        *(f"write {path}" for path in written if path),
        *(f"make {folder}" for folder in (layout.state, layout.archive)),
        "start Squid, and the services maintenance, exporter, archive and render",
    ]


def main() -> int:
    """Borrow, or tell the outline; 1: no more can be told.

    Wheels build an environment without an index, where nothing can be borrowed.
    """
    lender, build, venv, root, wheels = sys.argv[1:]
    _tell("would", f"build the program in {venv}")
    if borrow(Path(lender), Path(build)):
        (Path(build) / "complete").touch()
        return 0
    shutil.rmtree(build, ignore_errors=True)
    if wheels:
        return 0
    for step in outline(Path(root) if root else None):
        _tell("would", step)
    _tell("dry run", "nothing was changed. With --wheels DIR each step is told")
    return 1


def _tell(label: str, text: str) -> None:
    print(f"{label:<13} {text}")  # noqa: T201 - install.sh's own output


if __name__ == "__main__":
    sys.exit(main())
