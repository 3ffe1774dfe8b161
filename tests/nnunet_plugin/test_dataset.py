"""Cases that stay open are the cases, opened no more often than there is room."""

import pickle

import numpy as np
from nnunet_plugin.dataset import MOST_OPEN, OpenCases


class Counted:
    """Cases that count how often they are opened."""

    def __init__(self, number: int):
        self.identifiers = [f"case_{k}" for k in range(number)]
        self.opened: list[str] = []

    def load_case(self, identifier):
        self.opened.append(identifier)
        return np.full(3, int(identifier[5:])), np.zeros(3), None, {"name": identifier}


def test_a_case_is_opened_once_while_there_is_room():
    cases = Counted(MOST_OPEN)
    kept = OpenCases(cases)
    for identifier in 3 * cases.identifiers:
        data, seg, previous, properties = kept.load_case(identifier)
        assert (data == int(identifier[5:])).all() and (seg == 0).all() and previous is None
        assert properties == {"name": identifier}
    assert cases.opened[1:] == cases.identifiers == kept.identifiers  # the first once more, to know how large it is


def test_no_more_stay_open_than_there_is_room_for():
    cases = Counted(MOST_OPEN + 1)
    kept = OpenCases(cases)
    for identifier in cases.identifiers:
        kept.load_case(identifier)
    kept.load_case(cases.identifiers[-1])
    assert len(cases.opened) == MOST_OPEN + 2
    kept.load_case(cases.identifiers[0])  # which had to make room
    assert cases.opened[-1] == cases.identifiers[0]


def test_numpys_texts_are_no_other_cases():
    """nnU-Net draws names as `np.str_`, transplants ask with `str`."""
    cases = Counted(2)
    kept = OpenCases(cases)
    for identifier in (np.str_("case_1"), "case_1", np.str_("case_1")):
        kept.load_case(identifier)
    assert cases.opened == ["case_1"] * 2  # once to know how large it is


def test_cases_of_many_classes_take_no_more_room():
    class Large(Counted):
        def load_case(self, identifier):
            data, seg, previous, _ = super().load_case(identifier)
            return data, seg, previous, {"class_locations": {1: np.zeros((1_000_000, 4), np.int64)}}

    cases = Large(4)
    kept = OpenCases(cases)
    for identifier in 2 * cases.identifiers:
        kept.load_case(identifier)
    assert len(cases.opened) == 9  # 32 MB each: two stay, so that none of four is there in the second round


def test_a_worker_opens_files_itself():
    kept = OpenCases(Counted(2))
    kept.load_case("case_1")
    copy = pickle.loads(pickle.dumps(kept))
    assert copy.load_case("case_1")[3] == {"name": "case_1"}
    assert copy._cases.opened == ["case_1"] * 4
