"""clean.py: each rule alone, all of them off by default, and what the manifest says of them."""

import pytest

from disentangled.data_prep.clean import CleaningRules, clean_text


def test_nothing_happens_by_default():
    text = " e\u0301\x00 \u00a0\x85\n"
    cleaned = clean_text(text, CleaningRules())
    assert (cleaned.text, cleaned.reject, cleaned.changes) == (text, "", ())
    assert CleaningRules().describe() == "none"


def test_normalization_takes_the_form_and_is_noted_where_it_changes_something():
    assert clean_text("e\u0301", CleaningRules(normalize="NFC")).text == "\u00e9"
    assert clean_text("\ufb01", CleaningRules(normalize="NFKC")).text == "fi"
    assert clean_text("\u00e9", CleaningRules(normalize="NFD")).changes == ("normalized to NFD",)
    assert clean_text("\u00e9", CleaningRules(normalize="NFC")).changes == ()


def test_control_characters_become_spaces_but_newline_and_tab():
    cleaned = clean_text("a\x00b\x85c\x7fd\te\nf\x1b", CleaningRules(strip_controls=True))
    assert (cleaned.text, cleaned.changes) == ("a b c d\te\nf", ("control characters replaced",))
    assert clean_text("a\tb\nc\u00a0d\u200be", CleaningRules(strip_controls=True)).changes == ()


def test_lengths_are_characters_after_the_other_rules():
    rules = CleaningRules(normalize="NFC", strip_controls=True, min_characters=2, max_characters=3)
    texts = ["e\u0301", "a\x00", "ab", "abc", "abcd", "e\u0301" * 3]
    assert [clean_text(text, rules).reject for text in texts] == ["too short", "too short", "", "", "too long", ""]


def test_rules_are_told_in_words():
    words = CleaningRules(normalize="NFC", strip_controls=True, max_characters=9, drop_duplicates=True).describe()
    assert words.startswith("normalize NFC (Unicode ")
    assert words.endswith("), strip_controls, max_characters 9, drop_duplicates")


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        ({"normalize": "nfc"}, "--normalize nfc: unknown form: take one of none, NFC"),
        ({"min_characters": -1}, "must not be negative"),
        ({"min_characters": 10, "max_characters": 9}, "--max-characters 9: is below --min-characters 10"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: dict, fault: str):
    with pytest.raises(ValueError, match=fault):
        CleaningRules(**rules)
