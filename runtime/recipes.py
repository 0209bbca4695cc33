"""The presets that come with Impasto: published recipes to the number, and the default of our own.

`docs/presets.md` tells what each is, and where it departs from its source.
"""

from __future__ import annotations

from collections.abc import Mapping

from impasto.errors import UnknownNameError
from impasto.export.objective import Objective
from impasto.models.filterbank import LEVELS
from impasto.runtime.images import Sizing
from impasto.runtime.presets import Preset, Stage
from impasto.runtime.saved_presets import load_preset, saved_presets
from impasto.runtime.solvers import LBFGS, LBFGSB, SGD, Bounds, TorchLBFGS

_STYLE_TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


def _each(weight: float) -> Mapping[str, float]:
    return dict.fromkeys(_STYLE_TAPS, weight)


IMPASTO = Preset(
    name="impasto",
    source="Impasto's default: relative errors, so that it suits any weights",
    objective=Objective(
        content={"relu4_2": 0.01},
        style=_each(1.0),
        content_norm="relative",
        gram_norm="positions",
        style_norm="relative",
    ),
    solver=LBFGS(iterations=100, history=20),
    stages=(Stage(1 / 4, 100), Stage(1 / 2, 100), Stage(1.0, 100)),
    adapt=True,
)

_BANKS = tuple(f"bank{level}" for level in range(LEVELS))

FILTERBANK = Preset(
    name="filterbank",
    source="Impasto's own, for the filter bank: needs no weights",
    objective=Objective(
        content={"bank0": 0.0225, "bank1": 0.045, "bank2": 0.045},
        style=dict(zip(_BANKS, (4.0, 2.0, 1.0, *[0.5] * (LEVELS - 3)), strict=True)),
        statistics=dict.fromkeys(_BANKS, "covariance"),
        pixels="unit",
        convention="unit",
    ),
    solver=LBFGS(iterations=80, history=20, first_step=1 / 255),
    stages=(Stage(1 / 4, 80), Stage(1 / 2, 80), Stage(1.0, 80)),
    weights="filterbank",
    smallest_grid=8,
    margin=4,
)

GATYS = Preset(
    name="gatys",
    source="Gatys, Ecker & Bethge 2015, arXiv:1508.06576; α/β = 1e-3",
    objective=Objective(
        content={"relu4_2": 1.0},
        style=_each(1e3 / 5),
        content_norm="half-sum",
        gram_norm="none",
        style_norm="gatys",
        pooling="average",
    ),
    solver=LBFGS(iterations=500, history=20),
    style_fit="result",
    init="noise",
    noise=20.0,
)

KERAS = Preset(
    name="keras",
    source='Chollet, "Deep Learning with Python" (2017), listing 8.14 onwards, Keras 2.1',
    objective=Objective(
        content={"relu5_2": 0.025},
        style=_each(1 / 5),
        tv=1e-4,
        content_norm="sum",
        gram_norm="none",
        style_norm="image",
        tv_form="power",
    ),
    solver=LBFGSB(rounds=20, maxfun=20),
    sizing=Sizing("height", 508),
    style_fit="result",
)

PYTORCH = Preset(
    name="pytorch",
    source="PyTorch's neural-style tutorial as of 2019: no normalisation, weights inside the squares",
    objective=Objective(
        content={"conv2_2": 1.0},
        style=dict.fromkeys(("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"), 1000.0**2),
        pixels="unit",
        convention="torchvision",
    ),
    solver=TorchLBFGS(bounds=Bounds((0.0,), (1.0,))),
    sizing=Sizing("stretch", 512),
    style_fit="result",
    evaluations=300,
)

JOHNSON = Preset(
    name="johnson",
    source="jcjohnson/neural-style, the defaults of neural_style.lua",
    objective=Objective(content={"relu4_2": 5.0}, style=_each(100.0), tv=1e-3),
    solver=LBFGS(iterations=1000, history=100),
    init="noise",
    noise=1e-3,
)

GORDIC = Preset(
    name="gordic",
    source="gordicaleksa/pytorch-neural-style-transfer, its defaults with L-BFGS",
    objective=Objective(
        content={"relu4_2": 1e5},
        style=_each(3e4 / 5),
        tv=1.0,
        style_norm="sum",
        tv_form="absolute",
        pixels="rgb255",
        convention="torchvision",
    ),
    solver=LBFGS(iterations=1000, history=100),
    sizing=Sizing("height", 400),
)

KERAS_IO = Preset(
    name="keras-io",
    source="keras.io/examples/generative/neural_style_transfer",
    objective=Objective(
        content={"relu5_2": 2.5e-8},
        style=_each(1e-6 / 5),
        tv=1e-6,
        content_norm="sum",
        gram_norm="none",
        style_norm="image",
        tv_form="power",
    ),
    solver=SGD(iterations=4000, learning_rate=100.0),
    sizing=Sizing("height", 400),
    style_fit="result",
)

GATYS_NOTEBOOK = Preset(
    name="gatys-notebook",
    source="leongatys/PytorchNeuralStyleTransfer, the notebook: 512 px, then 800 px",
    objective=Objective(
        content={"relu4_2": 1.0},
        style={tap: 1e3 / channels**2 for tap, channels in zip(_STYLE_TAPS, (64, 128, 256, 512, 512), strict=True)},
        gram_norm="positions",
        pooling="average",
    ),
    solver=LBFGS(iterations=500, history=100),
    sizing=Sizing("short", 800),
    stages=(Stage(512 / 800, 500), Stage(1.0, 200)),
)

PRESETS = {
    preset.name: preset
    for preset in (IMPASTO, FILTERBANK, GATYS, KERAS, PYTORCH, JOHNSON, GORDIC, KERAS_IO, GATYS_NOTEBOOK)
}


def find_preset(name: str) -> Preset:
    """Return the preset of that name, Impasto's own or one that the user saved.

    Raises `UnknownNameError` if there is none, `UsageError` for a saved one whose file is damaged.
    """
    if name in PRESETS:
        return PRESETS[name]
    saved = saved_presets()
    if name not in saved:
        raise UnknownNameError("preset", name, [*PRESETS, *saved])
    return load_preset(saved[name])
