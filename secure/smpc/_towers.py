"""Models with two towers: the inputs say which one is meant."""

from secure.smpc import _bert_towers, _image_towers, _text_towers
from secure.smpc._builder import Builder, Value
from secure.smpc._handlers import Batch, Module, join, need, register, trace

__all__ = ["REGISTERED", "trace"]

#: The modules whose import registers their towers.
REGISTERED = (_bert_towers, _image_towers, _text_towers)


@register("CLIPModel")
def _clip(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    if "pixel_values" in batch:
        return _image_towers.clip_projected(builder, module, batch, path)
    return _text_towers.clip_projected(builder, module, batch, path)


@register("SiglipModel", "Siglip2Model")
def _siglip(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    vision, text = need(module, ("vision_model", "text_model"), path)
    if "pixel_values" in batch:
        return _image_towers.siglip(builder, vision, batch, join(path, "vision_model"))
    return _text_towers.siglip(builder, text, batch, join(path, "text_model"))
