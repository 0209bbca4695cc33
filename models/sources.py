"""Where weights can be downloaded, and what the files must be.

The digests of VGG-16 and VGG-19 are whole SHA-256 sums. For VGG-11 and VGG-13 only the first eight digits are known,
which torchvision puts into the files' names and ``torch.hub`` checks in the same way: enough against a damaged
download, while against a forged one these two rely on HTTPS.
"""

from __future__ import annotations

from dataclasses import dataclass

from impasto.errors import UnknownNameError


@dataclass(frozen=True)
class Source:
    """A weights file on the web.

    ``name`` is what the user calls the weights, ``backbone`` whose they are, ``sha256`` the file's digest in lower-case
    hexadecimal, or its first digits; ``max_bytes`` is the file's size where that is known, and otherwise a little
    more than its parameters take: no more than that is ever read.
    """

    name: str
    backbone: str
    url: str
    sha256: str
    max_bytes: int


_TORCHVISION = "https://download.pytorch.org/models/"

SOURCES = {
    source.name: source
    for source in (
        Source("vgg11", "vgg11", f"{_TORCHVISION}vgg11-8a719046.pth", "8a719046", 4 * 132_863_336 + 65_536),
        Source("vgg13", "vgg13", f"{_TORCHVISION}vgg13-19584684.pth", "19584684", 4 * 133_047_848 + 65_536),
        Source(
            "vgg16",
            "vgg16",
            f"{_TORCHVISION}vgg16-397923af.pth",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            553_433_881,
        ),
        Source(
            "vgg19",
            "vgg19",
            f"{_TORCHVISION}vgg19-dcbb9e9d.pth",
            "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
            574_673_361,
        ),
    )
}
"""Every source by its name; the convention of all of these is torchvision's."""


def source(name: str) -> Source:
    """Return the source of that name; raise `UnknownNameError` if there is none."""
    if name not in SOURCES:
        raise UnknownNameError("downloadable weights", name, SOURCES)
    return SOURCES[name]
