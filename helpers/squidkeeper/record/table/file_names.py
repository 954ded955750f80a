"""How SQL writes a text, and names a file."""

import re
from pathlib import Path

from squidkeeper.record.log.log_file import LINE_LIMIT


def quoted(text: str | Path) -> str:
    """Write a text, or the name of a file, as a text of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def quoted_literally(path: Path) -> str:
    """Write the name of one file, whatever its characters are: for DuckDB, `*`, `?` and `[` are a pattern."""
    return quoted(Path(re.sub(r"([*?[])", r"[\1]", str(path))))


def csv_lines(file: Path, compression: str) -> str:
    """Return the table of a file's lines, with the column `line`; an empty line is NULL.

    It takes a lone carriage return for the end of a line, and refuses a file that is not UTF-8.
    """
    name = quoted_literally(file)
    return (
        f"read_csv({name}, columns={{line: 'VARCHAR'}}, compression='{compression}', delim='\\x01', quote='',"
        f" escape='', header=false, auto_detect=false, strict_mode=false, max_line_size={4 * LINE_LIMIT})"
    )
