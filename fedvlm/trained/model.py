"""The model of a finished run, with what it learned."""

from dataclasses import dataclass
from pathlib import Path

from fedvlm.adapters import AdapterSpec, load_adapter
from fedvlm.config import Config, config_from
from fedvlm.errors import ConfigError
from fedvlm.federation.result import Result
from fedvlm.models import LoadedModel, load_model


@dataclass(frozen=True)
class TrainedModel:
    """A base model with the adapter of a finished run.

    Attributes:
        model: The model, the adapter attached, and its processor.
        spec: The adapter's kind and size.
        config: What the run was started with.
        result: What the run found.
    """

    model: LoadedModel
    spec: AdapterSpec
    config: Config
    result: Result


def load_trained(folder: str | Path) -> TrainedModel:
    """Load the model of a run, with its adapter.

    Args:
        folder: Folder of a finished run: `result.json` and `adapter/`.

    Raises:
        ConfigError: The folder holds no finished run, or its base model can't be loaded.
        IntegrityError: The base model isn't the one that the adapter was trained on.
    """
    folder = Path(folder)
    result = Result.load(folder)
    if not (folder / "adapter").is_dir():
        raise ConfigError(f"{folder} holds no adapter/: the run saved none")
    config = config_from(result.config)
    model = load_model(config.model.name)
    spec = load_adapter(model.vlm, folder / "adapter")
    model.vlm.eval()
    return TrainedModel(model, spec, config, result)
