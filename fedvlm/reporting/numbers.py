"""Numbers as people read them: with a unit, and no more digits than they carry."""

from typing import Any

NONE = "–"
_THIN = "\u202f"  # a narrow space at which no line breaks
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_LARGEST = 1e30  # of what a run measures; beyond it arithmetic on an axis leaves the range


def finite(value: Any) -> float | None:
    """Return a value as a finite float; None where it is no number, or one beyond 10^30.

    Example:
        >>> finite(0.5), finite("0.5"), finite(float("nan")), finite(True)
        (0.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= _LARGEST else None  # a NaN isn't either


def percent(value: Any, digits: int = 1) -> str:
    """Return a fraction as a percentage.

    Example:
        >>> percent(0.6202).replace(_THIN, " "), percent(None)
        ('62.0 %', '–')
    """
    number = finite(value)
    return NONE if number is None else f"{decimal(100 * number, digits)}{_THIN}%"


def round_percent(value: Any) -> str:
    """Return a fraction as a percentage for a sentence: whole, below ten with a digit.

    Example:
        >>> round_percent(0.6202).replace(_THIN, " "), round_percent(0.011).replace(_THIN, " ")
        ('62 %', '1.1 %')
    """
    number = finite(value)
    whole = number is None or number == 0 or abs(number) >= 0.0995
    return percent(number, 0 if whole else 1)


def points(value: Any) -> str:
    """Return a difference of fractions in percentage points, with its sign.

    Example:
        >>> points(0.367).replace(_THIN, " "), points(-0.02).replace(_THIN, " ")
        ('+36.7 points', '−2.0 points')
    """
    number = finite(value)
    return NONE if number is None else f"{signed(100 * number, 1)}{_THIN}points"


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, a true minus."""
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else ("−" if value < 0 else "+") + text


def decimal(value: Any, digits: int = 2) -> str:
    """Return a number with so many digits behind the point.

    Example:
        >>> decimal(-0.004), decimal(-1234.5)
        ('0.00', '−1,234.50')
    """
    number = finite(value)
    if number is None:
        return NONE
    text = f"{abs(number):,.{digits}f}"
    return f"−{text}" if number < 0 and text.strip("0.,") else text


def count(value: Any) -> str:
    """Return a count, in groups of three."""
    number = finite(value)
    return NONE if number is None else f"{round(number):,}"


def size(value: Any) -> str:
    """Return bytes with the prefix that people read.

    Example:
        >>> [size(v).replace(_THIN, " ") for v in (52330, 776192, 0, 5.2e9)]
        ['52.3 kB', '776 kB', '0 B', '5.20 GB']
    """
    number = finite(value)
    if number is None:
        return NONE
    for step, unit in _BYTES:
        if number >= 0.9995 * step:
            return f"{_three(number / step)}{_THIN}{unit}"
    return f"{round(number)}{_THIN}B"


def duration(value: Any) -> str:
    """Return seconds as people say them.

    Example:
        >>> [duration(v).replace(_THIN, " ") for v in (0.0036, 0.52, 44.9, 131, 7500)]
        ['3.6 ms', '0.52 s', '45 s', '2 min 11 s', '2 h 5 min']
    """
    number = finite(value)
    if number is None:
        return NONE
    if number == 0:
        return f"0{_THIN}s"
    if number < 0.0995:
        return f"{_two(1e3 * number)}{_THIN}ms"
    if number < 9.95:
        return f"{_two(number)}{_THIN}s"
    whole = round(number)
    if whole < 60:
        return f"{whole}{_THIN}s"
    if whole < 3600:
        return f"{whole // 60}{_THIN}min {whole % 60}{_THIN}s"
    minutes = round(number / 60)
    return f"{minutes // 60}{_THIN}h {minutes % 60}{_THIN}min"


def power(value: Any) -> str:
    """Return a small number as a power of ten where it is one.

    Example:
        >>> power(1e-5), power(0.001), power(2.5e-7), power(0.25)
        ('10⁻⁵', '0.001', '2.5·10⁻⁷', '0.25')
    """
    number = finite(value)
    if number is None:
        return NONE
    if number == 0 or 1e-3 <= abs(number) < 1e5:
        return f"{number:g}".replace("-", "−")
    front, _, exponent = f"{number:.2e}".partition("e")
    front = front.rstrip("0").rstrip(".").replace("-", "−")
    ten = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return ten if front == "1" else f"{front}·{ten}"


def tick(value: float) -> str:
    """Return a value of an axis, with the digits that it has and no more.

    Example:
        >>> tick(0.15000000000000002), tick(-1.0)
        ('0.15', '−1')
    """
    return f"{round(value, 6):g}".replace("-", "−")


def size_tick(value: float) -> str:
    """Return bytes on an axis: without digits that say nothing."""
    return size(value).replace(".00", "").replace(".0", "")


def between(low: str, high: str) -> str:
    """Return an interval of two formatted ends; empty where there is none."""
    return "" if NONE in (low, high) else f"[{low},\u00a0{high}]"


def plain(value: Any) -> str:
    """Return a setting's value, whatever it is, in one line."""
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return power(value)
    return " ".join(str(value).split()) or "none"


def _two(value: float) -> str:
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
