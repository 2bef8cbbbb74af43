"""Numbers, times and foreign text as the reports show them, on the terminal and in HTML. Pure."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"


def number(value: float) -> str:
    """Three to four figures: `1,234`, `61.2`, `0.418`, `4.1e-6`, with a real minus sign in front; `NaN`."""
    if not math.isfinite(value):
        return "NaN"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        mantissa, power = f"{size:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{int(power)}"
    elif size >= 1000 or size == int(size):
        text = f"{size:,.0f}"
    else:
        text = f"{size:.1f}" if size >= 100 else f"{size:.3g}"
    return MINUS + text if value < 0 else text


def decimal_text(value: float, decimals: int, plus: bool = False) -> str:
    """`value` with a number of decimals and a real minus sign, none before zero; `plus`: with a plus sign if it is not
    negative."""
    if not math.isfinite(value):
        return "NaN"
    return f"{value:{'+' if plus else ''}z,.{decimals}f}".replace("-", MINUS)


ROUNDING = 1e-6
"""An error of a mean below this is that of float32: sums of log-probabilities."""


def decimals_of(error: float) -> int:
    """Decimals that show a standard error (and so its mean) to two figures; 3 if the error is unknown, or 0 but for
    rounding."""
    return min(max(1 - math.floor(math.log10(error)), 0), 6) if math.isfinite(error) and error > ROUNDING else 3


def percent(value: float) -> str:
    """A fraction as a percentage with three figures: 0.125 is `12.5 %`."""
    return "NaN" if not math.isfinite(value) else f"{value * 100:.3g} %".replace("-", MINUS)


def duration(seconds: float) -> str:
    """A duration in seconds as `42 s`, `3:05` (minutes) or `1:02:03` (hours)."""
    total = int(seconds)
    minutes, rest = divmod(total, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{total} s"


def printable(text: str, keep: str = "") -> str:
    """`text` without characters that could drive a terminal or a page: control, direction and surrogate ones.

    The joiners that emoji and some scripts need stay, and so do the characters of `keep`.
    """
    keep += "\u200c\u200d"
    return "".join(c if c.isprintable() or c in keep else " " if c.isspace() else "\ufffd" for c in text)


MARKED = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""First bytes of a text → its encoding."""


def not_utf8(error: UnicodeDecodeError) -> str:
    """Why a whole file is no UTF-8 and how to make it so, to go on after "the file cannot be read: "."""
    data = error.object
    marked = next((encoding for mark, encoding in MARKED.items() if data.startswith(mark)), None)
    line = data.count(b"\n", 0, error.start) + 1
    plain = f"line {line} is not {error.encoding.upper()} (byte 0x{data[error.start]:02x})"
    fix = f"save it as UTF-8, for example with: iconv -f {marked or 'LATIN1'} -t UTF-8 FILE > NEW"
    return f"it is {marked}; {fix}" if marked else f"{plain}; {fix}"


def sparkline(values: list[float]) -> str:
    """A bar of one character for each value, between the smallest and the largest; `x` for what is not finite."""
    whole = [value for value in values if math.isfinite(value)]
    low, span = (min(whole), max(whole) - min(whole)) if whole else (0.0, 0.0)
    marks = "▁▂▃▄▅▆▇█"
    return "".join(
        "x" if not math.isfinite(v) else marks[int((v - low) / span * 7.999)] if span > 0 else marks[3] for v in values
    )
