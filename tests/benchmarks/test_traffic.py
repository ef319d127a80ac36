"""The counts are the kernels': tiles as the kernels classify them, stored bytes as the launcher allocates them."""

import itertools

import pytest

from benchmarks import resources, traffic
from disentangled.kernels.disentangled_attention import launch


def far_by_distances(query0: int, key0: int, block: int) -> bool:
    """Every distance of the tile lies past one end of the table."""
    distances = [i - j for i in range(query0, query0 + block) for j in range(key0, key0 + block)]
    return min(distances) >= traffic.LAST_LEFT or max(distances) <= traffic.LAST_RIGHT


@pytest.mark.parametrize("num_tokens", [64, 512, 640, 1024, 2048])
def test_near_tiles_are_those_with_a_distance_inside_the_table(num_tokens: int) -> None:
    shape = traffic.Shape(num_tokens, total_tokens=num_tokens, heads=1)
    starts = range(0, num_tokens, shape.block)
    far = sum(far_by_distances(*tile, shape.block) for tile in itertools.product(starts, starts))
    assert traffic.count_tiles(shape) == (len(starts) ** 2 - far, far)


@pytest.mark.parametrize("num_tokens", [512, 4096])
def test_stored_scores_are_at_most_what_the_launcher_allocates(num_tokens: int) -> None:
    recorded = [
        x for x in resources.recorded_launches(resources.Variant(num_tokens=num_tokens)) if x.name == "key_value_kernel"
    ][-1].arguments
    allocated = recorded["by_query_ptr"].numel() * recorded["by_query_ptr"].element_size()
    shape = traffic.Shape(num_tokens, total_tokens=num_tokens, heads=resources.HEADS)
    counted = traffic.count_tiles(shape)[0] * shape.block**2 * shape.item_bytes
    allocated -= num_tokens * shape.heads * shape.block * shape.item_bytes  # a tile more for each tile of rows
    assert counted <= allocated
    assert allocated <= counted * (1.0 if num_tokens == 512 else 1.6)  # windows are cut short at a document's ends


def test_flops_of_flash_attention_are_two_products_forward_and_five_or_seven_backward() -> None:
    shape = traffic.Shape(512)
    forward, backward = traffic.count_flash(shape)
    assert forward.flops == 2 * 2 * shape.total_tokens * 512 * shape.heads * shape.head_width
    assert backward.flops / forward.flops == 3.5


def test_workspace_is_chunked_by_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resources.recorded_launches(resources.Variant())
    monkeypatch.setattr(launch, "WORKSPACE_BYTES", 1)
    single = resources.recorded_launches(resources.Variant())
    names = [x.name for x in single]
    assert names.count("key_value_kernel") == resources.HEADS * [x.name for x in whole].count("key_value_kernel")
    assert names.count("forward_kernel") == 1  # forward has no workspace


def test_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert traffic.main(["--lengths", "512"]) == 0
    printed = capsys.readouterr().out
    assert "N = 512: 100% of the tiles near" in printed and "flash backward" in printed
