"""Labels and regions: what is painted is what is read, whatever `regions_class_order` says."""

import json
import random

import numpy as np
import pytest

from scripts.data.description import DatasetDescription, read_description
from scripts.runtime.errors import InputError


def _described(labels: dict, order: list[int] | None = None) -> DatasetDescription:
    return DatasetDescription("Dataset901_Toy", {"0": "MR"}, {"background": 0, **labels}, order)


def _check_law(description: DatasetDescription) -> None:
    for value in description.known_integers:
        channels = description.to_channels(np.array([value]))
        painted = description.to_label_map(channels.astype(float))
        assert np.array_equal(description.to_channels(painted), channels), (description.labels, value, painted)
    for index, (name, values) in enumerate(description.foreground):
        assert description.painted[name] in values
        assert description.to_channels(np.array([description.painted[name]]))[index] == 1


@pytest.mark.parametrize(
    "labels, order",
    [
        ({"WT": [1, 2, 3, 4], "TC": [1, 2, 3], "ET": 1}, [1, 2, 3]),
        ({"WT": [1, 2, 3], "TC": [2, 3], "ET": 3}, [1, 2, 3]),
        ({"WT": [1, 2, 3], "TC": [2, 3], "ET": 3}, [3, 2, 1]),
        ({"left": [1, 2], "right": [2, 3]}, [1, 3]),
        ({"ET": 3, "TC": [2, 3], "WT": [1, 2, 3]}, [1, 2, 3]),
        ({"a": 1, "b": 2}, [2, 1]),
        ({"b": 2, "a": 1, "ignore": 3}, None),
        ({"only": [3]}, [1]),
    ],
)
def test_what_is_painted_is_read_back(labels, order):
    _check_law(_described(labels, order))


def test_the_law_holds_for_any_labels_and_nnunets_painting_is_kept_where_it_is_lawful():
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    draw, lawful = random.Random(0), 0
    for number in range(300):
        names = [f"r{i}" for i in range(draw.randint(1, 4))]
        regions = {name: draw.sample(range(1, 6), draw.randint(1, 4)) for name in names}
        labels = {
            name: values if len(values) > 1 or draw.random() < 0.5 else values[0] for name, values in regions.items()
        }
        order = [draw.randint(1, 5) for _ in names]
        description = _described(labels, order)
        _check_law(description)
        if description.has_regions and description.paints_what_it_reads:
            lawful += 1
            probabilities = np.random.default_rng(number).random((len(names), 50))
            nnunets = LabelManager(description.labels, order).convert_probabilities_to_segmentation(probabilities)
            assert np.array_equal(nnunets, description.to_label_map(probabilities))
    assert lawful > 10


def test_an_order_without_regions_is_ignored_as_nnunet_does():
    plain, ordered = _described({"a": 1, "b": 2}), _described({"a": 1, "b": 2}, [2, 1])
    channels = np.random.default_rng(0).random((2, 64))
    assert np.array_equal(plain.to_label_map(channels), ordered.to_label_map(channels))
    assert ordered.painted == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "labels, order, named",
    [
        ({"WT": [1, 2], "TC": [2]}, [1], "one integer for each"),
        ({"WT": [1, 2], "TC": [2]}, None, "one integer for each"),
        ({"WT": [1, 2], "TC": [2]}, ["1", 2], "one integer for each"),
        ({"WT": [0, 1, 2], "TC": [2]}, [1, 2], r"background \(0\) in WT"),
        ({"WT": [1, 2], "TC": []}, [1, 2], "no integer in TC"),
    ],
)
def test_regions_that_cannot_be_painted_are_refused(tmp_path, labels, order, named):
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, **labels}, "regions_class_order": order}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=named):
        read_description(tmp_path)


def test_an_order_that_swaps_regions_is_named_and_not_followed(tmp_path, caplog):
    labels = {"background": 0, "WT": [1, 2, 3, 4], "TC": [1, 2, 3], "ET": 1}
    content = {"channel_names": {"0": "MR"}, "labels": labels, "regions_class_order": [1, 2, 3]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    _check_law(read_description(tmp_path))
    assert "regions_class_order" in caplog.text and "1 as 3" in caplog.text
