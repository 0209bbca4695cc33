import re
from pathlib import PurePosixPath

import pytest

from impasto.errors import UnknownNameError
from impasto.models.backbones import backbone
from impasto.models.sources import SOURCES, source


@pytest.mark.parametrize("name", SOURCES)
def test_source(name):
    entry = source(name)
    assert entry.name == name
    assert entry.url.startswith("https://")
    assert re.fullmatch(r"[0-9a-f]{8,64}", entry.sha256)
    # torchvision's file names carry the digest's first eight digits.
    assert PurePosixPath(entry.url).name == f"{entry.backbone}-{entry.sha256[:8]}.pth"
    # The file holds the convolutions and the classifier's three layers in float32, and not much besides.
    convs = sum(c.out_channels * (c.in_channels * c.kernel**2 + 1) for c in backbone(entry.backbone).convs)
    classifier = (25088 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    assert 0 < entry.max_bytes - 4 * (convs + classifier) <= 1 << 16


def test_unknown_source():
    with pytest.raises(UnknownNameError, match="unknown downloadable weights 'vgg20'"):
        source("vgg20")
