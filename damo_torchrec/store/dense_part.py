"""What a store has to know of the dense part of a model to skip the same steps as it."""

from typing import Protocol


class DensePart(Protocol):
    """Dense parameters whose gradients a scaler checks before each step."""

    def scale(self) -> float:
        """What gradients of now are multiplied by."""

    def overflows(self) -> bool:
        """Whether a gradient is not finite, so that the scaler will skip the step."""

    def skip(self) -> None:
        """Has the scaler skip the step: gradients of rows are not finite."""
