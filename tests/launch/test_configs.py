"""The launch configurations are ones that the installed Accelerate understands."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

FOLDER = Path(__file__).parents[2] / "configs" / "launch"
FILES = sorted(FOLDER.glob("*.yaml"))
RANKS = {"one_gpu": 1, "ddp": 8, "fsdp2": 8, "zero2": 8, "zero3": 8, "two_nodes": 16}


def parsed(file: Path) -> Namespace:
    """What ``accelerate launch`` makes of a file, up to the start of processes."""
    line = ["--config_file", str(file), "-m", "hbo", "train", "mine.yaml"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(line))
    return arguments


def test_every_file_is_expected():
    assert {file.stem for file in FILES} == set(RANKS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_loads_it(file: Path):
    config = load_config_from_file(str(file))  # refuses unknown keys at the top
    assert isinstance(config, ClusterConfig)
    assert config.num_processes == RANKS[file.stem]
    assert config.num_machines == (2 if file.stem == "two_nodes" else 1)
    options = {action.dest for action in launch_command_parser()._actions}
    for section in (config.fsdp_config, config.deepspeed_config):
        assert section.keys() <= options  # there Accelerate drops silently what it does not know


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_launches_what_its_name_says(file: Path):
    arguments = parsed(file)
    kinds = {
        "multi_gpu": file.stem in ("ddp", "two_nodes"),
        "use_fsdp": file.stem == "fsdp2",
        "use_deepspeed": file.stem in ("zero2", "zero3"),
    }
    assert {kind: bool(getattr(arguments, kind)) for kind in kinds} == kinds
    wanted: dict[str, Any] = {
        "fsdp2": {"fsdp_version": "2", "fsdp_cpu_ram_efficient_loading": "False"},
        "zero2": {"zero_stage": "2"},
        "zero3": {"zero_stage": "3", "zero3_init_flag": "False"},
    }
    for name, value in wanted.get(file.stem, {}).items():
        assert str(getattr(arguments, name)) == value
    assert arguments.mixed_precision == "bf16"
    assert (arguments.training_script, arguments.module) == ("hbo", True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_says_how_to_start_it_and_that_nobody_did(file: Path):
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]
    line = f"#   accelerate launch --config_file configs/launch/{file.name} -m hbo train mine.yaml"
    assert line in comment
    assert any("Not tested on this hardware by the project" in each for each in comment)
    values = yaml.safe_load(file.read_text())
    assert values["num_processes"] == RANKS[file.stem]
