"""Tones, twins, flags and the unsafe list: complete, distinct, and beside the embedded set."""

import numpy as np
import pytest

from fedvlm.data import load_emoji
from fedvlm.data.twins import PROFESSIONS, swap, twins
from fedvlm.data.unsafe import UNSAFE, is_unsafe
from fedvlm.data.variants import TONES, complete_sets, load_flags, load_tones, thinned


@pytest.fixture(scope="module")
def tones():
    return load_tones()


def test_sets_of_tones_are_complete_and_no_two_alike(tones):
    rows = zip(
        tones.domains.tolist(),
        tones.concepts.tolist(),
        tones.more["tone"],
        tones.encoded,
        strict=True,
    )
    rows = [(str(d), str(c), tone, image) for d, c, tone, image in rows]
    assert len(rows) == 6 * len(complete_sets(rows))
    assert len(set(tones.concepts.tolist())) == 330
    assert len(tones) == 9342


def test_captions_name_no_tone_and_are_the_embedded_sets(tones):
    known = set(load_emoji().captions)
    assert not any("skin tone" in caption for caption in tones.captions)
    assert len(set(tones.captions) & known) > 300


def test_thinned_sets_stay_complete(tones):
    rows = thinned(tones, 2)
    sets = {
        (d, c)
        for d, c in zip(tones.domains[rows].tolist(), tones.concepts[rows].tolist(), strict=True)
    }
    assert len(rows) == 6 * len(sets) == 3960
    assert len(np.unique(tones.domains[rows])) == 6


def test_an_incomplete_set_or_two_equal_tones_are_left_out():
    rows = [("d", "hand", tone, tone.encode()) for tone in TONES]
    assert complete_sets(rows) == {("d", "hand")}
    assert complete_sets(rows[:-1]) == set()
    assert complete_sets([*rows[:-1], ("d", "hand", "dark", b"light")]) == set()


def test_the_embedded_set_is_what_it_was():
    data = load_emoji()
    assert len(data) == 8712
    assert data.fingerprint.startswith("6cfc0bcf0107e919")


def test_flags_are_far_from_the_embedded_set():
    flags = load_flags()
    assert len(flags) > 500
    assert not set(flags.captions) & set(load_emoji().captions)


def test_twins_differ_in_one_word_and_swap_back():
    found = twins(load_emoji().captions)
    assert len(found) > 80
    for twin in found:
        assert swap(twin.woman) == twin.man
        assert swap(twin.man) == twin.woman
    assert set(PROFESSIONS) <= {twin.neutral for twin in found}


def test_the_unsafe_list_gives_a_reason_for_what_is_there():
    captions = load_emoji().captions
    assert set(UNSAFE) <= set(captions)
    assert all(UNSAFE.values())
    assert is_unsafe(captions).sum() == 168
    assert not is_unsafe(captions, {}).any()
