"""What the repository keeps of a result: its numbers, to as many digits as are shown."""

from typing import Any

_DIGITS = 4


def rounded(value: Any) -> Any:
    """Return JSON data with each float to four digits."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value
