"""How good pictures are, as numbers: pure functions of images, or of features (N, D) that a network made of them.

Sets of pictures are compared by their features: fid, kid and precision_recall take those of real and of generated
pictures, from the same network. All of them compute in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .config import InputError, one_or_more, whole
from .features import Features as Features

# Sets of pictures, by their features --------------------------------------------------------------------------------


@dataclass(eq=False)
class Statistics:
    """Number, mean and covariance of features, in float64 on the CPU, from batches of which each is seen once.

    n; mean (D,); scatter (D, D): the sum of (x - mean)(x - mean)^T, so that a large mean costs no digits (Chan, Golub
    and LeVeque 1979). about: what should be known of them (data, size, network), saved with them."""

    n: int = 0
    mean: Tensor | None = None
    scatter: Tensor | None = None
    about: dict[str, str] = field(default_factory=dict)

    @property
    def covariance(self) -> Tensor:
        """(D, D) with n - 1 in the denominator. InputError below two samples."""
        if self.n < 2:
            raise InputError(f"n: a covariance needs at least 2 samples, not {self.n}; update with more")
        return self.scatter / (self.n - 1)

    def update(self, features: Tensor, name: str = "features") -> Statistics:
        """Counts features (N, D), which an error calls `name`; returns itself. InputError for NaN or another width."""
        features = _checked(features, name)
        _same_width(self.mean, features, f"statistics, {name}")
        for part in features.split(4096):
            if len(part):
                part = part.cpu().double()
                mean = part.mean(0)
                rows = torch.cat([part - mean, self._moved(len(part), mean)[None]])
                self.scatter.addmm_(rows.T, rows)
        return self

    def _moved(self, n: int, mean: Tensor) -> Tensor:
        """Moves number and mean to include n samples of this mean; returns what the move adds to the deviations."""
        if self.mean is None:
            self.mean, self.scatter = torch.zeros_like(mean), torch.zeros(len(mean), len(mean), dtype=mean.dtype)
        total, apart = self.n + n, mean - self.mean
        row = apart * (self.n * n / total) ** 0.5
        self.n, self.mean = total, self.mean + apart * (n / total)
        return row

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of both together. InputError for widths that differ."""
        _same_width(self.mean, other.mean, "statistics")
        total = Statistics(about=dict(self.about or other.about))
        for part in (self, other):
            if part.n:
                row = total._moved(part.n, part.mean)
                total.scatter += part.scatter + torch.outer(row, row)
        return total

    def reduce(self) -> Statistics:
        """The statistics of all ranks together, the same on each; a copy where torch.distributed is not initialised.

        A rank may have seen none. InputError, on every rank, for widths that differ."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self + Statistics()
        widths = [0] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(widths, len(self.mean) if self.n else 0)
        seen = sorted(set(widths) - {0})
        if len(seen) > 1:
            raise InputError(f"features: {' and '.join(map(str, seen))} wide on different ranks; use the same network")
        if not seen:
            return Statistics(about=dict(self.about))
        zeros = torch.zeros(seen[0], dtype=torch.float64)
        mean, scatter = (self.mean, self.scatter) if self.n else (zeros, torch.diag(zeros))
        n = int(_summed(torch.tensor(self.n)))
        common = _summed(mean * (self.n / n))
        row = (mean - common) * self.n**0.5
        return Statistics(n, common, _summed(scatter + torch.outer(row, row)), dict(self.about))

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with `about` in its header, whole or not at all."""
        from safetensors.torch import save_file

        if not self.n:
            raise InputError(f"{path}: there are no statistics to save; update with features first")
        tensors = {"n": torch.tensor(self.n), "mean": self.mean, "scatter": self.scatter}
        with whole(path) as temporary:
            save_file(tensors, temporary, {str(k): str(v) for k, v in self.about.items()})

    @staticmethod
    def load(path: str | Path) -> Statistics:
        """From a file that `save` wrote. InputError for one that is missing, broken or something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                n, mean, scatter = (file.get_tensor(name) for name in ("n", "mean", "scatter"))
                return Statistics(int(n), mean, scatter, file.metadata() or {})
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a file of statistics ({error}); compute and save them again") from None


def fid(real: Tensor | Statistics, fake: Tensor | Statistics) -> float:
    """Frechet distance of two Gaussians: |mean - mean'|^2 + Tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017, eq. 6).

    real, fake: features (N, D), (M, D) or their Statistics. A and B are covariances with n - 1 in the denominator.
    It falls with the number of samples, so compare only distances of equally many. InputError for fewer than two
    samples, NaN, and widths that differ."""
    a, b = (x if isinstance(x, Statistics) else Statistics().update(x, name) for x, name in _named(real, fake))
    for x, name in _named(a, b):
        _enough(x.n, name, 2)
    _same_width(a.mean, b.mean)
    # A = P P^T and B = Q Q^T: the eigenvalues of A B are the squared singular values of P^T Q. Taking these directly is
    # the trace of (A^(1/2) B A^(1/2))^(1/2) without the square root that turns an error of 1e-16 into one of 1e-8.
    overlap = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, float(distance))  # of equal sets, rounding may leave -1e-15


def _factor(covariance: Tensor) -> Tensor:
    """P (D, rank) with P P^T = covariance. Eigenvalues that are rounding, also negative ones, are taken for zero."""
    values, vectors = torch.linalg.eigh(covariance)
    real = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, real] * values[real].sqrt()


def kid(real: Tensor, fake: Tensor, subset: int = 1000, subsets: int = 100, seed: int = 0) -> tuple[float, float]:
    """Unbiased squared MMD with kernel (x.y / D + 1)^3 (Binkowski et al. 2018, section 4; Gretton et al. 2012, eq. 3).

    real, fake: (N, D), (M, D) features. Returns the mean and its standard error over random subsets of at most
    `subset` of each. That error is of the choice of subsets, not of the sets: where a subset is the whole set it is 0.
    May be slightly negative for equal distributions. InputError for fewer than two samples, NaN, widths that differ."""
    real, fake = _pair(real, fake, 2)
    if subset < 2 or subsets < 2:
        raise InputError(f"subset, subsets: {subset}, {subsets} are not 2 or more")
    if max(len(real), len(fake)) <= subset:
        return float(_mmd(_double(real), _double(fake))), 0.0
    generator = torch.Generator().manual_seed(seed)
    drawn = lambda x: _double(x[torch.randperm(len(x), generator=generator)[:subset].to(x.device)])
    distances = torch.stack([_mmd(drawn(real), drawn(fake)) for _ in range(subsets)])
    return float(distances.mean()), float(distances.std()) / subsets**0.5


def _mmd(x: Tensor, y: Tensor) -> Tensor:
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    # without the diagonal: a sample is no independent second one
    within = lambda k: (k.sum() - k.trace()) / (len(k) * (len(k) - 1))
    return within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean()


def inception_score(probabilities: Tensor, splits: int = 10, seed: int | None = 0) -> tuple[float, float]:
    """exp of the mean KL(p(class | image) || p(class)) (Salimans et al. 2016, section 4): 1 … the number of classes.

    probabilities: (N, K) a classifier's softmax. Returns mean and standard deviation (with n in the denominator) over
    `splits` consecutive parts, part i from i N // splits, as torch-fidelity. They are shuffled first, since samples
    often come sorted by class; seed None leaves their order. InputError for rows that are no probabilities and for
    fewer of them than splits."""
    p = _double(_checked(probabilities, "probabilities"))
    one_or_more(splits=splits)
    if (p < 0).any() or ((p.sum(1) - 1).abs() > 0.01).any():
        raise InputError("probabilities: rows must sum to 1 and have nothing below 0; give the softmax of the logits")
    _enough(len(p), "probabilities", splits, "draw more samples or lower splits")
    if seed is not None:
        p = p[torch.randperm(len(p), generator=torch.Generator().manual_seed(seed)).to(p.device)]
    parts = [p[i * len(p) // splits : (i + 1) * len(p) // splits] for i in range(splits)]
    # xlogy: 0 log 0 = 0
    scores = torch.stack([(part.xlogy(part) - part.xlogy(part.mean(0))).sum(1).mean().exp() for part in parts])
    return float(scores.mean()), float(scores.std(correction=0))


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, block: int = 4096) -> tuple[float, float]:
    """(precision, recall) with k-nearest-neighbour manifolds (Kynkäänniemi et al. 2019, eqs. 1 and 2).

    real, fake: (N, D), (M, D) features. Around each sample of a set lies a ball that reaches to its k-th nearest
    neighbour in that set, itself not counted. Precision is the share of fake inside any ball of real, recall the share
    of real inside any ball of fake; a sample on the rim is inside. block: samples compared at a time, for memory alone
    (about 40 block^2 bytes). InputError for fewer than k + 1 samples, NaN, and widths that differ."""
    one_or_more(k=k, block=block)
    real, fake = _pair(real, fake, k + 1, "draw more samples or lower k")
    centre = _double(real).mean(0)  # distances do not change, and the products below lose fewer digits
    reach_real, reach_fake = _reach(real, centre, k, block), _reach(fake, centre, k, block)
    precise, recalled = torch.zeros_like(reach_fake, dtype=torch.bool), torch.zeros_like(reach_real, dtype=torch.bool)
    for i, some_real in _blocks(real, centre, block):
        for j, some_fake in _blocks(fake, centre, block):
            # the slack, far below any distance between different pictures, keeps equal distances equal
            distance = _squared(some_real, some_fake, slack=1e-12)
            precise[j] |= (distance <= reach_real[i, None]).any(0)
            recalled[i] |= (distance <= reach_fake[j]).any(1)
    return float(precise.double().mean()), float(recalled.double().mean())


def _reach(x: Tensor, centre: Tensor, k: int, block: int) -> Tensor:
    """(N,) squared distance from each sample to its k-th nearest other one."""
    # k + 1, because the nearest is the sample itself
    smallest = lambda distance: distance.topk(min(k + 1, distance.shape[1]), largest=False).values
    reach = []
    for _, rows in _blocks(x, centre, block):
        near = rows.new_empty(len(rows), 0)
        for _, columns in _blocks(x, centre, block):
            near = smallest(torch.cat([near, smallest(_squared(rows, columns))], 1))
        reach.append(near.amax(1))
    return torch.cat(reach)


def _blocks(x: Tensor, centre: Tensor, block: int):
    return ((slice(i, i + block), _double(x[i : i + block]) - centre) for i in range(0, len(x), block))


def _squared(x: Tensor, y: Tensor, slack: float = 0.0) -> Tensor:
    """(N, M) squared distances, less `slack` times the squared lengths of both."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(lengths, x, y.T, beta=1 - slack, alpha=-2)


def _double(x: Tensor) -> Tensor:
    return x.cpu().double() if x.device.type == "mps" else x.double()  # mps has no float64


def _summed(values: Tensor) -> Tensor:
    """The sum over ranks of a tensor that no one else holds."""
    shared = values.cuda() if torch.distributed.get_backend() == "nccl" else values
    torch.distributed.all_reduce(shared)
    return shared.cpu()


def _named(real, fake):
    return (real, "real"), (fake, "fake")


def _checked(features: Tensor, name: str) -> Tensor:
    if features.ndim != 2:
        raise InputError(f"{name}: shape {tuple(features.shape)} is not (samples, width); flatten all but the first")
    if not features.isfinite().all():
        rows = int((~features.isfinite()).any(1).sum())
        raise InputError(f"{name}: {rows} of {len(features)} have NaN or infinite values; look at their images")
    return features.detach()


def _same_width(a: Tensor | None, b: Tensor | None, names: str = "real, fake") -> None:
    if a is not None and b is not None and a.shape[-1] != b.shape[-1]:
        raise InputError(f"{names}: features are {a.shape[-1]} and {b.shape[-1]} wide; use one network for both")


def _enough(n: int, name: str, least: int, fix: str = "draw more samples") -> None:
    if n < least:
        raise InputError(f"{name}: {n} samples, at least {least} are needed; {fix}")


def _pair(real: Tensor, fake: Tensor, least: int, fix: str = "draw more samples") -> tuple[Tensor, Tensor]:
    for x, name in _named(real, fake):
        _enough(len(_checked(x, name)), name, least, fix)
    _same_width(real, fake)
    return real.detach(), fake.detach().to(real.device)


# Pictures, one by one -----------------------------------------------------------------------------------------------


def psnr(image: Tensor, other: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of images (B, …) in [-1, 1]: 10 log10(2^2 / mean squared error).

    Infinite for equal images. InputError for shapes that differ."""
    _same_shape(image, other)
    error = (_double(image) - _double(other)).square().flatten(1).mean(1)
    return (10 * (4 / error).log10()).float().to(image.device)


def ssim(image: Tensor, other: Tensor) -> Tensor:
    """(B,) structural similarity of images (B, C, H, W) in [-1, 1], at most 1 (Wang et al. 2004, eq. 13).

    Gaussian window of 11 x 11 pixels, sigma 1.5, K = 0.01 and 0.03. Black counts as 0, as the formula presumes, so it
    equals that of the same images in 0 … 255. The mean is over channels and over the windows that lie whole inside the
    image, as in the paper's code and scikit-image; torchmetrics pads by reflection and counts the border too.
    InputError for shapes that differ and for images smaller than the window."""
    _same_shape(image, other)
    if image.ndim != 4 or min(image.shape[2:]) < 11:
        raise InputError(f"image: shape {tuple(image.shape)} is not (B, C, H, W) with sides of at least 11 pixels")
    x, y = (rearrange(_double(i) + 1, "b c y x -> (b c) 1 y x") for i in (image, other))
    taps = torch.exp(-((torch.arange(11, dtype=x.dtype, device=x.device) - 5) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    local = lambda v: F.conv2d(F.conv2d(v, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
    mean_x, mean_y = local(x), local(y)
    var_x, var_y, cov = local(x * x) - mean_x**2, local(y * y) - mean_y**2, local(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    score = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return rearrange(score, "(b c) 1 y x -> b (c y x)", b=len(image)).mean(1).float().to(image.device)


def high_frequency(images: Tensor) -> Tensor:
    """(B,) share, 0 … 1, of the variance of luminance in waves shorter than four pixels: how much is fine texture.

    images: (B, 3, H, W) or (B, 1, H, W). Four pixels are half the Nyquist frequency, whatever the direction. Luminance
    is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601); a Hann window keeps the borders, where the transform sees an edge
    that is not there, from counting. A constant image has 0. InputError for another shape."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(f"images: shape {tuple(images.shape)} is not (B, 3, H, W) or (B, 1, H, W)")
    x = _double(images)
    luminance = torch.einsum("bcyx,c->byx", x, x.new_tensor([0.299, 0.587, 0.114] if x.shape[1] == 3 else [1]))
    height, width = luminance.shape[1:]
    hann = lambda n: torch.hann_window(n, dtype=x.dtype, device=x.device)
    window = torch.outer(hann(height), hann(width))
    mean = (luminance * window).sum((1, 2), keepdim=True) / window.sum()
    power = torch.fft.fft2((luminance - mean) * window, norm="forward").abs() ** 2
    frequency = lambda n: torch.fft.fftfreq(n, dtype=x.dtype, device=x.device)  # cycles per pixel, at most 1/2
    high = torch.hypot(frequency(height)[:, None], frequency(width)) > 0.25
    total = power.sum((1, 2))
    share = power[:, high].sum(1) / total
    # so little is the rounding of a constant image
    return torch.where(total < 1e-24, 0, share).float().to(images.device)


def _same_shape(image: Tensor, other: Tensor) -> None:
    if image.shape != other.shape:
        raise InputError(f"image, other: shapes {tuple(image.shape)} and {tuple(other.shape)} differ; make them equal")
