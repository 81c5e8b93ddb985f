"""The notebooks' figures: PNG at 100 dots per inch, and never without words.

Whoever draws says in a sentence or two what is drawn. The words stand below the figure, where everyone can read them
and a screen reader finds them, and are its alt text in the file. What to see in the figure is the notebook's text."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import EVERYTHING, SYLLABUS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
INK, SOFT, LINE, PALE = "#1f2937", "#6b7280", "#cbd5e1", "#f1f5f9"
BLUE, ORANGE, GREEN, RED, PURPLE = "#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED)
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
}


def canvas(width: float = 8.0, height: float = 3.0, columns: int = 1, **settings: Any) -> tuple[Figure, Any]:
    """A figure of width x height inches and its axes: one, or an array of them side by side."""
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure  # not pyplot: nothing is drawn twice, or left open

    # for the rest of the notebook: a legend, say, asks for its style only when it is made
    matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": cycler(color=COLOURS)})
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, **settings)


def png(figure: Figure) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(DPI)
    canvas, file = FigureCanvasAgg(figure), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        canvas.draw()
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    if not figure.images and not any(axis.images for axis in figure.axes):
        picture = picture.quantize(128, dither=Image.Dither.NONE)  # lines and letters: a third of the size
    else:  # in steps of 4, which nobody sees in a photograph: a fifth less
        picture = picture.point([255 if v > 253 else (v + 2) // 4 * 4 for v in range(256)] * 3)
    # no alpha channel, packed as tightly as PNG can: the notebook file carries every figure
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def show(figure: Figure, words: str) -> None:
    """Displays a figure with words below it, which are its alt text too. ValueError without words."""
    display_png(png(figure), words)


def display_png(data: bytes, words: str) -> None:
    if not words.strip():
        raise ValueError("words: a figure needs a sentence that says what is drawn")
    words = " ".join(words.split())
    if "IPython" not in sys.modules or not interactive():
        print(f"[figure] {words}")
        return
    from IPython.display import display

    # the raw form works from IPython 7 on; Image(alt=...) does not
    bundle = {"image/png": base64.b64encode(data).decode(), "text/plain": words}
    display(bundle, raw=True, metadata={"image/png": {"alt": words}})
    display({"text/markdown": caption(words), "text/plain": words}, raw=True)


def caption(words: str) -> str:
    """The line below a figure, as Markdown in which nothing but the slant is markup."""
    escaped = re.sub(r"([*_`<>[$\\])", r"\\\1", words)
    return f"*{escaped}*"


def interactive() -> bool:
    """Whether a notebook's kernel is listening."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


# Grids of pictures --------------------------------------------------------------------------------------------------


def pictures(
    images: Tensor | Sequence[Tensor],
    words: str,
    columns: int | None = None,
    above: Sequence[str] = (),
    left: Sequence[str] = (),
    scale: int | None = None,
) -> None:
    """Shows images in a grid, each pixel a square of whole size.

    images: (N, 3, H, W) in [-1, 1], or a sequence of such batches, one for each row. columns: per row. above, left:
    what is written over the columns (or over every picture, when there are N of them) and beside the rows. scale:
    pixels per pixel; by default pictures become about 128 pixels large, and the whole at most 1100 wide."""
    show(grid(images, columns, above, left, scale), words)


def grid(
    images: Tensor | Sequence[Tensor],
    columns: int | None = None,
    above: Sequence[str] = (),
    left: Sequence[str] = (),
    scale: int | None = None,
) -> Figure:
    """The figure that `pictures` shows."""
    import matplotlib
    from matplotlib.figure import Figure

    if not isinstance(images, Tensor):
        columns = columns or max(len(row) for row in images)
        h, w = max((row.shape[-2:] for row in images), key=lambda size: size[1])
        images = torch.cat([enlarged(row, h, w) for row in images])
    n, _, h, w = images.shape
    columns = min(n, columns or (n if n <= 6 else 8 if n % 8 == 0 else 6))
    rows = -(-n // columns)
    gap, line, margin = 6, 19, 8
    plain = [re.sub(r"\$.*?\$", "xx", text) for text in left]  # a formula is short, whatever it takes to write it
    beside = margin + max((8 + int(7.4 * max(map(len, text.split("\n")))) for text in plain), default=0)
    scale = scale or max(1, min(128 // h, (1100 - beside) // columns // w) or 1)
    h, w = h * scale, w * scale
    each = len(above) == n and rows > 1
    over = [line * (1 + max(text.count("\n") for text in above)) if above else 0] * rows
    if not each:
        over[1:] = [0] * (rows - 1)
    width = beside + columns * (w + gap) - gap + margin
    height = margin + sum(over) + rows * (h + gap) - gap + margin
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        top = margin
        for row in range(rows):
            top += over[row]
            for column in range(min(columns, n - row * columns)):
                i, x = row * columns + column, beside + column * (w + gap)
                square = pixels(images[i]).repeat(scale, 0).repeat(scale, 1)
                figure.figimage(square, x, height - top - h)  # unlike imshow, never resampled
                if each or (row == 0 and column < len(above)):
                    text = above[i if each else column]
                    figure.text((x + w / 2) / width, 1 - (top - 4) / height, text, ha="center", va="bottom", fontsize=9)
            if row < len(left):
                y = 1 - (top + h / 2) / height
                figure.text((beside - 8) / width, y, left[row], ha="right", va="center", fontsize=9)
            top += h + gap
    return figure


def pixels(image: Tensor) -> Any:
    """(3, H, W) in [-1, 1] -> a uint8 array (H, W, 3) of even numbers: one bit less, and a file a quarter smaller."""
    levels = (image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return (levels.round().to(torch.uint8) // 2 * 2).permute(1, 2, 0).numpy()


def enlarged(images: Tensor, h: int, w: int) -> Tensor:
    """Images (B, C, h, w). Where the old size divides the new one, every pixel is a rectangle of one colour."""
    return torch.nn.functional.interpolate(images.detach().float().cpu(), (h, w), mode="nearest")


def latent(z: Tensor, side: int = 128, most: float = 2.5) -> Tensor:
    """Latents (B, C, h, w) as pictures (B, 3, H, W) in [-1, 1]: the channels in a square, 4 as 2 x 2, lines between.

    0 is white, positive orange, negative blue; -most and most are the full colours. side: the width to enlarge to."""
    b, c, h, w = z.shape
    across = int(c**0.5 + 0.999)
    down = -(-c // across)
    scale = max(1, side // (across * w))
    values = torch.zeros(b, across * down, h * scale, w * scale)
    values[:, :c] = enlarged(z, h * scale, w * scale).clamp(-most, most) / most
    warm, cool = (torch.tensor(rgb).view(1, 3, 1, 1, 1) * 2 - 1 for rgb in ((0.78, 0.33, 0.02), (0.05, 0.30, 0.69)))
    values = values[:, None]
    colours = 1 + values.clamp(min=0) * (warm - 1) - values.clamp(max=0) * (cool - 1)
    if scale > 1:  # a line where a channel begins
        colours[:, :, torch.arange(across * down) % across > 0, :, 0] = -0.2
        colours[:, :, across:, 0] = -0.2
    rows = colours.view(b, 3, down, across, h * scale, w * scale).permute(0, 1, 2, 4, 3, 5)
    return rows.reshape(b, 3, down * h * scale, across * w * scale)


# Where we are -------------------------------------------------------------------------------------------------------

PLACES = {  # name: (centre x, centre y, width, height, text)
    "image": (0.75, 2.35, 1.1, 0.72, "image\n64 × 64 × 3"),
    "encoder": (2.45, 2.35, 1.25, 0.72, "encoder"),
    "latent": (4.15, 2.35, 1.1, 0.72, "latent $z_0$\nf times smaller"),
    "noise": (6.0, 2.35, 1.45, 0.72, "add noise\n$z_t = α z_0 + σ ε$"),
    "denoiser": (6.0, 0.75, 1.45, 0.72, "denoiser\n(UNet)"),
    "sampler": (4.15, 0.75, 1.1, 0.72, "sampler\n$z_1 \\to z_0$"),
    "decoder": (2.45, 0.75, 1.25, 0.72, "decoder"),
    "judge": (0.75, 0.75, 1.1, 0.72, "new image\nhow good?"),
    "condition": (8.1, 0.75, 1.25, 0.72, "condition\nclass, text, …"),
}
ARROWS = (
    ("image", "encoder"),
    ("encoder", "latent"),
    ("latent", "noise"),
    ("noise", "denoiser"),
    ("condition", "denoiser"),
    ("denoiser", "sampler"),
    ("sampler", "decoder"),
    ("decoder", "judge"),
)


def pipeline(number: str, numbers: bool = False) -> None:
    """Shows the whole model with the parts that notebook `number` takes apart in colour.

    numbers: write beside each part which notebooks take it apart."""
    notebook = next(n for n in SYLLABUS if n.number == number)
    figure = drawing(notebook.parts, numbers)
    if numbers:
        listed = "; ".join(f"{part} {', '.join(where)}" for part, where in by_part().items())
        words = f"The model, with the numbers of the notebooks that take each part apart: {listed}."
    else:
        words = (
            "The model. Learning, above: an image, the encoder, its latent, added noise, and the denoiser that learns "
            "to take the noise away. Generating, below, from right to left: the condition steers the denoiser, the "
            "sampler asks it again and again, and the decoder turns the latent into an image."
        )
        if notebook.parts != EVERYTHING:
            words += f" In colour, what this notebook takes apart: {', '.join(notebook.parts)}."
    show(figure, words)


def by_part() -> dict[str, list[str]]:
    """The notebooks that are about each part; those about everything are about none in particular."""
    return {p: [n.number for n in SYLLABUS if p in n.parts and n.parts != EVERYTHING] for p in EVERYTHING}


def drawing(lit: Sequence[str], numbers: bool) -> Figure:
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    def box(x: float, y: float, w: float, h: float, **look: Any) -> None:
        style = "round,pad=0,rounding_size=0.1"
        axis.add_patch(FancyBboxPatch((x - w / 2, y - h / 2), w, h, boxstyle=style, **look))

    def write(x: float, y: float, text: str, **look: Any) -> None:
        axis.text(
            x, y, text, ha="center", va="center", **({"fontsize": 8.5, "color": SOFT, "linespacing": 1.35} | look)
        )

    figure, axis = canvas(9.0, 3.5)
    axis.set(xlim=(0, 9), ylim=(0, 3.5), aspect="equal")
    axis.axis("off")
    for middle, width, name, face in ((1.68, 3.25, "pixels", "#fff7ed"), (5.18, 3.55, "latent space", "#eff6ff")):
        box(middle, 1.75, width, 3.4, fc=face, ec="none")
        write(middle, 3.28, name, fontsize=9)
    write(8.1, 2.35, "learning: above,\nleft to right\n\ngenerating: below,\nright to left")
    for start, end in ARROWS:
        arrow(axis, FancyArrowPatch, start, end)
    for name, (x, y, w, h, text) in PLACES.items():
        learned = name in ("encoder", "decoder", "denoiser", "condition")
        face, edge, ink = (BLUE if learned else "#dbeafe", BLUE, "white" if learned else INK)
        face, edge, ink = (face, edge, ink) if name in lit else ("white", LINE, SOFT)
        box(x, y, w, h, fc=face, ec=edge, lw=1.4)
        write(x, y, text, color=ink)
        if numbers:
            outside = y + (h / 2 + 0.16) * (1 if y > 1.5 else -1)
            write(x, outside, "  ".join(by_part()[name]), fontsize=9, color=ORANGE, weight="bold")
    return figure


def arrow(axis: Axes, patch: Any, start: str, end: str) -> None:
    (x0, y0, w0, h0, _), (x1, y1, w1, h1, _) = PLACES[start], PLACES[end]
    if y0 == y1:
        side = 1 if x1 > x0 else -1
        a, b = (x0 + side * w0 / 2, y0), (x1 - side * w1 / 2, y1)
    else:
        side = 1 if y1 > y0 else -1
        a, b = (x0, y0 + side * h0 / 2), (x1, y1 - side * h1 / 2)
    axis.add_patch(
        patch(
            a,
            b,
            arrowstyle="<|-|>" if end == "sampler" else "-|>",
            mutation_scale=11,
            color=SOFT,
            lw=1.2,
            shrinkA=2,
            shrinkB=2,
        )
    )
