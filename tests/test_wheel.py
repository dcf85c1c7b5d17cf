"""The wheel: it contains all files that are not Python, and works in any folder without the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from command_line import ROOT, python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    built = python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT))
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = out.iterdir()
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder into which the wheel is installed, without its requirements."""
    folder = tmp_path_factory.mktemp("site")
    arguments = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(folder), str(wheel)]
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def installed(site: Path, cwd: Path, *arguments: str) -> str:
    done = python("-m", "llm2slm", *arguments, cwd=cwd, PYTHONPATH=str(site))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_wheel_contains_all_package_files_and_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "llm2slm").rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)
    }
    conf = {f"llm2slm/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    carried = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert carried == package | conf
    for suffix in (".tsv", ".html", ".css", ".js", ".yaml"):
        assert any(name.endswith(suffix) for name in carried), suffix
    assert not [name for name in names if name.startswith("tests/")]


def test_the_wheel_states_name_license_and_python_version(wheel):
    assert re.fullmatch(r"llm_to_slm-[\d.]+\w*-py3-none-any\.whl", wheel.name)
    archive = zipfile.ZipFile(wheel)
    [metadata] = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    assert "\nName: llm-to-slm\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    [scripts] = [archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "llm2slm = llm2slm.cli:main" in scripts


def test_the_installed_package_works_in_any_folder(site, tmp_path):
    assert "benchmark" in installed(site, tmp_path, "--help")
    paths = installed(site, tmp_path, "train", "--info", "searchpath")
    assert str(site / "llm2slm" / "conf") in paths
    assert str(ROOT / "conf") not in paths
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_installed_package_composes_an_experiment_of_the_user(site, tmp_path):
    own = tmp_path / "mine" / "experiment"
    own.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - multi30k_ende\n  - override /model/slm: gpt2_mini\nseed: 7\n"
    (own / "quick.yaml").write_text(text)
    shown = installed(
        site, tmp_path, "train", "--config-dir", "mine", "experiment=quick", "data.root=DIR", "--cfg", "job"
    )
    config = yaml.safe_load(shown)
    assert config["seed"] == 7
    assert config["data"]["name"] == "multi30k"
    assert config["model"]["slm"]["config"]["model_type"] == "gpt2"


@pytest.mark.slow
def test_a_missing_conf_folder_is_reported(site, tmp_path):
    conf = site / "llm2slm" / "conf"
    conf.rename(tmp_path / "away")
    try:
        done = python("-m", "llm2slm", "train", cwd=tmp_path, PYTHONPATH=str(site))
    finally:
        (tmp_path / "away").rename(conf)
    assert done.returncode == 2
    assert "no conf/ folder" in done.stderr
    assert done.stderr.count("\n") == 1
