"""What a summary says as tables, for the terminal and for the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["BY_MEDIAN", "Sheet", "print_sheets", "sheets"]

FIGURES = {  # by their names in `before` and `after`: what they are called, and how they are written
    "params": ("parameters", "{:,}"),
    "macs": ("MACs", "{:,}"),
    "measured_ms": ("measured ms", "{:.4g}"),
    "measured_median_ms": ("median", "{:.4g}"),
    "measured_mean_ms": ("mean", "{:.4g}"),
    "measured_p95_ms": ("p95", "{:.4g}"),
    "peak_mb": ("peak MB", "{:.1f}"),
    "acc": ("test accuracy", "{:.2%}"),
    "agreement": ("best class as the dense network's", "{:.2%}"),
    "distance": ("distance of features", "{:.3g}"),
}
BY_MEDIAN = "onnx_measured_median_ms"
"""In a summary where budgets are held by the median; older runs held them by the table's statistic."""
RIVAL = ("params", "macs", "measured_ms")  # of these, what is said of a rival, and one of the next
SHARES = ("acc", "agreement")
BLOCK = {  # of a block, before and after; older runs do not say them
    "params": ("parameters", "{:,}"),
    "macs": ("MACs", "{:,}"),
    "ms": ("ms by the table", "{:.4g}"),
}
OVER_IMAGES = {
    "onnx_measured_ms": "ms of its file over images, mean",
    "onnx_measured_p95_ms": "p95 of its file over images",
}


@dataclass(frozen=True)
class Sheet:
    """A table of text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def sheets(summary: dict[str, Any]) -> list[Sheet]:
    """Before and after, on each target where there are several, block by block, and beside its rivals where the run has them."""
    several = len(summary.get("targets", ())) > 1
    found = [_figures(summary), *([_targets(summary)] if several else []), _blocks(summary)]
    return [*found, _rivals(summary)] if summary.get("baselines") else found


def _figures(summary: dict[str, Any]) -> Sheet:
    before, after = summary["before"], summary["after"]
    rows = [
        (
            _label(label, name, summary),
            form.format(before[name]),
            form.format(after[name]),
            _change(before[name], after[name], name),
        )
        for name, (label, form) in FIGURES.items()
        if before.get(name) is not None  # encoders have no accuracy, and others no distance
    ]
    if summary.get("onnx_measured_p95_ms") is not None:  # where it depends on the image
        rows += [(label, "", f"{summary[name]:.4g}", "") for name, label in OVER_IMAGES.items()]
    return Sheet("before and after", ("", "before", "after", "change"), rows)


def _label(label: str, name: str, summary: dict[str, Any]) -> str:
    """With the statistic of the runs that the table predicts, where the run says it, and with what budgets hold by."""
    if name == "measured_median_ms" and BY_MEDIAN in summary:
        return f"{label}, by which budgets hold"
    return (
        f"{label} ({summary['statistic']} of the runs)" if name == "measured_ms" and "statistic" in summary else label
    )


def _change(before: float, after: float, name: str) -> str:
    """Shares of images differ by points; of all else the ratio counts, unless there was nothing before."""
    if not before:
        return ""
    return f"{100 * (after - before):+.2f} points" if name in SHARES else f"{after / before - 1:+.1%}"


def _targets(summary: dict[str, Any]) -> Sheet:
    names = ("budget_ms", "measured_median_ms", "onnx_measured_median_ms", "predicted_ms", "measured_ms")
    rows = [
        (
            f"{row['target']} ({row['statistic']} of the runs)",
            f"{row['before']['measured_median_ms']:.4g}",
            *("" if row.get(name) is None else f"{row[name]:.4g}" for name in names),
            f"{row['speedup_measured']:.2f}",
        )
        for row in summary["targets"]
    ]
    header = ("milliseconds", "before", "budget", "median", "of the file", "predicted", "measured", "times as fast")
    return Sheet("on each target", header, rows)


def _blocks(summary: dict[str, Any]) -> Sheet:
    known = BLOCK if all(BLOCK.keys() <= row.keys() for row in summary["blocks"]) else {}
    rows = [
        (
            str(row["block"]),
            row["left"] or "left out",
            *(" to ".join(form.format(one) for one in row[name]) for name, (_, form) in known.items()),
            f"{row['macs_share']:.0%}",
            f"{row['ms_share']:.0%}" + (", hardly faster for it" if row["slow"] else ""),
        )
        for row in summary["blocks"]
    ]
    header = ("block", "left", *(label for label, _ in known.values()), "of its MACs", "of its ms")
    return Sheet("what is left of each block", header, rows)


def _rivals(summary: dict[str, Any]) -> Sheet:
    agreed = any(row.get("agreement") is not None for row in summary["baselines"])
    names = (*RIVAL, "agreement" if agreed else "acc")
    rows = [
        (row["name"], *("" if row[name] is None else FIGURES[name][1].format(row[name]) for name in names), row["note"])
        for row in summary["baselines"]
    ]
    return Sheet("beside its rivals, timed in one run", ("network", *(FIGURES[name][0] for name in names), ""), rows)


def print_sheets(summary: dict[str, Any]) -> None:
    """The tables on stderr: stdout is for the result."""
    from rich.console import Console
    from rich.table import Table

    width = None if Console(stderr=True).is_terminal else 200
    console = Console(stderr=True, width=width, markup=False)  # brackets are meant
    for sheet in sheets(summary):
        table = Table(*sheet.header, title=sheet.title)
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
