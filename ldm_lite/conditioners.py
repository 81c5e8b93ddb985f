"""From a batch to a Condition.

`null = self ∘ blank`: one line defines dropout in training and the other half of guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .condition import Condition
from .config import InputError, suggest

Batch = dict[str, Tensor]


def needed(batch: Batch, key: str, who: str) -> Tensor:
    if key not in batch:
        raise InputError(f"{who} needs the key {key}; the batch has {', '.join(batch)}")
    return batch[key]


@dataclass(frozen=True)
class UnconditionalConfig:
    pass


class Unconditional(nn.Module):
    """All doors shut."""

    def __init__(self, config: UnconditionalConfig = UnconditionalConfig()):
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Condition:
        return Condition()

    def blank(self, batch: Batch) -> Batch:
        return batch


@dataclass(frozen=True)
class LabelsConfig:
    names: tuple[str, ...]  # of the classes, in order
    width: int = 512
    door: Literal["context", "vector"] = "context"

    def __post_init__(self) -> None:
        if self.door not in ("context", "vector"):
            raise ValueError(f"door: {self.door} is not context or vector")


class Labels(nn.Module):
    """batch["label"] (B,) -> one learned token (context) or a vector.

    The class after the last is the null class; a negative label is it too, so that rows without a label teach it."""

    def __init__(self, config: LabelsConfig):
        super().__init__()
        self.config, self.names, self.null = config, config.names, len(config.names)
        self.embedding = nn.Embedding(self.null + 1, config.width)

    def forward(self, batch: Batch) -> Condition:
        label = needed(batch, "label", "Labels")
        token = self.embedding(torch.where(label < 0, self.null, label))
        return Condition(vector=token) if self.config.door == "vector" else Condition(context=token[:, None])

    def blank(self, batch: Batch) -> Batch:
        return batch | {"label": torch.full_like(needed(batch, "label", "Labels"), self.null)}

    def index(self, name: str) -> int:
        """The number of a class. InputError lists the names."""
        if name not in self.names:
            raise suggest(name, self.names, "label")
        return self.names.index(name)
