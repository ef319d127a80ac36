import os
import subprocess
import sys

import pytest

from disentangled.trainer.command_line import OneLineParser, print_error


@pytest.mark.parametrize("arguments", [[], ["--size", "big"], ["--size", "1", "--colour"]])
def test_parser_raises_one_line_instead_of_leaving(arguments: list[str]) -> None:
    parser = OneLineParser()
    parser.add_argument("--size", type=int, required=True)
    with pytest.raises(ValueError, match="--help lists what there is") as fault:
        parser.parse_args(arguments)
    assert "\n" not in str(fault.value)


def test_print_error_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(ValueError("one\n  two\nthree"))
    assert capsys.readouterr() == ("", "error: one two three\n")


@pytest.mark.parametrize("line", ["'after'", "'x' * 100_000"])
def test_say_survives_a_reader_that_left(line: str) -> None:
    code = (
        "import sys, time\nfrom disentangled.trainer.command_line import say\n"
        f"say('before'); sys.stdin.read(); say({line}); say('again'); print('alive', file=sys.stderr)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        assert process.stdout.readline() == "before\n"
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == "alive\n"
    assert process.returncode == 0
