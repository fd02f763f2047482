"""Compiling models: the accuracy contract, the cost that is predicted, and clear refusals."""

import math

import pytest
import torch
from torch import nn

from secure.errors import ParameterError
from secure.smpc import (
    AccuracyError,
    CalibrationError,
    Plan,
    Program,
    Query,
    UnsupportedModuleError,
    compile,
    infer,
    register,
)
from secure.smpc._reference import reference as _reference
from secure.smpc.plan import as_fields
from tests.secure.smpc.tiny import TinyTower, tiny
from tests.secure.smpc.towers import DINO, MODELS, VISION, captions, images, patches

pytestmark = pytest.mark.filterwarnings("ignore:the calibration is thin")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_keep_the_accuracy_contract(name):
    torch.manual_seed(0)
    make, batch = MODELS[name]
    model, inputs = make().eval(), batch()
    plan = compile(model, inputs)
    with torch.no_grad():
        expected = _reference(model, as_fields(inputs))
    fields = {each.field for each in plan.program.inputs}
    raw = {k: v for k, v in inputs.items() if k in {*fields, "spatial_shapes"}}
    error = plan.check(raw, expected, max_abs_error=5e-3)
    assert error > 0
    assert Program.from_json(plan.program.to_json()) == plan.program


def test_a_check_that_misses_what_was_agreed_raises():
    model, batch, plan = tiny()
    with pytest.raises(AccuracyError, match="agreed were"):
        plan.check({"features": batch}, model(batch).detach() + 1, max_abs_error=0.1)


@pytest.mark.parametrize(
    "query",
    [Query("embedding", batch=3), Query("scores", batch=3), Query("top", k=3, batch=3)],
)
def test_the_predicted_cost_is_what_a_run_counts(query):
    model, batch, plan = tiny()
    result = infer(plan, {"features": batch[:3]}, query)
    cost = plan.cost(query=query)
    assert (cost.rounds, cost.server_bytes, cost.client_bytes) == (
        result.server.rounds,
        result.server.sent_bytes,
        result.client.sent_bytes,
    )
    expected = model(batch[:3]).detach()
    if query.reveal == "top":
        assert torch.equal(result.value, expected.topk(3).indices)
    else:
        assert float((result.value - expected).abs().max()) < 1e-3


def test_scores_with_labels_are_cosines():
    model, batch, plan = tiny()
    labels = nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=-1)
    output = nn.functional.normalize(model(batch[:4]).detach().double(), dim=-1)
    result = infer(plan, {"features": batch[:4]}, Query("scores", labels=7, batch=4), labels)
    assert float((result.value - output @ labels.T).abs().max()) < 1e-3
    best = infer(plan, {"features": batch[:4]}, Query("top", k=2, labels=7, batch=4), labels)
    assert torch.equal(best.value, (output @ labels.T).topk(2).indices)


def test_cost_depends_on_the_network():
    plan = tiny()[2]
    lan, wan = plan.cost("lan"), plan.cost("wan")
    assert wan.network_s > 20 * lan.network_s
    assert (lan.rounds, lan.server_bytes) == (wan.rounds, wan.server_bytes)
    own = plan.cost((8.0, 1.0))
    assert own.network_s == pytest.approx(own.rounds + max(own.server_bytes, own.client_bytes))
    assert own.seconds > own.network_s
    assert own.setup_bytes == 8 * sum(w.numel() for w in plan.weights.values())
    for bad in ("moon", (0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ParameterError):
            plan.cost(bad)


def test_the_arithmetic_is_timed_and_grows_with_the_work():
    plan = tiny()[2]
    one, many = (plan.cost(query=Query("top", batch=n)).compute_s for n in (1, 64))
    assert 0 < one < many
    assert plan.cost("wan").compute_s == plan.cost("lan").compute_s


def test_leakage_says_who_learns_what():
    plan = tiny()[2]
    top = plan.leakage(Query("top", k=1, labels=4))
    assert "no score" in top.client[0]
    assert any("labels" in each for each in top.server)
    # The opening message is as long as the labels that it carries; the dealer deals for a query.
    assert any("labels" in each for each in top.network)
    assert any("number of labels" in each for each in top.dealer)
    assert not any("labels" in each for each in plan.leakage(Query("top")).server)
    assert "in full" in plan.leakage().client[0]
    assert "colludes" in top.assumption
    assert "semi-honest" in str(top)
    torch.manual_seed(0)
    public = compile(TinyTower().eval(), torch.randn(4, 4, 16), public_parts=("a frozen stem",))
    assert any("a frozen stem" in each for each in public.leakage().client)


def test_plans_do_not_print_weights():
    plan = tiny()[2]
    assert repr(plan) == f"Plan(TinyTower, {plan.program.digest[:12]})"
    assert repr(plan.owner()) == f"Owner(weights={len(plan.weights)})"


def test_the_calibration_is_the_contract_of_every_layer():
    torch.manual_seed(0)
    model = TinyTower().eval()
    batch = torch.randn(4, 4, 16)
    with torch.no_grad():
        model.block.mlp.fc1.weight.mul_(300)
    with pytest.raises(CalibrationError, match=r"block\.mlp\.act: gelu"):
        compile(model, batch)
    model = TinyTower().eval()
    with torch.no_grad():
        model.block.self_attn.q_proj.weight.mul_(3000)
    with pytest.raises(CalibrationError, match=r"block\.self_attn: attention scores"):
        compile(model, batch)
    model = TinyTower().eval()
    model.head.bias.data[0] = math.nan
    with pytest.raises(CalibrationError, match=r"head: an activation .* not finite"):
        compile(model, batch)


class Unknown(nn.Module):
    def forward(self, features):
        return features


def test_unknown_modules_are_named_with_their_path():
    with pytest.raises(UnsupportedModuleError, match=r"model \(Unknown\): no mapping"):
        compile(Unknown().eval(), torch.randn(2, 3))
    model = TinyTower().eval()
    model.block.mlp.act = nn.ReLU()
    with pytest.raises(UnsupportedModuleError, match=r"block\.mlp.*\(ReLU\): no series") as caught:
        compile(model, torch.randn(2, 4, 16))
    assert caught.value.kind == "ReLU"
    model = TinyTower().eval()
    model.block.self_attn.q_proj = nn.Identity()
    with pytest.raises(UnsupportedModuleError, match=r"self_attn \(Identity\)"):
        compile(model, torch.randn(2, 4, 16))
    with pytest.raises(ParameterError, match="eval mode"):
        compile(TinyTower().train(), torch.randn(2, 4, 16))


class LoraLinear(nn.Linear):
    pass


def test_adapters_must_be_merged():
    model = TinyTower().eval()
    model.head = LoraLinear(16, 5)
    with pytest.raises(UnsupportedModuleError, match="merge_and_unload"):
        compile(model, torch.randn(2, 4, 16))


class Drifting(TinyTower):
    def forward(self, features):
        return super().forward(features) * 1.01


def test_a_mapping_that_misses_a_part_is_refused():
    from tests.secure.smpc.tiny import _tiny

    register("Drifting")(_tiny)
    with pytest.raises(UnsupportedModuleError, match="the mapping is off by"):
        compile(Drifting().eval(), torch.randn(2, 4, 16))


def _padded(*lengths):
    """Return captions of these lengths, padded to nine tokens."""
    mask = torch.tensor([[1] * n + [0] * (9 - n) for n in lengths])
    return {"input_ids": torch.randint(3, 58, mask.shape) * mask, "attention_mask": mask}


# Weights are raised so that attention tells keys apart.
@pytest.mark.parametrize(("name", "gain"), [("minilm", 8), ("siglip-text", 2)])
def test_padding_is_secret_and_changes_nothing(name, gain):
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(gain)
    plan = compile(model, _padded(9, 4, 6))
    assert any("not this caption's length" in each for each in plan.leakage().server)
    # Lengths that the calibration had not, down to one token.
    inputs = _padded(1, 2, 7)
    with torch.no_grad():
        expected = _reference(model, inputs)
        whole = _reference(model, {"input_ids": inputs["input_ids"]})
    assert float((expected - whole).abs().max()) > 0.05
    plan.check(inputs, expected, max_abs_error=1e-2)
    assert Program.from_json(plan.program.to_json()) == plan.program
    for bad in (torch.zeros(1, 9).long(), torch.full((1, 9), 2)):
        with pytest.raises(ParameterError, match="0 for padding"):
            raw = {"input_ids": inputs["input_ids"][:1], "attention_mask": bad}
            infer(plan, raw, Query("embedding"))


@pytest.mark.parametrize("public", [False, True])
def test_padding_that_a_program_does_not_take_is_refused(public):
    torch.manual_seed(0)
    plan = compile(MODELS["minilm"][0]().eval(), _padded(9, 9), public_embedding=public)

    def ask(inputs):
        if public:
            inputs = inputs | {"inputs_embeds": plan.embedding[inputs["input_ids"]]}
        return infer(plan, inputs, Query("embedding"))

    with pytest.raises(ParameterError, match="has padding"):
        ask(_padded(4))
    with pytest.raises(ParameterError, match="second segment"):
        ask(_padded(9) | {"token_type_ids": torch.tensor([[0] * 4 + [1] * 5])})
    ask(_padded(9) | {"token_type_ids": torch.zeros(1, 9, dtype=torch.long)})


def test_padding_behind_a_causal_mask_needs_no_heed():
    torch.manual_seed(0)
    model, inputs = MODELS["clip-text"][0]().eval(), captions()
    plan = compile(model, inputs)
    ids = inputs["input_ids"][:1].clone()
    ids[0, 4:] = 59  # the end of a text, and padding after it
    raw = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 5 + [0] * 4])}
    with torch.no_grad():
        expected = _reference(model, {"input_ids": ids})
    plan.check(raw, expected, max_abs_error=5e-3)


@pytest.mark.parametrize("name", ["minilm", "clip-text"])
def test_a_public_embedding_is_looked_up_by_the_client(name, tmp_path):
    torch.manual_seed(0)
    model, inputs = MODELS[name][0]().eval(), captions()
    plan = compile(model, inputs, public_embedding=True)
    plan.save(tmp_path)
    plan = Plan.load(tmp_path)
    assert plan.embedding.shape == (60, 32)
    assert not any("token_embedding" in weight for weight in plan.weights)
    ids = torch.randint(3, 59, (2, 9))
    with torch.no_grad():
        expected = _reference(model, {"input_ids": ids})
    raw = {"input_ids": ids, "inputs_embeds": plan.embedding[ids]}
    plan.check(raw, expected, max_abs_error=5e-3)
    assert any("token embeddings" in each for each in plan.leakage().client)
    secret = compile(model, inputs)
    assert plan.cost().client_bytes < secret.cost().client_bytes
    assert plan.cost().setup_bytes < secret.cost().setup_bytes
    assert any("length" in each for each in secret.leakage().server)


def test_a_public_embedding_is_for_text():
    with pytest.raises(ParameterError, match="text encoders"):
        compile(tiny()[0], torch.randn(4, 4, 16), public_embedding=True)


def test_padded_patches_are_refused():
    model = MODELS["siglip2-image"][0]().eval()
    inputs = {**patches(), "spatial_shapes": torch.tensor([[2, 2]] * 4)}
    with pytest.raises(UnsupportedModuleError, match="padded patches"):
        compile(model, inputs)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"reveal": "all"}, "reveal is one of"),
        ({"reveal": "top", "k": 0}, "k is at least 1"),
        ({"reveal": "top", "labels": 257}, "labels is an integer"),
        ({"reveal": "top", "batch": 0}, "batch is an integer"),
        ({"reveal": "embedding", "labels": 2}, "without labels"),
    ],
)
def test_queries_out_of_range_are_refused(query, message):
    with pytest.raises(ParameterError, match=message):
        Query(**query)


def test_wrong_token_ids_are_refused():
    torch.manual_seed(0)
    plan = compile(MODELS["bert"][0]().eval(), captions())
    for bad, message in [
        (torch.full((1, 9), 60), "outside"),
        (torch.full((1, 9), -1), "outside"),
        (torch.zeros(1, 8, dtype=torch.long), "compiled for"),
        (torch.zeros(1, 9), "integers"),
    ]:
        with pytest.raises(ParameterError, match=message):
            infer(plan, {"input_ids": bad}, Query("embedding"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "give their embeddings"),
        (torch.zeros(3, 5), "of length 1"),
        (torch.full((3, 5), 1e6), "of length 1"),
        (torch.full((3, 5), math.nan), "of length 1"),
        (torch.eye(5)[:2], "shape"),
    ],
)
@pytest.mark.parametrize("reveal", ["scores", "top"])
def test_m8_labels_that_are_missing_or_not_of_length_one_are_refused(reveal, labels, message):
    _, batch, plan = tiny()
    with pytest.raises(ParameterError, match=message):
        infer(plan, {"features": batch[:1]}, Query(reveal, labels=3), labels)


def test_m8_labels_of_half_precision_are_brought_to_length_one():
    model, batch, plan = tiny()
    labels = nn.functional.normalize(torch.randn(7, 5), dim=-1)
    output = nn.functional.normalize(model(batch[:4]).detach().double(), dim=-1)
    result = infer(
        plan, {"features": batch[:4]}, Query("scores", labels=7, batch=4), labels.bfloat16()
    )
    exact = nn.functional.normalize(labels.bfloat16().double(), dim=-1)
    assert float((result.value - output @ exact.T).abs().max()) < 1e-3


def test_labels_for_a_query_without_labels_are_refused():
    _, batch, plan = tiny()
    with pytest.raises(ParameterError, match="has no labels"):
        infer(plan, {"features": batch[:1]}, Query("scores"), torch.eye(5))


def test_m8_a_classifier_of_one_class_reveals_its_score():
    from tests.secure.smpc.tiny import _tiny

    class OneClass(TinyTower):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 1)

    register("OneClass")(_tiny)
    torch.manual_seed(0)
    model, batch = OneClass().eval(), torch.randn(16, 4, 16)
    with torch.no_grad():
        scores = model(batch)
        # A score that passes through zero: its length has no range.
        model.head.bias.sub_(scores[0])
        scores = model(batch).double()
    plan = compile(model, batch)
    assert plan.program.length is None
    for query in (Query("scores", batch=16), Query("embedding", batch=16)):
        found = infer(plan, {"features": batch}, query).value
        assert float((found - scores).abs().max()) < 1e-3
    best = infer(plan, {"features": batch[:2]}, Query("top", batch=2)).value
    assert best.tolist() == [[0], [0]]
    with pytest.raises(ParameterError, match="cosines need"):
        infer(plan, {"features": batch[:1]}, Query("scores", labels=1), torch.ones(1, 1))


def test_outputs_too_large_to_rank_are_refused():
    torch.manual_seed(0)
    model, batch = TinyTower().eval(), torch.randn(16, 4, 16)
    with torch.no_grad():
        model.head.weight.mul_(1e5)
    plan = compile(model, batch)
    with pytest.raises(ParameterError, match="too large to rank"):
        infer(plan, {"features": batch[:1]}, Query("top"))


def test_m7_models_without_a_mapping_say_what_is_missing():
    import transformers as hf

    shape = {k: v for k, v in VISION.items() if k != "num_labels"}
    for model, part in (
        (hf.DeiTModel(hf.DeiTConfig(**shape)), "distillation token"),
        (hf.BeitModel(hf.BeitConfig(**shape)), "relative positions"),
    ):
        with pytest.raises(UnsupportedModuleError, match=part):
            compile(model.eval(), images())


def test_m7_swiglu_is_named():
    import transformers as hf

    model = hf.Dinov2Model(hf.Dinov2Config(use_swiglu_ffn=True, **DINO)).eval()
    with pytest.raises(UnsupportedModuleError, match="has no fc1, fc2"):
        compile(model, images())


@pytest.mark.parametrize("activation", [nn.SELU, nn.SiLU, nn.ReLU])
def test_m8_activations_without_a_series_are_named(activation):
    model = TinyTower().eval()
    model.block.mlp.act = activation()
    with pytest.raises(UnsupportedModuleError, match="no series for this activation"):
        compile(model, torch.randn(2, 4, 16))


def test_batches_that_do_not_fit_together_are_refused():
    model = MODELS["minilm"][0]().eval()
    ids = captions()["input_ids"]
    for bad in ({"input_ids": ids, "attention_mask": torch.ones(3, 9)}, {"input_ids": ids[:0]}, {}):
        with pytest.raises(ParameterError, match="as many inputs|not empty"):
            compile(model, bad)
    with pytest.raises(ParameterError, match="'text' is a str"):
        compile(model, {"text": "a dog"})
    with pytest.raises(ParameterError, match="model itself can't run"):
        compile(model, {"pixel_values": torch.randn(2, 3, 16, 16)})
    with pytest.raises(ParameterError, match=r"model itself can't run|tokens for 16 positions"):
        compile(model, {"input_ids": torch.randint(3, 58, (2, 17))})
