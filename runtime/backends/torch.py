"""The torch reference: the same objective by PyTorch's own autograd, written from the recipes' formulas.

It shares with the graphs the layer tables and the recipe's numbers, and nothing of how they are computed: this is
what every other backend is tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from impasto.errors import DeviceError, LimitError, UnavailableError, UsageError
from impasto.export.objective import Objective, Targets
from impasto.models.conventions import pixel_space
from impasto.models.reference import Reference
from impasto.models.weights import Weights
from impasto.runtime.backends.protocol import Calibration, Measured, Plan
from impasto.runtime.problem import Evaluator, FloatArray, Losses, Problem


class TorchBackend:
    """Runs the reference on the CPU or a GPU; float64 if asked, otherwise float32.

    Raises `UnavailableError` for a GPU that torch does not see; later `LimitError` where its memory does not suffice,
    and `DeviceError` where it fails.
    """

    plans: tuple[Plan, ...] = ("fused",)
    progress: Callable[[str, int, int], None] | None = None

    def __init__(self, dtype: torch.dtype = torch.float32, device: Literal["cpu", "cuda"] = "cpu") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UnavailableError(
                f"torch {torch.__version__} sees no GPU: install a build of torch for CUDA and an NVIDIA driver"
            )
        self.name = "torch" if device == "cpu" else "torch-cuda"
        self.precision = {torch.float32: "fp32", torch.float64: "fp64"}[dtype]
        self._place = _Place(dtype, torch.device(device))

    def calibrate(self, weights: Weights, objective: Objective, image: FloatArray) -> Calibration:
        """Calibrate filters, as `Backend.calibrate` says."""
        with torch.no_grad(), _at_work():
            network = _network(weights, objective, objective.taps, self._place)
            found = network.calibrate(self._place(image))
            return {name: _numpy(value) for name, value in found.items()}

    def measure(
        self,
        weights: Weights,
        objective: Objective,
        image: FloatArray,
        content: tuple[str, ...],
        style: tuple[str, ...],
        calibration: Calibration,
    ) -> Measured:
        """Measure targets, as `Backend.measure` says."""
        measured, means = {}, {}
        with torch.no_grad(), _at_work():
            network = _network(weights, objective, (*content, *style), self._place)
            taps = network(self._place(image), _tensors(calibration, self._place))
            for tap in style:
                if objective.statistic(tap) == "covariance":
                    covariance, mean = _covariance(taps[tap])
                    measured[tap], means[tap] = _numpy(covariance), _numpy(mean)
                else:
                    measured[tap] = _numpy(_gram(taps[tap]) / (taps[tap].shape[2] * taps[tap].shape[3]))
            return Measured({tap: _numpy(taps[tap]) for tap in content}, measured, means)

    def settle(self, weights: Weights, objective: Objective, plan: Plan | None) -> None:
        """There is one precision for all."""

    def measure_tiled(self, *_: object) -> Targets:
        """Raise `UsageError`: there is no such plan here."""
        raise self._no_plan("tiled")

    def prepare(self, problem: Problem, plan: Plan, memory: int | None = None) -> Evaluator:  # noqa: ARG002 - of tiles
        """Return an evaluator by autograd, which is one plan: fused."""
        if plan != "fused":
            raise self._no_plan(plan)
        with _at_work():
            return _Evaluator(problem, self._place)

    def _no_plan(self, plan: str) -> UsageError:
        return UsageError(f"backend {self.name} has no plan {plan!r}: choose fused, or backend onnxruntime")

    def plan_for(self, problem: Problem) -> Plan:  # noqa: ARG002 - there is but one
        """Return the only plan."""
        return "fused"

    def took(self, problem: Problem, plan: Plan, seconds: float) -> None:
        """There is nothing to choose."""

    def versions(self) -> dict[str, str]:
        """Return torch's version."""
        return {"torch": torch.__version__}

    def close(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class _Place:
    """Where tensors are, and of which type."""

    dtype: torch.dtype
    device: torch.device

    def __call__(self, array: FloatArray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, self.dtype)


class _Evaluator:
    def __init__(self, problem: Problem, place: _Place) -> None:
        self._objective = problem.objective
        self._place = place
        self._network = _network(problem.weights, problem.objective, problem.objective.taps, place)
        self._targets = problem.targets
        self._content = _tensors(problem.targets.content, place)
        self._style = _tensors(problem.targets.style, place)
        self._means = _tensors(problem.targets.means, place)
        self._calibration = _tensors(problem.targets.calibration, place)

    def evaluate(self, image: FloatArray) -> Losses:
        """Return losses and gradient, as `Evaluator.evaluate` says."""
        with _at_work():
            return self._evaluate(image)

    def _evaluate(self, image: FloatArray) -> Losses:
        x = self._place(image).requires_grad_()
        taps = self._network(x, self._calibration)
        objective = self._objective
        terms = {}
        for tap, weight in objective.content.items():
            terms[f"content.{tap}"] = weight * _content_loss(objective, taps[tap], self._content[tap])
        for tap, weight in objective.style.items():
            if objective.statistic(tap) == "covariance":
                loss = _covariance_loss(taps[tap], self._style[tap], self._means[tap])
            else:
                count = self._targets.style_positions[tap]
                loss = _gram_loss(objective, taps[tap], self._style[tap], count, x)
            terms[f"style.{tap}"] = weight * loss
        if objective.tv:
            terms["tv"] = objective.tv * _total_variation(objective, x)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return Losses({name: float(value.detach()) for name, value in terms.items()}, _numpy(x.grad))


@contextmanager
def _at_work() -> Iterator[None]:
    """On a GPU, keep convolutions from rounding float32 to TensorFloat-32, torch's default: this is the reference.

    What torch raises for a GPU that is full or fails becomes `LimitError` and `DeviceError`.
    """
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    except torch.OutOfMemoryError as error:
        raise LimitError("out of GPU memory in torch: lower --size, or close other programs") from error
    except RuntimeError as error:
        if "CUDA error" not in str(error):
            raise
        raise DeviceError(f"torch's GPU failed ({str(error).splitlines()[0]}): start the process again") from error


def _network(weights: Weights, objective: Objective, taps: tuple[str, ...], place: _Place) -> Reference:
    space = pixel_space(objective.convention)
    return Reference(weights, taps, objective.pooling, space, place.dtype).to(place.device)


def _gram(features: torch.Tensor) -> torch.Tensor:
    flat = features.flatten(2)[0]
    return flat @ flat.T


def _content_loss(objective: Objective, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    squares = (features - target).square()
    match objective.content_norm:
        case "mean":
            return squares.mean()
        case "sum":
            return squares.sum()
        case "half-sum":
            return squares.sum() / 2
        case "relative":
            return squares.sum() / _energy(target)


def _covariance(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the covariance of the channels over the positions, (C, C), and their mean, (C, 1)."""
    flat = features.flatten(2)[0]
    mean = flat.mean(1, keepdim=True)
    centred = flat - mean
    return centred @ centred.T / flat.shape[1], mean


def _covariance_loss(features: torch.Tensor, target: torch.Tensor, target_mean: torch.Tensor) -> torch.Tensor:
    covariance, mean = _covariance(features)
    # A covariance of rounding only, that of a picture of one colour, is taken for a hundredth of the mean's.
    least = (target_mean.square().sum() / 100).square()
    spread = (covariance - target).square().sum() / torch.maximum(_energy(target), least)
    level = (mean - target_mean).square().sum() / _energy(target_mean)
    return spread / 4 + 3 * level / 4


def _gram_loss(
    objective: Objective, features: torch.Tensor, target: torch.Tensor, target_positions: int, image: torch.Tensor
) -> torch.Tensor:
    channels, positions = features.shape[1], features.shape[2] * features.shape[3]
    over, target_over = {
        "positions": (positions, target_positions),
        "elements": (channels * positions, channels * target_positions),
        "none": (1, 1),
    }[objective.gram_norm]
    gram, target = _gram(features) / over, target * target_positions / target_over
    squares = (gram - target).square()
    match objective.style_norm:
        case "sum":
            return squares.sum()
        case "mean":
            return squares.mean()
        case "gatys":
            return squares.sum() / (4 * channels**2 * positions**2)
        case "image":
            return squares.sum() / (4 * 3**2 * (image.shape[2] * image.shape[3]) ** 2)
        case "relative":
            return squares.sum() / _energy(target)


def _energy(target: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares; 1 for a target of zeros, to which nothing can be relative."""
    energy = target.square().sum()
    return torch.where(energy == 0, torch.ones_like(energy), energy)


def _total_variation(objective: Objective, image: torch.Tensor) -> torch.Tensor:
    dy, dx = image.diff(dim=2), image.diff(dim=3)
    match objective.tv_form:
        case "squared":
            return (dx.square().sum() + dy.square().sum()) / 2
        case "absolute":
            return dx.abs().sum() + dy.abs().sum()
        case "power":
            return (dx[:, :, :-1].square() + dy[:, :, :, :-1].square()).pow(1.25).sum()


def _tensors(arrays: Mapping[str, FloatArray], place: _Place) -> dict[str, torch.Tensor]:
    return {name: place(value) for name, value in arrays.items()}


def _numpy(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = tensor.detach().float().cpu().numpy()
    return array
