"""A user's SQL: one SELECT of DuckDB that only reads, and the columns that it needs.

DuckDB parses it. That it is a SELECT for DuckDB is not enough: its WITH can hold
INSERT, DELETE or COPY, and functions such as `query` run text as SQL. So each node of
the parsed statement has to be known here.
"""

import json
import os
import shlex
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import QueryRefused
from squidkeeper.base.squid_account import account_of, group_name, squid_account
from squidkeeper.record.table.columns import NAMES
from squidkeeper.record.table.database import (
    QUERY_ACCOUNT,
    Database,
    quoted,
    quoted_literally,
)
from squidkeeper.record.table.usage import USAGE

_NODES: Final = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_FUNCTIONS: Final = {  # that give rows, and read no file
    *(
        "range",
        "generate_series",
        "unnest",
        "json_each",
        "json_tree",
        "histogram",
        "histogram_values",
        "summary",
    )
}
_KINDS: Final = {"MULTI": "a PIVOT without IN (…), which is several statements"}
_TABLES: Final = frozenset({"requests", "records", USAGE})
_TABLES_TEXT: Final = f"the tables requests, records and {USAGE}"
_TABLE_FUNCTION: Final = "TABLE_FUNCTION"
_TABLE: Final = "BASE_TABLE"
_RECURSIVE: Final = "RECURSIVE_CTE_NODE"
# `*`, and `#2`, the second column
_WHOLE_ROWS: Final = {
    "STAR",
    "POSITIONAL_REFERENCE",
}
_NODE: Final = "_NODE"


# What a user's SQL cannot do: read or write a file, change a setting, or use the rights
# of root.
#
# Three guards, each of which is enough: the statement is checked (`statement.py`),
# DuckDB reaches no file except the archived parts, and the process has become an
# account that cannot write the record.


def lock(database: Database, readable: Iterable[Path]) -> None:
    """Close DuckDB's access to files, except these, and its settings, for the rest of
    the connection.
    """
    files = ", ".join(
        name for path in readable for name in (quoted(path), quoted_literally(path))
    )
    for setting in (
        f"allowed_paths = [{files}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        database.connection.execute(f"SET {setting}")


def drop_rights(database: Database, readable: Collection[Path]) -> None:
    """Become `nobody`, for good, if this is root; the groups that read the archived
    parts stay.

    Squid's group reads the record and cannot write it. What the log holds is in memory
    by now.
    """
    if os.geteuid() != 0:
        return
    account = account_of(QUERY_ACCOUNT)
    if account is None:
        raise QueryRefused(
            f"there is no account {QUERY_ACCOUNT}: run it as an account that can read the access log"
        )
    groups = {os.stat(path).st_gid for path in readable} - {0}
    for path in (database.spill, *database.spill.rglob("*")):
        shutil.chown(path, account.user, account.group)
    os.setgroups(sorted(groups))
    os.setgid(account.group)
    os.setuid(account.user)
    if not os.access(database.spill, os.W_OK | os.X_OK):
        raise QueryRefused(
            f"{database.spill}: {QUERY_ACCOUNT} cannot write there: set TMPDIR to another folder"
        )
    for path in readable:
        if not os.access(path, os.R_OK):
            raise QueryRefused(
                f"{path}: {QUERY_ACCOUNT}, as which root queries, cannot read it: {_opening(path)}"
            )


def _opening(part: Path) -> str:
    """Return the commands that let Squid's group, which a query keeps, read a part, or
    the whole archive around it.
    """
    squid = squid_account()
    group = group_name(squid) if squid else "GROUP"
    files = str(part.parents[1] if part.parent.name.startswith("day=") else part)
    commands = f"{shlex.join(('chgrp', '-R', group, files))} && {shlex.join(('chmod', '-R', 'g+rX', files))}"
    return f"{commands}; the folders above must be open to every account (chmod o+x)"


@dataclass(frozen=True, slots=True)
class SelectStatement:
    """A statement that may run.

    `columns` are those that it can need; None: all. `tables` are named anywhere in it.
    """

    text: str
    columns: frozenset[str] | None
    tables: frozenset[str]


def parse_select(text: str) -> SelectStatement:
    """Parse one SELECT that only reads; raise `QueryRefused`."""
    import duckdb

    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QueryRefused(
            f"the SQL is not UTF-8 at character {error.start + 1}: expected text"
        ) from error
    with duckdb.connect() as connection:
        try:
            statements = connection.extract_statements(text)
        except duckdb.Error as error:
            raise QueryRefused(str(error)) from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            kinds = (
                ", ".join(
                    _KINDS.get(one.type.name, one.type.name) for one in statements
                )
                or "nothing"
            )
            raise QueryRefused(
                f"{kinds}: expected one SELECT; it may begin with WITH, FROM, DESCRIBE or SUMMARIZE"
            )
        serialized = connection.execute(
            "SELECT json_serialize_sql(?::VARCHAR)", [text]
        ).fetchall()[0][0]
    try:
        return SelectStatement(text, *_checked(json.loads(serialized)))
    except RecursionError as error:
        raise QueryRefused(
            "nested too deeply: expected fewer levels of SELECT in SELECT"
        ) from error


def _checked(tree: dict[str, object]) -> tuple[frozenset[str] | None, frozenset[str]]:
    if tree.get("error"):
        raise QueryRefused(
            f"{tree.get('error_message')}: expected a SELECT that only reads"
        )
    nodes = list(_nodes(tree))
    for node in nodes:
        _check(node)
    _check_tables(tree, _TABLES)
    tables = frozenset(
        name.lower() for node in nodes for name in _texts(node.get("table_name"))
    )
    return _columns(nodes), tables


def _nodes(tree: object) -> Iterator[dict[str, object]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _check(node: dict[str, object]) -> None:
    kind = str(node.get("type", ""))
    if kind.endswith(_NODE) and kind not in _NODES:
        raise QueryRefused(
            f"{kind.removesuffix('_QUERY_NODE')} in WITH: expected a SELECT that only reads"
        )
    if kind == _TABLE_FUNCTION:
        function = node.get("function")
        name = (
            str(function.get("function_name", "")).lower()
            if isinstance(function, dict)
            else ""
        )
        if name not in _FUNCTIONS:
            expected = ", ".join(sorted(_FUNCTIONS))
            raise QueryRefused(
                f"{name}(): a query reads {_TABLES_TEXT}, and {expected}"
            )


def _check_tables(tree: object, known: frozenset[str]) -> None:
    """Check that each table is one of `known`, or of a WITH around it, after its
    definition.

    Other tables are DuckDB's own, and ours with lines from outside of the period.
    """
    if isinstance(tree, list):
        for node in tree:
            _check_tables(node, known)
    if not isinstance(tree, dict):
        return
    named = str(tree.get("table_name") or "")
    if named and (
        tree.get("schema_name")
        or tree.get("catalog_name")
        or named.lower() not in known
    ):
        raise QueryRefused(f"{named}: a query reads {_TABLES_TEXT}")
    for part in tree.get("cte_map", {}).get("map", ()):
        _check_tables(part["value"], known)
        known |= {part["key"].lower()}
    recursive = {tree["cte_name"].lower()} if tree.get("type") == _RECURSIVE else set()
    for name, value in tree.items():
        if name != "cte_map":
            _check_tables(value, known | recursive if name == "right" else known)


def _columns(nodes: list[dict[str, object]]) -> frozenset[str] | None:
    """Find the columns that a statement can need: all where it takes whole rows, else
    each that it names anywhere.
    """
    tables = {
        name.lower()
        for node in nodes
        if node.get("type") == _TABLE
        for name in _names_of(node)
    }
    last = {
        names[-1].lower()
        for node in nodes
        if (names := _texts(node.get("column_names")))
    }
    if last & tables or any(map(_takes_whole_rows, nodes)):
        return None
    named = {
        text.lower()
        for node in nodes
        for value in node.values()
        for text in _texts(value)
    }
    return frozenset(named & set(NAMES))


def _takes_whole_rows(node: dict[str, object]) -> bool:
    """Whether a node means columns that it does not name: by their place, or those that
    two tables share.
    """
    renames = node.get("type") == _TABLE and bool(node.get("column_name_alias"))
    return (
        renames or node.get("type") in _WHOLE_ROWS or node.get("ref_type") == "NATURAL"
    )


def _names_of(table: dict[str, object]) -> list[str]:
    return [*_texts(table.get("alias")), *_texts(table.get("table_name"))]


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return (
        [item for item in value if isinstance(item, str)]
        if isinstance(value, list)
        else []
    )
