"""Two layers in a row, the guarded layer and the projection of a model, against numpy."""

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel

from secure.errors import ParameterError, PolicyError
from secure.he import (
    EncryptedAdapter,
    EncryptedLoRA,
    EncryptedProjection,
    EvaluationKeys,
    GuardedLinear,
    HEClient,
    HEParams,
    MissingKeyError,
    RangeError,
)
from secure.he.adapter import EncryptedLoRA as LoRALayer
from secure.he.projection import linear_and_lora

from .he_tools import FAST, PRECISE, client, through_the_wire, unit_rows

DEPTH_1 = HEParams.select(1, 1.0, 1e-3)
DEPTH_2 = HEParams.select(2, 1.0, 1e-3)
GUARDED = HEParams(16384, (60, 60, 60, 60), 90)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    polynomial=st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.sampled_from([-1.0, 0.25, 1.0])),
    seed=st.integers(0, 2**32),
)
def test_an_adapter_with_any_polynomial_of_degree_two(sizes, polynomial, seed):
    inputs, hidden, outputs = sizes
    rng = np.random.default_rng(seed)
    w1, b1 = unit_rows(rng, hidden, inputs), rng.standard_normal(hidden) / 9
    w2, b2 = unit_rows(rng, outputs, hidden), rng.standard_normal(outputs) / 9
    adapter = EncryptedAdapter((w1, b1), (w2, b2), params=DEPTH_2, polynomial=polynomial)
    values = unit_rows(rng, 1, inputs)
    z = values @ w1.T + b1
    a0, a1, a2 = polynomial
    expected = (a0 + a1 * z + a2 * z**2) @ w2.T + b2
    got = through_the_wire(adapter, values, client(DEPTH_2))
    assert np.abs(got - expected).max() <= adapter.error


def test_an_adapter_refuses_what_it_cannot_compute():
    eye = (np.eye(4), None)
    with pytest.raises(ParameterError, match="a2"):
        EncryptedAdapter(eye, eye, params=DEPTH_2, polynomial=(1.0, 1.0, 0.0))
    with pytest.raises(ParameterError, match="hidden"):
        EncryptedAdapter(eye, (np.eye(5), None), params=DEPTH_2)
    with pytest.raises(RangeError, match="hidden values"):
        EncryptedAdapter((1e9 * np.eye(4), None), eye, params=DEPTH_2)
    with pytest.raises(ParameterError, match="slots"):
        EncryptedAdapter((np.ones((1, 5000)), None), (np.ones((1, 1)), None), params=DEPTH_2)


@pytest.mark.parametrize(("inputs", "rank", "outputs"), [(24, 4, 30), (17, 1, 3), (8, 40, 100)])
def test_a_lora_kept_apart_equals_the_folded_one(inputs, rank, outputs):
    rng = np.random.default_rng(rank)
    weight, bias = unit_rows(rng, outputs, inputs), rng.standard_normal(outputs) / 9
    down, up = unit_rows(rng, rank, inputs), unit_rows(rng, outputs, rank)
    layer = EncryptedLoRA(weight, bias, down, up, 0.5, params=DEPTH_1)
    values = unit_rows(rng, 1, inputs)
    expected = values @ (weight + 0.5 * up @ down).T + bias
    got = through_the_wire(layer, values, client(DEPTH_1))
    assert np.abs(got - expected).max() <= layer.error


def test_a_lora_of_other_shapes_is_refused():
    with pytest.raises(ParameterError, match="do not fit"):
        EncryptedLoRA(np.eye(4), None, np.ones((1, 3)), np.ones((4, 1)), 1.0, params=DEPTH_1)


class TestGuarded:
    def setup_method(self):
        rng = np.random.default_rng(0)
        self.weight, self.bias = unit_rows(rng, 24, 40), rng.standard_normal(24) / 9
        self.values = unit_rows(rng, 1, 40)
        self.layer = GuardedLinear(self.weight, self.bias, params=GUARDED, max_queries=8)
        self.owner = client(GUARDED)
        keys = self.owner.evaluation_keys(self.layer.plan, public=True)
        self.keys = EvaluationKeys.from_bytes(keys.to_bytes())
        self.exact = self.values @ self.weight.T + self.bias

    def test_results_are_right_within_the_stated_error(self):
        sent = self.owner.encrypt(self.values, self.layer.plan)
        results = [self.layer(sent, self.keys) for _ in range(2)]
        for result in results:
            assert np.abs(self.owner.decrypt(result) - self.exact).max() < self.layer.error
        # The same query twice: fresh randomness in both polynomials, nothing to compare.
        first, second = (result.pieces[0].residues for result in results)
        assert all(np.mean(first[poly] == second[poly]) < 0.01 for poly in (0, 1))

    def test_the_flooding_has_its_sigma_and_not_another(self):
        # 8 x 24 draws: the sample deviation is within 40 % at 7.8 sigma (alarm rate 1e-14).
        sent = self.owner.encrypt(self.values, self.layer.plan)
        errors = np.array(
            [self.owner.decrypt(self.layer(sent, self.keys)) - self.exact for _ in range(8)]
        )
        assert abs(errors.std() / self.layer.sigma - 1) < 0.4
        # And without it, the noise of the ciphertext is 2^39 and more times smaller.
        assert self.layer.sigma > 2.0**39 * GUARDED.noise()

    def test_every_slot_is_an_output(self):
        sent = self.owner.encrypt(self.values, self.layer.plan)
        result = self.layer(sent, self.keys)
        plain = self.owner._seal.api.Plaintext()
        self.owner._decryptor.decrypt(result.load()[0], plain)
        slots = np.array(self.owner._seal.encoder.decode_complex(plain)).reshape(-1, 16)
        outputs = np.zeros(32)
        outputs[:24] = self.exact
        assert np.abs(slots - (outputs[:16] + 1j * outputs[16:])).max() < 2 * self.layer.error

    def test_queries_are_counted(self):
        layer = GuardedLinear(self.weight, params=GUARDED, max_queries=1)
        sent = self.owner.encrypt(self.values, layer.plan)
        layer(sent, self.keys)
        with pytest.raises(PolicyError, match="weights"):
            layer(sent, self.keys)
        with pytest.raises(ParameterError, match="determine W"):
            GuardedLinear(self.weight, params=GUARDED, max_queries=40)

    def test_a_missing_public_key_is_refused_and_not_counted(self):
        keys = self.owner.evaluation_keys(self.layer.plan)
        sent = self.owner.encrypt(self.values, self.layer.plan)
        with pytest.raises(MissingKeyError, match="public=True"):
            self.layer(sent, keys)
        assert self.layer.queries == 0

    @pytest.mark.parametrize("params", [FAST, PRECISE])
    def test_parameters_without_room_for_flooding_are_refused(self, params):
        with pytest.raises(RangeError, match="flooding"):
            GuardedLinear(self.weight, params=params, max_queries=1)


def small_clip() -> CLIPModel:
    torch.manual_seed(0)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {**tower, "image_size": 16, "patch_size": 8}
    text = {**tower, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    return CLIPModel(config).eval()


class TestProjection:
    PARAMS = HEParams.select(0, 8.0, 1e-2)

    def pooled(self, model, modality: str) -> torch.Tensor:
        with torch.no_grad():
            if modality == "image":
                return model.vision_model(torch.randn(1, 3, 16, 16)).pooler_output
            return model.text_model(torch.tensor([[0, 5, 9, 1]])).pooler_output

    @pytest.mark.parametrize("modality", ["image", "text"])
    def test_the_projection_of_a_clip(self, modality):
        model = small_clip()
        layer = EncryptedProjection.from_model(model, modality, self.PARAMS)
        pooled = self.pooled(model, modality)
        projection = model.visual_projection if modality == "image" else model.text_projection
        expected = projection(pooled).detach().numpy()
        got = through_the_wire(layer, pooled.numpy(), client(self.PARAMS))
        assert got.shape == (1, 24)
        assert np.abs(got - expected).max() < 1e-2

    @pytest.mark.parametrize("fold", [True, False])
    def test_with_lora_folded_or_apart(self, fold):
        config = peft.LoraConfig(r=3, lora_alpha=12, target_modules=["visual_projection"])
        model = peft.get_peft_model(small_clip(), config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        params = self.PARAMS if fold else HEParams.select(1, 8.0, 1e-2)
        layer = EncryptedProjection.from_model(model, "image", params, fold_lora=fold)
        assert isinstance(layer.layer, LoRALayer) != fold
        pooled = self.pooled(model, "image")
        expected = model.visual_projection(pooled).detach().numpy()
        base = model.visual_projection.base_layer(pooled).detach().numpy()
        got = through_the_wire(layer, pooled.numpy(), HEClient(params))
        assert np.abs(got - expected).max() < 1e-2
        assert np.abs(base - expected).max() > 5e-2  # the LoRA does something

    def test_a_merged_or_disabled_lora_is_not_added_twice(self):
        config = peft.LoraConfig(r=2, target_modules=["visual_projection"])
        model = peft.get_peft_model(small_clip(), config)
        torch.nn.init.normal_(model.visual_projection.lora_B["default"].weight)
        assert len(linear_and_lora(model.visual_projection)[2]) == 1
        with model.disable_adapter():
            assert linear_and_lora(model.visual_projection)[2] == []
        model.merge_adapter()
        assert linear_and_lora(model.visual_projection)[2] == []

    def test_adapters_that_are_not_linear_are_refused(self):
        config = peft.LoraConfig(r=2, use_dora=True, target_modules=["visual_projection"])
        model = peft.get_peft_model(small_clip(), config)
        with pytest.raises(ParameterError, match="DoRA"):
            EncryptedProjection.from_model(model, "image", self.PARAMS)

    def test_models_without_such_a_projection_are_refused(self):
        with pytest.raises(ParameterError, match="visual_projection"):
            EncryptedProjection.from_model(torch.nn.Linear(2, 2), "image", self.PARAMS)
        with pytest.raises(ParameterError, match="modality"):
            EncryptedProjection.from_model(small_clip(), "sound", self.PARAMS)
