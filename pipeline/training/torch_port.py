"""The same network in PyTorch, for a long run on an accelerator that has no TensorFlow.

Layer by layer keras.applications' ResNet50 (the original, stride in the first 1x1 convolution, biased convolutions, batch-norm
epsilon 1.001e-5), a pooled logit and a mask head on the fourth stage. `to_keras` gives the weights in Keras' layout under
Keras' layer names; `network.load_named` puts them into the Keras model, and a test holds that both give the same scores.

    python -m pipeline.training.torch_port --faces DIR --out DIR --minutes 8 --seed 1

PyTorch is not among the project's dependencies: bring your own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.training import examples, portraits
from pipeline.training.examples import KINDS, Kind, Recipe
from pipeline.training.metrics import auc
from pipeline.training.portraits import Portrait

STAGES = ((2, 64, 3, 1), (3, 128, 4, 2), (4, 256, 6, 2), (5, 512, 3, 2))
"""(Keras' stage number, width, blocks, first stride)."""
PAIRS = 16


def _norm(width: int, *, zero: bool = False) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1.001e-5, momentum=0.01)
    if zero:
        nn.init.zeros_(norm.weight)
    return norm


class Block(nn.Module):
    """A bottleneck: 1x1, 3x3, 1x1, and a projection on the first of a stage."""

    def __init__(self, inside: int, width: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(inside, width, 1, stride), _norm(width)
        self.c2, self.n2 = nn.Conv2d(width, width, 3, 1, 1), _norm(width)
        self.c3, self.n3 = nn.Conv2d(width, 4 * width, 1), _norm(4 * width, zero=True)
        self.c0 = nn.Conv2d(inside, 4 * width, 1, stride) if project else None
        self.n0 = _norm(4 * width) if project else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inside, h, w) to (n, 4 * width, h / stride, w / stride)."""
        y = F.relu(self.n1(self.c1(x)))
        y = F.relu(self.n2(self.c2(y)))
        y = self.n3(self.c3(y))
        short = x if self.c0 is None or self.n0 is None else self.n0(self.c0(x))
        return F.relu(short + y)


class Network(nn.Module):
    """Input (n, 3, s, s) float, already x / 127.5 - 1. Output: logit (n,), mask logits (n, s / 16, s / 16)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(3, 64, 7, 2, 3), _norm(64)
        inside = 64
        for number, width, blocks, stride in STAGES:
            for block in range(blocks):
                self.add_module(f"s{number}b{block + 1}", Block(inside, width, stride if block == 0 else 1, project=block == 0))
                inside = 4 * width
        self.dropout = nn.Dropout(dropout)
        self.logit = nn.Linear(inside, 1)
        self.mask = nn.Conv2d(1024, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.logit.weight, std=0.01)
        nn.init.normal_(self.mask.weight, std=0.01)
        nn.init.zeros_(self.logit.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        x = F.relu(self.n1(self.c1(x)))
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
        mask = x
        for number, _, blocks, _ in STAGES:
            for block in range(blocks):
                x = self.get_submodule(f"s{number}b{block + 1}")(x)
            if number == 4:
                mask = self.mask(x)[:, 0]
        return self.logit(self.dropout(x.mean(dim=(2, 3))))[:, 0], mask


def to_keras(network: Network) -> dict[str, list[np.ndarray[Any, np.dtype[np.float32]]]]:
    """Weights by Keras layer name, in the order of `layer.get_weights()`: kernels as (h, w, in, out)."""

    def conv(layer: nn.Conv2d) -> list[Any]:
        assert layer.bias is not None  # noqa: S101
        return [layer.weight.detach().float().cpu().numpy().transpose(2, 3, 1, 0), layer.bias.detach().float().cpu().numpy()]

    def norm(layer: nn.BatchNorm2d) -> list[Any]:
        return [getattr(layer, name).detach().float().cpu().numpy() for name in ("weight", "bias", "running_mean", "running_var")]

    named: dict[str, list[Any]] = {"conv1_conv": conv(network.c1), "conv1_bn": norm(network.n1), "mask": conv(network.mask)}
    for number, _, blocks, _ in STAGES:
        for index in range(1, blocks + 1):
            block: Any = network.get_submodule(f"s{number}b{index}")
            for part in (0, 1, 2, 3):
                layer, after = getattr(block, f"c{part}"), getattr(block, f"n{part}")
                if layer is not None:
                    named[f"conv{number}_block{index}_{part}_conv"] = conv(layer)
                    named[f"conv{number}_block{index}_{part}_bn"] = norm(after)
    named["logit"] = [network.logit.weight.detach().float().cpu().numpy().T, network.logit.bias.detach().float().cpu().numpy()]
    return named


def from_keras(network: Network, named: dict[str, list[Any]]) -> None:
    """The way back of `to_keras`: put weights in Keras' layout into the network."""

    def put(layer: nn.Conv2d | nn.BatchNorm2d, arrays: list[Any]) -> None:
        if isinstance(layer, nn.BatchNorm2d):
            targets = [layer.weight, layer.bias, layer.running_mean, layer.running_var]
        else:
            targets, arrays = [layer.weight, layer.bias], [arrays[0].transpose(3, 2, 0, 1), arrays[1]]
        for target, array in zip(targets, arrays, strict=True):
            target.data.copy_(torch.from_numpy(np.ascontiguousarray(array, np.float32)))  # type: ignore[union-attr]

    put(network.c1, named["conv1_conv"])
    put(network.n1, named["conv1_bn"])
    put(network.mask, named["mask"])
    for number, _, blocks, _ in STAGES:
        for index in range(1, blocks + 1):
            block: Any = network.get_submodule(f"s{number}b{index}")
            for part in (0, 1, 2, 3):
                if getattr(block, f"c{part}") is not None:
                    put(getattr(block, f"c{part}"), named[f"conv{number}_block{index}_{part}_conv"])
                    put(getattr(block, f"n{part}"), named[f"conv{number}_block{index}_{part}_bn"])
    network.logit.weight.data.copy_(torch.from_numpy(np.ascontiguousarray(named["logit"][0].T, np.float32)))
    network.logit.bias.data.copy_(torch.from_numpy(np.ascontiguousarray(named["logit"][1], np.float32)))


def read(folder: Path, name: str = "weights") -> dict[str, list[Any]]:
    """What `save` wrote, by Keras layer name."""
    flat: dict[str, Any] = {}
    for part in sorted(folder.glob(f"{name}-*.npz")):
        flat.update(np.load(part))
    named: dict[str, list[Any]] = {}
    for key in sorted(flat):
        named.setdefault(key.rsplit("/", 1)[0], []).append(flat[key])
    return named


class HalfBatches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Item k is `PAIRS` reals, then their fakes, (2 * PAIRS, s, s, 3) uint8, and the fakes' masks at a sixteenth, uint8."""

    def __init__(self, faces: Path, facts: Path, seed: int, recipe: Recipe) -> None:
        self.faces, self.facts, self.seed, self.recipe = faces, facts, seed, recipe
        self.people: list[Portrait] = []

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.people:  # in the worker, once
            cv2.setNumThreads(1)
            self.people = portraits.load(self.faces, "train", facts=self.facts, largest=portraits.LARGEST_FACE)
        small = self.recipe.size // 16
        made = [examples.pair(self.people, number * PAIRS + k, self.seed, self.recipe) for k in range(PAIRS)]
        masks = np.stack([cv2.resize(p.mask, (small, small), interpolation=cv2.INTER_AREA) for p in made])
        crops = np.stack([p.real for p in made] + [p.fake for p in made])
        return torch.from_numpy(crops), torch.from_numpy((masks * 255).astype(np.uint8))


class _Counting(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return itertools.count()


def _batches(args: argparse.Namespace, recipe: Recipe, seed: int) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    loader = DataLoader(
        HalfBatches(args.faces, args.facts, seed, recipe),
        batch_size=None,
        sampler=_Counting(),
        num_workers=args.makers,
        prefetch_factor=4,
        multiprocessing_context="spawn",
    )
    parts = iter(loader)
    while True:
        got = [next(parts) for _ in range(args.batch // PAIRS)]
        yield torch.cat([crops for crops, _ in got]), torch.cat([masks for _, masks in got])


def _validation(faces: Path, facts: Path, kind: Kind, recipe: Recipe, seed: int) -> tuple[Any, Any]:
    cv2.setNumThreads(1)
    samples = examples.evaluation_set(portraits.load(faces, "val", facts=facts), kind, seed=seed, per_portrait=2, recipe=recipe)
    return np.stack([s.crop for s in samples]), np.array([s.fake for s in samples])


def logits(network: Network, crops: np.ndarray[Any, Any], device: str, batch: int = 64) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits (n,) of (n, s, s, 3) uint8 crops."""
    network.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(crops), batch):
            x = torch.from_numpy(crops[start : start + batch]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            found.append(network(x.contiguous(memory_format=torch.channels_last))[0].float().cpu().numpy())
    return np.concatenate(found)


def train(args: argparse.Namespace) -> None:
    """Train by the clock: stages of growing size, each with its warm-up and its decay to zero. Writes curve and weights."""
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    network = Network(args.dropout)
    if args.start:
        from_keras(network, read(args.start))
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pool = ProcessPoolExecutor(len(KINDS), mp_context=multiprocessing.get_context("spawn"))
    sets = {kind: pool.submit(_validation, args.faces, args.facts, kind, Recipe(), args.seed) for kind in KINDS}
    curve: list[dict[str, Any]] = []
    args.out.mkdir(parents=True, exist_ok=True)
    begun, seen = time.monotonic(), 0
    stages = [stage.split(":") for stage in args.stages.split(",")]
    for number, (size, share, rate) in enumerate(stages):
        recipe = Recipe(size=int(size), smallest=max(40, int(size) // 4))
        endless = _batches(args, recipe, args.seed * 1000 + number)
        decayed = [p for p in network.parameters() if p.ndim > 1]
        rest = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": args.decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=float(rate), betas=(0.9, 0.99), fused=device == "cuda")
        batch = next(endless)
        from_, length = time.monotonic(), float(share) * args.minutes * 60
        looked, losses = from_, []
        while (gone := time.monotonic() - from_) < length:
            crops, masks = (t.to(device, non_blocking=True) for t in batch)
            done = gone / length
            for group in optimizer.param_groups:  # warm-up, a plateau, then a cosine to zero
                group["lr"] = float(rate) * min(1, done / 0.05) * (1 if done < 0.3 else 0.5 * (1 + np.cos(np.pi * (done - 0.3) / 0.7)))
            network.train()
            # 16 reals, then their 16 fakes, and so on: real and fake of one face stay in one batch
            label = (torch.arange(len(crops), device=device) % (2 * PAIRS) >= PAIRS).float()
            wanted = torch.zeros((len(crops), *masks.shape[1:]), device=device)
            wanted[label.bool()] = masks.float() / 255
            x = crops.permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.autocast(device, torch.bfloat16):
                logit, mask = network(x.contiguous(memory_format=torch.channels_last))
            loss = F.binary_cross_entropy_with_logits(logit.float(), label * (1 - 2 * args.smooth) + args.smooth)
            loss = loss + args.mask_weight * F.binary_cross_entropy_with_logits(mask.float(), (wanted > 0.2).float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            losses.append(loss.detach())
            seen += len(crops)
            batch = next(endless)
            if time.monotonic() - looked > args.look_s:
                _look(network, sets, device, curve, size=int(size), seen=seen, seconds=time.monotonic() - begun, losses=losses)
                save(network, args.out, "weights")
                looked, losses = time.monotonic(), []
        _look(network, sets, device, curve, size=int(size), seen=seen, seconds=time.monotonic() - begun, losses=losses)
        endless.close()
        (args.out / "curve.json").write_text(json.dumps(curve))
        save(network, args.out, "weights")


def _look(
    network: Network, sets: dict[Kind, Future[Any]], device: str, curve: list[dict[str, Any]], losses: list[Any], **facts: Any
) -> None:
    row = {**facts, "loss": float(torch.stack(losses).mean()) if losses else None}
    for kind, made in sets.items():
        crops, fake = made.result()
        crops = np.stack([cv2.resize(c, (facts["size"],) * 2, interpolation=cv2.INTER_AREA) for c in crops])
        scores = logits(network, crops, device)
        row[f"auc_{kind}"] = round(auc(scores[fake], scores[~fake]), 4)
    curve.append(row)
    print(json.dumps(row), flush=True)  # noqa: T201


def save(network: Network, folder: Path, name: str, parts: int = 4) -> None:
    """Write the Keras-named weights in half precision, in a few `.npz` files of about equal size."""
    named = to_keras(network)
    flat = {f"{layer}/{k}": a.astype(np.float16) if a.ndim > 1 else a for layer, arrays in named.items() for k, a in enumerate(arrays)}
    bins: list[dict[str, Any]] = [{} for _ in range(parts)]
    for key, array in sorted(flat.items(), key=lambda item: -item[1].nbytes):
        min(bins, key=lambda b: sum(a.nbytes for a in b.values()))[key] = array
    for number, content in enumerate(bins):
        np.savez(folder / f"{name}-{number}.npz", **content)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the network with PyTorch on an accelerator.")
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--facts", type=Path, required=True, help="what was found in the photographs (.npz)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--stages", default="112:.2:.001,160:.25:.001,224:.55:.0007", help="size:share of the time:learning rate, …")
    parser.add_argument("--batch", type=int, default=128, help="pairs a step")
    parser.add_argument("--makers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--smooth", type=float, default=0.02)
    parser.add_argument("--mask-weight", type=float, default=1.0)
    parser.add_argument("--start", type=Path, help="folder with weights to start from")
    parser.add_argument("--look-s", type=float, default=40)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
