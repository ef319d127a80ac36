import json
from pathlib import Path

from experiments.sharing_page import PAGE, PICTURE, ROWS, write_page
from experiments.sharing_runs import Run

HEAD = {"date": "2026-11-22", "device": "cpu", "versions": {"torch": "2.13.0"}, "command": "python -m x"}


def write(folder: Path, name: str, rows: list[dict[str, float]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(output: Path, variant: str, seed: int, losses: dict[int, float]) -> Run:
    run = Run(variant, seed, output / "runs" / f"{variant}_{seed}")
    write(run.folder, "metrics.jsonl", [{"step": step, "validation_mlm_loss": loss} for step, loss in losses.items()])
    return run


def cells(page: str, first: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {first} |" if first else "| |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_page_holds_means_over_finished_seeds_and_what_is_missing_is_empty(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "es", 1, {10: 6.0, 20: 5.0}),
        make_run(tmp_path, "es", 2, {10: 6.2, 20: 5.5}),
        make_run(tmp_path, "gdes", 1, {10: 5.9}),  # not at its end
        Run("nes", 1, tmp_path / "runs" / "nes_1"),  # not begun
    ]
    write(runs[0].folder, "gradient_conflict.jsonl", [{"step": 20, "cosine": -0.25, "rtd_to_mlm_norm": 3.0}])
    write(runs[0].folder, "embedding_cosine.jsonl", [{"step": 20, "E_G_cosine": 0.1, "E_D_cosine": 0.1}])
    scores = tmp_path / "scores.jsonl"
    write(tmp_path, scores.name, [
        {"label": "from scratch", "task": "sst2", "mean": 0.51},  # type: ignore[dict-item]
        {"label": "es_1", "task": "sst2", "mean": 0.7},  # type: ignore[dict-item]
        {"label": "es_2", "task": "sst2", "mean": 0.8},  # type: ignore[dict-item]
    ])  # fmt: skip
    page = write_page(tmp_path, runs, 20, scores, HEAD).read_text()
    head = cells(page, "")
    shared, disentangled = (dict(zip(head, cells(page, name), strict=True)) for name in ("es", "gdes"))
    assert shared["seeds"] == "2" and shared["MLM loss, held out, nats"] == "5.250 (5.000 to 5.500)"
    assert shared["cosine of the two gradients over E"] == "-0.250" and shared["sst2"] == "0.750 (0.700 to 0.800)"
    assert disentangled["seeds"] == "0 (1 under way)" and disentangled["MLM loss, held out, nats"] == ""
    assert cells(page, "random weights")[-1] == "0.510" and "| nes |" not in page
    assert (tmp_path / PICTURE).stat().st_size > 10_000 and f"({PICTURE})" in page and PAGE == "sharing.md"
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert [(row["variant"], row["seed"], row["step"]) for row in rows] == [
        ("es", 1, 20),
        ("es", 2, 20),
        ("gdes", 1, 10),
    ]
    assert rows[1]["validation_mlm_loss"] == 5.5 and rows[1]["command"] == "python -m x"
