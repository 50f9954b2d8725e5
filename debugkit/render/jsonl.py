"""One JSON object per result and line, for tools that read lines."""

from __future__ import annotations

import json

from debugkit.report import Report


def render(report: Report) -> str:
    """One line per result, with the keys that a result has in the JSON report."""
    return "".join(json.dumps(result) + "\n" for result in json.loads(report.to_json(indent=None))["results"])
