r"""
title: "LSUN on many GPUs: what changes with many processes?"
goal: Let several processes learn exactly what one would, and know when that is worth it
needs: Notebook 07, and a rough idea of what a process is; no GPU and no cluster
memory: under 2 GB
download: nothing; small files in LSUN's own layouts are made on the spot
result: one run that two processes began and one finished, equal to a run of one process
objectives:
  - read LSUN's lmdb lazily, and say what an open file must not do
  - say which process reads which rows of a stream, and why a loop counts steps
  - write the ring that adds gradients, count its bytes, and check it against real processes
  - give every part of every rank its own chance, and list what all ranks must agree on
  - work out, before paying for it, whether more GPUs make a step shorter
"""

# %% the-idea [markdown]
r"""
**What to see.** All boxes are in colour: each of them is to run on every GPU, unchanged. New is
that several *processes*, one for each GPU, run the same code at the same time. Each is called a
*rank* and has a number.

One sentence carries the whole notebook: **everything in a step is a function of the seed, the
step and the rank, so that N ranks do together what one process would do alone.** That can be
tested. We will start two real processes from this notebook, on the CPU, and compare numbers.

Why several? For its model of LSUN's bedrooms [1] the paper states 60 days of a V100 [4, table 18].
Eight of them would need about a week, if they learn the same, and if none waits for another.
"""

# %% lmdb-intro [markdown]
r"""
## 1. Three million pictures in one file

LSUN is published as one lmdb for each category: a sorted tree of keys and values in a single
file. A key is 40 hexadecimal digits, a value is a WebP picture whose short side is 256. We make
a small one, with our own `Scenes` for churches, made wider or taller by mirroring their edges.
Colab has no package for lmdb: `%pip install lmdb` there, or a dict stands in for the file.
"""

# %% values
import hashlib
import io
import os
import tempfile
from pathlib import Path

import torch
from PIL import Image

from ldm_lite.data import Scenes


def webp(image, wide):
    """The file's bytes of an image (3, 64, 64) of uint8, 96 pixels wide or tall."""
    pad = (16, 16, 0, 0) if wide else (0, 0, 16, 16)
    tall = torch.nn.functional.pad(image[None].float(), pad, mode="reflect")[0].byte()
    held = io.BytesIO()
    Image.fromarray(tall.permute(1, 2, 0).numpy()).save(held, "WEBP", lossless=True)
    return held.getvalue()


count = 32 if fast else 64
drawn = Scenes("train").batch(range(count))["image"]
names = [hashlib.sha1(str(i).encode()).hexdigest().encode() for i in range(count)]
values = {names[i]: webp(drawn[i], wide=i % 2) for i in range(count)}

# %% write-lmdb
import importlib.util

workshop = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # goes with the notebook
place = Path(workshop.name)
root = place / "church_outdoor_train_lmdb"
has_lmdb = importlib.util.find_spec("lmdb") is not None  # pip install lmdb; else a dict stands in
if has_lmdb:
    import lmdb

    with lmdb.open(str(root), map_size=2**26) as file, file.begin(write=True) as transaction:
        transaction.cursor().putmulti(values.items())
print(count, "pictures in", "an lmdb" if has_lmdb else "a dict: the package lmdb is missing")

# %% lmdb-figure tags=figure
import numpy as np

keys = sorted(values)
opened = lambda value: Image.open(io.BytesIO(value)).convert("RGB")
decoded = lambda value: torch.tensor(np.array(opened(value))).permute(2, 0, 1) / 127.5 - 1
figure, axes = figures.canvas(9, 2.1, columns=6)
for axis, key in zip(axes, keys):
    axis.imshow(figures.pixels(decoded(values[key])))
    axis.set_title(f"{key.decode()[:8]}…\n{len(values[key]):,} bytes", fontsize=8)
    axis.axis("off")
words = "The first six values in the order of their keys, decoded, with key and size of each."
figures.show(figure, words)

# %% lmdb-read [markdown]
r"""
**What to see.** Keys are digests, so their order has nothing to do with the pictures. It is an
order all the same, and the same for everybody who reads the file: "row 7" means one picture on
every machine. Sizes differ, and some pictures are taller, some wider.

Three million keys of 40 bytes are 120 MB, the pictures many gigabytes. So a reader lists the keys
once and fetches values when they are asked for. It also opens the file *late*.
"""


# %% lazy
class Lazy:
    """Values of an lmdb by row. The file is opened when it is first needed, in each process."""

    def __init__(self, root, keys):
        self.root, self.keys, self.file, self.owner = root, keys, None, None

    def __getitem__(self, row):
        if self.owner != os.getpid():  # not open yet, or open in the process that we came from
            self.file = values
            if has_lmdb:
                self.file = lmdb.open(str(self.root), readonly=True, lock=False)
            self.owner = os.getpid()
        if not has_lmdb:
            return self.file[self.keys[row]]
        with self.file.begin() as transaction:
            return transaction.get(self.keys[row])

    def __getstate__(self):  # what is sent to a new worker: everything but the open file
        return {**vars(self), "file": None, "owner": None}


lazy = Lazy(root, keys)
assert lazy[5] == values[keys[5]], "What went into the file must come out, byte for byte."

# %% lazy-agrees tags=check
import pickle
import subprocess
import sys

sent = pickle.loads(pickle.dumps(lazy))
assert lazy.file is not None and sent.file is None, "An open file must stay where it was opened."
raw = lazy[5]
if has_lmdb:
    lazy.file.close()  # lmdb wants a file open once in a process, and the copy is in this one
    lazy.owner = None
assert sent[5] == raw, "The copy opens the file for itself, and finds the same."
whole = decoded(raw)
top, left = ((side - 64) // 2 for side in whole.shape[1:])
square = whole[:, top : top + 64, left : left + 64]
if has_lmdb:
    sent.file.close()
    from ldm_lite.data.lsun import LSUN, closed

    churches = LSUN(root, size=64)
    torch.testing.assert_close(square, churches[5]["image"])
    assert len(churches) == count, "Every key is a row."
    closed()
print("the copy reads the same bytes; picture", [*whole.shape[1:]], "-> square", [*square.shape])
print("compared with the package's reader:", "yes" if has_lmdb else "no, lmdb is missing")

# %% fork-intro [markdown]
r"""
Why late? Data workers are often born by `fork`: the child is a copy of the parent, and an
open file is *shared*, its position included. We write the letters A to L into a file, open it,
fork, and let child and parent read six letters each, one after the other. Then again, with a file
that each opens after the fork.

lmdb's documentation forbids to carry an open environment across a fork. The package closes its
files before every fork, and each process opens them again.
"""

# %% fork
FORK = """
import os, sys
path, late = sys.argv[1], sys.argv[2] == "late"
file = os.open(path, os.O_RDONLY)

def read(file):
    os.write(1, os.read(os.open(path, os.O_RDONLY) if late else file, 6) + b" ")

child = os.fork() if hasattr(os, "fork") else None
if child:
    os.waitpid(child, 0)  # the child reads first
if child is None:  # Windows forks nothing; a duplicate shares its position in the same way
    read(os.dup(file))
read(file)
"""
(place / "letters").write_text("ABCDEFGHIJKL")
seen, command = {}, [sys.executable, "-c", FORK, str(place / "letters")]
for when in ("early", "late"):
    seen[when] = subprocess.run(
        [*command, when], capture_output=True, text=True, check=True
    ).stdout.split()
print("child and parent read", seen)
assert seen["early"] == ["ABCDEF", "GHIJKL"], "One position for both: the parent goes on at G."
assert seen["late"] == ["ABCDEF", "ABCDEF"], "Each with its own position: both start at A."

# %% fork-read [markdown]
r"""
Opened early, the parent misses the first half, and nobody raised an error.

## 2. A stream: who reads what

The other way to have LSUN is a dataset on the hub (of the bedrooms a tenth, 288,000), in Parquet
files (*shards*), read as a stream: no disk is filled. A stream has no row numbers, so the ranks
have to share it in another way. We write 24 pictures into four files, and number the rows in their
captions.
"""

# %% shards
import random

import pyarrow
import pyarrow.parquet

from ldm_lite.data import HubImages

sizes = (11, 2, 4, 7)
hub = place / "churches" / "data"
hub.mkdir(parents=True, exist_ok=True)
first = 0
for k, size in enumerate(sizes):
    some = range(first, first + size)
    cells = [{"bytes": values[keys[i]], "path": None} for i in some]
    table = pyarrow.table({"image": cells, "caption": [f"{k} {i}" for i in some]})
    pyarrow.parquet.write_table(table, hub / f"train-0000{k}-of-0000{len(sizes)}.parquet")
    first += size


def share(rank, world, first=0, epochs=1):
    """(file, row) pairs in the order in which a rank sees them."""
    stream = HubImages(hub.parent, size=64, streaming=True, seed=3)
    items = stream.flow(first, rank, world, buffer=4, epochs=epochs)
    return [tuple(map(int, item["caption"].split())) for item in items]


# %% shards-figure tags=figure
shares = {world: [share(rank, world) for rank in range(world)] for world in (2, 3)}
figure, axes = figures.canvas(9, 2.6, columns=2, sharey=True)
for axis, (world, ranks) in zip(axes, shares.items()):
    for rank, seen_rows in enumerate(ranks):
        axis.plot([row for _, row in seen_rows], "o", ms=5, label=f"rank {rank}")
    for border in np.cumsum(sizes)[:-1]:
        axis.axhline(border - 0.5, color=figures.SOFT, lw=1, zorder=0)
    axis.set(title=f"{world} ranks", xlabel="when it comes", xlim=(-0.7, 15))
    axis.legend(loc="upper right", fontsize=8)
axes[0].set_ylabel("row")
words = "Rows of four files, lines between them, against when a rank sees them: two ranks, three."
figures.show(figure, words)

# %% shards-claims tags=check
for world, ranks in shares.items():
    every = sorted(row for rank in ranks for _, row in rank)
    assert every == list(range(24)), f"{world} ranks must see each row once between them."
files = [[len({file for file, _ in rank}) for rank in ranks] for ranks in shares.values()]
lengths = [[len(rank) for rank in ranks] for ranks in shares.values()]
print("files that each rank keeps rows of:", files, "rows:", lengths)
assert files[0] == [2, 2], "4 files divide by 2: each rank has two files to itself."
assert sum(files[1]) > 4, "4 do not divide by 3: a file is fetched by more than one rank."
assert len(set(lengths[0])) > 1, "Files differ in size, and so do the ranks' shares."
gone_on = share(0, 2, first=5)
assert gone_on == shares[2][0][5:], "Passing over five items must leave the others as they were."

# %% shards-read [markdown]
r"""
**What to see.** Left: the number of files divides by the number of ranks, and each file is read by
one rank alone: one colour between two lines. Right: it does not, so *every* rank fetches all files
and throws two thirds of the rows away (rank 1 keeps rows of two files). Nothing is lost, but the
network carries three times as much.

Left again: the shares are not equal. A loop "for each row" would end earlier on one rank, and
section 7 shows what happens to the other. So `fit` counts **steps**: a stream flows on into its
next epoch, and no rank ever runs out.

Resuming is passing over: rank 0, told `first=5`, goes on with exactly the sixth item.

Rows are mixed on the way, by a *shuffle buffer*.
"""


# %% buffer tags=figure
def shuffled(items, size, seed):
    """Keeps `size` items and gives a random one away whenever the next arrives."""
    chance, held = random.Random(seed), []
    for item in items:
        held.append(item)
        if len(held) == size:
            yield held.pop(chance.randrange(size))
    chance.shuffle(held)
    yield from held


orders = {size: list(shuffled(range(300), size, seed=0)) for size in (1, 30, 300)}
figure, axes = figures.canvas(8, 2.5, columns=3, sharey=True)
for axis, (size, order) in zip(axes, orders.items()):
    axis.plot(order, ".", ms=3)
    axis.set(title=f"buffer {size}", xlabel="place after", xticks=(0, 150, 300))
axes[0].set_ylabel("place before")
words = "300 items, their place before against their place after, for buffers of 1, 30 and 300."
figures.show(figure, words)
for size, order in orders.items():
    assert sorted(order) == list(range(300)), "A buffer may delay items, not lose or repeat any."
    early = max(item - i for i, item in enumerate(order))
    assert early < size, "No item can come out before it went in: at most size - 1 places early."

# %% buffer-read [markdown]
r"""
**What to see.** A buffer of 30 is a narrow band with a tail to the right: an item may be late by
much, early by at most 29. If rows are sorted, by class say, a small buffer leaves them nearly
sorted. The package therefore also draws the order of the *files*, anew in each epoch.

## 3. Two processes, one gradient

First a way to start real processes: a script in our temporary folder, and a file through which
they find each other. The processes end with the cell. They will share a small denoiser, whose
layers of zeros get random weights, for zeros would hide the gradients behind them.
"""

# %% processes
BEGIN = """
import sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist

here, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
meet, patience = (here / "meet").as_uri(), timedelta(minutes=5)
dist.init_process_group("gloo", init_method=meet, timeout=patience, rank=rank, world_size=world)
result = {}
"""
END = """
torch.save(result, here / f"result-{rank}.pt")
if dist.is_initialized():
    dist.destroy_process_group()
"""


def on(world, lesson, limit=300):
    """Runs a lesson in `world` processes; what each left in `result`."""
    (place / "meet").unlink(missing_ok=True)
    (place / "lesson.py").write_text(BEGIN + lesson + END)
    said = [(place / f"said-{rank}").open("w+") for rank in range(world)]
    command = [sys.executable, str(place / "lesson.py"), str(place)]
    start = lambda rank: [*command, str(rank), str(world)]
    ranks = [subprocess.Popen(start(r), stdout=f, stderr=f) for r, f in enumerate(said)]
    try:
        for rank, process in enumerate(ranks):
            process.wait(limit)
            why = (place / f"said-{rank}").read_text()[-1500:]
            assert process.returncode == 0, f"rank {rank} failed: {why}"
    finally:
        for process, file in zip(ranks, said):
            process.kill()
            process.wait()
            file.close()
    return [torch.load(place / f"result-{rank}.pt") for rank in range(world)]


# %% small-denoiser
from ldm_lite.condition import Condition
from ldm_lite.presets import PAPER, UNETS, load_first_stage
from ldm_lite.unet import UNet, UNetConfig

stage = load_first_stage("scenes-kl-f4").requires_grad_(False)
settings = {"channels": 3, "width": 8, "mult": (1, 2), "blocks": 1, "heads": 2}
torch.manual_seed(0)
net = UNet(UNetConfig(**settings))
[torch.nn.init.normal_(p, std=0.1) for p in net.parameters() if not p.any()]
z, t = stage.encode(drawn[:8].float() / 127.5 - 1), torch.linspace(0.1, 0.9, 8)
batch = {"z": z.lerp(torch.randn(z.shape), t.view(-1, 1, 1, 1)), "t": t, "clean": z}
torch.save({"settings": settings, "weights": net.state_dict(), **batch}, place / "batch.pt")

# %% mean-of-means [markdown]
r"""
Each of N ranks has a copy of the model, and its own batch. When their gradients are averaged
before the optimiser's step, all copies make the same step:

$$\nabla L = \frac 1{NB} \sum_{r=1}^{N} \sum_{i=1}^{B} \nabla \ell_{r,i}
          = \frac 1N \sum_{r=1}^{N} \nabla L_r$$

That is an identity, as long as all batches have the same size B. In the script below, the two
lines marked (1) are it. Lines (2) ask PyTorch to do the same.
"""

# %% lesson-gradients
GRADIENTS = """
import copy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from ldm_lite.condition import Condition
from ldm_lite.unet import UNet, UNetConfig

told = torch.load(here / "batch.pt")
net = UNet(UNetConfig(**told["settings"]))
net.load_state_dict(told["weights"])
mine = {k: told[k].chunk(world)[rank] for k in ("z", "t", "clean")}  # this rank's half
loss = lambda net, part: (net(part["z"], part["t"], Condition()) - part["clean"]).square().mean()
grads = lambda net: [p.grad.clone() for p in net.parameters()]

loss(net, mine).backward()
result["own"] = grads(net)
for p in net.parameters():
    dist.all_reduce(p.grad)  # (1) the sum over all ranks, on every rank
    p.grad /= world          # (1) and the mean
result["mean"] = grads(net)

for way in ("no_sync", "each part"):  # (2) PyTorch's version, the batch in two parts
    net.zero_grad()
    twin, sent = DistributedDataParallel(copy.deepcopy(net)), []
    def counted(state, bucket):
        sent.append(bucket.buffer().numel() * 4)
        return allreduce_hook(None, bucket)
    twin.register_comm_hook(None, counted)
    first, last = ({k: v.chunk(2)[i] for k, v in mine.items()} for i in range(2))
    if way == "no_sync":
        with twin.no_sync():
            (loss(twin, first) / 2).backward()
    else:
        (loss(twin, first) / 2).backward()
    (loss(twin, last) / 2).backward()
    result[way], result[way + ", bytes"] = grads(twin.module), sum(sent)
"""
two = on(2, GRADIENTS)

# %% one-process tags=check
(net(batch["z"], batch["t"], Condition()) - batch["clean"]).square().mean().backward()
alone, weights = [p.grad for p in net.parameters()], sum(p.numel() for p in net.parameters())
for rank in two:
    for way in ("mean", "no_sync", "each part"):
        torch.testing.assert_close(rank[way], alone, rtol=1e-3, atol=1e-6)
apart = max(float((a - b).abs().max()) for a, b in zip(two[0]["own"], two[1]["own"]))
assert apart > 1e-3, "If the two ranks had one gradient, their mean would prove nothing."
same = [torch.equal(a, b) for a, b in zip(two[0]["mean"], two[1]["mean"])]
assert all(same), "Replicas that differ in the last bit drift apart."
once, each = (two[0][f"{way}, bytes"] for way in ("no_sync", "each part"))
assert each == 2 * once == 8 * weights, "no_sync: 4 bytes a weight; without: 4 for each part."
print(f"{weights:,} weights agree; {once:,} bytes a step with no_sync, {each:,} without")

# %% gradients-figure tags=figure
flat = lambda gradients: torch.cat([g.flatten() for g in gradients])
x, largest = np.arange(14), flat(alone).abs().topk(14).indices
figure, axis = figures.canvas(8, 2.7)
for k, shift in enumerate((-0.2, 0.2)):
    axis.bar(x + shift, flat(two[k]["own"])[largest], 0.4, label=f"rank {k}, its half")
mean = flat(two[0]["mean"])[largest]
axis.plot(x, mean, "o", color=figures.GREEN, ms=9, label="after all_reduce")
axis.plot(x, flat(alone)[largest], "x", color=figures.INK, label="one process, all")
axis.set(xticks=[], xlabel=f"the 14 largest gradients of {weights:,}", axisbelow=True)
axis.legend(fontsize=8, ncols=2)
words = "Gradients of 14 weights: two ranks' own as bars, their mean and one process's as marks."
figures.show(figure, words)

# %% gradients-read [markdown]
r"""
**What to see.** The bars of the two ranks differ, for they saw different pictures. Every circle
lies half way between the ends of its bars, and every cross in its circle.

`DistributedDataParallel` [2] is the same with more care. With `no_sync` the first part's gradient
stays at home and is sent together with the last: half the bytes for two parts, and the same
gradient.
"""

# %% ring-intro [markdown]
r"""
## 4. The ring

How do N ranks add what they have? If all send to rank 0, that one receives and sends N - 1 whole
gradients. In a *ring* [3] each rank talks to its next neighbour only. Cut the gradient into N
chunks. For N - 1 steps, pass one chunk on and add what arrives: then every rank holds one chunk
of the finished sum. For N - 1 more steps, pass the finished chunks on. Each rank sends

$$\text{bytes} = 2\,\frac{N - 1}{N}\, G$$

of a gradient of G bytes, nearly the same however many ranks there are.
"""


# %% ring
def ring(tensors):
    """All-reduce by hand: (the sum on every rank, bytes that each sent, chunks after each move)."""
    n, sent, history = len(tensors), [0] * len(tensors), []
    held = [list(tensor.clone().tensor_split(n)) for tensor in tensors]  # held[rank][chunk]
    for step in range(2 * (n - 1)):  # all send at once
        parcels = [held[rank][(rank - step) % n].clone() for rank in range(n)]
        for rank, parcel in enumerate(parcels):
            to, chunk = held[(rank + 1) % n], (rank - step) % n
            to[chunk] = to[chunk] + parcel if step < n - 1 else parcel  # add, later copy
            sent[rank] += parcel.numel() * parcel.element_size()
        history.append([torch.cat(chunks) for chunks in held])
    return history[-1], sent, history


# %% ring-claims tags=check
for n in (2, 3, 5, 8):
    gradients = list(torch.randn(n, 840))
    sums, sent, _ = ring(gradients)
    assert sent == [2 * (n - 1) * 4 * 840 // n] * n, "2 (N - 1) / N of the gradient, on each rank."
    torch.testing.assert_close(sums[0], torch.stack(gradients).sum(0), rtol=1e-4, atol=1e-5)
    for other in sums[1:]:
        assert torch.equal(sums[0], other), "A chunk is added up once and copied: same bits."
    print(f"{n} ranks: {sent[0]} bytes sent by each, {4 * 840} in the gradient")
by_hand = ring([flat(rank["own"]) for rank in two])[0][0] / 2  # the real ranks' gradients
torch.testing.assert_close(by_hand, flat(two[0]["mean"]), rtol=1e-4, atol=1e-6)

# %% ring-figure tags=figure
_, _, history = ring([torch.ones(4) for _ in range(4)])
figure, axes = figures.canvas(10.5, 2.1, columns=7)
titles = ("start", *["add"] * 3, *["copy"] * 3)
for axis, title, state in zip(axes, titles, [torch.ones(4, 4), *map(torch.stack, history)]):
    axis.imshow(state, cmap="Blues", vmin=0, vmax=5)
    for (rank, chunk), n in np.ndenumerate(state.int().numpy()):
        axis.text(chunk, rank, n, ha="center", va="center", color="w" if n > 2 else "k")
    axis.set(xticks=[], yticks=[], title=title)
    axis.grid(visible=False)
axes[0].set(ylabel="rank 0 to 3", xlabel="chunk")
words = "Four ranks (rows), four chunks (columns); the number: how many ranks a chunk has in it."
figures.show(figure, words)

# %% ring-read [markdown]
r"""
**What to see.** In the first three moves a diagonal of growing sums runs round the ring, until each
row has one 4. In the last three, the 4s spread. In every move every rank sends one chunk and
receives one: no link is idle.

The sum of a chunk is made in one order and copied, so all ranks hold the *same bits*: copies of the
model stay copies.

A step does not have to wait for all of it. Gradients of the last layers are ready first. They are
sent in buckets, while earlier layers are still being computed.
"""


# %% overlap-figure tags=figure
backward = np.array([2.0, 3, 4, 4, 3])  # ms of layers 5, 4, 3, 2, 1; invented
sending = np.array([4.0, 3, 2.5, 2, 1])
ready = np.cumsum(backward)
figure, axis = figures.canvas(8, 2.2)
finished = []
for y, allowed in enumerate((ready, np.full(5, ready[-1]))):  # when a gradient may be sent
    free = 0.0
    for i in range(5):
        begin = max(free, allowed[i])
        free = begin + sending[i]
        for x, width, row in (
            (ready[i] - backward[i], backward[i], 0.2),
            (begin, sending[i], -0.15),
        ):
            colour = figures.BLUE if row > 0 else figures.ORANGE
            axis.barh(y + row, width, 0.3, x, color=colour, edgecolor="w")
            axis.text(x + width / 2, y + row, 5 - i, ha="center", va="center", color="w")
    finished.append(free)
axis.set(yticks=(0, 1), yticklabels=("overlapped", "one after\nthe other"), xlabel="ms")
axis.grid(visible=False)
words = "Backward pass of five layers (blue) and sending of their gradients (orange), numbered."
figures.show(figure, words)
assert max(backward.sum(), sending.sum()) < finished[0] < finished[1], "The longer is the limit."
print(f"overlapped {finished[0]:g} ms, one after the other {finished[1]:g} ms")

# %% overlap-read [markdown]
r"""
**What to see.** Above, sending begins when the blue row has ended. Below, it begins with layer 5,
and only a short orange rest sticks out. What sticks out is all that communication costs. The times
are invented, the rule is not. DDP works like this by itself, and section 10 counts with it.

## 5. Chance: a seed for each part of each rank

Training draws a time and noise for every picture. N ranks shall draw what one process would with
all pictures, so each part gets a seed of its own:

$$\text{seed} = \text{mix}(\text{run}, \text{step}) + \text{rank} \cdot \text{parts} + \text{part}$$

One process with four parts, two ranks with two, four ranks with one: the same four seeds.
"""


# %% seeds tags=check
from ldm_lite.latent import mix
from ldm_lite.training import TrainConfig, rows


def noise(step, rank, parts, size):
    """What a rank draws in a step, its parts one after the other."""
    draws = []
    for part in range(parts):
        seed = mix(0, step, 0) + rank * parts + part
        draws.append(torch.randn(size, generator=torch.Generator().manual_seed(seed)))
    return torch.cat(draws)


for step in range(3):
    together = noise(step, rank=0, parts=4, size=3)
    for world in (2, 4):
        by_rank = [noise(step, rank, parts=4 // world, size=3) for rank in range(world)]
        assert torch.equal(torch.cat(by_rank), together), "Ranks must draw what one process would."
        order = [rows(step, 23, TrainConfig(batch=12 // world), r, world) for r in range(world)]
        seen_rows = [pair for own in order for pair in own]
        assert seen_rows == rows(step, 23, TrainConfig(batch=12)), "... and see its rows."
print("1, 2 and 4 processes: the same noise for the same rows; the package's rows agree, and")
print("section 9 tests its seeds")

# %% predict-first [markdown]
r"""
The rows follow the same idea: the order of an epoch is drawn from the seed alone, and rank r takes
its slice of the step's images.

### Break it: one seed for all

The most natural line is `torch.manual_seed(seed)`, the same on every rank. Data differ, so what
can go wrong? Every rank draws the *same times and noise* for its pictures. We measure a trained
model's loss for many pictures and many draws. Then we compare the mean over N ranks, one picture
each: with a draw of its own for each rank, and with one draw for all.

**Predict before you run.** With independent draws the mean of 16 ranks scatters a quarter as much
as one rank. And with one draw for all: as little, more, or as much as a single rank?
"""

# %% losses
from ldm_lite.latent import LatentDiffusion

model = LatentDiffusion.load("scenes-ldm4").requires_grad_(False)
pictures, draws = (16, 12) if fast else (24, 32)
some = Scenes("test").batch(range(pictures))
clean = model.first_stage.encode(some["image"].float() / 127.5 - 1)
predict = lambda z, c: model.denoiser(z, c, model.conditions({"label": some["label"]})[0])
table = torch.empty(draws, pictures)
for k in range(draws):  # times spread evenly: fewer draws are enough
    t = torch.full((pictures,), (k + 0.5) / draws, dtype=torch.float64)
    noise_k = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(k))
    table[k] = model.diffusion.loss(predict, clean, noise_k.expand_as(clean), t)

# %% same-seed-figure tags=figure
chance = torch.Generator().manual_seed(0)
worlds, spread = (1, 2, 4, 8, 16), {"a seed for each rank": [], "one seed for all": []}
for n in worlds:
    who = torch.randint(pictures, (4000, n), generator=chance)
    own = torch.randint(draws, (4000, n), generator=chance)
    for name, draw in zip(spread, (own, own[:, :1].expand(-1, n))):
        spread[name].append(float(table[draw, who].mean(1).std()))
figure, axis = figures.canvas(6, 2.7)
for name, colour in zip(spread, (figures.BLUE, figures.RED)):
    axis.loglog(worlds, np.divide(spread[name], spread[name][0]), "o-", color=colour, label=name)
one, own, same = spread["a seed for each rank"][0], *(found[-1] for found in spread.values())
ideal = [n**-0.5 for n in worlds]
axis.loglog(worlds, ideal, "--", color=figures.SOFT, label=r"$1 / \sqrt{N}$")
axis.set_xticks(worlds, [str(n) for n in worlds])
axis.set_yticks((1, 0.5, 0.25), ("1", "1/2", "1/4"))
axis.set(xlabel="ranks N", ylabel="scatter of the mean loss")
axis.minorticks_off()
axis.legend(fontsize=8)
words = "Scatter of the mean loss of N ranks, one rank's being 1: a seed for each, one for all."
figures.show(figure, words)
worth = (one / same) ** 2
print(f"16 ranks scatter {own / one:.2f} of one; one seed: {same / one:.2f}, as {worth:.1f} ranks")
assert 0.15 < own / one < 0.35, "Independent draws: about a quarter."
assert worth < 4, "One seed: more pictures, but not more times and noises."

# %% same-seed-read [markdown]
r"""
**What to see.** With own seeds the scatter follows the dashed line. With one seed it levels off:
the loss of sixteen ranks is known as badly as that of two or so.

What is learned from is the *gradient*. Its scatter has two parts, too: V between draws, which one
seed for all does not average, and W between pictures, which it does. So N ranks are worth $(V + W)
/ (V + W / N)$ of one. We measure both. (Of the gradient's entries we take every 997th.)
"""

# %% gradient-scatter
weights, slopes = list(model.denoiser.requires_grad_(True).parameters()), []
rows_of, times_of = (8, 6) if fast else (12, 10)  # pictures and draws
for k, i in np.ndindex(times_of, rows_of):
    torch.manual_seed(k)
    part = {"z": clean[i : i + 1], "label": some["label"][i : i + 1]}
    loss = model(part, times=torch.tensor([(k + 0.5) / times_of]).double()).sum()
    slopes.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])[::997])
slopes = torch.stack(slopes).view(times_of, rows_of, -1)
W, means = slopes.var(1).mean(0).sum(), slopes.mean(1).var(0).sum()  # of means: V + W / pictures
worth_of = float((means - W / rows_of + W) / (means - W / rows_of + W / 16))
print(f"16 ranks with one seed learn like {worth_of:.0f}")
assert worth < worth_of < 14, "Better than the loss made us fear, and still a waste."

# %% gradient-read [markdown]
r"""
Half of the GPUs, or so, teach nothing. No loss curve shows it, because its mean is right; a test of
ranks against one process does.

## 6. What all ranks must agree on

| | |
|---|---|
| the same on every rank | settings, first weights, steps, latent scale, order, EMA, the end |
| each its own | rows of a step, seed, GPU, open files |
| rank 0 alone | progress, log, checkpoint, samples, card; the others wait where it matters |

The EMA is never sent: equal weights and equal arithmetic give equal averages. A famous bug is in
this table. The original code measures the latent scale on the first batch, in a hook that only rank
0 runs [4]. As we read it, the other ranks keep 1.0; a user called the results of several GPUs
"disastrous".
"""

# %% scale
raw = stage.encode(drawn[:16].float() / 127.5 - 1) / float(stage.scale)
parts = raw.chunk(4)  # four ranks, four pictures each
told = [float(stage.scale), 1.0, 1.0, 1.0]  # the bug
print("deviation by rank:", [f"{float((told[r] * parts[r]).std()):.2f}" for r in range(4)])

sums = [torch.stack((p.new_tensor(p.numel()), p.sum(), p.square().sum())) for p in parts]
n, total, squares = sum(sums).double()  # what an all_reduce of three numbers gives every rank
agreed = float((squares / n - (total / n) ** 2).rsqrt())
torch.testing.assert_close(agreed, float(1 / raw.double().std(correction=0)), rtol=1e-3, atol=0)
print(f"from three sums, on every rank: {agreed:.3f}; shipped with the stage: {told[0]:.3f}")
assert abs(told[0] - 1) > 0.05, "Only a scale of 1 would hide the bug."

# %% scale-read [markdown]
r"""
Rank 0 has latents of deviation near 1, the others have not. The network learns two data sets at
once, and its samples are decoded with a scale that fits one. The right way is three sums over all
ranks, as in the last lines and in the package's `measure_scale`. It measures once, before the
denoiser is trained, and the number is stored with the first stage. Before a run, `agreed` compares
the settings of all ranks and refuses to start when they differ.

### Break it: sum in place of mean

`all_reduce` adds. Forget to divide, and gradients are N times too large. Which optimiser notices?
Four ranks learn a linear map, in one process for simplicity.
"""


# %% sum-or-mean
def learned(kind, divisor, steps=60, world=4):
    """Losses of a linear regression on `world` ranks, whose gradients' sum is divided."""
    chance = torch.Generator().manual_seed(0)
    x, truth = (torch.randn(*shape, generator=chance) for shape in ((world, 16, 8), (8, 1)))
    w, losses = torch.zeros(8, 1, requires_grad=True), []
    optimizer = torch.optim.SGD([w], 0.4) if kind == "SGD" else torch.optim.AdamW([w], 0.1)
    for _ in range(steps):
        parts = [(x[rank] @ (w - truth)).square().mean() for rank in range(world)]
        w.grad = sum(torch.autograd.grad(part, w)[0] for part in parts) / divisor
        optimizer.step()
        losses.append(sum(parts).item() / world)
    return losses


# %% sum-figure tags=figure
runs = {(kind, by): learned(kind, by) for kind in ("SGD", "AdamW") for by in (4, 1)}
figure, axes = figures.canvas(8, 2.6, columns=2)
for axis, kind in zip(axes, ("SGD", "AdamW")):
    axis.semilogy(runs[kind, 4], lw=4, color=figures.LINE, label="mean")
    axis.semilogy(runs[kind, 1], "--", color=figures.RED, label="sum")
    axis.set(title=kind, xlabel="step", ylabel="loss", ylim=(1e-6, 1e6))
    axis.legend()
words = "Loss with the mean (grey) and the sum (red, dashed) of four ranks' gradients: SGD, AdamW."
figures.show(figure, words)
assert runs["SGD", 4][-1] < 1e-2 < 1e2 < runs["SGD", 1][-1], "SGD blows up at four times lr."
summed, mean = (torch.tensor(runs["AdamW", by]) for by in (1, 4))
torch.testing.assert_close(summed, mean, rtol=1e-2, atol=1e-4)  # AdamW cannot tell them apart

# %% sum-read [markdown]
r"""
**What to see.** SGD flies apart. AdamW's two curves lie on each other, so the bug can live long. It
bites elsewhere: clipping at norm 1 sees gradients N times larger and cuts them all, and fp16
overflows sooner.

## 7. The last batch, and a lost rank

Rank 0 has three batches, rank 1 has two. A *collective* call, one that all ranks take part in,
waits for all of them, so the third `all_reduce` of rank 0 waits for a call that never comes. By
default it waits for minutes; we give it two seconds. After that rank 1 dies without a word, as if
its machine had failed.
"""

# %% lesson-hang
HANG = """
import os, time

def mean_of(value, group=None):
    number = torch.tensor(float(value))
    dist.all_reduce(number, group=group)
    return float(number) / world

short = dist.new_group(timeout=timedelta(seconds=2))
done = [mean_of(rank) for _ in range(2)]  # both ranks have these
if rank == 0:  # a third batch, which rank 1 has not
    began = time.monotonic()
    try:
        done.append(mean_of(rank, short))
    except RuntimeError:
        result["waited"] = time.monotonic() - began
dist.barrier()  # rank 1 has been here all the time
result |= {"done": len(done), "steps": len([mean_of(rank) for _ in range(3)])}  # by steps

if rank == 1:
    torch.save(result, here / "result-1.pt")
    os._exit(0)  # without a word to rank 0
began = time.monotonic()
try:
    mean_of(rank)
except RuntimeError:
    result["noticed"] = time.monotonic() - began
"""
hung = on(2, HANG)
print({name: round(value, 1) for name, value in hung[0].items()})
assert hung[0]["waited"] > 1, "It did not fail, it waited: nobody told it that rank 1 is done."
assert [r["done"] for r in hung] == [2, 2], "The third batch was never averaged."
assert [r["steps"] for r in hung] == [3, 3], "Loops that count steps end together."
assert hung[0]["noticed"] < 60, "A dead rank closes its connections: no need to wait five minutes."

# %% hang-read [markdown]
r"""
In the first case nothing is wrong with the waiting rank. On GPUs it spins in NCCL, NVIDIA's library
for such calls, and shows full load: no error, no log, only a bill. Cures: drop the rest, wrap the
loop in PyTorch's `Join`, or, simplest, count steps.

In the second case the connection breaks, and rank 0's next call fails long before its five minutes
are over. NCCL may not notice, so `torchrun` watches the processes: when one has died it ends all,
for without it a part of every batch would be missing. The same command then goes on from the last
checkpoint. How often to save? That is an exercise below.
"""

# %% cache-intro [markdown]
r"""
## 8. Latents once, for all ranks

The first stage is frozen, so each picture is encoded once and kept. The package writes files of
8,192 latents, each whole or not at all. Rank r encodes the files r, r + N, r + 2N …; then all map
all files. Pages of a mapped file are in memory once a *machine*, not once a rank.
"""

# %% cache
import shutil

from ldm_lite.data import cache_latents
from ldm_lite.data.cache import SHARD

data = churches if has_lmdb else Scenes("train", count=count)
made, found = (cache_latents(stage, data, place / "latents", progress=False) for _ in range(2))
assert torch.equal(made.batch(range(count))["z"], found.batch(range(count))["z"]), "Same files."
found.verify()
n, size = 2 * 126_227, 2 * 2 * 4 * 32 * 32  # churches and mirror images; mean and deviation, fp16
by_rank = [range(-(-n // SHARD))[rank::8] for rank in range(8)]
print(f"LSUN's churches: {n * size / 2**30:.1f} GiB; files of eight ranks:", *map(len, by_rank))

# %% end-to-end [markdown]
r"""
## 9. Stop with two, go on with one

Now all of it at once, with the package's `fit`. Two processes, 4 images a step each, train a
small denoiser from the cached latents and are told to stop half way: one rank hears it, both
stop. Then *one* process with 8 images in two parts goes on in the same folder. Beside it, another
trains from the start and alone. If this notebook's first sentence is true, the two end with the
same weights.
"""

# %% lesson-fit
steps = 32 if fast else 60
FIT = f"""
import signal
from ldm_lite.conditioners import Unconditional
from ldm_lite.data.cache import Shards, about
from ldm_lite.diffusion import Diffusion, VariancePreserving
from ldm_lite.latent import LatentDiffusion
from ldm_lite.presets import load_first_stage
from ldm_lite.training import DiffusionTask, Stopped, TrainConfig, fit
from ldm_lite.unet import UNet, UNetConfig

paths = sorted((here / "latents").glob("*.safetensors"))
data = Shards(paths, about(paths[0])["key"])

def run(folder, batch, parts, stop=None):
    config = TrainConfig(steps={steps}, batch=batch, accumulate=parts, lr=4e-3, warmup=2,
                         ema=0.9, precision="fp32", decay="cosine")
    torch.manual_seed(1)
    unet = UNet(UNetConfig(channels=3, width=16, mult=(1, 2), blocks=1, heads=2))
    model = LatentDiffusion(load_first_stage("scenes-kl-f4"), unet,
                            Diffusion(VariancePreserving(), "v"), Unconditional())
    task = DiffusionTask(model, config)
    begun, own, first = [], task.step, {{k: v.clone() for k, v in unet.state_dict().items()}}
    def step(batch, now):
        begun.append(now) if now != stop else signal.raise_signal(signal.SIGTERM)
        return own(batch, now)
    task.step = step
    try:
        fit(task, data, config, here / "runs" / folder)
    except Stopped as stopped:
        result["stopped"] = str(stopped)
    return {{"first": first, "last": unet.state_dict(), "ema": task.descent.ema.average,
            "began": begun[0]}}

run("shared", 4, 1, stop={steps} // 2 - 1 if rank == 1 else None)
dist.destroy_process_group()
result |= run("shared" if rank == 0 else "alone", 8, 2)  # rank 0 goes on, rank 1 starts anew
"""
shutil.rmtree(place / "runs", ignore_errors=True)
went_on, began_anew = on(2, FIT)

# %% fit-claims tags=check
moved = max(float((went_on["last"][k] - v).abs().max()) for k, v in went_on["first"].items())
pairs = [(went_on[p][k], v) for p in ("last", "ema") for k, v in began_anew[p].items()]
off = max(float((a - b).abs().max()) for a, b in pairs)
print(went_on["stopped"])
print(f"weights moved by up to {moved:.3f}; the two runs differ by at most {off:.1e}")
assert went_on["stopped"] == began_anew["stopped"], "One rank is asked, all stop at one step."
began = [result["began"] for result in (went_on, began_anew)]
assert began == [steps // 2, 0], "One goes on where the two were stopped, the other starts."
assert off < 1e-3 * moved, "Two processes, then one: the run must not notice."

# %% fit-figure tags=figure
import csv


def history_of(folder):
    with open(place / "runs" / folder / "log.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


shared_run, lone_run = history_of("shared"), history_of("alone")
figure, axis = figures.canvas(7, 2.6)
axis.plot(lone_run, lw=5, color=figures.LINE, label="one process, from the start")
half = steps // 2
axis.plot(range(half), shared_run[:half], ".-", zorder=3, label="two processes")
axis.plot(range(half - 1, steps), shared_run[half - 1 :], ".-", label="one process goes on")
axis.set(xlabel="step", ylabel="loss")
axis.legend(fontsize=8)
words = (
    "Loss by step: a run of one process in grey; on it, one that two processes began and one "
    "finished."
)
figures.show(figure, words)
begin, end = np.mean(lone_run[:8]), np.mean(lone_run[-8:])
assert end < 0.95 * begin, "Something must have been learned, or equal runs prove nothing."
torch.testing.assert_close(torch.tensor(shared_run), torch.tensor(lone_run), rtol=2e-2, atol=1e-3)

# %% fit-read [markdown]
r"""
**What to see.** The thin line runs inside the grey one, through the change from two processes to
one, bump by bump: same rows, same noise, same gradients.

The run's folder says how many images a *step* has, all ranks together. Any number of processes that
makes the same step may go on; others are refused, with a line that says which batch would do. With
other *parts* the run goes on, but draws other noise. Only a stream wants as many processes as
before.

## 10. Is it worth it? Arithmetic before money

Let a step have B images of F operations, N GPUs of R operations a second, gradients of G bytes
and a network of W bytes a second. One third of the computing is forward; the backward rest can
hide the sending:

$$C = \frac{B F}{N R}, \qquad S = 2\,\frac{N-1}{N}\,\frac GW, \qquad
  T = \frac C3 + \max\!\left(\frac{2C}3,\; S\right)$$
"""


# %% step-time
from torch.utils.flop_counter import FlopCounterMode

RATE = 445e12  # operations a second: 45 % of an H100's stated peak. Measured on an H200: 34 %
TEXT = {"flop": 780e9, "gradient": 5.66e9}  # the paper's text-to-image model, docs/scaling.md


def step_time(n, batch, wire, flop=TEXT["flop"], gradient=TEXT["gradient"], rate=RATE):
    """Seconds (computing, sending, whole step) of n GPUs."""
    computing = batch * flop / (n * rate)
    sending = 2 * (n - 1) / n * gradient / wire
    return computing, sending, computing / 3 + max(2 * computing / 3, sending)


# bytes/s: within a node, and of a node's network cards of 400 Gbit/s, one for each GPU or one
WIRES = {"within a node": 450e9, "eight network cards": 400e9, "one network card": 50e9}
page = {  # GPUs, batch, network: computing and sending in ms, as in docs/scaling.md
    (8, 680, "within a node"): (149, 22),
    (64, 680, "eight network cards"): (19, 28),
    (64, 680, "one network card"): (19, 223),
    (64, 4096, "eight network cards"): (112, 28),
}
for (n, b, name), expected in page.items():
    c, s, t = (1e3 * seconds for seconds in step_time(n, b, WIRES[name]))
    print(f"{n:2} GPUs, batch {b:4}, {name}: {c:.0f} ms computing, {s:.0f} sending, {t:.0f} a step")
    assert max(abs(c - expected[0]), abs(s - expected[1])) < 1, "By hand, on paper, the same."

# %% scaling-figure tags=figure
many = 2 ** np.arange(4, 11)  # from 16 on: more than a node
figure, (strong, weak) = figures.canvas(9, 3, columns=2)
for (name, wire), colour in zip(WIRES.items(), figures.COLOURS):
    if name == "within a node":
        continue
    speed = [680 / step_time(n, 680, wire)[2] for n in many]
    strong.loglog(many, speed, "o-", color=colour, label=name)
    held = [step_time(n, 85 * n, wire) for n in many]
    weak.semilogx(many, [100 * c / t for c, _, t in held], "o-", color=colour, label=name)
strong.loglog(many, many * RATE / TEXT["flop"], "--", color=figures.SOFT, label="no network")
strong.set(title="strong: batch 680 for all", xlabel="GPUs", ylabel="images/s")
weak.set(title="weak: 85 images each", xlabel="GPUs", ylim=(0, 105))
weak.set_ylabel("of computing alone, %")
for axis in (strong, weak):
    axis.set_xticks(many, [str(n) for n in many])
    axis.minorticks_off()
    axis.legend(fontsize=8)
words = (
    "Left: images a second when a batch of 680 is shared by more GPUs. Right: the share of the "
    "ideal rate when each GPU keeps 85 images."
)
figures.show(figure, words)
few, all_of_them = (680 / step_time(n, 680, 50e9)[2] for n in (64, 1024))
assert all_of_them < 1.2 * few, "Strong scaling ends where sending is the whole step."

# %% scaling-read [markdown]
r"""
**What to see.** Left, *strong scaling*: the same step on more GPUs. Computing shrinks, sending does
not, and the curves go flat: beyond that GPUs only wait. Right, *weak scaling*: each GPU keeps its
85 images, and efficiency stays level, at 100 % with eight network cards a node, at 54 % with one.
But the batch grows with it, and 1,024 times 85 images is another training.

These are calculations with assumed rates, not measurements. Yours come from `benchmarks/gpu.py`.

Now LSUN. How large is the paper's model of churches, and does its batch of 96 fill eight GPUs?
"""

# %% churches-model tags=check
with torch.device("meta"), FlopCounterMode(display=False) as counter:  # counted, not computed
    unet = UNet(UNETS["lsun-churches-ldm8"])
    unet(torch.zeros(1, 4, 32, 32), torch.zeros(1), Condition())
size, forward = sum(p.numel() for p in unet.parameters()), counter.get_total_flops()
assert abs(size / 1e6 - 294) < 2, "The paper's table 12 says 294 million."
print(f"{size / 1e6:.1f} M weights, {forward / 1e9:.1f} GFLOP forward")
for n in (1, 2, 8):
    c, s, _ = step_time(n, 96, WIRES["within a node"], flop=3 * forward, gradient=4 * size)
    print(f"{n} GPUs, {96 // n} images each: {1e3 * c:.1f} ms computing, {1e3 * s:.1f} sending")
assert s > 2 * c / 3, "Eight such GPUs wait for the network, even within one node."
assert abs(2e-6 * 48 * 1 - PAPER["lsun-bedrooms-ldm4"].train.lr) < 1e-12, "base x batch x GPUs"

# %% rate-text [markdown]
r"""
With 12 images on each of eight H100s, sending is no longer hidden. Eight A100s, three times slower,
would just hide it: the faster the GPU, the sooner the network shows. One A100 did the paper's run
[4, table 12]. Larger batches fill more GPUs, and need another learning
rate. The original code multiplies: rate = base × parts × GPUs × batch. That is the linear rule,
argued for SGD [5]; for Adam a square root is often used. Neither is a law.
"""

# %% commands [markdown]
r"""
## 11. The commands

```bash
# the first stage and its scale, out of the published model
ldm-lite convert lsun-churches-ldm8 runs/stage --part first_stage --yes

# one GPU, from LSUN's own file
ldm-lite train lsun-churches-ldm8 --first_stage runs/stage --data lsun/church_outdoor_train_lmdb

# eight, the same 96 images a step; the dots stand for the same options
torchrun --nproc-per-node 8 -m ldm_lite train lsun-churches-ldm8 … --train.batch 12

# four nodes of eight: the same line on each, with one node's name
torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d \
    --rdzv-endpoint node0:29500 -m ldm_lite train lsun-churches-ldm8 … --train.batch 3

# bedrooms as a stream from the hub: no disk is filled, but each step also encodes
ldm-lite convert vq-f4 runs/vq-f4 --yes
ldm-lite train lsun-bedrooms-ldm4 --data.stream True --first_stage runs/vq-f4 --yes
```

All nodes see one folder. To resume, give the same line again, or one with another number of
processes and as many images and parts a step: `--train.accumulate` sets the parts. What we have
tested is two processes on a CPU; on several GPUs nothing has been measured.
"""

# %% exercises [markdown]
r"""
## Exercises

Replace the `...` and run the cell. The check tells whether it is right, and if not, where to look.
"""

# %% uneven [exercise] title="Uneven batches" difficulty=2 minutes=8
r"""
The mean of means is the mean only for equal batches. Given each rank's gradient (the mean over its
own images) and how many images it had, return the gradient of the mean over *all* images. A rank
may have had none; its gradient is then zeros.
"""


# %% [stub]
def combined(gradients, counts):
    return ...  # gradients: a list of tensors; counts: a list of numbers


# %% [check]
from ldm_lite.course.checks import check

with check("Uneven batches", "combined still returns ...: weigh each rank by what it saw.") as c:
    for counts in ((4, 4), (5, 2, 1), (3, 0, 7)):
        images = torch.randn(sum(counts), 6, generator=torch.Generator().manual_seed(1))
        parts = images.split(list(counts))
        means = [part.mean(0) if len(part) else torch.zeros(6) for part in parts]
        mistakes = {
            "A plain mean: the images of a small batch would count for more.": sum(means)
            / len(means),
            "Divide by all images in the end.": sum(n * m for n, m in zip(counts, means)),
        }
        why = f"Wrong for batches of {counts}."
        c.close(combined(means, list(counts)), images.mean(0), why, mistakes=mistakes)


# %% [solution]
def combined(gradients, counts):
    return sum(n * gradient for n, gradient in zip(counts, gradients)) / sum(counts)


# %% [wrong]
def combined(gradients, counts):
    return sum(gradients) / len(gradients)


# %% smallest [exercise] title="The smallest batch that hides the network" difficulty=2 minutes=8
r"""
From section 10: how many images must each GPU have at least, so that sending disappears behind
the backward pass? Return a whole number. `flop` are the operations of one image, `rate` a GPU's
operations a second, `gradient` bytes, `wire` bytes a second.
"""


# %% [stub]
def smallest(n, flop, rate, gradient, wire):
    return ...


# %% [check]
cases = ((8, 780e9, 445e12, 5.66e9, 450e9), (2, 9e10, 1e13, 1.2e9, 1e10))
with check("The smallest batch that hides the network", "Solve 2 C / 3 >= S for B / N.") as c:
    for n, flop, rate, gradient, wire in cases:
        mine = smallest(n, flop, rate, gradient, wire)
        c.answered(mine)
        enough = 1.5 * rate / flop * 2 * (n - 1) / n * gradient / wire
        c.that(mine >= enough, f"With {mine} images on each of {n} GPUs the network still shows.")
        c.that(mine - 1 < enough, f"{mine} images are more than are needed on {n} GPUs.")


# %% [solution]
import math


def smallest(n, flop, rate, gradient, wire):
    sending = 2 * (n - 1) / n * gradient / wire
    return math.ceil(1.5 * sending * rate / flop)


# %% [wrong]
import math


def smallest(n, flop, rate, gradient, wire):
    sending = 2 * (n - 1) / n * gradient / wire
    return math.ceil(sending * rate / flop)  # as if the forward pass could hide it too


# %% lost [exercise] title="Lost ranks" difficulty=2 minutes=8
r"""
A run on 16,384 GPUs was interrupted 419 times in 54 days [6]: once in 50,700 GPU hours. Each of n
GPUs fails once in `between` seconds. A failure costs what was done since the last checkpoint, half
an interval on average. Saving takes `save` seconds. Return the interval that loses least time, in
seconds.
"""


# %% [stub]
def interval(save, between, n):
    return ...


# %% [check]
praise = "64 GPUs may save every 2.2 hours, 1,024 every 33 minutes, if saving takes 11 seconds."
every = torch.logspace(0, 6, 100_001, dtype=torch.float64)
with check("Lost ranks", "What share of the time is lost to each of the two?", praise) as c:
    for save, between, n in ((11.3, 50_700 * 3600, 64), (11.3, 50_700 * 3600, 1024), (60, 1e7, 8)):
        wasted = save / every + every / 2 * n / between  # tried out, rather than solved
        mistakes = {
            "That is for one GPU: n of them fail n times as often.": (2 * save * between) ** 0.5,
            "Half an interval is lost on average, not a whole one.": (save * between / n) ** 0.5,
        }
        why = f"{n} GPUs waste less time than with your answer: set the slope of the waste to 0."
        best = float(every[wasted.argmin()])
        c.close(interval(save, between, n), best, why, rtol=5e-3, mistakes=mistakes)


# %% [solution]
def interval(save, between, n):
    return (2 * save * between / n) ** 0.5


# %% [wrong]
def interval(save, between, n):
    return (2 * save * between) ** 0.5


# %% catch-it [exercise] title="Catch the broken cluster" difficulty=3 minutes=12
r"""
A *rig* combines gradients: `rig(gradient, parts, seed)` calls `gradient(part, seed)` for the part
of each rank and returns what every rank will use. The right one gives rank r the seed `seed + r`,
and returns the mean. Write `is_right(rig)`: `True` for it, `False` for anything else. You choose
the function `gradient`, the parts and the seed. Which gradient gives every mistake away?
"""


# %% [stub]
def is_right(rig):
    return ...


# %% [check]
rigs = {
    "the right one": (lambda g, p, s: sum(g(x, s + r) for r, x in enumerate(p)) / len(p), True),
    "the sum": (lambda g, p, s: sum(g(x, s + r) for r, x in enumerate(p)), False),
    "one seed for all": (lambda g, p, s: sum(g(x, s) for x in p) / len(p), False),
    "rank 0 alone": (lambda g, p, s: g(p[0], s), False),
    "half of the sum": (lambda g, p, s: sum(g(x, s + r) for r, x in enumerate(p)) / 2, False),
    "seeds down": (lambda g, p, s: sum(g(x, s - r) for r, x in enumerate(p)) / len(p), False),
}
with check("Catch the broken cluster", "is_right still returns ...", "No rig gets past you.") as c:
    for name, (rig, verdict) in rigs.items():
        mine = is_right(rig)
        c.answered(mine)
        c.that(bool(mine) == verdict, f"Your test says {bool(mine)} to: {name}.")


# %% [solution]
def is_right(rig):
    def gradient(part, seed):  # depends on both, and not in a way that a sum could hide
        return part * torch.randn(3, generator=torch.Generator().manual_seed(seed))

    parts, seed = [torch.tensor(v) for v in (1.0, 3.0, -2.0, 7.0, 0.5)], 40
    right = torch.stack([gradient(part, seed + r) for r, part in enumerate(parts)]).mean(0)
    return torch.allclose(rig(gradient, parts, seed), right, atol=1e-5)


# %% [wrong]
def is_right(rig):
    parts = [torch.tensor(v) for v in (1.0, 3.0, -2.0, 7.0, 0.5)]
    return torch.allclose(rig(lambda part, seed: part, parts, 40), torch.stack(parts).mean())


# %% summary [markdown]
r"""
## Summary

- A file is opened late, in each process for itself; a fork shares even its position.
- Ranks share files of a stream when the numbers divide.
- A rank with less to do hangs the others, a dead one ends them all: count steps, and save.
- The mean of the ranks' gradients is one process's: asserted with two real processes.
- A ring sends 2 (N - 1) / N of the gradient from each rank, and leaves the same bits on all.
- A seed for each part of each rank; one seed for all wastes many of them in silence.
- Scale, settings, order and EMA agree on all ranks; log and checkpoint are rank 0's.
- A step: forward, then backward or sending, whichever is longer. Small batches end the scaling.

**What next.** Notebook 16 loads models that others trained so.
"""

# %% references [markdown]
r"""
## References

1. F. Yu and others. *LSUN: Construction of a Large-scale Image Dataset using Deep Learning with
   Humans in the Loop.* 2015. [arXiv 1506.03365](https://arxiv.org/abs/1506.03365)
2. S. Li and others. *PyTorch Distributed: Experiences on Accelerating Data Parallel Training.*
   VLDB 2020. [arXiv 2006.15704](https://arxiv.org/abs/2006.15704)
3. P. Patarasuk, X. Yuan. *Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations.*
   Journal of Parallel and Distributed Computing, 2009.
4. R. Rombach and others. *High-Resolution Image Synthesis with Latent Diffusion Models.* CVPR 2022.
   [arXiv 2112.10752](https://arxiv.org/abs/2112.10752); its code's issues 158 and 253.
5. P. Goyal and others. *Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour.* 2017.
   [arXiv 1706.02677](https://arxiv.org/abs/1706.02677)
6. Llama Team. *The Llama 3 Herd of Models.* 2024, table 5.
   [arXiv 2407.21783](https://arxiv.org/abs/2407.21783)
"""
