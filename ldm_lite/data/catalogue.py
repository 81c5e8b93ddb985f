"""Datasets with a name of their own: the one place that knows their ids on the hub, their terms and their sizes.

    ldm-lite train celebahq-ldm4 --data celebahq --yes

An id that has moved is one line here. Where a dataset cannot be had, a folder of the same pictures serves as well."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import InputError, whole
from .hub import HubImages


@dataclass(frozen=True)
class Known:
    """What is known of a dataset, from its cards (rows and sizes as they stated them in 2026).

    ids: on the hub, the first that can be had is taken. rows: by split, as ours are called; what is there is checked
    against them. splits: what they are called there. revisions: the commit of an id, where one is known;
    of others the newest is taken, and its rows are counted."""

    ids: tuple[str, ...]
    rows: Mapping[str, int]
    gigabytes: float
    terms: str
    home: str  # where the pictures come from
    splits: Mapping[str, str] = field(default_factory=dict)
    image_key: str = "image"
    revisions: Mapping[str, str] = field(default_factory=dict)


FACES = "for non-commercial research only; no picture may be passed on, not even in a notebook's output or a report"
SCENES = "LSUN states no licence"
# CelebA-HQ: the paper's 25,000 to learn from and 5,000 are another split of the same 30,000 faces, so an FID against
# these 28,000 is not the paper's. LSUN: no second id holds the same pictures; in its place is LSUN's own file (home).
KNOWN = {
    "celebahq": Known(
        ("mattymchen/celeba-hq", "jxie/celeba-hq"),
        {"train": 28_000, "validation": 2_000},
        2.8,
        FACES,
        "https://github.com/tkarras/progressive_growing_of_gans",
        # as the card of edgarcancinoe/celebahq_512_id_clusters, made from it, names it
        revisions={"jxie/celeba-hq": "7ecc6a45edfb5483ccf2f7df1035d298ffe7c76b"},
    ),
    "lsun-churches": Known(
        ("tglcourse/lsun_church_train",),
        {"train": 119_915, "validation": 6_312},
        2.5,
        SCENES,
        "http://dl.yf.io/lsun/scenes/church_outdoor_train_lmdb.zip",
        {"validation": "test"},
    ),
    "lsun-bedrooms": Known(
        ("pcuenq/lsun-bedrooms",),
        {"train": 287_968, "validation": 15_157},
        4.8,
        f"a tenth of LSUN's three million bedrooms (its card says a fifth); {SCENES}",
        "http://dl.yf.io/lsun/scenes/bedroom_train_lmdb.zip",
        {"validation": "test"},
    ),
}


YES = "LDM_LITE_YES"  # in the environment: agreed to beforehand, as by --yes; workers and other ranks see it too


def known(name: str, split: str = "train", yes: bool = False, **settings: Any) -> HubImages:
    """The dataset of a name, from the hub or where `datasets` keeps it. settings: of HubImages.

    The first time, its size and terms are shown, and agreed to by yes or, at a terminal, by an answer; that is
    remembered in the user's cache. InputError without agreement, where no id can be had, and for another number of
    rows than is known, since numbers measured on other pictures compare with nothing."""
    about = KNOWN[name]
    agreed_to(name, yes)
    their, why = about.splits.get(split, split), []
    for id in about.ids:
        try:
            found = HubImages(id, their, image_key=about.image_key, revision=about.revisions.get(id), **settings)
            break
        except InputError as error:
            why.append(str(error))
    else:
        raise InputError(f"{name}: {why[0]}; or make a folder of the pictures from {about.home} and give its path")
    if settings.get("count") is None and not settings.get("streaming"):
        rows = len(found) + len(found.skipped)
        if rows != about.rows[split]:
            raise InputError(
                f"{name}: {id} has {rows} pictures for {split}, and had {about.rows[split]}: it has changed; "
                f"--data hub:{id} takes it as it is"
            )
    return found


def terms(name: str) -> str:
    about = KNOWN[name]
    pictures = sum(about.rows.values())
    return f"{name}: {pictures:,} pictures, {about.gigabytes} GB, from {about.ids[0]} on the hub; {about.terms}"


def agreed_to(name: str, yes: bool = False) -> None:
    """Returns once the user has agreed to the terms, now or before. InputError otherwise."""
    consent(terms(name), yes)


def agreed_to_id(id: str) -> None:
    """agreed_to, for an id on the hub of which the terms are known; others are as their cards say."""
    for name, about in KNOWN.items():
        if id in about.ids:
            agreed_to(name)


def consent(what: str, yes: bool = False) -> None:
    """Returns once the user has agreed to fetch something on its terms, now or before. InputError otherwise."""
    held, yes = _held(), yes or bool(os.environ.get(YES))
    if what in held:
        return
    if not yes and sys.stdin is not None and sys.stdin.isatty():
        print(what)
        with suppress(EOFError):  # Ctrl-D is no answer
            yes = input("Fetch it on these terms? [y/N] ").strip().lower() in ("y", "yes")
    if not yes:
        raise InputError(f"{what}; add --yes to fetch it on these terms")
    print(what, file=sys.stderr)
    with whole(_marks()) as temporary:
        temporary.write_text(json.dumps([*held, what], indent=1), encoding="utf-8")


def cache() -> Path:
    """The user's folder for what is fetched once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ldm_lite"


def _marks() -> Path:
    return cache() / "agreed.json"


def _held() -> list[str]:
    try:
        held = json.loads(_marks().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return held if isinstance(held, list) else []
