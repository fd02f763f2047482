"""A head folded into one linear layer scores as the model with the head does, wherever it runs."""

import numpy as np
import pytest
import torch

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.adapters.folding import folded_head, frozen_features, split_weights
from fedvlm.errors import ConfigError
from fedvlm.heads.whitening import unit_rows
from fedvlm.seeds import ExperimentSeed
from secure.errors import ParameterError
from secure.he import EncryptedLinear, EncryptedProjection, HEClient, HEParams
from tests.fedvlm.adapters.test_prototypes import inputs, tiny

KINDS = ["prototypes", "head"]


def learned(kind: str, family: str = "clip"):
    """Return a tiny model with a head that holds something."""
    vlm = tiny(family)
    view = attach(vlm, AdapterSpec(kind, rows=64), ExperimentSeed(0))
    rng = np.random.default_rng(3)
    view.write(rng.normal(size=view.size).astype(np.float32))
    return vlm


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_folded_layer_gives_the_models_scores(kind, family):
    vlm = learned(kind, family)
    images, texts = inputs()
    z = frozen_features(vlm, images)
    layer = folded_head(vlm, texts)
    scores = vlm.similarity(images, texts).detach()
    assert torch.allclose(layer(z), scores, atol=1e-6)
    head, vlm.head = vlm.head, None
    towers = vlm.embed(images, "image")
    x = unit_rows(head.features(towers, images))
    for_embedding, for_feature = split_weights(layer, vlm.embedding_dim)
    apart = towers.double().numpy() @ for_embedding.T + x @ for_feature.T
    assert np.allclose(apart, scores.numpy(), atol=1e-5)


def test_the_frozen_features_hold_nothing_that_was_learned():
    images, texts = inputs()
    one, other = learned("prototypes"), tiny("clip")
    attach(other, AdapterSpec("prototypes", rows=64), ExperimentSeed(0))
    assert torch.equal(frozen_features(one, images), frozen_features(other, images))
    assert not torch.equal(folded_head(one, texts).weight, folded_head(other, texts).weight)


@pytest.mark.parametrize("kind", KINDS)
def test_the_folded_layer_on_encrypted_features_gives_the_same_scores(kind):
    vlm = learned(kind)
    images, texts = inputs()
    layer = folded_head(vlm, texts)
    params = HEParams.select(depth=0, max_abs=1.0, abs_error=3e-4)
    encrypted, client = EncryptedLinear.from_torch(layer, params), HEClient(params)
    keys = client.evaluation_keys(encrypted.plan)
    z = frozen_features(vlm, images)[:1].numpy()
    found = client.decrypt(encrypted(client.encrypt(z[0], encrypted.plan), keys))[0]
    expected = vlm.similarity(images, texts)[0].detach().numpy()
    assert np.abs(found - expected).max() <= encrypted.error + 1e-6


def test_where_a_head_has_no_place_it_is_refused_and_not_left_out():
    """The projection alone would be the model without what was learned."""
    vlm = learned("head")
    params = HEParams.select(depth=0, max_abs=1.0, abs_error=3e-4)
    with pytest.raises(ParameterError, match="fold it"):
        EncryptedProjection.from_model(vlm, "image", params)
    _, texts = inputs()
    with pytest.raises(ConfigError, match="only a head"):
        folded_head(tiny("clip"), texts)
