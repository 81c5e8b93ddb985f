"""Knobs to turn and pictures to paint on: controls where a kernel and ipywidgets are at hand, and always a fixed
picture beside them.

The picture is what a notebook stores: a reader without a kernel (GitHub, a PDF) sees what the controls do."""

from __future__ import annotations

import base64
import io
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import InputError
from . import fast, figures

Draw = Callable[..., Tensor]  # settings -> images (N, 3, H, W) in [-1, 1]


def knobs(
    draw: Draw,
    choices: Mapping[str, Sequence[Any] | str],
    rows: Sequence[Mapping[str, Any]],
    words: str,
    scale: int | None = None,
) -> Any:
    """Shows one row of draw(**settings) for each of `rows`, then, where it can, a control for each of `choices`.

    choices: name -> the values it may take; words make a menu, numbers a slider, and one string is a line to type in,
    which begins with it. rows: settings; what a row leaves out is the first row's. words: of the fixed grid. Returns
    the controls, or None where there are none: in fast mode, without ipywidgets or a kernel, or with
    LDM_LITE_WIDGETS=0 (notebooks that are executed to be stored)."""
    for row in rows:
        for name in row:
            if name not in choices:
                raise ValueError(f"{name}: not one of the knobs {', '.join(choices)}")
    rows = [dict(rows[0]) | dict(row) for row in rows]
    varied = [name for name in rows[0] if any(row[name] != rows[0][name] for row in rows)]
    left = ["\n".join(textwrap.fill(f"{name} {row[name]}", 20) for name in varied) for row in rows]
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


def controls(draw: Draw, choices: Mapping[str, Sequence[Any] | str], start: Mapping[str, Any]) -> Any:
    """The knobs, the picture they make and the words that say what it is, as one widget."""
    import ipywidgets

    def knob(name: str, values: Sequence[Any] | str) -> Any:
        if isinstance(values, str):
            wide = ipywidgets.Layout(width="90%")
            return ipywidgets.Text(start.get(name, values), description=name, continuous_update=False, layout=wide)
        kind = ipywidgets.Dropdown if isinstance(values[0], str) else ipywidgets.SelectionSlider
        more = {} if kind is ipywidgets.Dropdown else {"continuous_update": False}  # draw when the hand lets go
        return kind(options=list(values), value=start.get(name, values[0]), description=name, **more)

    parts = {name: knob(name, values) for name, values in choices.items()}
    picture, text = ipywidgets.Image(format="png"), ipywidgets.Label()  # no Output: it flickers, and Colab's is slow

    def redraw(_: Any = None) -> None:
        settings = {name: part.value for name, part in parts.items()}
        text.value = "drawing …"
        try:
            figure = figures.grid(draw(**settings))
        except InputError as error:  # what was typed cannot be drawn; the last picture stays
            text.value = str(error)
            return
        width, height = figure.get_size_inches()
        picture.value = figures.png(figure)
        picture.layout.width, picture.layout.height = f"{width * figures.DPI:.0f}px", f"{height * figures.DPI:.0f}px"
        text.value = ", ".join(f"{name} {value}" for name, value in settings.items())

    for part in parts.values():
        part.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*parts.values(), picture, text])


# Painting -----------------------------------------------------------------------------------------------------------

CANVAS = (
    "With anywidget, a canvas to paint on stands here when the notebook runs: pip install anywidget (on Colab then "
    "also: from google.colab import output; output.enable_custom_widget_manager())"
)


@dataclass
class Painting:
    """What a painter shows. start: (H, W) labels. canvas: the widget, None where there is none."""

    start: Tensor
    canvas: Any = None

    @property
    def labels(self) -> Tensor:
        """(H, W) int64, as they are painted now; the start where nobody paints."""
        if self.canvas is None:
            return self.start.clone()
        painted = bytearray(base64.b64decode(self.canvas.labels))
        return torch.frombuffer(painted, dtype=torch.uint8).long().view(self.start.shape)


def painter(
    start: Tensor, colours: Sequence[str], names: Sequence[str], words: str, under: Tensor | None = None
) -> Painting:
    """Shows labels (H, W) in their colours and, where it can, a canvas on which a brush changes them.

    colours: #rrggbb, or #rrggbbaa to see what is below; names: of the labels. words: of the fixed picture. under: an
    image (3, H, W) in [-1, 1] below the labels, for a mask. There is no canvas in fast mode, with LDM_LITE_WIDGETS=0,
    without a kernel or without anywidget; a line says how to get it. ValueError for labels without name or colour."""
    if len(colours) != len(names) or not 0 <= int(start.min()) <= int(start.max()) < len(names) <= 256:
        raise ValueError(f"start: has labels {int(start.min())} to {int(start.max())}; names and colours: one for each")
    painting = Painting(start.long().cpu())
    figures.show(legend(coloured(start, colours, under), colours, names), words)
    if live():
        with suppress(ImportError):
            painting.canvas = easel(painting.start, colours, names, under)
    if painting.canvas is None or "google.colab" in sys.modules:
        print(CANVAS)
    if painting.canvas is not None:
        from IPython.display import display

        display(painting.canvas)
    return painting


def coloured(labels: Tensor, colours: Sequence[str], under: Tensor | None = None) -> Tensor:
    """(…, 3, H, W) in [-1, 1]: labels (…, H, W) in their colours, over images, or over white."""
    from PIL import ImageColor

    rgba = torch.tensor([ImageColor.getcolor(colour, "RGBA") for colour in colours]) / 255
    drawn = rgba[labels.long().cpu()].movedim(-1, -3)
    rgb, share = drawn[..., :3, :, :] * 2 - 1, drawn[..., 3:, :, :]
    return share * rgb + (1 - share) * (torch.ones(()) if under is None else under.detach().float().cpu())


def legend(image: Tensor, colours: Sequence[str], names: Sequence[str]) -> Any:
    """The figure of an image (3, H, W) with the names of its colours beside it."""
    from matplotlib.patches import Patch

    columns = -(-len(names) // 14)
    figure, axis = figures.canvas(3.1 * image.shape[2] / image.shape[1] + 1.4 * columns, 3.1)
    axis.imshow(figures.pixels(image), interpolation="nearest")
    axis.axis("off")
    patches = [Patch(facecolor=c, edgecolor=figures.LINE, label=name) for c, name in zip(colours, names)]
    figure.legend(handles=patches, loc="outside right center", ncols=columns, fontsize=9)
    return figure


def shapes(start: Tensor, drawn: Sequence[tuple[Any, ...]]) -> Tensor:
    """(H, W) int64: labels with shapes drawn over them, one after the other; what a hand does with a brush, in code.

    drawn: (form, label, points) with points x0 y0 x1 y1 … in shares of the picture: a rectangle or an ellipse from
    corner to corner, a polygon, or a stroke, whose width, a share of the height, comes last. A pixel is drawn where its
    middle is inside. ValueError for another form."""
    out, (h, w) = start.long().cpu().clone(), start.shape
    y, x = ((torch.arange(h) + 0.5) / h).view(-1, 1), (torch.arange(w) + 0.5) / w
    for form, label, points, *width in drawn:
        ends = list(zip(points[::2], points[1::2]))
        (x0, y0), (x1, y1) = ends[0], ends[-1]
        if form == "rectangle":
            inside = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
        elif form == "ellipse":
            inside = ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1
        elif form == "polygon":  # in where a line to the right crosses the border an odd number of times
            inside = torch.zeros(h, w, dtype=torch.bool)
            for (ax, ay), (bx, by) in zip(ends, ends[1:] + ends[:1]):
                if ay != by:
                    inside ^= ((ay <= y) != (by <= y)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
        elif form == "stroke":
            inside = torch.zeros(h, w, dtype=torch.bool)
            for (ax, ay), (bx, by) in zip(ends, ends[1:] or ends):
                px, py, dx, dy = (x - ax) * w / h, y - ay, (bx - ax) * w / h, by - ay
                along = ((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-12)).clamp(0, 1)
                inside |= (px - along * dx) ** 2 + (py - along * dy) ** 2 <= (width[0] / 2) ** 2
        else:
            raise ValueError(f"form: {form} is not rectangle, ellipse, polygon or stroke")
        out[inside] = label
    return out


PAINTER = """
function render({ model, el }) {
  const [h, w] = model.get("size"), colours = model.get("colours"), names = model.get("names");
  const under = new Image(), big = Math.max(1, Math.floor(448 / Math.max(h, w)));
  const start = Uint8Array.from(atob(model.get("labels")), (c) => c.charCodeAt(0));
  let labels = start.slice(), label = model.get("brush"), last = null;
  const add = (kind, parent, more = {}) => parent.appendChild(Object.assign(document.createElement(kind), more));
  const canvas = add("canvas", el, { width: w * big, height: h * big }), pen = canvas.getContext("2d");
  canvas.style.cssText = "touch-action:none;cursor:crosshair;border:1px solid #cbd5e1";
  const draw = () => {
    pen.imageSmoothingEnabled = false;
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    if (under.complete && under.naturalWidth) pen.drawImage(under, 0, 0, canvas.width, canvas.height);
    labels.forEach((value, i) => {
      pen.fillStyle = colours[value];
      pen.fillRect((i % w) * big, Math.floor(i / w) * big, big, big);
    });
  };
  const save = () => {
    model.set("labels", btoa(Array.from(labels, (value) => String.fromCharCode(value)).join("")));
    model.save_changes();
  };
  const dot = (x, y, r) => {
    for (let i = Math.max(0, Math.floor(y - r)); i <= Math.min(h - 1, y + r); i++)
      for (let j = Math.max(0, Math.floor(x - r)); j <= Math.min(w - 1, x + r); j++)
        if ((i + 0.5 - y) ** 2 + (j + 0.5 - x) ** 2 <= r * r) labels[i * w + j] = label;
  };
  const here = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * w, (event.clientY - box.top) / box.height * h];
  };
  const move = (event) => {
    if (!last) return;
    const [x0, y0] = last, [x, y] = here(event);
    const steps = Math.ceil(2 * Math.hypot(x - x0, y - y0)) || 1;
    for (let k = 0; k <= steps; k++) dot(x0 + (x - x0) * k / steps, y0 + (y - y0) * k / steps, size.value / 2);
    last = [x, y];
    draw();
  };
  canvas.onpointerdown = (event) => { canvas.setPointerCapture(event.pointerId); last = here(event); move(event); };
  canvas.onpointermove = move;
  canvas.onpointerup = canvas.onpointercancel = () => { if (last) save(); last = null; };
  const row = add("div", el), buttons = names.map((name, i) => {
    const button = add("button", row, { textContent: name, onclick: () => choose(i) });
    button.style.cssText = `margin:2px;padding:2px 8px;border-left:14px solid ${colours[i]}`;
    return button;
  });
  const choose = (i) => { label = i; buttons.forEach((b, k) => { b.style.outline = k === i ? "2px solid" : ""; }); };
  const tools = add("div", el), words = add("label", tools, { textContent: "brush " });
  const size = add("input", words, { type: "range", min: 1, max: Math.ceil(Math.max(h, w) / 4), value: 6 });
  add("button", tools, { textContent: "start again", onclick: () => { labels = start.slice(); draw(); save(); } });
  under.onload = draw;
  if (model.get("under")) under.src = "data:image/png;base64," + model.get("under");
  choose(label);
  draw();
}
export default { render };
"""


def easel(start: Tensor, colours: Sequence[str], names: Sequence[str], under: Tensor | None = None) -> Any:
    """The canvas. Its `labels` are base64 of H x W bytes. ImportError without anywidget."""
    import anywidget
    import traitlets
    from PIL import Image

    class Easel(anywidget.AnyWidget):
        _esm = PAINTER
        size = traitlets.List().tag(sync=True)
        colours = traitlets.List().tag(sync=True)
        names = traitlets.List().tag(sync=True)
        labels = traitlets.Unicode().tag(sync=True)
        brush = traitlets.Int().tag(sync=True)  # the label that it paints first
        under = traitlets.Unicode().tag(sync=True)

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    picture = io.BytesIO()
    if under is not None:
        Image.fromarray(figures.pixels(under)).save(picture, "PNG")
    return Easel(
        size=list(start.shape),
        colours=list(colours),
        names=list(names),
        labels=text(bytes(start.flatten().tolist())),
        brush=0,
        under=text(picture.getvalue()),
    )
