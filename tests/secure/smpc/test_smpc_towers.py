"""Whole towers, end to end: the embedded model on real images, and CLIP's own size."""

import pytest

from simulations.private_inference import full_size, image_agreement, text_agreement

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_the_embedded_image_tower_agrees_on_two_hundred_images():
    found = image_agreement(images=208, labels=64)
    assert found.inputs == 208
    assert found.agreement >= 0.99
    assert found.max_error < 2e-3


def test_the_embedded_text_tower_agrees_on_two_hundred_captions():
    found = text_agreement(captions=208)
    assert found.agreement >= 0.99
    assert found.max_error < 2e-3


def test_a_tower_of_clips_size_agrees():
    found = full_size(layers=12)
    assert found.agreement == 1.0
    assert found.max_error < 5e-3
    assert found.rounds < 12 * 45
