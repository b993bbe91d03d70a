"""How pictures look: one style for files and for light and dark pages, drawn without a screen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

from hpc_rl.analysis.sections import Draw

# Okabe and Ito (2008): distinguishable with every kind of colour vision; yellow, too faint on white, comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C8C", "#F0E442")
_INK = {"light": "#1f2328", "dark": "#e6e6e6"}
_PAPER = {"light": "#ffffff", "dark": "#16191d"}
Theme = Literal["light", "dark"]


def style(theme: Theme) -> Any:
    """matplotlib's rcParams of a theme."""
    from cycler import cycler

    ink, paper = _INK[theme], _PAPER[theme]
    texts = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    return {
        **dict.fromkeys(texts, ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.color": ink,
        "legend.frameon": False,
        "font.size": 10,
        "figure.constrained_layout.use": True,
    }


def png(draw: Draw, theme: Theme = "light", size: tuple[float, float] = (8, 4.5), dpi: int = 110) -> bytes:
    """The picture as a PNG file; ``size`` in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot: needs no screen

    with matplotlib.rc_context(style(theme)):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        draw(figure)
        stream = io.BytesIO()
        figure.savefig(stream, dpi=dpi, format="png")
    return stream.getvalue()


def save(draw: Draw, path: Path) -> None:
    """Write the picture. Raises OSError."""
    path.write_bytes(png(draw, dpi=150))


def env_steps(axis: Any) -> None:
    """Label the x axis as env steps, with k and M."""
    from matplotlib.ticker import EngFormatter

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set(xlabel="env steps")


def axes(figure: Any, count: int, columns: int = 2, wide: float = 4.4, high: float = 3.6) -> list[Any]:
    """``count`` panels in rows of ``columns``; one panel keeps the figure's size."""
    columns = min(columns, count)
    rows = -(-count // columns)
    if count > 1:
        figure.set_size_inches(max(wide * columns, 8), high * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.remove()
    return panels[:count]


def legend(figure: Any) -> None:
    """One legend over all panels, above them, of every label once; none where there is one label."""
    handles = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if len(handles) > 1:
        longest = max(map(len, handles))
        figure.legend(
            handles.values(), handles, loc="outside upper center", ncols=max(1, min(len(handles), 100 // (longest + 5)))
        )


def hours(axis: Any, most: float) -> float:
    """Label the x axis as wall-clock, in the unit that suits ``most`` hours; what hours are multiplied by for it."""
    unit, factor = ("hours", 1.0) if most >= 2 else ("minutes", 60.0)
    axis.set(xlabel=f"{unit} of training")
    return factor
