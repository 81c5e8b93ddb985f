"""The whole model: first stage, denoiser, diffusion and conditioner side by side. It adds no mathematics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from math import ceil, floor
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import samplers
from .autoencoder import Autoencoder, AutoencoderConfig, Pixels, PixelsConfig
from .condition import Condition
from .conditioners import CONDITIONERS, Batch, Together
from .config import InputError, from_dict, one_or_more, read, suggest, to_dict, whole, write
from .diffusion import Diffusion, RectifiedFlow, VariancePreserving
from .features import ObjectFinder, ObjectFinderConfig, SceneReader, SceneReaderConfig
from .folders import found, load_weights
from .samplers import Step
from .unet import UNet, UNetConfig
from .windows import blended, windowed

T = TypeVar("T")
# What a saved config may name: the class to build and the settings it is built from.
PARTS: dict[str, tuple[type, type]] = {
    "Autoencoder": (Autoencoder, AutoencoderConfig),
    "Pixels": (Pixels, PixelsConfig),
    "SceneReader": (SceneReader, SceneReaderConfig),
    "ObjectFinder": (ObjectFinder, ObjectFinderConfig),
    "UNet": (UNet, UNetConfig),
    **{kind.__name__: (kind, config) for config, kind in CONDITIONERS.items()},
}
SCHEDULES = {c.__name__: c for c in (VariancePreserving, RectifiedFlow)}
SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {
    "ddim": samplers.ddim,
    "heun": samplers.heun,
    "dpm_solver": samplers.dpm_solver,
    "plms": samplers.plms,
}


class LatentDiffusion(nn.Module):
    """first_stage: encode, decode, f, channels. denoiser: (z, clock, Condition) -> output.

    conditioner: batch -> Condition, and blank: batch -> the batch with its conditions emptied."""

    def __init__(self, first_stage: nn.Module, denoiser: nn.Module, diffusion: Diffusion, conditioner: nn.Module):
        super().__init__()
        self.first_stage, self.denoiser, self.conditioner = first_stage.requires_grad_(False), denoiser, conditioner
        self.diffusion = diffusion

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def unit(self) -> int:
        """The sides of an image, in pixels, must be divisible by this."""
        return self.first_stage.f * getattr(getattr(self.denoiser, "config", None), "factor", 1)

    def latent(self, batch: Batch) -> Tensor:
        """z0 (B, C, h, w): batch["z"] where latents were cached, otherwise a sample of the first stage's posterior.

        A cache that has the posterior's deviation too, batch["z_std"], gives a sample as well."""
        if "z_std" in batch:
            return batch["z"] + batch["z_std"] * torch.randn_like(batch["z"])
        if "z" in batch:
            return batch["z"]
        if "image" not in batch:
            raise InputError(f"LatentDiffusion needs the key image or z; the batch has {', '.join(batch)}")
        with torch.no_grad():
            return self.first_stage.encode(batch["image"], sample=True)

    def forward(self, batch: Batch, dropout: float = 0.0, times: Tensor | None = None) -> Tensor:
        """(B,) the loss of each sample. dropout: the share of conditions blanked, for guidance later.

        times (B,) replaces the schedule's random training times."""
        z0 = self.latent(batch)
        t = self.diffusion.schedule.draw(len(z0)) if times is None else times
        batch = self.conditioner.dropped(batch, dropout) if dropout else batch
        cond = self.conditioner(self.encoded(batch))
        return self.diffusion.loss(lambda z, clock: self.denoiser(z, clock, cond), z0, torch.randn_like(z0), t)

    def encoded(self, batch: Batch, cut: tuple[int, int] | None = None) -> Batch:
        """The batch with latents, as KEY_z, of the images that the conditioner wants encoded and that have none yet.

        cut: the side and overlap, in the latent, of windows to encode by."""
        for key in self.conditioner.encodes:
            if f"{key}_z" not in batch and key in batch:
                with torch.no_grad():
                    batch = batch | {f"{key}_z": self.encode(batch[key], cut)}
        return batch

    def encode(self, image: Tensor, cut: tuple[int, int] | None = None) -> Tensor:
        """The latents of images (B, 3, H, W) in [-1, 1]. cut: as in `encoded`."""
        stage, f = self.first_stage, self.first_stage.f
        if cut is None:
            return stage.encode(image)
        pixels = lambda cells: slice(cells.start * f, cells.stop * f)
        part = lambda rows, columns: stage.encode(image[..., pixels(rows), pixels(columns)])
        return blended(part, image.shape[2] // f, image.shape[3] // f, *cut)

    def conditions(self, batch: Batch, negative: Batch | None = None) -> tuple[Condition, Condition | None]:
        """(told, blank): the two halves of guidance. negative: takes the place of the blank, in what it holds.

        blank is None for a model whose conditions cannot be left out."""
        batch, blank = self.halves(batch, negative)
        return self.conditioner(batch), None if blank is batch else self.conditioner(blank)

    def without(self, batch: Batch, negative: Batch | None = None) -> list[Condition]:
        """For a scale for each condition: told nothing, told the first that can be left out, the first two, …"""
        if not isinstance(self.conditioner, Together):
            raise InputError("guidance: one scale is enough for one condition")
        return [self.conditioner(some) for some in self.conditioner.without(*self.halves(batch, negative))]

    def halves(self, batch: Batch, negative: Batch | None = None) -> tuple[Batch, Batch]:
        """The batch, and what takes its place in the other half of guidance; a negative's single row is every row's.

        InputError for a negative of another number of rows."""
        batch = self.encoded(moved(batch, self.device))
        blank = self.conditioner.blank(batch)
        if negative is not None:
            rows = next((len(batch[key]) for key in self.conditioner.keys if key in batch), 1)
            for key, value in negative.items():
                if len(value) not in (1, rows):
                    raise InputError(
                        f"negative: {len(value)} for {key}, and conditions for {rows}; give one, or {rows}"
                    )
            negative = {k: v if len(v) == rows else repeated(v, rows) for k, v in negative.items()}
            kept = {k: v for k, v in blank.items() if k.removesuffix("_z") not in negative}
            blank = self.encoded(kept | moved(negative, self.device))
        return batch, blank

    @torch.no_grad()
    def trajectory(
        self,
        batch: Batch,
        sampler: str | Callable[..., Iterator[Step]] = "ddim",
        steps: int = 50,
        guidance: float | Sequence[float] = 1.0,
        seed: int = 0,
        size: int | tuple[int, int] = 64,
        n: int | None = None,
        wrap: Callable[[samplers.Predict], samplers.Predict] | None = None,
        grid: str | Tensor = "uniform",
        start: Tensor | None = None,
        rescale: float = 0.0,
        interval: tuple[float, float] = (0.0, 1.0),
        batch_size: int | None = None,
        negative: Batch | None = None,
        window: int | None = None,
        overlap: int | None = None,
        first: int = 0,
        **own: Any,
    ) -> Iterator[Step]:
        """The sampler's steps in latent space, from pure noise at t = 1 to data at t = 0.

        batch: the conditions; its length, or n, is the number of samples. size: of the image in pixels, (H, W) or a
        square's side. seed: sample i depends on (seed, first + i) alone, not on how many are drawn with it: some of
        many can be drawn by themselves. guidance: one scale, or one for each condition that can be left out. negative:
        what guidance leads away from in place of nothing, such as {"caption": […]}, with one row or one for each
        sample. wrap: around predict (keep_known). grid: of `samplers.GRIDS` by its name, or the times themselves, which
        take the place of steps. start: z at the grid's first time in place of noise (partly_noised); it says n and the
        size. rescale, interval: of guidance, see `predictor`. batch_size: how many go through the denoiser at once,
        None is all. window: pixels; the denoiser sees a larger picture in windows of this side that overlap by so many
        pixels, by default a quarter. own: the sampler's arguments (eta). InputError for an unknown sampler, grid or
        argument, for steps, n, a size, window or start that cannot be, and for a negative without guidance."""
        name = sampler if isinstance(sampler, str) else getattr(sampler, "__name__", "sampler")
        if isinstance(sampler, str):
            if sampler not in SAMPLERS:
                raise suggest(sampler, SAMPLERS, "sampler")
            sampler = SAMPLERS[sampler]
        takes = inspect.signature(sampler).parameters
        for argument in own:
            if argument not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
                others = [known for known, s in SAMPLERS.items() if argument in inspect.signature(s).parameters]
                raise InputError(f"{argument}: {name} has no such argument; {', '.join(others) or 'no sampler'} has")
        schedule, channels, f = self.diffusion.schedule, self.first_stage.channels, self.first_stage.f
        times = samplers.grid(grid, schedule, steps) if isinstance(grid, str) else samplers.falling(grid)
        if self.diffusion.predicts == "eps" and schedule(times[:1])[0] == 0:
            raise InputError("predicts: eps says nothing of z0 in pure noise, t = 1; train v or begin the grid below")
        lengths = [len(v) for v in batch.values() if isinstance(v, (Tensor, list))]
        if start is not None:
            if start.ndim != 4 or start.shape[1] != channels:
                needed = f"(n, {channels}, h, w)"
                raise InputError(f"start: the shape {tuple(start.shape)} is not {needed}, that of the model's latents")
            lengths, size = [len(start)], (start.shape[2] * f, start.shape[3] * f)
        n = n if n is not None else (lengths[0] if lengths else 1)
        one_or_more(n=n, batch_size=batch_size)
        side = (size, size) if isinstance(size, int) else size
        cut = None if window is None else self.windows(window, overlap)
        unit = f if window is not None and min(side) >= window else self.unit  # the windows are what must be divisible
        if side[0] % unit or side[1] % unit or min(side) < unit:
            by_windows = unit > f and "boxes" not in self.conditioner.keys  # each would show the whole layout
            fitting = f"take {near(side, unit)}" + (f", or a window: then {f} is enough" if by_windows else "")
            raise InputError(f"size: {side[0]} x {side[1]} is not divisible by {unit}; {fitting}")
        if cut is not None and max(side) > window and "boxes" in self.conditioner.keys:
            raise InputError("window: each would show the whole layout; give a size alone, and it is drawn at once")
        scales = [guidance] if isinstance(guidance, (int, float)) else list(guidance)
        if negative is not None and set(scales) == {1}:
            raise InputError("negative: guidance 1 leads away from nothing; give a guidance above 1")
        if cut is not None:  # nothing that is as large as the picture goes through the first stage at once
            batch = self.encoded(moved(batch, self.device), cut)
            negative = None if negative is None else self.encoded(moved(negative, self.device), cut)
        told, blank = self.conditions(batch, negative)
        several = None if isinstance(guidance, (int, float)) else self.without(batch, negative)
        for tensor in told.open().values():
            if len(tensor) != n:
                raise InputError(f"n: {n} samples are asked for, and conditions for {len(tensor)} are given")
            if tensor.ndim == 4 and tensor.shape[2:] != (side[0] // f, side[1] // f):
                h, w = (f * cells for cells in tensor.shape[2:])
                raise InputError(f"size: {side[0]} x {side[1]}, and what the model is told is for {h} x {w}; give that")
        if start is not None and len(start) != n:
            raise InputError(f"n: {n} samples are asked for, and a start for {len(start)} is given")
        if blank is None:
            guidance = 1.0  # both halves would be the same
        denoiser = self.denoiser if batch_size is None else parted(self.denoiser, batch_size)
        if (maps := getattr(self.denoiser, "recording", None)) is not None:
            if cut is not None:
                raise InputError("window: attention maps are recorded of whole pictures; draw them without windows")
            denoiser = maps.joined(denoiser, n)
        if cut is not None:
            denoiser = windowed(denoiser, *cut)
        predict = samplers.predictor(denoiser, self.diffusion, told, several or blank, guidance, rescale, interval)
        noise = Noise(seed, (n, channels, side[0] // f, side[1] // f), first)
        drawn = noise(torch.empty(0, device=self.device))
        if "noise" in takes:
            own = {"noise": noise} | own
        z = drawn if start is None else start.to(drawn)
        yield from sampler(wrap(predict) if wrap else predict, z, times, schedule, **own)

    def windows(self, window: int, overlap: int | None = None) -> tuple[int, int]:
        """A window's side and overlap in the latent from those in pixels. InputError for what the model cannot take."""
        f = self.first_stage.f
        if window < 1 or window % self.unit:
            raise InputError(f"window: {window} is not a multiple of {self.unit}")
        overlap = window // (4 * f) * f if overlap is None else overlap
        if overlap % f or not 0 <= overlap < window:
            raise InputError(f"overlap: {overlap} is not a multiple of {f} from 0 to below the window, {window}")
        return window // f, overlap // f

    @torch.no_grad()
    def sample(
        self,
        batch: Batch,
        batch_size: int = 64,
        watch: Callable[[Iterator[Step]], Iterator[Step]] = iter,
        **settings: Any,
    ) -> Tensor:
        """Images (n, 3, H, W) in [-1, 1] on the CPU. settings: of `trajectory`.

        batch_size: how many go through the denoiser, and through the decoder, at once; through the decoder fewer where
        memory has no room for so many. watch: around the steps, such as a progress bar."""
        z = samplers.last(watch(self.trajectory(batch, batch_size=batch_size, **settings)))
        decode = lambda part: self.decoded(z[part], settings.get("window"), settings.get("overlap"))
        return torch.cat(InParts(batch_size)(decode, len(z)))

    def decoded(self, z: Tensor, window: int | None = None, overlap: int | None = None) -> Tensor:
        """Images in [-1, 1] on the CPU; by windows, in pixels, if they are given."""
        stage = self.first_stage
        if window is None:
            return stage.decode(z).float().clamp(-1, 1).cpu()
        cut = lambda rows, columns: stage.decode(z[..., rows, columns]).float().clamp(-1, 1).cpu()
        return blended(cut, *z.shape[2:], *self.windows(window, overlap), scale=stage.f)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes model.safetensors and config.json, each whole or not at all. dtype: of the floating point weights."""
        store(self, folder, dtype)

    @staticmethod
    def load(name: str | Path, diffusion: Diffusion | None = None) -> LatentDiffusion:
        """From a folder that `save` wrote or `train` left, or by the name of shipped weights. In eval mode, float32.

        diffusion: takes the place of the saved one, to sample along another schedule. InputError for a folder that is
        none, a broken file, weights of another model, and a diffusion that predicts what these were not trained for."""
        model = restored(name)
        if not isinstance(model, LatentDiffusion):
            raise InputError(f"{found(name)}: holds {type(model).__name__}, not a whole model")
        if diffusion is not None:
            trained = model.diffusion.predicts
            if diffusion.predicts != trained:
                raise InputError(
                    f"predicts: {diffusion.predicts}, but {name} was trained to predict {trained}; use that"
                )
            model.diffusion = diffusion
        return model


def moved(batch: Mapping[str, Any], place: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    late = place.type == "cuda"  # towards a CPU, what reads it would not wait for it
    return {k: v.to(place, non_blocking=late) if isinstance(v, Tensor) else v for k, v in batch.items()}


def near(side: Sequence[int], unit: int) -> str:
    """The sizes just below and above one, with sides divisible by a number."""
    sizes = ([max(unit, way(n / unit) * unit) for n in side] for way in (floor, ceil))
    return " or ".join(dict.fromkeys(f"{h} x {w}" for h, w in sizes))


def repeated(row: Any, n: int) -> Any:
    """One row, a tensor's or a list's, n times."""
    return row.expand(n, *row.shape[1:]) if isinstance(row, Tensor) else list(row) * n


def parted(denoiser: Callable[..., Tensor], rows: int) -> Callable[[Tensor, Tensor, Condition], Tensor]:
    """The denoiser, called with at most so many rows at once: how many samples are drawn costs it no memory."""

    def called(z: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        parts = [slice(i, i + rows) for i in range(0, len(z), rows)]
        return torch.cat([denoiser(z[part], clock[part], cond.map(itemgetter(part))) for part in parts])

    return called


class InParts:
    """in_parts(work, n): [work(part), …] for slices of at most `most` of n rows; for half as many, from there on, where
    one takes more memory than there is. OutOfMemoryError where a row alone does."""

    def __init__(self, most: int):
        self.most = most

    def __call__(self, work: Callable[[slice], T], n: int) -> list[T]:
        found, done = [], 0
        while done < n:
            part = slice(done, min(done + self.most, n))
            rows = part.stop - done
            with suppress(torch.OutOfMemoryError) if rows > 1 else nullcontext():
                found.append(work(part))
                done = part.stop
                continue
            self.most = (rows + 1) // 2
            if torch.cuda.is_available():  # outside of an `except`, which keeps what the work held
                torch.cuda.empty_cache()
        return found


class Noise:
    """noise(like): fresh N(0, 1) of `shape`; row i is drawn from (seed, first + i) alone: batches of any size agree."""

    def __init__(self, seed: int, shape: tuple[int, ...], first: int = 0):
        self.shape = shape
        self.generators = [torch.Generator().manual_seed(mix(seed, first + i)) for i in range(shape[0])]

    def __call__(self, like: Tensor) -> Tensor:
        # drawn on the CPU: the same noise on every device
        rows = [torch.randn(self.shape[1:], generator=g) for g in self.generators]
        return torch.stack(rows).to(like.device)


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (splitmix64), so that (0, 1) and (1, 0) start unrelated streams."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 2**64 - 1
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 2**64 - 1
        state ^= state >> 31
    return state >> 1


def describe(model: nn.Module) -> dict[str, Any]:
    """The model's settings as plain values: what config.json holds."""
    if isinstance(model, LatentDiffusion):
        parts = {name: describe(getattr(model, name)) for name in ("first_stage", "denoiser", "conditioner")}
        diffusion = to_dict(model.diffusion)
        diffusion["schedule"] = {"type": type(model.diffusion.schedule).__name__} | diffusion["schedule"]
        return {"type": "LatentDiffusion", **parts, "diffusion": diffusion}
    return {"type": type(model).__name__} | to_dict(model.config)


def assembled(values: Any, where: str | Path = "config") -> Any:
    """The inverse of `describe`: the model with random weights. InputError for a config that is none of ours."""
    kind = values.get("type") if isinstance(values, dict) else None
    if kind == "LatentDiffusion":
        try:
            diffusion = dict(values["diffusion"])
            schedule = dict(diffusion.pop("schedule"))
            schedule = from_dict(SCHEDULES[schedule.pop("type")], schedule)
            parts = {name: assembled(values[name], where) for name in ("first_stage", "denoiser", "conditioner")}
            return LatentDiffusion(diffusion=Diffusion(schedule, **diffusion), **parts)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: not a model of ours (missing or unknown: {error})") from None
    if kind not in PARTS:
        raise InputError(f"{where}: type {kind!r} is not one of {', '.join(['LatentDiffusion', *PARTS])}")
    cls, settings = PARTS[kind]
    return cls(from_dict(settings, {k: v for k, v in values.items() if k != "type"}))


def store(model: nn.Module, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes model.safetensors and config.json, each whole or not at all. dtype: of the floating point weights."""
    from safetensors.torch import save_file

    folder = Path(folder)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if dtype is not None:  # the scale is one number: it keeps its precision
        state = {k: v.to(dtype) if v.is_floating_point() and v.ndim else v for k, v in state.items()}
    with whole(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    write(folder / "config.json", describe(model))


def restored(name: str | Path) -> nn.Module:
    """The model in a folder or of this shipped name, whole or a first stage alone. In eval mode, float32."""
    folder = found(name)
    model = assembled(read(folder / "config.json"), folder / "config.json")
    load_weights(model, folder / "model.safetensors")
    return model.eval()
