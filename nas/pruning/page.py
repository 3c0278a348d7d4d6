"""`report.html` of a pruning: its tables, block by block, and what is kept of images."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.page import html_figure, html_table, write_page
from nas.pruning.sheets import BY_MEDIAN, sheets

__all__ = ["KEPT", "write_pruned"]

KEPT = "kept.png"
EXPORTED = {  # by their names in the summary
    "onnx": "file",
    "onnx_max_abs_diff": "largest difference from the network",
    "onnx_top1_agreement": "images with the same best class",
    "onnx_measured_ms": "ms, timed anew in a process of its own",
    "onnx_measured_median_ms": "median of its runs there",
    "agrees": "of the time measured when it was chosen",
}


def write_pruned(out: Path, summary: dict[str, Any]) -> Path:
    """Write `report.html` into the run folder `out` from its summary and `kept.png`, where there is one."""
    targets = [one["target"] for one in summary.get("targets", [summary])]  # older runs have one
    parts = [
        f"<h1>Pruned for {html.escape(' and '.join(targets))}</h1>",
        f"<p>{html.escape(_headline(summary))}</p>",
        *(
            part
            for sheet in sheets(summary)
            for part in (f"<h2>{sheet.title}</h2>", html_table(sheet.header, sheet.rows))
        ),
        "<h2>what is left of each block, of its MACs and of its milliseconds</h2>",
        html_figure(_bars(summary["blocks"]), plotly=True),
        '<p class="note">Milliseconds of blocks are those of the latency table.</p>',
        "<h2>the exported file</h2>",
        html_table(("", ""), [(label, _text(summary[name])) for name, label in EXPORTED.items() if name in summary]),
    ]
    if (out / KEPT).exists():
        parts += ["<h2>kept patches</h2>", _embedded(out / KEPT)]
        parts.append(
            '<p class="note">An image of search-validation in each row, and what is left of it behind each location.</p>'
        )
    return write_page(out / "report.html", parts)


def _headline(summary: dict[str, Any]) -> str:
    before, after = summary["before"], summary["after"]
    counts = "measured_median_ms" if BY_MEDIAN in summary else "measured_ms"
    was, now = before[counts], after[counts]
    on = f" on {summary['target']}" if len(summary.get("targets", ())) > 1 else ""
    within = "" if summary["budget_ms"] is None else f", within a budget of {summary['budget_ms']:.4g} ms"
    told = "" if after["acc"] is None else f" Test accuracy was {before['acc']:.2%} and is {after['acc']:.2%}."
    if after.get("agreement") is not None:
        told = f" On {after['agreement']:.2%} of the test images its best class is the dense network's."
    surrogate = summary.get("surrogate")
    if surrogate is not None:
        told += f" The sum of losses promised a divergence of {surrogate['promised']:.3g}; {summary['divergence']:.3g} came of it."
    return (
        f"{was:.4g} ms became {now:.4g}, {summary['speedup_measured']:.2f} times as fast{on}{within}; "
        f"MACs fell {summary['speedup_macs']:.2f} times.{told}"
    )


def _bars(blocks: Sequence[dict[str, Any]]) -> Any:
    """Two bars for each block."""
    import plotly.graph_objects as go

    drawn, names = go.Figure(), [f"block {row['block']}" for row in blocks]
    text = [row["left"] or "left out" for row in blocks]
    for share, label, colour in (("macs_share", "MACs", "#afb8c1"), ("ms_share", "milliseconds", "#0969da")):
        drawn.add_bar(
            x=names,
            y=[row[share] for row in blocks],
            text=text,
            textposition="none",
            name=label,
            marker={"color": colour},
        )
    drawn.update_layout(barmode="group", yaxis_tickformat=".0%", template="plotly_white", height=380, margin={"t": 20})
    return drawn


def _embedded(picture: Path) -> str:
    content = base64.b64encode(picture.read_bytes()).decode()
    return f'<img alt="kept patches" src="data:image/png;base64,{content}">'


def _text(value: Any) -> str:
    if value is None:
        return "not timed: the target runs no ONNX files"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
