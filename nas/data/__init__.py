"""Data sets by name, each with a train, a search-validation and a test split.

A new one is a file and a line in `DATASETS`. Nothing heavy is imported before a data set is loaded.
"""

from collections.abc import Callable

from nas.data.base import SPLITS, Data, Split
from search_spaces.errors import InputError

__all__ = ["DATASETS", "SPLITS", "Data", "Split", "check_channels", "load", "load_for", "split_named"]


def _digits(path: str, image_size: int | None, seed: int) -> Data:
    from nas.data import digits

    return digits.load(image_size, seed)


def _digits64(path: str, image_size: int | None, seed: int) -> Data:
    from nas.data import digits64

    return digits64.load(image_size, seed)


def _contours(path: str, image_size: int | None, seed: int) -> Data:
    from nas.data import contours

    return contours.load(image_size, seed)


def _contours224(path: str, image_size: int | None, seed: int) -> Data:
    from nas.data import contours

    return contours.load(image_size, seed, native_size=224)


def _imagefolder(path: str, image_size: int | None, seed: int) -> Data:
    from nas.data import imagefolder

    return imagefolder.load(path, image_size, seed)


SMALLEST, LARGEST = 16, 1024  # pixels a side


def _torchvision(argument: str, image_size: int | None, seed: int) -> Data:
    from nas.data import published

    return published.load(argument, image_size, seed)


def _huggingface(argument: str, image_size: int | None, seed: int) -> Data:
    from nas.data import huggingface

    return huggingface.load(argument, image_size, seed)


Loader = Callable[[str, int | None, int], Data]

DATASETS: dict[str, Loader] = {  # as the user names it, with what follows a colon
    "digits": _digits,
    "digits64": _digits64,
    "contours": _contours,
    "contours224": _contours224,
    "imagefolder:PATH": _imagefolder,
    "torchvision:NAME": _torchvision,
    "hf:NAME": _huggingface,
}


def load(name: str, *, image_size: int | None = None, seed: int = 0, labels: bool = True) -> Data:
    """The data set of that name, at its own image size unless one is given; images of a fixed size are resized to it.

    The seed draws what the data set leaves open: how images are split, and which images are generated. `labels` says whether they are
    needed; where they are not, `imagefolder:PATH` may hold images alone.

    Raises:
        InputError: there is no such data set, the image size is out of range, its files are not as they should be, or labels are needed
            and it has none.
    """
    kind, colon, argument = name.partition(":")
    usage = next((usage for usage in DATASETS if usage.partition(":")[0] == kind), None)
    if usage is None or bool(argument) != (":" in usage) or (colon and not argument):
        wanted = f"write {usage}" if usage else f"there are {', '.join(DATASETS)}"
        raise InputError(f"no data set is named {name!r}; {wanted}")
    if image_size is not None and not SMALLEST <= image_size <= LARGEST:
        raise InputError(f"the image size must be from {SMALLEST} to {LARGEST} pixels, not {image_size}")
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")
    found = DATASETS[usage](argument, image_size, seed)
    if labels and not found.labelled:
        raise InputError(
            f"{name} has images without labels, which this needs; put the images in a folder for each class"
        )
    return found


def split_named(name: str) -> Split:
    """The split of that name.

    Raises:
        InputError: there is none.
    """
    for known in SPLITS:
        if known == name:
            return known
    raise InputError(f"no split called {name!r}; known: {', '.join(SPLITS)}")


def check_channels(channels: int, data: Data) -> None:
    """Refuse a network of images with other channels than a data set's.

    Raises:
        InputError: they differ.
    """
    if channels != data.channels:
        raise InputError(
            f"the network takes images of {channels} channels, those of {data.name} have {data.channels}; choose another"
        )


def load_for(network: str, name: str, image_size: int, classes: int, channels: int) -> Data:
    """The data set `name` for a network, as the user calls it, of that image size.

    Raises:
        InputError: as `load`, or the data has other than its `classes` or `channels`.
    """
    data = load(name, image_size=image_size)
    check_channels(channels, data)
    if data.classes != classes:
        raise InputError(
            f"{network} tells {classes} classes apart, {data.name} has {data.classes}; give the data it was trained on"
        )
    return data
