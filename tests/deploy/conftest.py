"""What the tests of the deployment share."""

from tests.fedvlm.conftest import shapes_folder, small_run, tiny_clip_folder

__all__ = ["shapes_folder", "small_run", "tiny_clip_folder"]
