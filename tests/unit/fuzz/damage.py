"""Sound files with something done to their bytes."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """The bytes with one to three things done to them: a byte changed, a piece cut or doubled, something put in."""
    data = sound
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), place + draw(st.sampled_from([0, 1, 1, 2, 10, 100, len(data)])))
        new = draw(st.sampled_from(PIECES) | st.binary(max_size=3))
        data = data[:place] + new + (data[place:] if draw(st.booleans()) else data[end:])
    return draw(st.sampled_from([data] * 6 + _encodings(data)))


PIECES = [
    *(
        b"",
        b"\t",
        b"\r\n",
        b"\n",
        b"\n\n",
        b"\r",
        b":",
        b": ",
        b"- ",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"'",
        b",",
        b"#",
        b"&a ",
        b"*a",
    ),
    *(
        b"!!python/object:os.system ",
        b"<<: ",
        b"|",
        b">",
        b"%",
        b"@",
        b"\0",
        b"\xff",
        b"\xe9",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
    ),
    *(
        b"\xe2\x80\xa8",
        b"~",
        b"null",
        b"-1",
        b"9" * 30,
        b"1e999",
        b"NaN",
        b"{{",
        b"%}",
        b"\\ud800",
        b"\\u0000",
        b"  ",
        b"---\n",
        b"...\n",
    ),
]


def _encodings(data: bytes) -> list[bytes]:
    text = data.decode("latin-1")
    return [
        data.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + data,
        text.encode("utf-16"),
        text.encode("utf-32-le"),
        data.replace(b"\n", b"\r"),
    ]
