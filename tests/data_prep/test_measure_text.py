"""measure_text.py: measures that treat scripts alike."""

import pytest

from disentangled.data_prep.measure_text import digit_share, letter_share, longest_run, repeated_line_share


@pytest.mark.parametrize(
    "text", ["plain words", "слова и буквы", "今天天气", "कि हिन्दी में", "ภาษาไทยก็ดี", "العَرَبِيَّة", "tiếng Việt", "한국어"]
)
def test_words_of_any_script_are_letters_throughout(text: str):
    assert letter_share(text) == 1.0
    assert digit_share(text) == 0.0


def test_shares_leave_white_space_aside():
    assert letter_share("ab 12 \n\t\u00a0\u3000") == 0.5
    assert digit_share("ab 12 .!") == pytest.approx(1 / 3)
    assert digit_share("٣४5") == 1.0
    assert letter_share("\U0001f600...") == 0.0
    assert letter_share("") == digit_share(" \n") == 0.0


def test_repeated_lines_count_from_their_second_time_on():
    assert repeated_line_share("one\ntwo\nthree") == 0.0
    assert repeated_line_share("same\n same \n\nsame\nelse") == 0.5
    assert repeated_line_share("") == repeated_line_share("\n\n") == 0.0


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("", 0),
        (" ", 0),
        ("a", 1),
        ("abc", 1),
        ("a\n=====\nb", 5),
        ("ab" + "\n" * 9 + "cc", 2),
        ("哈哈哈x", 3),
        ("x....", 4),
    ],
)
def test_longest_run_is_of_one_character_that_shows(text: str, run: int):
    assert longest_run(text) == run
