"""docs/clusters.md: its commands are understood, its manifest and scripts parse, its table is the command's own."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from deepspeed.launcher.runner import parse_args

from disentangled.trainer import network_plan
from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.foreign_launchers import meeting_point
from disentangled.trainer.launch import TRAIN_MODULE, build_command, split_arguments
from disentangled.trainer.run_config import load_run_config
from disentangled.trainer.train import parse_arguments
from tests.launching import ROOT

PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
LAUNCHES = re.findall(r"python -m disentangled\.trainer\.launch ([^\n']*)", PAGE)
BASH = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
TABLES = re.findall(r"python -m disentangled\.trainer\.network_plan ([^\n]*)\n```\n```\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("line", LAUNCHES)
def test_launch_line_is_understood_down_to_the_trainer(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostfile").write_text("node1 slots=8\nnode2 slots=8\n")
    words = [re.sub(r"\$(SLURM_NODEID|JOB_COMPLETION_INDEX)", "1", word) for word in shlex.split(line)]
    options, trainer = split_arguments(words)
    meeting = meeting_point(options)
    assert bool(meeting) == ("--launcher" in words)
    understood = parse_args(build_command(options, trainer, "id")[3:])
    assert TRAIN_MODULE in (understood.user_script, understood.user_args[0])
    parsed = parse_arguments(trainer)
    load_ds_config(parsed.engine)
    assert load_run_config(parsed.recipe, parsed.overrides).run.dir == "/runs/base"
    if "--no_ssh" in words:
        assert understood.no_ssh and understood.node_rank == 1 and understood.master_addr


def test_page_has_each_way_of_launching() -> None:
    assert len(LAUNCHES) == 5
    assert sum("--no_ssh" in line for line in LAUNCHES) == 2


@pytest.mark.parametrize("script", BASH)
def test_script_is_bash(script: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_manifest_is_a_job_with_a_host_for_each_pod() -> None:
    (manifest,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    service, hosts, job = yaml.safe_load_all(manifest)
    assert (service["kind"], hosts["kind"], job["kind"]) == ("Service", "ConfigMap", "Job")
    names = [line.split()[0] for line in hosts["data"]["hostfile"].splitlines()]
    # what Kubernetes calls the pods of an indexed job with a subdomain
    job_name, subdomain = job["metadata"]["name"], job["spec"]["template"]["spec"]["subdomain"]
    assert names == [f"{job_name}-{number}.{subdomain}" for number in range(job["spec"]["completions"])]
    assert service["metadata"]["name"] == subdomain and job["spec"]["completionMode"] == "Indexed"


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "table"), TABLES)
def test_table_is_the_commands_own(arguments: str, table: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert network_plan.main(shlex.split(arguments)) == 0
    assert capsys.readouterr().out == table


def test_page_has_both_tables() -> None:
    assert [arguments.split()[1] for arguments, _ in TABLES] == ["base", "large"]
