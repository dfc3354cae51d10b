"""`load`, which loads a data set by its name."""

import os
from pathlib import Path

import numpy as np

from jaxrobust import checks, packages
from jaxrobust.data import archives, cifar, decoding, folder, tar
from jaxrobust.data.dataset import Dataset, Split

NAMES = ("digits", "sports10", "image_folder", "cifar10", "cifar100", "cifar10_jpeg")
"""The data sets that `load` knows by name."""

# ImageNet's, which the studies of Sports-10 and most pretrained networks normalise with.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Of the train splits' pixels.
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)
_CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
_CIFAR100_STD = (0.2673, 0.2564, 0.2762)
_MEAN_AND_STD = {
    "cifar10": (_CIFAR10_MEAN, _CIFAR10_STD),
    "cifar10_jpeg": (_CIFAR10_MEAN, _CIFAR10_STD),
    "cifar100": (_CIFAR100_MEAN, _CIFAR100_STD),
}
_TAR = "cifar10-jpeg.tar.xz"

TEST_SPLITS = ("test", "valid", "val")


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    *,
    test_split: str | None = None,
    skip_damaged: bool = False,
    download: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads a data set, decoded, into memory.

    - "digits": the 1,797 handwritten digits of scikit-learn, which needs no files and no internet
      connection. The images have 8x8 gray pixels of 17 levels, and are loaded as RGB of `image_size`
      (32). Every fifth image of the images sorted by class is in the test split: there are 1,437 train
      and 360 test images. Mean and standard deviation are those of the train split: 0.310 and 0.349 at
      32 pixels.
    - "sports10": photographs of ten sports, at 32 pixels unless `image_size` is given. The test split
      is the folder "valid", as in the studies that use the data set.
    - "cifar10", "cifar100": 50,000 train and 10,000 test images of 32x32 pixels, of 10 or 100 classes
      (the fine labels), in the order of the official archive. `data_dir` has that archive
      (cifar-10-python.tar.gz, cifar-100-python.tar.gz), whose checksum is verified, or a folder
      "<name>/<version>" that tensorflow-datasets prepared in the format "array_record"; an archive is
      converted to such a folder. `download=True` downloads the archive if it is missing.
    - "cifar10_jpeg": CIFAR-10 re-encoded as JPEG, from cifar10-jpeg.tar.xz (which is not unpacked) or
      its unpacked folders "train" and "test". JPEG changes the pixels: train and test on it, and do
      not compare its figures with those of CIFAR-10.
    - "image_folder", or the path of the folder: images at `<data_dir>/<split>/<class>/<image>`, of
      their own size unless `image_size` is given.

    Photographs are resized with Pillow's bicubic filter, without cropping: an image that is not square
    is stretched. Their mean and standard deviation are those of ImageNet; those of CIFAR are of its
    train split. Classes and files of a folder are in the order of their names. Hidden files and files
    outside the class folders are ignored. Decoded images are cached, and decoded again when the name,
    size or time of a file changes.

    Args:
      name: One of `NAMES`, or the path of a folder of images.
      data_dir: The folder with the splits; for "sports10" also a folder that has them in "sports10".
        For "cifar10" and "cifar100" see above. For "cifar10_jpeg" the tar file, a folder with the tar
        file or the splits, or a folder that has these in "cifar10_jpeg". "digits" needs none.
      image_size: The side of the images in pixels, at least 1. None: the default of the data set.
      test_split: The name of the folder of the test split. None: "test", "valid" or "val", whichever
        exists; for "sports10", "valid" first. The CIFAR data sets have only "test".
      skip_damaged: Whether to leave out files that cannot be read as images, and list them in
        `skipped_files` of the result, instead of raising an error.
      download: Whether to download the archive of "cifar10" or "cifar100" (170 MB) to `data_dir` if it
        is missing.
      cache_dir: The folder of the cache of decoded images. None: $JAXROBUST_CACHE, else
        $XDG_CACHE_HOME/jaxrobust, else ~/.cache/jaxrobust.

    Returns:
      The data set.

    Raises:
      TypeError: `image_size` is not an integer.
      FileNotFoundError: `data_dir`, or what it must contain, does not exist.
      ConnectionError: A download failed; nothing of it is kept.
      OSError: The cache cannot be written to, or a file cannot be read.
      ValueError: The name is unknown; `data_dir` is missing; `test_split` is "train", or several
        folders could be the test split; a class is empty or in one split only; a file is damaged;
        images differ in size and there is no `image_size`; an archive has another checksum; or
        `download` is given for a data set that cannot be downloaded.

    Example:
      >>> digits = load("digits")
      >>> digits.train.images.shape, len(digits.test), digits.num_classes
      ((1437, 32, 32, 3), 360, 10)
    """
    if name not in NAMES and data_dir is None and Path(name).expanduser().is_dir():
        name, data_dir = "image_folder", name
    if name not in NAMES:
        raise ValueError(
            f"`name` must be one of {NAMES}, or the path of a folder of images, got {name!r}."
        )
    if image_size is not None:
        checks.integer("image_size", image_size, minimum=1)
    # What is no file on the disk comes first.
    if name == "digits":
        return _digits(32 if image_size is None else int(image_size))

    if test_split == "train":
        raise ValueError("`test_split` must not be 'train': name another folder.")
    side = None if image_size is None else int(image_size)
    if (name in archives.ARCHIVES or name == "cifar10_jpeg") and test_split not in (None, "test"):
        raise ValueError(f"`test_split` of {name!r} must be 'test', got {test_split!r}.")
    if download and name not in archives.ARCHIVES:
        raise ValueError(
            f"`download` must be False for {name!r}: only {' and '.join(archives.ARCHIVES)} can be "
            "downloaded. Put the data set into `data_dir`, as data/README.md says."
        )
    # The official archives, with a checksum and a folder of their own.
    if name in archives.ARCHIVES:
        root = _cifar_root(name, data_dir, download)
        decoded = cifar.load(name, root, side, download=download, cache_dir=cache_dir)
        return _dataset(name, decoded)
    # Encoded images: of a tar file, or of folders.
    root = _jpeg_root(data_dir) if name == "cifar10_jpeg" else _root(name, data_dir)
    if root.is_file():
        test_split = "test"
        decoded = tar.decode(root, side, cache_dir)
    else:
        if test_split is None:
            test_split = _find_test_split(name, root)
        if name == "sports10" and side is None:
            side = 32
        decoded = decoding.decode(folder.scan(root, test_split), side, cache_dir)
    # A figure over other images than the user has would be silently another one.
    if decoded.damaged and not skip_damaged:
        shown = "".join(f"\n  {root / file}: {reason}" for file, reason in decoded.damaged[:5])
        more = "\n  ..." if len(decoded.damaged) > 5 else ""
        raise ValueError(
            f"{len(decoded.damaged)} file(s) cannot be read as images:{shown}{more}\n"
            "Repair or remove them, or pass skip_damaged=True (in experiments --skip-damaged) to leave "
            "them out."
        )
    for split_name, split in (("train", decoded.train), (test_split, decoded.test)):
        for label in set(range(len(decoded.class_names))) - set(split.labels.tolist()):
            empty = root / split_name / decoded.class_names[label]
            raise ValueError(f"The class folder {str(empty)!r} has no image that can be read.")
    return _dataset(name, decoded)


def _dataset(name: str, decoded: decoding.Decoded) -> Dataset:
    mean, std = _MEAN_AND_STD.get(name, (_IMAGENET_MEAN, _IMAGENET_STD))
    return Dataset(
        name=name,
        train=decoded.train,
        test=decoded.test,
        class_names=decoded.class_names,
        mean=np.array(mean, np.float32),
        std=np.array(std, np.float32),
        skipped_files=decoded.damaged,
    )


def _cifar_root(name: str, data_dir: str | os.PathLike[str] | None, download: bool) -> Path:
    archive = archives.ARCHIVES[name]
    if data_dir is None:
        raise ValueError(
            f"{name!r} needs `data_dir`, a folder that has {archive.file_name} from {archive.url}, or "
            "to which download=True (in experiments --download) downloads it."
        )
    root = Path(data_dir).expanduser().absolute()
    if root.is_file():
        raise ValueError(f"`data_dir` must be the folder that has {name!r}, got {str(root)!r}.")
    if not root.is_dir() and not download:
        raise FileNotFoundError(
            f"`data_dir` must be an existing folder that has {archive.file_name} from {archive.url}, "
            f"got {str(root)!r}. With download=True (in experiments --download) it is created."
        )
    return root


def _jpeg_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Returns the tar file, or the folder with the splits."""
    layout = f"{_TAR}, or with its unpacked folders train and test"
    if data_dir is None:
        raise ValueError(
            f"'cifar10_jpeg' needs `data_dir`, a folder with {layout}, or that file itself. It is not "
            "downloaded; see data/README.md."
        )
    root = Path(data_dir).expanduser().absolute()
    for found in (root, root / "cifar10_jpeg"):
        if found.is_file() or (found / "train").is_dir():
            return found
        if (found / _TAR).is_file():
            return found / _TAR
    raise FileNotFoundError(
        f"`data_dir` must be a folder with {layout}, or that file itself, got {str(root)!r}."
    )


def _root(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    test = "valid" if name == "sports10" else "test"
    layout = f"<data_dir>/train/<class>/<image> and <data_dir>/{test}/<class>/<image>"
    if data_dir is None:
        raise ValueError(
            f"{name!r} needs `data_dir`, a folder with its images at {layout}. It is not downloaded; "
            "see data/README.md."
        )
    root = Path(data_dir).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(
            f"`data_dir` must be an existing folder with the images of {name!r} at {layout}, got "
            f"{str(root)!r}."
        )
    return root / name if name == "sports10" and (root / name).is_dir() else root


def _find_test_split(name: str, root: Path) -> str:
    found = [split for split in TEST_SPLITS if (root / split).is_dir()]
    if name == "sports10" and "valid" in found:
        return "valid"
    if len(found) > 1 and name != "sports10":
        raise ValueError(
            f"{str(root)!r} has more than one folder that could be the test split: {found}. "
            "Name one as `test_split`."
        )
    return found[0] if found else TEST_SPLITS[0]  # the listing then says that it is missing


def _digits(image_size: int) -> Dataset:
    with packages.extra("data", "The data set digits"):
        from PIL import Image
        from sklearn.datasets import load_digits

    bunch = load_digits()
    gray = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    side = (image_size, image_size)
    resized = [Image.fromarray(g).resize(side, Image.Resampling.BICUBIC) for g in gray]
    images = np.repeat(np.stack([np.asarray(r) for r in resized])[..., None], 3, axis=-1)
    labels = bunch.target.astype(np.int32)

    # A rule rather than a random number generator: it can be read, and repeated anywhere.
    in_test = np.zeros(len(labels), bool)
    in_test[np.argsort(labels, kind="stable")[::5]] = True

    def split(rows: np.ndarray) -> Split:
        files = tuple(f"{labels[row]}/{row:04d}" for row in np.flatnonzero(rows))
        return Split(images[rows], labels[rows], files)

    train = split(~in_test)
    pixels = train.images / np.float32(255)
    return Dataset(
        name="digits",
        train=train,
        test=split(in_test),
        class_names=tuple(str(digit) for digit in range(10)),
        mean=pixels.mean((0, 1, 2), dtype=np.float64).astype(np.float32),
        std=pixels.std((0, 1, 2), dtype=np.float64).astype(np.float32),
    )
