"""clean.py: each rule alone, all of them off by default, and what the manifest says of them."""

import pytest

from disentangled.data_prep.clean import Cleaned, CleaningRules, clean_text


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


@pytest.mark.parametrize(
    ("rules", "good", "bad", "reason"),
    [
        ({"min_letters": 0.5}, "ab 12", "a 12", "few letters"),
        ({"max_digits": 0.5}, "ab 12", "a 12", "many digits"),
        ({"max_repeated_lines": 0.5}, "a\na\nb\nc", "a\na\na", "repeated lines"),
        ({"max_run": 3}, "a    === b", "a ==== b", "long run of a character"),
    ],
)
def test_quality_is_judged_up_to_the_limit(rules: dict, good: str, bad: str, reason: str):
    assert clean_text(good, CleaningRules(**rules)).reject == ""
    assert clean_text(bad, CleaningRules(**rules)) == Cleaned(bad, reason, ())


def test_rules_are_told_in_words():
    words = CleaningRules(normalize="NFC", strip_controls=True, max_characters=9, drop_duplicates=True).describe()
    assert words.startswith("normalize NFC, strip_controls, max_characters 9, drop_duplicates, Unicode ")
    assert CleaningRules(max_digits=0.0, max_run=8).describe().startswith("max_digits 0.0, max_run 8, Unicode ")
    assert CleaningRules(drop_near_duplicates=0.8).describe().startswith("drop_near_duplicates 0.8, MinHash of 128, ")
    assert CleaningRules(max_repeated_lines=0.5).describe() == "max_repeated_lines 0.5"


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        ({"normalize": "nfc"}, "--normalize nfc: unknown form: take one of none, NFC"),
        ({"split_documents": -1}, "--split-documents -1: must not be negative"),
        ({"drop_near_duplicates": 80}, "--drop-near-duplicates 80: is a similarity and must lie between 0 and 1"),
        ({"min_characters": -1}, "must not be negative"),
        ({"min_letters": 50}, "--min-letters 50: is a share and must lie between 0 and 1"),
        ({"max_repeated_lines": -0.1}, "--max-repeated-lines -0.1: is a share"),
        ({"max_run": -1}, "--max-run -1: must not be negative"),
        ({"min_characters": 10, "max_characters": 9}, "--max-characters 9: is below --min-characters 10"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: dict, fault: str):
    with pytest.raises(ValueError, match=fault):
        CleaningRules(**rules)
