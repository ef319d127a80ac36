"""Ranks that Open MPI or Slurm start: `--launcher openmpi` and `--launcher slurm` of DeepSpeed's launcher.

What: those number the ranks in variables of their own and do not say where the first one is, so each rank would take
itself for a run of one. trainer/launch.py sends MASTER_ADDR and MASTER_PORT along; a rank that has them and no RANK
takes its numbers from MPI's or Slurm's variables. DeepSpeed's Slurm launcher (0.19.8) also forgets `--module`.
Used by: trainer/launch.py, trainer/train.py. Tested by tests/trainer/test_foreign_launchers.py and
tests/integration/test_clusters.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

DEFAULT_PORT = "29500"  # DeepSpeed's
# ours, and what Open MPI and Slurm call it
VARIABLES = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"),
    "LOCAL_SIZE": ("OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"),
}


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_SIZE of a rank that MPI or Slurm started; nothing for any other.

    A script that Slurm runs has its variables too without being a rank: only trainer/launch.py sets MASTER_ADDR.
    """
    if "RANK" in environment or "MASTER_ADDR" not in environment:
        return {}
    for column in range(2):
        if VARIABLES["RANK"][column] in environment:
            names = {ours: theirs[column] for ours, theirs in VARIABLES.items()}
            return {ours: environment[theirs] for ours, theirs in names.items() if theirs in environment}
    return {}


def launcher_of(options: Sequence[str]) -> str:
    """DeepSpeed's --launcher, lower case; pdsh where it is not given."""
    return option_value(options, "--launcher", "pdsh").lower()


def meeting_point(options: Sequence[str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT that ranks of MPI and Slurm need; nothing for launchers that set them.

    Raises:
        ValueError: neither --master_addr nor a hostfile with a host says where the first rank is.
    """
    if launcher_of(options) not in ("openmpi", "slurm"):
        return {}
    address = option_value(options, "--master_addr", "")
    if not address:
        hostfile = option_value(options, "--hostfile", option_value(options, "-H", ""))
        address = first_host(Path(hostfile)) if hostfile else ""
    if not address:
        raise ValueError(f"--launcher {launcher_of(options)} needs --hostfile FILE with a host, or --master_addr HOST")
    return {"MASTER_ADDR": address, "MASTER_PORT": option_value(options, "--master_port", DEFAULT_PORT)}


def module_words(options: Sequence[str], module: str) -> list[str]:
    """How DeepSpeed's launcher is told to run a module."""
    if launcher_of(options) == "slurm":
        return ["--", "-m", module]  # a "script" of that name: srun gets `python -u -m module`
    return ["--module", module]


def forwarding_words(options: Sequence[str]) -> list[str]:
    """What makes mpirun hand the meeting point on to ranks on other hosts; srun hands on everything by itself."""
    if launcher_of(options) != "openmpi":
        return []
    own = option_value(options, "--launcher_args", "")
    return [f"--launcher_args={own} -x MASTER_ADDR -x MASTER_PORT".replace("= ", "=")]  # the last one given counts


def option_value(options: Sequence[str], name: str, default: str) -> str:
    """The value of `name value` or `name=value`; the last one where there are several."""
    value = default
    for number, word in enumerate(options):
        if word == name and number + 1 < len(options):
            value = options[number + 1]
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def first_host(hostfile: Path) -> str:
    """The first host of a hostfile (`name slots=N` a line); empty where there is none."""
    lines = (line.partition("#")[0].split() for line in hostfile.read_text(encoding="utf-8").splitlines())
    return next((words[0] for words in lines if words), "")
