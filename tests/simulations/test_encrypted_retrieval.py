"""End to end: the embedded model on real images, encrypted beside plaintext."""

import pytest

from simulations.encrypted_retrieval import run


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_encrypted_and_plaintext_agree_on_real_images():
    result = run(images=600)
    assert result.images == 600
    assert result.classes >= 100
    for share in (
        result.classification_top1,
        result.projection_top1,
        result.retrieval_top1,
    ):
        assert share >= 0.995
    # Agreement says something only where the answers are better than chance.
    assert result.accuracy_plaintext > 20 / result.classes
    assert abs(result.accuracy_encrypted - result.accuracy_plaintext) <= 0.005
    assert result.projection_max_error < 1e-3
