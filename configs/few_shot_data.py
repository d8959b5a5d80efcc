"""Few-shot data in phases and widths.

``openclipart``, ``tuxpaint``, ``smoke``; for your own images: ``own``, ``table``.
"""

import ml_collections

from configs import common


def openclipart() -> ml_collections.ConfigDict:
    """30 classes of Open Clip Art, at 100, 200 and 400 pixels."""
    config = ml_collections.ConfigDict()
    config.data = dict(name="openclipart")
    config.protocol = {}
    config.out = "data/few_shot/openclipart"
    return config


def own() -> ml_collections.ConfigDict:
    """Your own images: a folder for each class, or a JSONL file with labels.

    With ``--config.data.name=products/ --config.out=FOLDER``.
    """
    config = openclipart()
    config.data.name = "products"
    config.out = "data/few_shot/own"
    return config


def table() -> ml_collections.ConfigDict:
    """A table of images and their classes, such as the CSV file of a data set.

    With ``--config.data.name=FILE.csv`` and the names of its columns.
    """
    config = own()
    config.data.name = "products.csv"
    config.data.image_column = "image"
    config.data.class_column = "category"
    config.out = "data/few_shot/table"
    return config


def tuxpaint() -> ml_collections.ConfigDict:
    """Stamps of Tux Paint in four classes of Open Clip Art: a shift of domain."""
    config = openclipart()
    stamps = "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    config.data.name = f"data/downloads/manual/tuxpaint/{stamps}"
    config.data.classes = ("clothes", "people", "plants", "vehicles")
    # For testing only.
    config.protocol = dict(train=1, validation=1, test=20, phases=1)
    config.out = "data/few_shot/tuxpaint"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Four classes of the bundled drawings, small: a quick check."""
    config = openclipart()
    config.data.name = "bundled"
    config.data.classes = ("animals", "buildings", "food", "tools")
    config.protocol.widths = (16, 32, 64)
    config.out = "runs/few_shot/smoke"
    return config


get_config = common.variants(openclipart, own, table, tuxpaint, smoke)
