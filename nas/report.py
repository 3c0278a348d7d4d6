"""`report.html`: what a quickstart or a pruning found, in one file that needs nothing else."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.files import TEMPORARY, read_json
from nas.latency import LatencyTable
from nas.page import html_figure, html_table, write_page
from nas.pruning.page import write_pruned
from nas.runs import Run, read_arch
from search_spaces.arch import Arch
from search_spaces.blocks import (
    AttentionEmbed,
    BlockSpec,
    Conv,
    Embed,
    Head,
    InvertedResidual,
    MobileFormerEmbed,
    Patch,
    Stem,
)
from search_spaces.errors import InputError

__all__ = ["report_run", "sketch", "write_report"]


def report_run(path: Path) -> Path:
    """Write the report of a finished quickstart or pruning into its folder.

    Raises:
        InputError: no finished run of either kind there.
    """
    run = Run.open(path)
    kind = run.config.get("kind")
    if kind not in ("quickstart", "prune"):
        raise InputError(
            f"{path} is a {kind} run, of which there is no report; give a folder of `nas quickstart` or `nas prune`"
        )
    if run.summary is None:
        raise InputError(f"the {kind} run in {path} is unfinished; go on with `nas {kind}` and --resume")
    return write_report(path, run.summary) if kind == "quickstart" else write_pruned(path, run.summary)


def write_report(out: Path, summary: dict[str, Any]) -> Path:
    """Write `report.html` into the run folder `out` from its summary and the records below it."""
    search = Run.open(out / "search", "search")
    evaluated = [record for record in search.records() if record["event"] == "evaluated"]
    table = _table(out / "table")
    archs = [read_arch(out / result["arch"]) for result in summary["results"]]
    largest = read_arch(out / summary["largest"]["arch"])
    parts = [
        f"<h1>Networks for {html.escape(summary['target'])}</h1>",
        f"<p>{_headline(summary)}</p>",
        "<h2>Results</h2>",
        _results(summary, archs, largest),
        '<p class="note">Peak MB: what loading the exported file and running it adds to a process at most, in 10^6 bytes.</p>',
        "<h2>Latency and accuracy</h2>",
        html_figure(_front(summary, evaluated), plotly=True),
        '<p class="note">Grey: networks evaluated with the supernet\'s weights on search-validation, at their predicted latency.'
        " Blue: retrained networks on the test split, at their measured latency. Dashed: budgets.</p>",
        "<h2>Predicted and measured latency</h2>",
        html_figure(_predicted(summary), plotly=False),
        f'<p class="note">{_calibration(table)}</p>',
        "<h2>Machine</h2>",
        html_table(("", ""), [(name, _short(value)) for name, value in table["fingerprint"].items()]),
    ]
    return write_page(out / "report.html", parts)


def sketch(arch: Arch) -> str:
    """A network in one line: resolution, then per stage (a ViT is one) its width and blocks: `64 px | 32: 4D×3 4D×2 | 64: 3D×4 2 loops NLL keep 32 3D×4`."""
    return " | ".join([f"{arch.image_size} px", *(_stage(blocks) for blocks in _stages(arch))])


def _stages(arch: Arch) -> list[list[BlockSpec]]:
    stages: list[list[BlockSpec]] = []
    for spec in arch.blocks:
        opens = isinstance(spec, Stem | Embed | AttentionEmbed | MobileFormerEmbed | Patch)
        if opens or _halves(spec) or not stages:
            stages.append([])
        if not isinstance(spec, Head):
            stages[-1].append(spec)
    return stages


def _halves(spec: BlockSpec) -> bool:
    """Whether it is a block of convolutions that begins a stage."""
    return isinstance(spec, Conv | InvertedResidual) and spec.stride == 2


def _stage(blocks: Sequence[BlockSpec]) -> str:
    return " ".join(spec.label for spec in blocks)


def _headline(summary: dict[str, Any]) -> str:
    largest = summary["largest"]
    return (
        f"The largest network takes {largest['measured_ms']:.3f} ms and reaches {largest['test_acc']:.1%} on the test split. "
        f"Every exported network below was timed end to end in its target runtime. The run took {summary['seconds']:.0f} s."
    )


def _results(summary: dict[str, Any], archs: Sequence[Arch], largest: Arch) -> str:
    header = (
        "budget ms",
        "predicted ms",
        "measured ms",
        "peak MB",
        "search acc",
        "test acc",
        "ONNX max |diff|",
        "ONNX top-1 agreement",
        "network",
    )
    rows = [
        (
            f"{result['budget_ms']:.3f}",
            f"{result['predicted_ms']:.3f}",
            f"{result['measured_ms']:.3f}",
            _megabytes(result),
            f"{result['search_acc']:.1%}",
            f"{result['test_acc']:.1%}",
            f"{result['onnx_max_abs_diff']:.1e}",
            f"{result['onnx_top1_agreement']:.4f}",
            sketch(arch),
        )
        for result, arch in zip(summary["results"], archs, strict=True)
    ]
    top = summary["largest"]
    figures = (f"{top['measured_ms']:.3f}", _megabytes(top), "", f"{top['test_acc']:.1%}", "", "")
    rows.append(("largest", "", *figures, sketch(largest)))
    return html_table(header, rows)


def _megabytes(figures: dict[str, Any]) -> str:
    """Peak memory, which quickstarts of before it was measured lack."""
    return f"{figures['peak_mb']:.1f}" if "peak_mb" in figures else ""


def _front(summary: dict[str, Any], evaluated: Sequence[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    ms, accuracy = [record["ms"] for record in evaluated], [record["accuracy"] for record in evaluated]
    names = [record["arch"] for record in evaluated]
    figure.add_scatter(x=ms, y=accuracy, text=names, mode="markers", name="evaluated", marker={"color": "#afb8c1"})
    points = [*summary["results"], summary["largest"]]
    x, y = [point["measured_ms"] for point in points], [point["test_acc"] for point in points]
    figure.add_scatter(x=x, y=y, mode="lines+markers", name="retrained", marker={"color": "#0969da", "size": 10})
    for result in summary["results"]:
        figure.add_vline(x=result["budget_ms"], line_dash="dash", line_color="#57606a")
    figure.update_layout(
        xaxis_title="ms per image",
        yaxis_title="accuracy",
        yaxis_tickformat=".0%",
        template="plotly_white",
        margin={"t": 20},
    )
    return figure


def _predicted(summary: dict[str, Any]) -> Any:
    import plotly.graph_objects as go

    x = [result["predicted_ms"] for result in summary["results"]]
    y = [result["measured_ms"] for result in summary["results"]]
    ends = [0.9 * min(x + y), 1.1 * max(x + y)]
    figure = go.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line={"color": "#afb8c1", "dash": "dot"})
    figure.add_scatter(x=x, y=y, mode="markers", name="exported networks", marker={"color": "#0969da", "size": 10})
    figure.update_layout(xaxis_title="predicted ms", yaxis_title="measured ms", template="plotly_white", height=380)
    return figure


def _table(folder: Path) -> dict[str, Any]:
    """What the JSON file of the one latency table in a folder says.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = next((path for path in folder.glob("*.json") if not path.name.startswith(TEMPORARY)), None)
    if path is None:
        raise InputError(f"{folder} holds no latency table; restore it, or run `nas quickstart` in another folder")
    LatencyTable.load(path)  # which refuses a damaged one
    found: dict[str, Any] = read_json(path)
    return found


def _calibration(table: dict[str, Any]) -> str:
    return html.escape(
        f"Latency table: calibration {json.dumps(table['calibration'])}; verdict {json.dumps(table['verdict'])}."
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
