"""D5: LoRA goes only where the model uses it, for any model; D6: targets as people write them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.adapters import AdapterSpec, attach, load_adapter, merge, save_adapter
from fedvlm.adapters.spec import DEFAULT_TARGETS
from fedvlm.adapters.targets import matching, unused
from fedvlm.config import config_from
from fedvlm.config.targets import target_pattern
from fedvlm.errors import ConfigError
from fedvlm.models import VLM, load_model
from fedvlm.seeds import ExperimentSeed
from tests.fedvlm.conftest import tiny_backbone, tiny_inputs

FAMILIES = ("clip", "siglip", "siglip2")
HEAD = "vision_model.head.attention.out_proj"


def _scores(vlm, family):
    images, texts = tiny_inputs(family)
    with torch.no_grad():
        return vlm.similarity(images, texts)


def _trained(vlm):
    return {name for name, p in vlm.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [DEFAULT_TARGETS, "all-linear"])
def test_every_parameter_of_the_default_learns(family, targets):
    vlm = VLM(tiny_backbone(family))
    view = attach(vlm, AdapterSpec(rank=2, targets=targets), ExperimentSeed(0))
    assert not any(HEAD in name for name in _trained(vlm))
    view.write(np.random.default_rng(0).normal(0, 0.3, view.size).astype("f4"))
    images, texts = tiny_inputs(family)
    (1 - vlm.similarity(images, texts).diagonal()).sum().backward()
    for name, parameter in vlm.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_noise_on_the_default_merges_to_the_same_model(family):
    """What client-level and distributed DP do to every trained parameter."""
    vlm = VLM(tiny_backbone(family))
    view = attach(vlm, AdapterSpec(rank=4), ExperimentSeed(0))
    view.write(np.random.default_rng(1).normal(0, 1, view.size).astype("f4"))
    before = _scores(vlm, family)
    assert (_scores(merge(vlm), family) - before).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_an_unused_module_is_refused_where_it_is_named(family):
    for targets in (HEAD, "q_proj,out_proj", r".*(v_proj|out_proj)"):
        with pytest.raises(ConfigError, match=f"{HEAD}, which the model never uses"):
            attach(VLM(tiny_backbone(family)), AdapterSpec(targets=targets), ExperimentSeed(0))


def test_clip_and_the_embedded_model_use_all_that_the_default_matches():
    for vlm in (VLM(tiny_backbone("clip")), load_model().vlm):
        assert unused(vlm, matching(vlm.backbone, DEFAULT_TARGETS)) == []


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(FAMILIES), st.integers(0, 10**6))
def test_layers_cut_off_by_hand_are_found_in_any_model(family, seed):
    """A layer that's never called, and one whose output is thrown away."""
    vlm = VLM(tiny_backbone(family))
    rng = np.random.default_rng(seed)
    for parameter in vlm.parameters():
        parameter.requires_grad_(False)
    names = [name for name in matching(vlm.backbone, DEFAULT_TARGETS) if name != HEAD]
    names = [name for name in names if "layers" in name]
    cut = [str(name) for name in rng.choice(names, 2, replace=False)]
    modules = dict(vlm.backbone.named_modules())
    for name, around in zip(cut, (_Skips, _Ignores), strict=True):
        parent, _, child = name.rpartition(".")
        setattr(modules[parent], child, around(modules[name]))
    asked = [f"{name}.inner" if name in cut else name for name in names]
    found = set(unused(vlm, asked))
    assert {f"{name}.inner" for name in cut} <= found
    # Without queries, keys have no gradient, and so on: nothing further away is called unused.
    blocks = {name.rpartition(".")[0] for name in cut}
    assert all(name.removesuffix(".inner").rpartition(".")[0] in blocks for name in found)


class _Skips(torch.nn.Module):
    """Reads a layer's weight without calling it, as fused attention does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.nn.functional.linear(x, self.inner.weight, self.inner.bias)


class _Ignores(_Skips):
    """Calls a layer and throws away what it says."""

    def forward(self, x):
        return torch.zeros_like(self.inner(x))


def test_probing_leaves_model_and_generators_alone():
    vlm = VLM(tiny_backbone("siglip"))
    before = _scores(vlm, "siglip")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    unused(vlm, matching(vlm.backbone, "out_proj"))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(_scores(vlm, "siglip"), before)
    assert not any(m._forward_hooks for m in vlm.modules())
    assert not any(m.training for m in vlm.modules())


def test_an_adapter_from_the_time_before_loads_without_its_unused_part(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=2, target_modules=["out_proj", "q_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        get_peft_model(tiny_backbone("siglip"), config).save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(tiny_backbone("siglip"), tmp_path)
    ours = VLM(tiny_backbone("siglip"))
    load_adapter(ours, tmp_path)
    expected = _scores(VLM(theirs), "siglip")
    assert (_scores(ours, "siglip") - expected).abs().max() <= 1e-6
    assert (_scores(merge(ours), "siglip") - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_peft_reads_a_siglip_adapter(family, tmp_path):
    from peft import PeftModel

    vlm = VLM(tiny_backbone(family))
    spec = AdapterSpec(rank=2)
    view = attach(vlm, spec, ExperimentSeed(0))
    view.write(np.random.default_rng(1).normal(0, 0.3, view.size).astype("f4"))
    save_adapter(vlm, spec, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_backbone(family), tmp_path)
    assert torch.allclose(_scores(VLM(theirs), family), _scores(vlm, family), atol=1e-6)
    again = VLM(tiny_backbone(family))
    load_adapter(again, tmp_path)
    assert torch.allclose(_scores(again, family), _scores(vlm, family), atol=1e-6)


@pytest.mark.parametrize(
    "written",
    ["q_proj,v_proj", " q_proj , v_proj ", "*q_proj,*v_proj", "*.q_proj, *.v_proj",
     r".*\.(q_proj|v_proj)", r"(text_model|vision_model)\..*self_attn\.(q_proj|v_proj)"],
)  # fmt: skip
def test_targets_as_people_write_them(written):
    found = matching(tiny_backbone("clip"), written)
    assert len(found) == 8
    assert all(name.endswith(("q_proj", "v_proj")) for name in found)
    config_from({"targets": written})
    vlm = VLM(tiny_backbone("clip"))
    attach(vlm, AdapterSpec(rank=2, targets=written), ExperimentSeed(0))
    assert len(_trained(vlm)) == 16


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("(q_proj", "neither a regular expression"),
        ("[", "neither a regular expression"),
        ("", "targets is empty"),
        ("nothing", "no module of the model matches"),
        ("text_model", "which is a CLIPText"),
        (".*", "not a linear layer"),
        ("patch_embedding", "which is a Conv2d"),
    ],
)
def test_targets_that_can_t_be(written, message):
    with pytest.raises(ConfigError, match=message) as error:
        attach(VLM(tiny_backbone("clip")), AdapterSpec(targets=written), ExperimentSeed(0))
    assert "\n" not in str(error.value)


def test_a_broken_expression_is_found_before_anything_is_loaded():
    with pytest.raises(ConfigError, match="neither a regular expression"):
        config_from({"targets": "(q_proj"})


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="qv_proj.*?()[]{}|,+\\ 01-^$", max_size=20))
def test_any_text_is_targets_or_one_line(text):
    try:
        pattern = target_pattern(text)
        found = matching(_BACKBONE, text)
    except ConfigError as error:
        assert "\n" not in str(error) or "\n" in text  # noqa: PT017
    else:
        assert pattern
        assert found


_BACKBONE = tiny_backbone("clip")
