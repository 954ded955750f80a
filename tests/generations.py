"""The generation in force of a gateway in a test, changed in place."""

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import Account
from squidkeeper.configuration.rendering import Values
from squidkeeper.operate.setup.entries import File, owner_here, remove
from squidkeeper.operate.setup.generations import LOCAL
from squidkeeper.operate.setup.rendering import read_values, rendered_anew


def put_rendered(
    layout: Layout, account: Account, values: Values | None = None
) -> None:
    """Render the generation in force again, for these values or its own."""
    folder = layout.generation.resolve()
    values = values or read_values(layout)
    files = rendered_anew(layout, values, account, folder)
    for path in {*layout.parts.resolve().iterdir()}:
        remove(path)
    for name, file in files.items():
        if isinstance(file, File):
            replace(folder / name, file.content, file.mode, owner_here(file.owner))


def add_local_lines(layout: Layout, text: str) -> None:
    """Add lines to local.conf, and have them in force as install.sh does."""
    for path in (layout.local, layout.generation / LOCAL):
        if path.parent.is_dir():  # else install.sh has not run yet
            with path.open("a") as file:
                file.write(text)
