"""Knobs to turn: sliders where a kernel and ipywidgets are at hand, and always a fixed grid of pictures beside them.

The grid is what a notebook stores: a reader without a kernel (GitHub, a PDF) sees what the knobs do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from . import fast, figures

Draw = Callable[..., Tensor]  # settings -> images (N, 3, H, W) in [-1, 1]


def knobs(
    draw: Draw,
    choices: Mapping[str, Sequence[Any]],
    rows: Sequence[Mapping[str, Any]],
    words: str,
    scale: int | None = None,
) -> Any:
    """Shows one row of draw(**settings) for each of `rows`, then, where it can, a control for each of `choices`.

    choices: name -> the values it may take; words make a menu, numbers a slider. rows: settings; what a row leaves out
    is the first row's. words: of the fixed grid. Returns the controls, or None where there are none: in fast mode,
    without ipywidgets or a kernel, or with LDM_LITE_WIDGETS=0 (notebooks that are executed to be stored)."""
    for row in rows:
        for name in row:
            if name not in choices:
                raise ValueError(f"{name}: not one of the knobs {', '.join(choices)}")
    rows = [dict(rows[0]) | dict(row) for row in rows]
    varied = [name for name in rows[0] if any(row[name] != rows[0][name] for row in rows)]
    left = ["\n".join(f"{name} {row[name]}" for name in varied) for row in rows]
    figures.pictures([draw(**row) for row in rows], words, left=left, scale=scale)
    panel = controls(draw, choices, rows[0]) if live() else None
    if panel is not None:
        from IPython.display import display

        display(panel)
    return panel


def live() -> bool:
    """Whether somebody may be there to turn a knob."""
    if fast() or os.environ.get("LDM_LITE_WIDGETS") == "0":
        return False
    try:
        import ipywidgets  # noqa: F401

        return figures.interactive()
    except ImportError:
        return False


def controls(draw: Draw, choices: Mapping[str, Sequence[Any]], start: Mapping[str, Any]) -> Any:
    """The knobs, the picture they make and the words that say what it is, as one widget."""
    import ipywidgets

    def knob(name: str, values: Sequence[Any]) -> Any:
        kind = ipywidgets.Dropdown if isinstance(values[0], str) else ipywidgets.SelectionSlider
        more = {} if kind is ipywidgets.Dropdown else {"continuous_update": False}  # draw when the hand lets go
        return kind(options=list(values), value=start.get(name, values[0]), description=name, **more)

    parts = {name: knob(name, values) for name, values in choices.items()}
    picture, text = ipywidgets.Image(format="png"), ipywidgets.Label()  # no Output: it flickers, and Colab's is slow

    def redraw(_: Any = None) -> None:
        settings = {name: part.value for name, part in parts.items()}
        text.value = "drawing …"
        figure = figures.grid(draw(**settings))
        width, height = figure.get_size_inches()
        picture.value = figures.png(figure)
        picture.layout.width, picture.layout.height = f"{width * figures.DPI:.0f}px", f"{height * figures.DPI:.0f}px"
        text.value = ", ".join(f"{name} {value}" for name, value in settings.items())

    for part in parts.values():
        part.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*parts.values(), picture, text])
