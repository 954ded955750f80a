"""How DuckDB reads a file as lines (floor 6): one column, in which no character has a meaning."""

from pathlib import Path

from squidkeeper.record.log_file import LINE_LIMIT
from squidkeeper.table.file_names import quoted_literally


def csv_lines(file: Path, compression: str) -> str:
    """Return the table of a file's lines, with the column `line`; an empty line is NULL.

    It takes a lone carriage return for the end of a line, and refuses a file that is not UTF-8.
    """
    name = quoted_literally(file)
    return (
        f"read_csv({name}, columns={{line: 'VARCHAR'}}, compression='{compression}', delim='\\x01', quote='',"
        f" escape='', header=false, auto_detect=false, strict_mode=false, max_line_size={4 * LINE_LIMIT})"
    )
