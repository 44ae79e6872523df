"""A table with one row a pod: columns are queries, cells take the colours of their own limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.models import dashboard

from grafana.panels import FACT, LETTERS, Limits, Panel, Query, described, mappings, target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grafana.panels import Built


@dataclass(frozen=True)
class Column:
    """One query, reduced to one value a row."""

    name: str
    expr: str
    unit: str
    limits: Limits = FACT
    decimals: int | None = None
    words: tuple[tuple[float, str], ...] = ()
    """Values that are written as words."""


def rows(panel: Panel, label: str, name: str, columns: Sequence[Column]) -> Built:
    """One row for each value of `label`, whose column is called `name`."""
    made = table.Panel().targets([target(index, Query(column.expr), instant=True, table=True) for index, column in enumerate(columns)])
    renamed = {label: name, **{f"Value #{LETTERS[index]}": column.name for index, column in enumerate(columns)}}
    organize: dict[str, object] = {
        "excludeByName": {"Time": True},
        "indexByName": {old: index for index, old in enumerate(renamed)},
        "renameByName": renamed,
    }
    # All queries are asked for the same moment, so their rows meet in time and label.
    for step, options in (("merge", {}), ("organize", organize)):
        made = made.with_transformation(dashboard.DataTransformerConfig(id_val=step, options=options))
    for column in columns:
        made = made.override_by_name(column.name, [dashboard.DynamicConfigValue(key, value) for key, value in _cell(column).items()])
    return described(made, panel)


def _cell(column: Column) -> Mapping[str, object]:
    properties: dict[str, object] = {
        "unit": column.unit,
        "thresholds": column.limits.build().build(),
        "mappings": mappings(dict(column.words)),
        "custom.cellOptions": {"type": "color-text"},
        "color": {"mode": "thresholds"},
    }
    return properties if column.decimals is None else {**properties, "decimals": column.decimals}
