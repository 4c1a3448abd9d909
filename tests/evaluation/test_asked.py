from itertools import combinations

import pytest

from evaluation.asked import Split, different_things, pictures
from evaluation.store import Scope
from evaluation.suites import PICTURE_SUITES, open_suite


@pytest.mark.parametrize(("things", "tune", "report"), [(2, 60, 120), (3, 160, 320)])
def test_the_splits_share_no_set_of_captions(things, tune, report):
    mine, theirs = (
        {frozenset(s) for s in different_things(n, things, split)}
        for n, split in ((tune, Split.TUNE), (report, Split.REPORT))
    )
    assert (len(mine), len(theirs)) == (tune, report)
    assert not mine & theirs


def test_captions_of_a_set_share_neither_colour_nor_shape():
    for captions in different_things(96, 3, Split.REPORT):
        for one, other in combinations(captions, 2):
            assert not set(one.split()[1:]) & set(other.split()[1:])


def test_too_many_sets_are_refused():
    with pytest.raises(ValueError, match="has 60 sets"):
        different_things(61, 2, Split.TUNE)


def test_every_picture_has_a_seed_of_its_own():
    asked = pictures(different_things(10, 2, Split.REPORT), 3, Split.REPORT, stream=5)
    assert len({picture.seed for picture in asked}) == 30
    assert [p.captions for p in asked[:10]] == [p.captions for p in asked[10:20]]


def test_no_seed_of_a_suite_is_one_of_the_other_split():
    suite = open_suite("prompts")
    from evaluation.suites.prompts import LINES

    seeds = [{p.seed for line in LINES.values() for p in suite.asked(line, Scope(split))} for split in Split]
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize("name", ["gmm", *PICTURE_SUITES])
def test_blocks_have_files_of_their_own(name):
    blocks = open_suite(name).blocks(Scope())
    assert len({block.stem for block in blocks}) == len(blocks) > 10
