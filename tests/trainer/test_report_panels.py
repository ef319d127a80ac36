import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from disentangled.trainer.report_panels import COLORS, MOST_POINTS, draw_panels, draw_time_line, thin_out


def make_row(step: int, **others: float) -> dict[str, float]:
    return {"step": step, "mlm_loss": 7.0 - step / 100, "rtd_auc": 0.6, "generator_gradient_norm": 1.0, **others}


def points_of(svg: str, color: str) -> list[tuple[float, float]]:
    """Corners of the longest line of a colour."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*stroke: var\(--' + color + r"\)", svg)
    corners = [re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path) for path in paths]
    return [(float(x), float(y)) for x, y in max(corners, key=len)]


def test_each_panel_with_values_is_drawn_in_the_pages_colours() -> None:
    rows = [make_row(10), make_row(20), make_row(30)]
    held_out = [{"step": 20, "validation_mlm_loss": 6.0}]
    panels = dict(draw_panels(rows, held_out, []))
    assert list(panels) == [
        "Generator: MLM loss", "Discriminator: replaced or original?", "Gradient norms before clipping",
    ]  # fmt: skip
    for svg in panels.values():
        ElementTree.fromstring(svg)
        assert not any(color in svg for color in COLORS.values())
        assert not re.search(r"#[0-9a-f]{6}|http(?!://www.w3.org)", svg)
    loss = points_of(panels["Generator: MLM loss"], "generator")
    assert [x for x, _ in loss] == sorted(x for x, _ in loss)
    assert [y for _, y in loss] == sorted(y for _, y in loss)  # SVG counts downwards: the loss falls
    assert "var(--held-out)" in panels["Generator: MLM loss"]


def test_a_curve_that_is_nought_throughout_is_left_out() -> None:
    rows = [{"step": step, "generator_skipped_steps": 0, "discriminator_skipped_steps": step - 1} for step in (1, 2)]
    assert draw_panels(rows[:1], [], []) == []
    ((title, svg),) = draw_panels(rows, [], [])
    assert title == "Skipped updates"
    assert "var(--discriminator)" in svg and "var(--generator)" not in svg


def test_inner_names_of_two_pictures_differ() -> None:
    panels = draw_panels([make_row(10), make_row(20)], [], [])
    names = [set(re.findall(r'\bid="([^"]+)"', svg)) for _, svg in panels]
    assert names[0] and not names[0] & names[1]
    for own, (_, svg) in zip(names, panels, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= own


def test_faults_and_restarts_are_marked() -> None:
    rows = [make_row(10), make_row(20)]
    plain = dict(draw_panels(rows, [], [{"time": 1, "step": 15, "kind": "save", "text": ""}]))["Generator: MLM loss"]
    fault = dict(draw_panels(rows, [], [{"time": 1, "step": 15, "kind": "rollback", "text": ""}]))
    assert "var(--fault)" not in plain
    assert "var(--fault)" in fault["Generator: MLM loss"]


def test_time_line_breaks_where_the_run_did() -> None:
    rows = [make_row(step, time=1000.0 + 60 * step) for step in range(1, 20)]
    events = [
        {"time": 1000.0, "step": 0, "kind": "start", "text": ""},
        {"time": 1000.0 + 60 * 10.5, "step": 8, "kind": "resume", "text": ""},
        {"time": 1000.0 + 60 * 15, "step": 15, "kind": "hang", "text": ""},
    ]
    svg = draw_time_line(rows, events)
    assert svg is not None
    lines = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--generator\)', svg)
    assert len(lines) == 2
    assert "var(--fault)" in svg
    assert "minutes since the start" in svg
    assert draw_time_line([make_row(1)], []) is None


def test_thinning_keeps_every_spike() -> None:
    steps = np.arange(500_000.0)
    values = np.sin(steps / 1e4)
    values[[123_456, 400_001]] = 99.0, -99.0
    kept_steps, kept = thin_out(steps, values)
    assert kept.size <= MOST_POINTS
    assert kept.max() == 99 and kept.min() == -99
    assert (kept_steps[0], kept_steps[-1]) == (0, 499_999)
    assert np.array_equal(kept, values[kept_steps.astype(int)])
    values[7] = np.nan
    assert thin_out(steps, values)[1].size <= MOST_POINTS
