"""A picture of how long the documents are: for each source, how many fall into each half octave of tokens.

Written by hand as SVG, so that the same numbers give the same bytes and no plotting library is needed.

Used by: run_report.py. Tested by: tests/data_prep/test_draw_lengths.py.
"""

from collections.abc import Mapping, Sequence

_ROW_HEIGHT, _BAR_WIDTH, _LEFT, _TOP = 120, 14, 90, 24
_BAR_HEIGHT = 84


def draw_lengths(counts: Mapping[str, Sequence[int]]) -> str:
    """Return an SVG; counts[source][k] documents have 2**(k/2) <= tokens < 2**((k+1)/2)."""
    num_classes = max((k + 1 for row in counts.values() for k, count in enumerate(row) if count), default=1)
    # whole octaves, so that the axis ends on a label
    num_classes += num_classes % 2
    width, height = _LEFT + num_classes * _BAR_WIDTH + 40, _TOP + len(counts) * _ROW_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="14">documents by length in tokens</text>',
    ]
    for row, (source, values) in enumerate(counts.items()):
        base = _TOP + row * _ROW_HEIGHT + _BAR_HEIGHT + 10
        largest = max(values, default=0)
        parts.append(f'<text x="4" y="{base - 40}">{source}</text>')
        parts.append(f'<text x="4" y="{base - 26}" fill="gray">{sum(values):,}</text>')
        for k, count in enumerate(values[:num_classes]):
            if count:
                # a rare class keeps a line that can be seen
                size = max(round(_BAR_HEIGHT * count / largest, 1), 0.5)
                left = _LEFT + k * _BAR_WIDTH
                parts.append(
                    f'<rect x="{left}" y="{base - size:.1f}" width="{_BAR_WIDTH - 1}" height="{size}" fill="steelblue">'
                    f"<title>{2 ** (k / 2):.0f} to {2 ** ((k + 1) / 2):.0f} tokens: {count:,}</title></rect>"
                )
        for k in range(0, num_classes + 1, 4):
            parts.append(f'<text x="{_LEFT + k * _BAR_WIDTH - 4}" y="{base + 13}" fill="gray">{2 ** (k // 2)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
