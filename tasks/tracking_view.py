"""The saved view of an experiment that shows quality against epsilon with no click.

Left alone, MLflow draws one tile per metric in alphabetical order and a table of runs without
metrics. A saved view states the tiles, and that the x axis of the first ones is another metric,
epsilon. It is an experiment tag in a format of the user interface, not of the API: read off
mlflow 3.17, which is pinned. A browser test opens the page; if a later MLflow drops the format,
that test fails, and people see the tiles in alphabetical order with a notice.
"""

import base64
import json
import zlib
from typing import Any

VIEW_KEY = "fedloom"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
VIEW_NAME = "Quality against epsilon"
EPSILON = "dp/epsilon"

_AGAINST_EPSILON = ("eval/accuracy", "eval/macro_f1")
_BY_ROUND = (
    "eval/accuracy",
    EPSILON,
    "eval/macro_f1",
    "dp/epsilon_left",
    "eval/loss",
    "round/seconds",
    "bytes/up",
    "bytes/down",
)
_COLUMNS = ("eval/accuracy", "eval/macro_f1", EPSILON, "dp/epsilon_left")


def view_tag(*, created_ms: int) -> str:
    """Return the value of the tag ``VIEW_TAG``.

    Args:
        created_ms: When the view was made, shown in the list of views.
    """
    state = json.dumps(_state(), sort_keys=True).encode()
    packed = base64.b64encode(zlib.compress(state)).decode()
    stored = {
        "name": VIEW_NAME,
        "createdAt": created_ms,
        "updatedAt": created_ms,
        "state": f"deflate;{packed}",
    }
    return json.dumps(stored)


def _state() -> dict[str, Any]:
    against = [_chart(key, x_metric=EPSILON) for key in _AGAINST_EPSILON]
    by_round = [_chart(key, x_metric="") for key in _BY_ROUND]
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"metrics.`{key}`" for key in _COLUMNS],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": [*against, *by_round],
        "compareRunSections": [_section("against", VIEW_NAME), _section("rounds", "By round")],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }


def _section(name: str, title: str) -> dict[str, Any]:
    return {
        "uuid": name,
        "name": title,
        "display": True,
        "isReordered": True,  # else the page sorts its sections by name
        "deleted": False,
        "isGenerated": False,
    }


def _chart(key: str, *, x_metric: str) -> dict[str, Any]:
    return {
        "uuid": f"{key} {x_metric}",
        "type": "LINE",
        "runsCountToCompare": 10,
        "metricSectionId": "against" if x_metric else "rounds",
        "deleted": False,
        "isGenerated": False,
        "displayName": key,
        "metricKey": key,
        "selectedMetricKeys": [key],
        "lineSmoothness": 0,
        "displayPoints": True,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "metric" if x_metric else "step",
        "selectedXAxisMetricKey": x_metric,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
    }
