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
    assert cases.opened == cases.identifiers == kept.identifiers


def test_no_more_stay_open_than_there_is_room_for():
    cases = Counted(MOST_OPEN + 1)
    kept = OpenCases(cases)
    for identifier in cases.identifiers:
        kept.load_case(identifier)
    kept.load_case(cases.identifiers[-1])
    assert len(cases.opened) == MOST_OPEN + 1
    kept.load_case(cases.identifiers[0])  # which had to make room
    assert cases.opened[-1] == cases.identifiers[0]


def test_a_worker_opens_files_itself():
    kept = OpenCases(Counted(2))
    kept.load_case("case_1")
    copy = pickle.loads(pickle.dumps(kept))
    assert copy.load_case("case_1")[3] == {"name": "case_1"}
    assert copy._cases.opened == ["case_1", "case_1"]
