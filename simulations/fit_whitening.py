"""Make the embedded model's whitening from the embedded data's public pairs.

python -m simulations.fit_whitening OUT.safetensors
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import save_file

from fedvlm.adapters.frozen_head import SIZE
from fedvlm.data import load_emoji, make_splits
from fedvlm.heads import fit_whitening
from fedvlm.models.stem import stem_features
from fedvlm.seeds import ExperimentSeed


def main(out: Annotated[Path, typer.Argument(help="file to write")]) -> None:
    """Fit and write; the public pairs are the same for every seed."""
    data = load_emoji(lambda *_: None)
    public = make_splits(data, ExperimentSeed(0)).public
    raw = np.asarray(stem_features(data, public, lambda *_: None)[public], dtype=np.float32)
    fitted = fit_whitening(raw.mean((2, 3)), data.concepts[public], 0.5, SIZE)
    tensors = {"mean": fitted.mean, "matrix": fitted.matrix}
    save_file({name: torch.tensor(value).half() for name, value in tensors.items()}, out)


if __name__ == "__main__":
    typer.run(main)
