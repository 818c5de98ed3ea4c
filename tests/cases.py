"""Convolutions as data, in oneDNN's spelling (pyconv/_conv_string.py); two images where mb is not given.

Around the vector widths of every ISA (4, 8, 16 lanes, twice that per tile) and the row tiles (4, 6, 14
pixels), channels and pixels take the values tile-1, tile, tile+1.
"""

from pyconv._conv_string import conv2d as parse


def conv2d(text):
    return parse(text if "mb" in text else f"mb2{text}")


def winograd_taps(case):
    """Taps along both axes of the filter that Winograd works with: a phase's where there is a stride."""
    return -(-case.kh // case.sh), -(-case.kw // case.sw)


def fits_winograd(case):
    taps = set(winograd_taps(case))
    strided, dilated = (case.sh, case.sw) != (1, 1), (case.dh, case.dw) != (1, 1)
    return taps <= {1, 2, 3, 4, 5, 7} and taps != {1} and not (strided and dilated)


CONV2D = [
    conv2d(text)
    for text in (
        # real layers, small
        "ic1ih28oc6kh5ph2",  # LeNet-5 C1
        "ic6ih14oc16kh5",  # LeNet-5 C3
        "ic1ih28oc4kh3sh2ph1",  # simple_cnn
        "ic3ih32oc16kh3ph1",  # CIFAR stem
        "mb1ic3ih31oc8kh7sh2ph3",  # ResNet stem
        "mb1ic16ih14oc32kh1sh2",  # projection
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
        "mb1ic31ih4oc31kh3ph1",
        "mb1ic33ih4oc33kh3ph1",
        # pixels around the row tiles: 13, 14, 15 and 5, 6, 7 columns; slabs of 448 pixels cut the rows
        "ic2ih1iw13oc3kh1",
        "ic2ih1iw14oc3kh1",
        "ic2ih1iw15oc3kh1",
        "ic2ih1iw7oc3kh1",
        "mb1ic1ih40iw30oc2kh3ph1",
        "mb1ic1ih3iw500oc2kh3ph1",
        # depthwise: channels around the vectors, rows around the tiles of 4, columns around 1 and 2 vectors
        "ic15ih9iw15oc15kh3ph1g15",
        "ic16ih8iw16oc16kh5ph2g16",
        "ic17ih7iw17oc17kh7ph3g17",
        "mb1ic65ih6oc65kh3sh2ph1g65",
        "mb1ic3ih6iw33oc3kh5sh2ph2g3",
        "mb1ic3ih12iw50oc3kh4kw3sh2sw1ph1g3",
        "ic4ih9oc4kh13ph6g4",
        "mb1ic2ih20iw18oc2kh31ph15g2",
        "ic3ih15oc3kh3ph2dh2g3",
        "ic3ih15oc3kh5sh3ph2dh2g3",
        "ic5ih11oc5kh3sh4ph1g5",
        "mb1ic2ih1iw70oc2kh1kw9ph0pw4g2",
        "mb1ic1ih70iw90oc1kh3ph1",
        "mb19ic3ih5oc3kh3ph1g3",
        # tiles of 7, 8 and 14 pixels or rows, one less and one more; strides that share pixels or not
        "mb1ic16ih6iw13oc16kh3ph1g16",
        "mb1ic32ih7iw14oc32kh5ph2g32",
        "mb1ic20ih8iw15oc20kh3sh2ph1g20",
        "mb1ic16ih15iw29oc16kh3sh2ph1g16",
        # depthwise 3x3: tiles of 7 x 2, 4 x 2 and, of gradients at stride 2, 4 x 4 from either parity of padding
        "mb1ic33ih8iw7oc33kh3g33",
        "ic16ih14iw3oc16kh3ph2pw0g16",
        "mb1ic17ih9iw12oc17kh3sh2g17",
        "ic16ih7iw10oc16kh3sh2ph2pw1g16",
        "mb1ic48ih8iw5oc48kh3sh2ph1pw2g48",
        "mb1ic18ih14iw9oc18kh3kw5sh1sw2ph1pw2g18",
        "mb3ic17ih1iw40oc17kh1kw7ph0pw3g17",
        "ic3ih7iw2oc3kh1sh1sw3g3",  # phases of the stride without a pixel
        # vectors of output channels, 1 to 5 of them, and small images that share a job
        "mb1ic3ih9iw10oc48kh3ph1",
        "mb1ic2ih11oc65kh4sh2ph1",
        "mb17ic3ih5oc17kh3sh2ph1",
        "mb9ic4ih3oc33kh3",
        "mb1ic8ih12oc40kh3ph1g2",
        # few channels per group: every register tile of 1..6 channels, and taps beyond it
        "ic6ih10iw30oc6kh3ph1g3",
        "ic9ih10iw50oc9kh3ph1g3",
        "mb1ic8ih6iw100oc8kh3ph1g2",
        "mb1ic2ih9iw90oc5kh3ph1",
        "mb1ic3ih40iw40oc11kh7sh2ph3",
        "mb1ic2ih18oc13kh3sh3ph1",
        # terms of one block of 384, of two and three
        "mb1ic30ih5oc3kh3",
        "mb1ic50ih5oc3kh3",
        "mb1ic96ih8oc33kh3ph1",
        # one output pixel of one image: the weight gradient sums one term
        "mb1ic16ih5oc32kh5",
        "mb1ic32ih1oc48kh1",
        "mb1ic16ih4oc40kh3sh2",
        # more images than chunks of the weight gradient
        "mb19ic2ih5oc3kh3ph1",
        "mb0ic3ih8oc4kh3ph1",
    )
]

# For Winograd, which works on tiles: of 5 pixels for 2 and 4 taps, 4 for 3 and 5, 2 for 7, 1 for one.
CONV2D_WINOGRAD = [
    conv2d(text)
    for text in (
        # tiles at the border: 3, 4, 5 and 7, 8, 9 pixels; both axes different; one pixel
        "mb1ic3ih3oc4kh3ph1",
        "mb1ic5ih4iw9oc3kh3ph1",
        "mb3ic4ih5iw8oc7kh3",
        "mb2ic17ih7oc33kh3ph1",
        "mb1ic2ih3oc2kh3",
        # any padding: the input gradient's is 2 - P, negative from 3 on
        "mb1ic4ih6iw7oc4kh3ph2pw0",
        "mb2ic3ih4iw5oc6kh3ph3pw5",
        # channels around one and two vectors, and around the restart of sums at 64
        "mb1ic16ih8oc32kh3ph1",
        "mb1ic15ih6oc31kh3ph1",
        "mb1ic63ih6oc17kh3ph1",
        "mb1ic65ih6oc49kh3ph1",
        "mb2ic130ih5oc70kh3ph1",
        # runs of more than 28 tiles; several blocks of tiles, cut inside a row of tiles
        "mb1ic2ih4iw130oc3kh3ph1",
        "mb2ic20ih50iw47oc18kh3ph1",
        "mb1ic70ih40oc34kh3ph1",
        # the tiles of the weight gradient in several parts
        "mb5ic3ih33oc5kh3",
        "mb2ic34ih8oc36kh3ph1g2",
        "mb0ic3ih8oc4kh3ph1",
        # 5 and 7 taps: tiles at the border, channels around a vector, padding beyond the taps, several blocks
        "mb1ic3ih7oc5kh5ph2",
        "mb2ic17ih5iw8oc16kh5",
        "mb1ic4ih6iw9oc3kh5ph5pw1",
        "mb2ic20ih40iw37oc18kh5ph2",
        "mb1ic3ih8iw9oc4kh7ph3",
        "mb2ic66ih7iw10oc33kh7ph3",
        "mb3ic5ih33oc7kh7",
        # axes of different taps, and of one
        "mb2ic9ih6iw11oc10kh3kw5ph1pw2",
        "mb1ic4ih11iw8oc6kh7kw3ph3pw0",
        "mb2ic18ih5iw17oc20kh1kw7ph0pw3",
        "mb2ic15ih18iw3oc17kh7kw1ph3pw0",
        "mb1ic33ih9iw10oc31kh1kw3ph0pw1",
        "mb3ic6ih10iw70oc5kh5kw1ph2pw0",
        "mb1ic3ih6iw7oc4kh1kw5ph2pw4dh3",
        # dilation: phases of different sizes, more phases than pixels, bundles that cut blocks and parts
        "mb1ic3ih9iw10oc4kh3ph2dh2",
        "mb2ic17ih7iw5oc18kh3ph3pw6dh3dw6",
        "mb1ic5ih13iw24oc3kh3ph0pw5dh1dw5",
        "mb2ic34ih40iw45oc18kh3ph3dh3",
        "mb2ic4ih20oc6kh5ph4dh2g2",
        "mb1ic3ih16iw29oc5kh1kw7ph0pw6dw2",
        # even taps; strides: phases of fewer taps, taps beyond the image, pixels that no window meets
        "mb2ic17ih9iw11oc18kh2ph1",
        "mb1ic5ih12oc7kh4kw2ph2pw1",
        "mb2ic17ih11iw12oc18kh3sh2ph1",
        "mb3ic3ih23iw26oc19kh7sh2ph3",
        "mb1ic3ih30oc5kh11sh4ph2",
        "mb2ic6ih13iw14oc8kh5kw6sh2sw3ph2pw1g2",
        "mb1ic4ih9iw40oc3kh1kw9sh1sw2ph0pw4",
        "mb2ic3ih10iw9oc4kh3kw2sh2sw4ph0",
    )
]

# For the tiles of the CUDA kernels: 64 and 128 channels and pixels, chunks of 8 channels, steps of 8 and 32 terms.
CONV2D_CUDA = [
    conv2d(text)
    for text in (
        "mb1ic8ih9iw7oc64kh3ph1",
        "mb1ic16ih1iw127oc56kh1",
        "mb2ic24ih8oc72kh3sh2ph1",
        "mb1ic40ih13iw10oc8kh3ph2dh2",  # 130 pixels, and 360 terms
        "mb2ic32ih6oc48kh3ph1g2",
        "mb1ic72ih3iw43oc136kh1kw2",
        "mb1ic8ih11oc16kh5kw2sh3sw2ph3pw1",
        "mb3ic16ih16oc8kh3ph1",  # 768 pixels: the weight gradient in parts
        "mb0ic8ih8oc8kh3ph1",
    )
]
