"""LoRA's targets as people write them: an expression over module names, or names by commas."""

import fnmatch
import re
import warnings

from fedvlm.errors import ConfigError

ALL_LINEAR = "all-linear"
_NAMES = re.compile(r"[\w.]+(\s*,\s*[\w.]+)*")
_GLOBS = re.compile(r"[\w.*?]+(\s*,\s*[\w.*?]+)*")


def target_pattern(text: str) -> str:
    r"""Return the regular expression over full module names that a user's targets stand for.

    Args:
        text: A regular expression that matches whole names; or names, or names with `*` and `?`,
            separated by commas, each of which also stands for the end of a longer name.

    Raises:
        ConfigError: It is none of these.

    Example:
        >>> bool(re.fullmatch(target_pattern("q_proj, v_proj"), "text_model.layers.0.q_proj"))
        True
        >>> bool(re.fullmatch(target_pattern("*q_proj"), "text_model.layers.0.q_proj"))
        True
        >>> target_pattern(r".*self_attn\.(q_proj|v_proj)")
        '.*self_attn\\.(q_proj|v_proj)'
    """
    given = text.strip()
    if not given:
        raise ConfigError("targets is empty; name modules, for example q_proj,v_proj")
    if given == ALL_LINEAR:
        return ".*"
    if _NAMES.fullmatch(given):
        names = "|".join(re.escape(name.strip()) for name in given.split(","))
        return rf"(.*\.)?({names})"
    try:
        with warnings.catch_warnings():  # of what another version may read otherwise
            warnings.simplefilter("ignore")
            re.compile(given)
    except (re.error, RecursionError, OverflowError) as error:
        if _GLOBS.fullmatch(given):
            globs = "|".join(fnmatch.translate(name.strip()) for name in given.split(","))
            return rf"(.*\.)?({globs})"
        raise ConfigError(
            f"targets {given!r} is neither a regular expression ({error}) nor a list of module "
            "names such as q_proj,v_proj"
        ) from error
    return given
