"""What a training is to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

MaskTarget = Literal["area", "boundary"]


@dataclass(frozen=True)
class Plan:
    """What decides the outcome of a training, apart from the data.

    Attributes:
        stages: (crop size, share of the steps or of the time, learning rate) of each.
        optimizer: lars, sgd or adamw.
        weight_decay, momentum, trust: of the optimizer, where it has them.
        pairs: reals, and as many fakes, in a batch, of all ranks together.
        smoothing: of the labels: 0 becomes `smoothing`, 1 becomes 1 - `smoothing`.
        clip: the largest norm of all gradients together; 0: as they are (LARS needs none).
        mask_weight: of the mask's loss; 0: no mask head.
        mask_target: what the mask head learns: where something was changed, or where changed and unchanged meet. Not shown where it is
            the former: checkpoints know their plan by what it shows, and those of before it must still fit.
        average: share that a step leaves of the moving average of the weights, which is what is looked at and kept; 0: no average.
        norms: batches, after the last one, on which the statistics of the batch norms are measured anew for the weights that are kept;
            0: as training left them. At most as many as the last stage has steps.
        sam: the radius of sharpness-aware minimisation (2010.01412); 0: off. A step costs twice.
        policy: Keras' precision policy.
        steps, hours: of the whole training; with hours the steps of a stage are decided by its first seconds.
        look: steps between two looks at the validation sets; checkpoints are written then.
        held_out: the kind that is never trained on and that chooses the weights of the last stage.
        patience: looks without a better held-out AUC after which the last stage ends; 0: never.
    """

    stages: tuple[tuple[int, float, float], ...]
    optimizer: str = "adamw"
    seed: int = 1
    pairs: int = 16
    weight_decay: float = 0.05
    momentum: float = 0.9
    trust: float = 1e-3
    dropout: float = 0.2
    smoothing: float = 0.02
    clip: float = 5.0
    mask_weight: float = 1.0
    average: float = 0.0
    norms: int = 30
    sam: float = 0.0
    policy: str = "float32"
    steps: int = 0
    hours: float = 0.0
    look: int = 200
    held_out: str = "warp"
    patience: int = 0
    mask_target: MaskTarget = field(default="area", repr=False)
