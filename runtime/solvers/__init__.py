"""Solvers, by reverse communication: they yield points and are sent losses and gradients.

- `protocol`: `Trial`, `Evaluation`, the `Solver` protocol, and `drive`
- `lbfgs`, `torch_lbfgs`, `lbfgsb`, `adam`, `sgd`: the solvers, one a file
- `bounds`: the box that some of them keep to
- `history`: L-BFGS's pairs and direction; `wolfe`: its line search
- `fixed_step`, `recovery`, `callback`: what several of them share, or need to be driven from outside
"""

from __future__ import annotations

from impasto.runtime.solvers.adam import Adam
from impasto.runtime.solvers.bounds import Bounds
from impasto.runtime.solvers.lbfgs import LBFGS
from impasto.runtime.solvers.lbfgsb import LBFGSB
from impasto.runtime.solvers.protocol import Evaluation, Solver, SolverState, Trial, Trials, drive
from impasto.runtime.solvers.sgd import SGD
from impasto.runtime.solvers.torch_lbfgs import TorchLBFGS

SOLVERS: dict[str, type[LBFGS] | type[TorchLBFGS] | type[LBFGSB] | type[Adam] | type[SGD]] = {
    "lbfgs": LBFGS,
    "torch-lbfgs": TorchLBFGS,
    "lbfgs-b": LBFGSB,
    "adam": Adam,
    "sgd": SGD,
}
"""Solvers by the names that presets and the command line use."""

__all__ = [
    "LBFGS",
    "LBFGSB",
    "SGD",
    "SOLVERS",
    "Adam",
    "Bounds",
    "Evaluation",
    "Solver",
    "SolverState",
    "TorchLBFGS",
    "Trial",
    "Trials",
    "drive",
]
