"""What goes wrong in training, apart from its data."""

from __future__ import annotations


class TrainingError(Exception):
    """Training cannot begin or go on. `permanent`: the same settings would fail again."""

    def __init__(self, sentence: str, *, permanent: bool = True) -> None:
        super().__init__(sentence)
        self.permanent = permanent
