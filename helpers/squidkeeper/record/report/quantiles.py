"""Exact quantiles: the smallest value that at least a share of all does not exceed.

DuckDB's `quantile_disc` has the same definition and keeps every value in memory. Values with their numbers take less,
and sorting them spills.
"""


def ranked(counted: str, by: str = "") -> str:
    """Write the query that adds to rows of `value` and `number` how many values are in them and in smaller ones."""
    partition = f"PARTITION BY {by}" if by else ""
    return f"""
        SELECT *, sum(number) OVER ({partition} ORDER BY value) AS seen, sum(number) OVER ({partition}) AS total
        FROM ({counted})
    """


def median() -> str:
    """Write the aggregate of ranked rows for the median."""
    return "min(value) FILTER (seen * 2 >= total)"


def p95() -> str:
    """Write the aggregate of ranked rows for the value that 95 % do not exceed."""
    return "min(value) FILTER (seen * 20 >= total * 19)"
