"""What the dashboards share: how panels are laid out, links from one to the other, the range, marks where a pod came back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.models import dashboard

from grafana.panels import ENGINE, PROMETHEUS

if TYPE_CHECKING:
    from grafana.panels import Built

TAG = "convoy"
WIDTH = 24


@dataclass(frozen=True)
class Section:
    """Panels side by side, of one height and one width."""

    title: str
    """Written above; empty for the first, which needs none."""
    height: int
    panels: tuple[Built, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard: a name, the question that it answers, and the answer from the top down."""

    name: str
    title: str
    question: str
    sections: tuple[Section, ...]
    variables: tuple[Built, ...] = ()

    @property
    def uid(self) -> str:
        """What links to it know it by."""
        return f"{TAG}-{self.name}"


def variable(name: str, label: str, description: str, values: str) -> Built:
    """A choice above the dashboard; "All" stands for the values that there are now."""
    made = board.QueryVariable(name).label(label).description(description).datasource(PROMETHEUS).query(values).definition(values)
    made = made.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(dashboard.VariableSort.NATURAL_ASC)
    return made.multi(True).include_all(True).current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))


def assemble(made_of: Board) -> dashboard.Dashboard:
    """The dashboard as Grafana reads it."""
    made = board.Dashboard(made_of.title).uid(made_of.uid).description(made_of.question).tags([TAG]).readonly()
    made = made.refresh("5s").time("now-30m", "now").timezone("browser").tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    others = (
        board.DashboardLink("Convoy")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .keep_time(True)
        .include_vars(False)
        .placement(None)
    )
    made = made.link(others.as_dropdown(False)).annotation(_restarts())
    for choice in made_of.variables:
        made = made.with_variable(choice)
    for section in made_of.sections:
        if section.title:
            made = made.with_row(board.Row(section.title))
        for panel in section.panels:
            made = made.with_panel(panel.span(WIDTH // len(section.panels)).height(section.height))
    return _numbered(made.build())


def _restarts() -> Built:
    """A line through every graph where a pod was started again: most steps in a curve have this cause."""
    made = board.AnnotationQuery().name("Pod started").datasource(PROMETHEUS).enable(True).icon_color("purple").placement(None)
    return made.expr(f"changes(process_start_time_seconds{{{ENGINE}}}[1m]) > 0").title_format("{{instance}} was started")


def _numbered(made: dashboard.Dashboard) -> dashboard.Dashboard:
    """Panels by their place, so that a link to one holds as long as its place does, and two builds are equal."""
    for number, panel in enumerate(made.panels or [], 1):
        panel.id_val = number
    return made
