"""Dashboards of Convoy as code: `build` writes them for Grafana, `preview` draws the same files without it."""
