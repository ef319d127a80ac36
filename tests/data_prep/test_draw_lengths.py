"""draw_lengths.py: a picture that is well-formed, has a bar for each class and never changes for the same numbers."""

import xml.etree.ElementTree as ElementTree

from disentangled.data_prep.draw_lengths import draw_lengths

SVG = "{http://www.w3.org/2000/svg}"


def test_picture_has_a_bar_for_each_class_that_holds_documents():
    counts = {"de": [0, 3, 0, 12, 1], "sw": [0] * 5, "fr": [1]}
    picture = draw_lengths(counts)
    assert picture == draw_lengths(counts)
    root = ElementTree.fromstring(picture)
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    titles = [bar.findtext(f"{SVG}title") for bar in bars]
    assert titles == ["1 to 2 tokens: 3", "3 to 4 tokens: 12", "4 to 6 tokens: 1", "1 to 1 tokens: 1"]
    assert float(bars[1].get("height", 0)) == 4 * float(bars[0].get("height", 0))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"de", "sw", "fr", "16", "1", "4"} <= set(texts)


def test_picture_of_nothing_is_drawn():
    ElementTree.fromstring(draw_lengths({"text": [0] * 64}))
