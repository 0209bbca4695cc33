"""Backbones: layer tables, taps and their aliases, weights, and the torch reference.

==================  ==================================================================================
`layers`            what backbones are made of
`backbones`         the VGG layer tables, and the filter bank's
`filterbank`        a backbone without a learned number
`philox`            … its random numbers, the same on every machine
`taps`              canonical tap names and the aliases of other tools
`conventions`       pixel spaces: how a picture becomes the numbers that weights expect
`weights`           `Weights`: checked when made, with a digest; read from and written to safetensors
`random_weights`    seeded random weights
`locate`            weights by name or path; the cache folder
`sources`, `fetch`  what can be downloaded, and the download
`convert`           other people's files into `Weights`
`tensor_files`      … their formats: Keras HDF5, NumPy archives, safetensors
`torch_file`        … ``torch.save``'s two formats, read without torch
`pickle_reader`     … and without unpickling anything
`reference`         the backbone in torch (needs the extra ``reference``; not imported here)
==================  ==================================================================================
"""

from __future__ import annotations

from impasto.models.backbones import BACKBONES, Backbone, backbone
from impasto.models.conventions import (
    CAFFE,
    CONVENTIONS,
    PIXEL_SPACES,
    RGB255,
    TORCHVISION,
    UNIT,
    PixelSpace,
    pixel_space,
)
from impasto.models.convert import convert_weights
from impasto.models.locate import available, cache_dir, find_weights
from impasto.models.sources import SOURCES, Source
from impasto.models.taps import aliases, resolve_tap, resolve_taps
from impasto.models.weights import Weights, load_weights, save_weights

# `fetch` and `random_weights` are not re-exported: they would hide the modules of the same names.
__all__ = [
    "BACKBONES",
    "CAFFE",
    "CONVENTIONS",
    "PIXEL_SPACES",
    "RGB255",
    "SOURCES",
    "TORCHVISION",
    "UNIT",
    "Backbone",
    "PixelSpace",
    "Source",
    "Weights",
    "aliases",
    "available",
    "backbone",
    "cache_dir",
    "convert_weights",
    "find_weights",
    "load_weights",
    "pixel_space",
    "resolve_tap",
    "resolve_taps",
    "save_weights",
]
