"""What is installed, where, and what importing it costs: pyproject.toml and the files that follow from it."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ldm_lite"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SHIPPED = ROOT / "data" / "weights"
WEIGHTS = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
SAMPLED = [n for n in WEIGHTS if json.loads((SHIPPED / n / "config.json").read_text())["type"] == "LatentDiffusion"]
NOTEBOOKS = [path for path in [ROOT / "notebooks" / "00_tour.ipynb"] if path.exists()]


def bounds(lines: list[str]) -> dict[str, SpecifierSet]:
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


@functools.cache
def pins(name: str) -> dict[str, list[Requirement]]:
    """The pins of a requirements file by package: several where platforms or Pythons differ."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            found.setdefault(canonicalize_name(Requirement(line).name), []).append(Requirement(line))
    return found


CORE = bounds(PROJECT["dependencies"])
NOTEBOOK = bounds(EXTRAS["notebooks"])
DIRECT = {"core": CORE, "notebooks": CORE | NOTEBOOK, "dev": CORE | NOTEBOOK | bounds(EXTRAS["eval"] + EXTRAS["dev"])}
DIRECT["dev"].pop("ldm-lite")  # dev names the other extras


# Dependencies --------------------------------------------------------------------------------------------------------


def test_the_floors_are_torch_2_6_and_ipywidgets_7_7_1_on_python_3_11():
    assert PROJECT["requires-python"] == ">=3.11"
    assert CORE["torch"] == SpecifierSet(">=2.6")
    assert NOTEBOOK["ipywidgets"] == SpecifierSet(">=7.7.1,<9")


@pytest.mark.parametrize("name", CORE)
def test_a_core_dependency_has_a_lower_bound_and_no_upper_one(name):
    assert [s.operator for s in CORE[name]] == [">="]


def test_the_core_has_nothing_that_only_notebooks_need():
    assert not CORE.keys() & NOTEBOOK.keys()
    assert {"jupyterlab", "nbval", "ipywidgets", "datasets"} <= NOTEBOOK.keys()


def test_the_dev_extra_includes_the_others():
    assert Requirement(EXTRAS["dev"][0]).extras == EXTRAS.keys() - {"dev"}


@pytest.mark.parametrize("name", sorted(DIRECT["notebooks"].keys() & pins("colab").keys()))
def test_installing_on_colab_replaces_nothing_that_is_there(name):
    (pin,) = pins("colab")[name]
    (version,) = pin.specifier
    assert version.operator == "=="
    assert DIRECT["notebooks"][name].contains(version.version)


@pytest.mark.parametrize("name", ["core", "notebooks", "dev", "colab"])
def test_requirements_are_exact_pins_without_host_path_or_option(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.+]*( ; [\w .'<>=!()]+)?", line), line
    assert "://" not in text and "index-url" not in text


@pytest.mark.parametrize("name", DIRECT)
def test_the_compiled_pins_are_current_with_pyproject(name):
    """Each dependency is pinned within its bounds, for every platform and Python at least once."""
    assert "make pins" in (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()[1]
    found = pins(name)
    for package, bound in DIRECT[name].items():
        assert package in found, f"{package} is not in requirements/{name}.txt: make pins"
        for pin in found[package]:
            assert all(bound.contains(s.version) for s in pin.specifier), f"{pin} is not {bound}: make pins"


def test_every_set_of_pins_agrees_with_the_next_larger_one():
    for small, large in (("core", "notebooks"), ("notebooks", "dev")):
        for package, found in pins(small).items():
            assert {p.specifier for p in found} <= {p.specifier for p in pins(large)[package]}, package


def test_conda_users_get_the_core_and_the_notebooks_extra():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip, editable = environment["dependencies"]
    assert (pip, editable) == ("pip", {"pip": ["-e ."]})
    found = bounds(packages)
    assert found.pop("python") == SpecifierSet(PROJECT["requires-python"])
    found["torch"] = found.pop("pytorch")  # conda-forge's name
    assert found == CORE | NOTEBOOK


# Imports -------------------------------------------------------------------------------------------------------------

# A module may import from the floors below its own, the design's arrows; what is not listed is the top.
FLOORS = [
    {"config"},
    {"condition", "diffusion", "layers", "folders", "tokens", "processes"},
    {"features"},
    {"samplers", "unet", "dit", "autoencoder", "conditioners", "attention", "windows"},
    {"latent", "losses"},
    {"training"},
    {"data", "metrics"},
    {"presets"},
    {"reading", "editing", "inputs", "budget"},
    {"runs", "checkpoints", "protocol", "originals"},
    {"demo"},
    {"cli"},
]
HEAVY = ["datasets", "matplotlib", "ipywidgets", "IPython", "lmdb", "transformers", "torchvision", "tyro", "diffusers"]


def floor(name: str) -> int:
    return next((i for i, modules in enumerate(FLOORS) if name in modules), len(FLOORS))


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports, inside functions too; a folder counts as one module."""
    parts = ("ldm_lite", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + 1] if node.level else ()
            found |= {".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names}
    names = {name.split(".")[1] for name in found if name.startswith("ldm_lite.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


@pytest.mark.parametrize("name", sorted(set().union(*FLOORS)))
def test_imports_go_down_only(name):
    files = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else sorted((PACKAGE / name).rglob("*.py"))
    for path in files:
        higher = {other for other in imported(path) - {name} if floor(other) >= floor(name)}
        assert not higher, f"{path.relative_to(ROOT)} imports {', '.join(sorted(higher))}"


def test_every_module_stands_on_a_floor():
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    # an optional module may come later
    assert modules - {"__init__", "__main__", "course"} <= set().union(*FLOORS) <= modules | {"dit"}


def test_imports_are_read_at_the_top_and_inside_functions():
    """Guards the test above, which would pass if it read none."""
    assert imported(PACKAGE / "latent.py") >= {"samplers", "autoencoder", "config"}
    assert imported(PACKAGE / "presets.py") >= {"data", "training"}


def test_importing_the_package_loads_nothing_heavy():
    modules = ["ldm_lite", *(f"ldm_lite.{name}" for name in ("latent", "training", "data", "presets", "cli"))]
    code = f"""import importlib, json, sys
found = {{}}
for module in {modules}:
    importlib.import_module(module)
    found[module] = sorted(set({HEAVY}) & set(sys.modules))
print(json.dumps(found))"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {module: [] for module in modules}


@pytest.mark.parametrize("script", PROJECT["scripts"])
def test_every_console_script_leads_to_a_function(script):
    module, function = PROJECT["scripts"][script].split(":")
    assert callable(getattr(importlib.import_module(module), function))


# Commands ------------------------------------------------------------------------------------------------------------


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.M)[1].split()
    assert re.findall(r'^\t@echo "make (\S+)', makefile, re.M) == [t for t in targets if t != "help"]


def test_make_lab_opens_a_notebook_that_exists():
    lab = re.search(r"^lab:.*\n\t(.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1]
    path = re.search(r"--LabApp\.default_url=lab/tree/(\S+)", lab)[1]  # relative to where make runs, which is the clone
    assert (ROOT / path).is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no executable bit")
def test_ci_runs_make_test_and_nothing_else():
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert run.read_text().splitlines()[1:] == ['cd "$(dirname "$0")/.." && exec make test']


# The wheel -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of an environment that has the wheel, and of everything else what this one has."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    where = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", where))
    program = Path(sysconfig.get_path("scripts", "venv", where)) / ("python.exe" if os.name == "nt" else "python")
    # .pth files inside these are not followed, so the clone stays out of sight
    others = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "others.pth").write_text("\n".join(others), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", program, "install", "--quiet", "--no-index", "--no-deps", wheel]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return program


def outside() -> dict[str, str]:
    """The environment's variables, less those by which the clone could be found."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JUPYTER"))}


def run(python: Path, code: str, folder: Path) -> str:
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=folder, env=outside())
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_wheel_carries_the_package_and_the_shipped_weights(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("ldm_lite-")}
    source = {p.relative_to(ROOT).as_posix() for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    weights = {f"ldm_lite/weights/{p.relative_to(SHIPPED).as_posix()}" for p in SHIPPED.glob("*/*")}
    assert names == source | weights


@pytest.mark.parametrize("name", WEIGHTS)
def test_shipped_weights_are_small_and_come_with_a_card(name):
    files = {path.name: path.stat().st_size for path in (SHIPPED / name).iterdir()}
    assert {"config.json", "model.safetensors", "card.md"} <= files.keys()
    assert sum(files.values()) <= 15e6


def test_the_installed_package_is_the_wheels_and_has_its_command(python, tmp_path):
    path = run(python, "import ldm_lite; print(ldm_lite.__file__)", tmp_path).strip()
    assert Path(path).is_relative_to(python.parents[1])
    assert any(p.stem == "ldm-lite" for p in python.parent.iterdir())


@pytest.mark.parametrize("name", WEIGHTS)
def test_shipped_weights_load_from_an_empty_folder(name, python, tmp_path):
    code = f"""from ldm_lite.folders import weights_folder
from ldm_lite.latent import restored
assert all(p.isfinite().all() for p in restored({name!r}).parameters())
print(weights_folder({name!r}))"""
    folder = Path(run(python, code, tmp_path).splitlines()[-1])
    assert folder.is_relative_to(python.parents[1])


def asked(name: str, folder: Path) -> list[str]:
    """The command that draws one picture by shipped weights, and the files that it names."""
    gray = Image.new("L", (64, 64), 4)
    gray.save(folder / "map.png")
    gray.convert("RGB").resize((16, 16)).save(folder / "small.png")
    gray.convert("RGB").save(folder / "image.png")
    gray.point(lambda value: 255).save(folder / "mask.png")
    (folder / "boxes.json").write_text('[{"kind": "house", "box": [0.2, 0.4, 0.5, 0.8]}]')
    told = json.loads((SHIPPED / name / "config.json").read_text())["conditioner"]["type"]
    edits = {"LowRes": ["upscale", name, "small.png", "out.png"]}
    edits |= {"Inpainting": ["inpaint", name, "image.png", "mask.png", "out.png"]}
    says = {"Text": ["--prompt", "a tree"], "Boxes": ["--boxes", "boxes.json"], "SemanticMap": ["--map", "map.png"]}
    return edits.get(told) or ["sample", name, "-n", "1", *says.get(told, []), "-o", "out.png"]


@pytest.mark.parametrize("name", SAMPLED)
def test_the_installed_command_samples_from_shipped_weights(name, python, tmp_path):
    command = [python.with_stem("ldm-lite"), *asked(name, tmp_path), "--steps", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=outside())
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_an_empty_folder_with_the_wheel(notebook, python, tmp_path):
    code = f"""import os, nbclient, nbformat
os.environ["LDM_LITE_FAST"] = "1"
book = nbformat.read({str(notebook)!r}, 4)
book.cells.append(nbformat.v4.new_code_cell("import ldm_lite; print(ldm_lite.__file__)"))
nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute(cwd=".")
print(book.cells[-1].outputs[-1].text)"""
    path = Path(run(python, code, tmp_path).strip().splitlines()[-1])
    assert path.is_relative_to(python.parents[1])
