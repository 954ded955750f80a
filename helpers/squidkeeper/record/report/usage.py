"""What metered requests used: by model and by client, and tokens over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.listing import shown_field
from squidkeeper.record.report import figures
from squidkeeper.record.report.period import client_label
from squidkeeper.record.report.traffic import Steps
from squidkeeper.record.table.usage import USAGE
from squidkeeper.record.usage_ledger import UsageState

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SHOWN = 20
_SUMS: Final = (
    f"count(*), count(*) FILTER (state <> '{UsageState.METERED}'),"
    " coalesce(sum(tokens_in), 0)::BIGINT, coalesce(sum(cached_in), 0)::BIGINT,"
    " coalesce(sum(tokens_out), 0)::BIGINT, coalesce(sum(cost), 0)::BIGINT"
)
_WITHIN: Final = (
    "CREATE TEMP TABLE used AS FROM {rows} WHERE epoch_ms(time) >= "
    "{start} AND epoch_ms(time) < {end}"
)
_ALL: Final = f"SELECT {_SUMS} FROM used"
_BY: Final = (
    f"SELECT {{key}}, {_SUMS} FROM used GROUP BY ALL"
    f" ORDER BY sum(cost) DESC, sum(tokens_in + tokens_out) DESC, {{key}} LIMIT {_SHOWN}"
)
_TOKENS: Final = "SELECT (epoch_ms(time) - ?) // ?, sum(tokens_in + tokens_out)::BIGINT FROM used GROUP BY ALL"


def usage(
    connection: DuckDBPyConnection, steps: Steps, rows: str = USAGE
) -> figures.UsageFigures | None:
    """Return what was used in these steps, by rows of the table `usage`; None where
    nothing was metered.
    """
    start, each = steps.first * 1000, steps.seconds * 1000
    end = start + each * steps.number
    connection.execute(_WITHIN.format(rows=rows, start=start, end=end))
    (total,) = connection.execute(_ALL).fetchall()
    if not total[0]:
        return None
    models = connection.execute(_BY.format(key="coalesce(model, '-')")).fetchall()
    clients = connection.execute(
        _BY.format(key="client, coalesce(\"user\", '-')")
    ).fetchall()
    found = connection.execute(_TOKENS, [start, each]).fetchall()
    return figures.UsageFigures(
        total=figures.UsageSums("", *total),
        models=tuple(
            figures.UsageSums(shown_field(model) or "unknown", *sums)
            for model, *sums in models
        ),
        clients=tuple(
            figures.UsageSums(client_label(client, user), *sums)
            for client, user, *sums in clients
        ),
        over_time=steps.counts(found),
    )
