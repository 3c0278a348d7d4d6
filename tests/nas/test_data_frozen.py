"""The generated images are frozen: published accuracies rest on them.

If this fails after a change to a generator or its knobs, raise that module's `GENERATOR_VERSION`, which renames the
cached files, put the new digests here, and measure every published figure on that data set again. If it fails without
a change, on a new machine or with a new numpy or scikit-learn, the images there differ: figures may not be compared.
"""

import hashlib

import pytest

from nas.data import SPLITS, Split, contours, digits64
from nas.data.cache import Images

COUNT = 64
VERSIONS = {"digits64": 1, "contours": 1}
DIGESTS: dict[tuple[str, Split], str] = {
    ("digits64", "train"): "df30b4d7f7a9ca8b7744fc7564d44911848fcd6ba095386a28f8d63ded414fed",
    ("digits64", "val"): "401dbc7ce21ebf010f8c71e5fb7a58d65da32500cb5340a39a7dc2fbda03cb60",
    ("digits64", "test"): "f1087dfc6af71631b3ad4377886cb81291e8c522678416db44b0eb8914e0ceda",
    ("contours", "train"): "c0917080c8e27249440e24e35fd31a493af68a853b4e8c8ac97b6816d6f15d26",
    ("contours", "val"): "834c9a43ea627df829048176d3f7fedeb2cc0e51a03ed398b0110b807ddf8cce",
    ("contours", "test"): "bda3b94a68e170cefa262007d935147726f9a76f81056bad3de9db81f555e724",
}


def sample(name: str, split: Split) -> Images:
    if name == "digits64":
        return digits64.generate(split, COUNT, seed=0)
    return contours.generate(contours.CLASSES, 64, COUNT, 0, split)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["digits64", "contours"])
def test_the_first_images_are_those_of_this_version(name: str, split: Split) -> None:
    made = sample(name, split)
    content = made.pixels.tobytes() + made.labels.astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest() == DIGESTS[name, split]


def test_the_digests_belong_to_this_version() -> None:
    assert {"digits64": digits64.GENERATOR_VERSION, "contours": contours.GENERATOR_VERSION} == VERSIONS
