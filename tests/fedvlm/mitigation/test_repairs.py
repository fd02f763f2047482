"""Terms that a client adds to its loss: each of one example alone, also under the clip."""

import numpy as np
import pytest
import torch

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.errors import ConfigError, DataError
from fedvlm.mitigation.clusters import resampled
from fedvlm.mitigation.mixing import Flood, MixGen
from fedvlm.mitigation.repairs import Anchor, Counterfactual, Redirect, Robust
from fedvlm.mitigation.views import PALETTE, recoloured
from fedvlm.models import load_model
from fedvlm.privacy.dpsgd import per_example_gradients
from fedvlm.privacy.losses import BankContrastive, Repaired
from fedvlm.seeds import ExperimentSeed

CAPTIONS = ["a dog", "a cat", "a bomb", "a house", "a tree", "a car", "a fish", "a bird"]
JOINED = [f"{one} and {other}" for one, other in zip(CAPTIONS, CAPTIONS[::-1], strict=True)]


@pytest.fixture(scope="module")
def world():
    """The embedded model with a LoRA, random image inputs, and a public bank."""
    model = load_model("embedded")
    view = attach(model.vlm, AdapterSpec("ffa-lora", 4, 8), ExperimentSeed(0))
    rng = np.random.default_rng(0)
    view.write(rng.normal(0, 0.05, view.size).astype(np.float32))
    pixels = torch.from_numpy(rng.normal(size=(8, 320, 3, 3)).astype(np.float32)).relu()
    return model, view, {"pixel_values": pixels}, model.processor.texts(CAPTIONS)


def _repairs(model, images, texts):
    first = {key: value[:4] for key, value in texts.items()}
    last = {key: value[4:] for key, value in texts.items()}
    other = {"pixel_values": images["pixel_values"].flip(-1)}

    def view(rows):
        return {"pixel_values": other["pixel_values"][torch.from_numpy(rows)]}

    return {
        "counterfactual": Counterfactual((view,)),
        "robust": Robust(),
        "anchor": Anchor(model.vlm, images, texts),
        "redirect": Redirect(model.vlm, first, last, last, np.array([1, 2])),
        "mixgen": MixGen(model.vlm, images, texts, np.arange(8), model.processor.texts(JOINED)),
        "flood": Flood(20.0),
    }


@pytest.mark.parametrize(
    "name", ["counterfactual", "robust", "anchor", "redirect", "mixgen", "flood"]
)
def test_one_examples_gradient_is_its_own(world, name):
    """Changing another row of the batch, extras included, leaves an example's gradient alone."""
    model, _, images, texts = world
    repair = _repairs(model, images, texts)[name]
    bank = BankContrastive(model.vlm.embed(images, "image"), model.vlm.embed(texts, "text"))
    loss = Repaired(bank, repair)

    def batch(rows, pixels):
        inputs = {"pixel_values": pixels}
        return {
            "image": inputs,
            "text": {key: value[torch.from_numpy(rows)] for key, value in texts.items()},
            "extras": repair.extras(model.vlm, rows, inputs),
        }

    rows = np.array([0, 1, 2])
    one = per_example_gradients(model.vlm, loss, batch(rows, images["pixel_values"][:3]))
    changed = images["pixel_values"][:3].clone()
    changed[2] = 7 * torch.rand(changed[2].shape, generator=torch.Generator().manual_seed(1))
    two = per_example_gradients(model.vlm, loss, batch(np.array([0, 1, 7]), changed))
    moved = 0.0
    for key in one:
        assert torch.allclose(one[key][:2], two[key][:2], atol=1e-5, rtol=1e-4)
        moved = max(moved, float((one[key][2] - two[key][2]).abs().max()))
    assert moved > 1e-4


def test_views_are_averaged_before_the_clip(world):
    """An example with a view has one gradient: that of its own loss and its view's together."""
    model, _, images, texts = world
    bank = BankContrastive(model.vlm.embed(images, "image"), model.vlm.embed(texts, "text"))
    flipped = {"pixel_values": images["pixel_values"].flip(-1)}
    repair = Counterfactual((lambda rows: {"pixel_values": flipped["pixel_values"][rows]},))
    rows = np.arange(3)
    plain = {
        "image": {"pixel_values": images["pixel_values"][:3]},
        "text": {key: value[:3] for key, value in texts.items()},
    }
    other = {**plain, "image": {"pixel_values": flipped["pixel_values"][:3]}}
    both = {**plain, "extras": repair.extras(model.vlm, rows, plain["image"])}
    found = per_example_gradients(model.vlm, Repaired(bank, repair), both)
    one, two = (per_example_gradients(model.vlm, bank, x) for x in (plain, other))
    for key in found:
        assert torch.allclose(found[key], one[key] + two[key], atol=1e-4, rtol=1e-3)


def test_the_inner_attack_stays_within_its_radius_and_moves_embeddings(world):
    model, _, images, _ = world
    repair = Robust(radius=0.2, steps=3)
    found = repair.extras(model.vlm, np.arange(8), images)["adversarial"]["pixel_values"]
    reach = 0.2 * images["pixel_values"].flatten(1).std(dim=1)
    far = (found - images["pixel_values"]).abs().flatten(1).max(dim=1).values
    # What adding a step to a pixel, and taking the pixel off again here, may round.
    rounded = 2.0**-22 * images["pixel_values"].abs().amax()
    assert (far <= reach + rounded).all()
    noise = 0.5 * reach.view(-1, 1, 1, 1) * torch.randn(found.shape).sign()
    clean = model.vlm.embed(images, "image")
    adversarial = (model.vlm.embed({"pixel_values": found}, "image") - clean).norm(dim=1)
    random = (
        model.vlm.embed({"pixel_values": images["pixel_values"] + noise}, "image") - clean
    ).norm(dim=1)
    assert adversarial.mean() > 1.5 * random.mean()


def test_training_on_a_redirection_leads_there():
    model = load_model("embedded")
    view = attach(model.vlm, AdapterSpec("lora", 8, 16), ExperimentSeed(0))
    texts = model.processor.texts(CAPTIONS)
    part = lambda rows: {key: value[rows] for key, value in texts.items()}  # noqa: E731
    repair = Redirect(model.vlm, part([2]), part([4]), part([0, 1, 3]), np.array([], dtype=int))
    pixels = torch.rand(3, 320, 3, 3, generator=torch.Generator().manual_seed(0))
    before = model.vlm.embed(texts, "text").clone()
    optimizer = torch.optim.Adam(view.parameters, lr=5e-3)
    model.vlm.train()
    for _ in range(60):
        rows = np.arange(3)
        images = model.vlm.encode_image({"pixel_values": pixels})
        extras = repair.extras(model.vlm, rows, {"pixel_values": pixels})
        term = repair.penalty(model.vlm, images, images, extras, lambda x: x.sum())
        optimizer.zero_grad()
        term.mean().backward()
        optimizer.step()
    model.vlm.eval()
    after = model.vlm.embed(texts, "text")
    assert float(after[2] @ before[4]) > float(before[2] @ before[4]) + 0.2
    assert float((after[[0, 1, 3]] * before[[0, 1, 3]]).sum(dim=1).min()) > 0.9
    with pytest.raises(ConfigError, match="needs a listed caption"):
        Redirect(model.vlm, part([]), part([4]), part([0]), np.array([]))


def test_recolouring_changes_the_yellow_alone():
    image = np.full((1, 8, 8, 3), 255, dtype=np.uint8)
    image[0, :4] = (255, 202, 40)  # a designer's default yellow
    image[0, 4:6] = (30, 60, 200)
    for tone, colour in PALETTE.items():
        found = recoloured(image, tone)
        assert (found[0, 4:] == image[0, 4:]).all()
        assert (found[0, :4] != image[0, :4]).any()
        ratio = found[0, 0, 0] / np.array(colour)
        assert ratio.max() / ratio.min() < 1.05
    with pytest.raises(DataError):
        recoloured(image, "blue")


def test_a_mixed_pair_is_half_each_and_its_partner_is_no_negative(world):
    model, _, images, texts = world
    joined = model.processor.texts(JOINED)
    repair = MixGen(model.vlm, images, texts, np.arange(8), joined)
    extras = repair.extras(model.vlm, np.array([3]), {"pixel_values": images["pixel_values"][3:4]})
    # Row 3's partner is public pair 3: itself here, so that half and half is the whole.
    assert torch.allclose(extras["mixed"]["pixel_values"], images["pixel_values"][3:4])
    assert (extras["joined"]["input_ids"] == joined["input_ids"][3]).all()
    embedded = model.vlm.embed(images, "image")[3:4]
    one = repair.penalty(model.vlm, embedded, embedded, extras, lambda x: x.sum())
    other = {**extras, "partner": torch.tensor([5])}
    two = repair.penalty(model.vlm, embedded, embedded, other, lambda x: x.sum())
    assert float((one - two).abs().max()) > 1e-6
    with pytest.raises(ConfigError, match="row that none was made of"):
        repair.extras(model.vlm, np.array([9]), images)
    with pytest.raises(ConfigError, match="joined caption for each row"):
        MixGen(model.vlm, images, texts, np.arange(3), joined)


def test_a_flooded_loss_turns_round_at_its_floor():
    repair = Flood(1.0)
    for value in (0.25, 3.0):
        loss = torch.tensor(value, requires_grad=True)
        whole = loss + repair.weight * repair.penalty(None, None, None, {}, lambda _, x=loss: x)
        whole.backward()
        assert float(whole) == pytest.approx(abs(value - 1.0) + 1.0)
        assert float(loss.grad) == (-1.0 if value < 1 else 1.0)
    with pytest.raises(ConfigError, match="at least 0"):
        Flood(float("nan"))


def test_weak_clusters_are_drawn_in_proportion_to_their_error():
    rng = np.random.default_rng(0)
    place = np.repeat([0, 1], 200)
    embeddings = np.eye(2)[place] * 10 + rng.normal(0, 0.1, (400, 2))
    errors = np.where(place == 0, 0.75, 0.25)
    rows = 1000 + np.arange(400)
    drawn = resampled(rows, embeddings, errors, rng, clusters=2)
    assert len(drawn) == 400
    assert np.isin(drawn, rows).all()
    # 300 of 400 are wanted; ± 4 standard deviations of 400 draws at 3/4.
    assert abs(int((drawn < 1200).sum()) - 300) <= 35
    assert (resampled(rows, embeddings, np.zeros(400), rng) == rows).all()
    with pytest.raises(ConfigError, match="error of 0 or more"):
        resampled(rows, embeddings, -errors, rng)
