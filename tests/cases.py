"""Convolutions as data, in oneDNN's spelling: n batch, g groups, ic ih iw input, oc output channels, kh kw
kernel, sh sw stride, ph pw padding, dh dw dilation. A width not given equals its height; n defaults to 2.

Around the vector widths of every ISA (4, 8, 16 lanes, twice that per tile) and the row tiles (4, 6, 14
pixels), channels and pixels take the values tile-1, tile, tile+1.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Conv2dCase:
    n: int
    g: int
    ic: int
    ih: int
    iw: int
    oc: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    name: str

    def __str__(self):
        return self.name

    @property
    def x(self):
        return self.n, self.ic, self.ih, self.iw

    @property
    def w(self):
        return self.oc, self.ic // self.g, self.kh, self.kw

    @property
    def arguments(self):
        return dict(
            stride=(self.sh, self.sw),
            padding=(self.ph, self.pw),
            dilation=(self.dh, self.dw),
            groups=self.g,
        )


def conv2d(text: str) -> Conv2dCase:
    given = {key: int(value) for key, value in re.findall(r"([a-z]+)(\d+)", text)}
    sizes = {"n": given.get("n", 2), "g": given.get("g", 1), "ic": given["ic"], "oc": given["oc"]}
    for key, default in (("i", None), ("k", None), ("s", 1), ("p", 0), ("d", 1)):
        height = given.get(key + "h", default)
        sizes[key + "h"], sizes[key + "w"] = height, given.get(key + "w", height)
    return Conv2dCase(**sizes, name=text)


CONV2D = [
    conv2d(text)
    for text in (
        # real layers, small
        "ic1ih28oc6kh5ph2",  # LeNet-5 C1
        "ic6ih14oc16kh5",  # LeNet-5 C3
        "ic1ih28oc4kh3sh2ph1",  # simple_cnn
        "ic3ih32oc16kh3ph1",  # CIFAR stem
        "n1ic3ih31oc8kh7sh2ph3",  # ResNet stem
        "n1ic16ih14oc32kh1sh2",  # projection
        "ic8ih7oc8kh3ph1g8",  # depthwise
        "ic12ih9oc24kh3ph1g4",  # grouped
        # both axes different
        "ic3ih9iw13oc5kh1kw7sh2sw1ph0pw3",
        "ic4ih17iw6oc3kh5kw2sh1sw3ph2pw1dh2dw1",
        "ic2ih12iw11oc4kh3kw2sh3sw2ph4pw3dh1dw3g2",
        # strides above the kernel: pixels no window sees
        "ic2ih11oc3kh1sh3",
        "ic3ih10oc2kh2sh4ph1",
        # dilation and stride sharing a factor: phases with no tap
        "ic2ih13oc3kh3sh2dh2ph2",
        "ic2ih19oc3kh3sh3dh3",
        # window larger than the image, seen only through padding
        "ic2ih3oc2kh5ph2",
        "ic1ih1oc1kh1",
        "ic1ih1oc2kh3ph1",
        # channels around the vector widths
        "ic3ih6oc7kh3",
        "ic3ih6oc8kh3",
        "ic3ih6oc9kh3",
        "ic15ih5oc15kh3ph1",
        "ic16ih5oc16kh3ph1",
        "ic17ih5oc17kh3ph1",
        "n1ic31ih4oc31kh3ph1",
        "n1ic33ih4oc33kh3ph1",
        # pixels around the row tiles: 13, 14, 15 and 5, 6, 7 columns; slabs of 448 pixels cut the rows
        "ic2ih1iw13oc3kh1",
        "ic2ih1iw14oc3kh1",
        "ic2ih1iw15oc3kh1",
        "ic2ih1iw7oc3kh1",
        "n1ic1ih40iw30oc2kh3ph1",
        "n1ic1ih3iw500oc2kh3ph1",
        # more terms than one block of 256
        "n1ic30ih5oc3kh3",
        # more images than chunks of the weight gradient
        "n19ic2ih5oc3kh3ph1",
        "n0ic3ih8oc4kh3ph1",
    )
]
