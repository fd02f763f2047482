"""Pairs of ViT and BERT, OpenCLIP's checkpoints, and one's own encoders, through a federation."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from fedvlm.adapters import AdapterSpec, attach, load_adapter
from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation import simulate
from fedvlm.models import load_model
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import LocalSettings, encode_pairs, train_adapter
from tests.fedvlm.conftest import save_tiny_model

SQUARE = {"height": 32, "width": 32}


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from tests.fedvlm.conftest import COLOURS, SHAPES

    words = ["<pad>", "<unk>", "<cls>", "<sep>", "a", *COLOURS, *SHAPES]
    held = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    held.pre_tokenizer = pre_tokenizers.Whitespace()
    held.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", special_tokens=[("<cls>", 2), ("<sep>", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=held, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory):
    """A tiny pair of ViT and BERT, as BiomedCLIP's kind is saved."""
    folder = tmp_path_factory.mktemp("pair")
    vision = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)
    text = transformers.BertConfig(**SMALL, vocab_size=40, max_position_embeddings=24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            vision, text, projection_dim=16
        )
        transformers.VisionTextDualEncoderModel(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    transformers.ViTImageProcessorPil(size=SQUARE).save_pretrained(folder)
    return folder


def _learns(model, shapes, spec=AdapterSpec(rank=4, alpha=8)):  # noqa: B008
    view = attach(model.vlm, spec, ExperimentSeed(0))
    pairs = encode_pairs(shapes, model, lambda *_: None)
    chosen = LocalSettings(epochs=12, batch_size=18, learning_rate=3e-3)
    first = LocalSettings(epochs=1, batch_size=18, learning_rate=1e-5)
    rng = np.random.default_rng(0)
    rows = np.arange(54)
    before = train_adapter(model.vlm, view, pairs, rows, first, rng)
    return before, train_adapter(model.vlm, view, pairs, rows, chosen, rng)


def test_a_pair_learns_with_the_default_targets(pair_folder, shapes):
    before, after = _learns(load_model(str(pair_folder)), shapes)
    assert after < 0.95 * before


def test_a_pair_says_what_transformers_says(pair_folder):
    model = load_model(str(pair_folder))
    theirs = transformers.AutoModel.from_pretrained(pair_folder).eval()
    inputs = model.processor.texts(["a red circle", "a"])
    assert inputs["attention_mask"].tolist()[1][-1] == 0  # padded on the right
    with torch.no_grad():
        expected = F.normalize(theirs.get_text_features(**inputs).pooler_output, dim=1)
        found = model.vlm.encode_text(inputs)
        alone = model.vlm.encode_text(model.processor.texts(["a"]))
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found[1:], alone, atol=1e-5)


@pytest.mark.parametrize("adapter", ["lora", "feature"])
def test_a_pair_through_a_federation(pair_folder, small_run, tmp_path, adapter):
    chosen = {**small_run, "model": str(pair_folder), "adapter": adapter, "rounds": 2}
    result = simulate(config_from(chosen), out=tmp_path / "run")
    assert len(result.rounds) == 3
    load_adapter(load_model(str(pair_folder)).vlm, tmp_path / "run" / "adapter")


def test_a_prompt_isn_t_known_to_a_pair(pair_folder):
    with pytest.raises(ConfigError, match="prompt adapter isn't known to VisionTextDualEncoder"):
        attach(load_model(str(pair_folder)).vlm, AdapterSpec("prompt"), ExperimentSeed(0))


def test_a_pair_whose_text_tower_pools_nothing(pair_folder, tmp_path):
    folder = shutil.copytree(pair_folder, tmp_path / "pair")
    vision = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)
    text = transformers.DistilBertConfig(
        dim=32, hidden_dim=48, n_layers=1, n_heads=2, vocab_size=40, max_position_embeddings=24
    )
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, text, projection_dim=16
    )
    transformers.VisionTextDualEncoderModel(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match="gives no pooled features") as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


class _Block(nn.Module):
    """OpenCLIP's residual block, written from its state's names."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    def __init__(self, width, heads, layers):
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class _Visual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(32))
        self.positional_embedding = nn.Parameter(torch.randn(17, 32))
        self.ln_pre, self.ln_post = nn.LayerNorm(32), nn.LayerNorm(32)
        self.transformer = _Transformer(32, 4, 2)
        self.proj = nn.Parameter(torch.randn(32, 16))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


class _OpenCLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = _Visual()
        self.token_embedding = nn.Embedding(40, 24)
        self.positional_embedding = nn.Parameter(torch.randn(12, 24))
        self.transformer = _Transformer(24, 3, 2)
        self.ln_final = nn.LayerNorm(24)
        self.text_projection = nn.Parameter(torch.randn(24, 16))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_text(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), ids.argmax(dim=1)] @ self.text_projection


OPENCLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8,
        },
        "text_cfg": {
            "context_length": 12, "vocab_size": 40, "width": 24, "heads": 3, "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.5], "std": [0.2, 0.3, 0.3]},
}  # fmt: skip


@pytest.fixture
def openclip_folder(tmp_path):
    folder = tmp_path / "openclip"
    save_tiny_model("clip", folder)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / name).unlink()
    held = json.loads((folder / "tokenizer.json").read_text())
    vocab = held["model"]["vocab"]
    for name, number in (("<bos>", 38), ("<eos>", 39)):
        vocab[name] = number
        for added in held["added_tokens"]:
            if added["content"] == name:
                added["id"] = number
        held["post_processor"]["special_tokens"][name]["ids"] = [number]
    (folder / "tokenizer.json").write_text(json.dumps(held))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _OpenCLIP().eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(OPENCLIP))
    return folder, model


def test_an_openclip_checkpoint_gives_openclip_s_features(openclip_folder, shapes):
    folder, theirs = openclip_folder
    model = load_model(str(folder))
    texts = model.processor.texts(["a red circle", "a"])
    images = model.processor.images(shapes, np.arange(4), lambda *_: None)(np.arange(4))
    assert images["pixel_values"].amin() >= -0.5 / 0.2
    with torch.no_grad():
        assert torch.allclose(
            model.vlm.pooled_image(images), theirs.visual(images["pixel_values"]), atol=1e-4
        )
        expected = F.normalize(theirs.encode_text(texts["input_ids"]), dim=1)
        assert torch.allclose(model.vlm.encode_text(texts), expected, atol=1e-5)
    assert float(model.vlm.logit_scale) == pytest.approx(np.exp(2.0))
    before, after = _learns(model, shapes)
    assert after < before


def test_the_older_file_and_half_precision(openclip_folder):
    folder, theirs = openclip_folder
    (folder / "open_clip_model.safetensors").unlink()
    state = {f"module.{k}": v.half() for k, v in theirs.state_dict().items()}
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    assert {p.dtype for p in load_model(str(folder)).vlm.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["vision_cfg"].update(timm_model_name="vit"), "timm_model_name"),
        (lambda m: m["text_cfg"].update(hf_model_name="bert"), "hf_model_name"),
        (lambda m: m["vision_cfg"].update(layers=[3, 4, 6, 3]), "ResNet"),
        (lambda m: m["vision_cfg"].update(layers=3), "lacks vision_model.encoder.layers.2"),
        (lambda m: m["text_cfg"].update(layers=1), "no place for text_model.encoder.layers.1"),
        (lambda m: m.update(embed_dim=8), "another shape"),
        (lambda m: m.pop("embed_dim"), "embed_dim"),
        (lambda m: m["vision_cfg"].update(head_width=0), "lacks a number, or has a wrong one"),
        (lambda m: m.update(multimodal_cfg={}), "multimodal_cfg"),
    ],
)
def test_an_openclip_that_is_no_plain_clip(openclip_folder, change, words):
    folder, _ = openclip_folder
    content = json.loads(json.dumps(OPENCLIP))
    change(content["model_cfg"])
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_an_openclip_with_torn_weights(openclip_folder):
    path = openclip_folder[0] / "open_clip_model.safetensors"
    # Copies: the file is mapped, and about to become shorter.
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ConfigError, match="torn"):
        load_model(str(path.parent))
    save_file(state | {"visual.proj": state["visual.proj"] * torch.nan}, path)
    with pytest.raises(ConfigError, match="not finite: visual_projection"):
        load_model(str(path.parent))


OWN = """
import torch, transformers
from torch import nn
from fedvlm.models.own import own_model
from tests.fedvlm.models.test_other_encoders import SMALL, SQUARE, _tokenizer

class DinoAndMiniLM(nn.Module):
    embedding_dim = 16
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vision = transformers.Dinov2Model(
            transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                      image_size=32, patch_size=8))
        self.text = transformers.BertModel(
            transformers.BertConfig(**SMALL, vocab_size=40, max_position_embeddings=24),
            add_pooling_layer=False)
        self.from_image, self.from_text = nn.Linear(32, 16), nn.Linear(32, 16)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
    def encode_image(self, pixel_values):
        return self.from_image(self.vision(pixel_values).last_hidden_state[:, 0])
    def encode_text(self, input_ids, attention_mask):
        states = self.text(input_ids, attention_mask).last_hidden_state
        mask = attention_mask[..., None]
        return self.from_text((states * mask).sum(1) / mask.sum(1))

def build():
    tokenizer = _tokenizer()
    tokenizer.padding_side = "right"
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    pixels = transformers.BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    return own_model(DinoAndMiniLM(), pixels, tokenizer, name="dino-minilm", max_length=24)
"""


@pytest.fixture
def own_name(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    return f"python:{tmp_path / 'mine.py'}:build"


def test_an_encoder_of_one_s_own_learns_and_federates(own_name, shapes, small_run, tmp_path):
    before, after = _learns(load_model(own_name), shapes)
    assert after < 0.95 * before
    result = simulate(
        config_from({**small_run, "model": own_name, "rounds": 2}), out=tmp_path / "r"
    )
    assert len(result.rounds) == 3
    load_adapter(load_model(own_name).vlm, tmp_path / "r" / "adapter")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("    embedding_dim = 16\n", "", "has no embedding_dim"),
        ("nn.Parameter(torch.tensor(2.0))", "2.0", "logit_scale must be a tensor"),
        ("def encode_text", "def encode", "has no encode_text"),
        ("[:, 0])", ")", r"encode_image must give finite values of shape \(B, 16\)"),
        ("[:, 0])", "[:, 0].mean(0, keepdim=True).expand(len(pixel_values), -1))", "other rows"),
        ("return own_model(", "return (lambda *a, **k: None)(", "return own_model"),
        ("def build", "def make", "has no function build"),
        ("import torch,", "import nothing_like_it,", "ModuleNotFoundError"),
    ],
)
def test_what_an_encoder_of_one_s_own_lacks(tmp_path, old, new, words):
    (tmp_path / "mine.py").write_text(OWN.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        load_model(f"python:{tmp_path / 'mine.py'}:build")


@pytest.mark.parametrize("name", ["python:", "python:x", "python:none.py:build", "python::f"])
def test_names_of_no_function(name):
    with pytest.raises(ConfigError, match="model 'python:"):
        load_model(name)


def test_no_message_can_name_a_function(own_name):
    """A node that isn't simulated loads no model that the server names."""
    from fedvlm.federation.floor import Floor, RefusedError
    from fedvlm.federation.node import Node

    with pytest.raises(RefusedError, match="loads none that the server chooses"):
        Node(0, Floor()).agree(config_from({"model": own_name}))
