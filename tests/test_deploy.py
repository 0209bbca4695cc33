"""The container: what can be told of it without building it, and its scripts with a stand-in for ``impasto``."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from impasto.runtime.backends.select import BACKENDS

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile.gpu"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = ("entrypoint.sh", "healthcheck.sh")

# Where the errors are raised that operators of GPU hosts meet.
GPU_SOURCES = (
    "optimize/tensorrt_library.py",
    "optimize/cubins.py",
    "optimize/cuda_compilers.py",
    "optimize/onnxruntime_gpu.py",
    "runtime/gpu/cuda.py",
    "runtime/gpu/tensorrt.py",
    "runtime/gpu/onnxruntime.py",
    "runtime/backends/onnxruntime_gpu.py",
)


def instructions():
    """Instruction and arguments, lines that end in a backslash joined, comments dropped."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def arguments(instruction):
    return [rest for name, rest in instructions() if name == instruction]


def copied():
    """The sources of every COPY, relative to the root."""
    words = [[word for word in rest.split() if not word.startswith("--")] for rest in arguments("COPY")]
    return [source.rstrip("/") for line in words for source in line[:-1]]


def environment():
    return dict(pair.split("=", 1) for rest in arguments("ENV") for pair in rest.split())


def pins():
    text = (ROOT / "deploy" / "constraints-gpu.txt").read_text(encoding="utf-8")
    return {pin.name: pin for pin in map(Requirement, re.findall(r"^[a-z].*$", text, re.MULTILINE))}


def version_of(pin):
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


def test_every_copy_has_its_source_and_the_build_context_holds_it():
    ignored = (ROOT / "deploy" / "Dockerfile.gpu.dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    for source in copied():
        assert (ROOT / source).exists(), source
    assert kept == set(copied())


def test_the_image_gets_all_that_the_package_is_built_from():
    folders = {path.split("/")[0] for path in PROJECT["tool"]["setuptools"]["package-dir"].values()}
    project = PROJECT["project"]
    assert {"pyproject.toml", project["readme"], *project["license-files"], *folders} <= set(copied())


def test_the_base_image_has_a_full_version_and_the_cuda_of_the_extra():
    (image,) = arguments("FROM")
    major = re.fullmatch(r"nvidia/cuda:(\d+)\.\d+\.\d+-devel-ubuntu24\.04", image)[1]
    headers = next(Requirement(text) for text in extra("gpu") if text.startswith("nvidia-cuda-crt"))
    assert headers.specifier.contains(f"{major}.0")


def test_the_image_does_not_run_as_root():
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", arguments("USER")[-1])


def test_the_cache_is_a_volume_that_only_the_containers_user_can_enter():
    cache = environment()["IMPASTO_CACHE"]
    assert arguments("VOLUME") == [cache]
    made = [step for step in arguments("RUN") if cache in step]
    assert len(made) == 1
    assert f"install -d -m 0700 -o impasto -g impasto {cache}" in made[0]


def test_the_containers_backend_exists():
    assert environment()["IMPASTO_BACKEND"] in BACKENDS


def test_the_scripts_that_the_image_calls_are_those_that_it_copies():
    (target,) = [rest.split()[-1] for rest in arguments("COPY") if "entrypoint.sh" in rest]
    called = re.findall(rf'"{target}([^"]*)"', " ".join([*arguments("ENTRYPOINT"), *arguments("HEALTHCHECK")]))
    assert sorted(called) == sorted(SCRIPTS)
    assert {f"deploy/{name}" for name in called} <= set(copied())


def extra(name):
    return PROJECT["project"]["optional-dependencies"][name]


def test_the_pins_are_within_the_ranges_of_the_extra():
    ranges = {need.name: need for need in map(Requirement, extra("gpu"))}
    for name, pin in pins().items():
        assert ranges[name].specifier.contains(version_of(pin)), name


def test_onnxruntime_is_pinned_alike_with_and_without_a_gpu():
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"onnxruntime=={version_of(pins()['onnxruntime-gpu'])}\n" in tested


@pytest.fixture
def start(tmp_path):
    """Run a script with a stand-in for ``impasto`` on PATH; return what was done and the calls of the stand-in."""
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    bin, cache, calls = tmp_path / "bin", tmp_path / "cache", tmp_path / "calls"
    bin.mkdir()
    cache.mkdir(mode=0o700)
    calls.touch()
    stand_in = bin / "impasto"

    def run(script, *command, does="", **variables):
        stand_in.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$*" >>"{calls}"\n{does}\n', encoding="utf-8")
        stand_in.chmod(0o755)
        python = bin / "python3"
        if not python.exists():
            python.symlink_to(sys.executable)
        # BASH_ENV would run a file of the caller's.
        inherited = {name: value for name, value in os.environ.items() if name != "BASH_ENV"}
        done = subprocess.run(
            ["bash", str(ROOT / "deploy" / script), *command],
            env={
                **inherited,
                "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
                "IMPASTO_CACHE": str(cache),
                "IMPASTO_BACKEND": "tensorrt",
                **variables,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done, calls.read_text(encoding="utf-8").splitlines()

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_the_script(script):
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    subprocess.run(["bash", "-n", str(ROOT / "deploy" / script)], check=True)
    assert os.access(ROOT / "deploy" / script, os.X_OK)


def test_the_start_builds_every_size_then_becomes_the_command(start):
    done, calls = start(
        "entrypoint.sh", "printf", "<%s>", "one two", "",
        does="echo compiling", IMPASTO_SIZES="  64x48\t640x480 ", IMPASTO_BUILD_OPTIONS="--preset johnson",
    )  # fmt: skip
    assert calls == ["engines build --backend tensorrt --size=64x48 --size=640x480 --preset johnson"]
    assert (done.returncode, done.stdout) == (0, "<one two><>")
    assert "compiling" in done.stderr


def test_the_starts_command_line_is_one_that_impasto_has(start):
    _, (call,) = start("entrypoint.sh", "true", IMPASTO_SIZES="64x48")
    words = call.split()
    shown = subprocess.run(
        [sys.executable, "-m", "impasto", *words[:2], "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert option in shown


@pytest.mark.parametrize("sizes", ["", "  "])
def test_without_sizes_nothing_is_built(start, sizes):
    done, calls = start("entrypoint.sh", "echo", "run", IMPASTO_SIZES=sizes, IMPASTO_BUILD_OPTIONS="--preset johnson")
    assert (calls, done.stdout) == ([], "run\n")


def test_a_build_that_fails_ends_the_start_with_its_exit_code(start):
    done, _ = start("entrypoint.sh", "echo", "run", does="exit 3", IMPASTO_SIZES="64x48")
    assert (done.returncode, done.stdout) == (3, "")


def test_sizes_are_never_taken_for_patterns_of_files(start, tmp_path):
    (tmp_path / "64x48").touch()
    _, calls = start("entrypoint.sh", "true", IMPASTO_SIZES="*x48")
    assert calls == ["engines build --backend tensorrt --size=*x48"]


def test_a_cache_that_is_not_there_is_refused_before_anything_is_built(start, tmp_path):
    missing = tmp_path / "missing"
    done, calls = start("entrypoint.sh", "echo", "run", IMPASTO_CACHE=str(missing), IMPASTO_SIZES="64x48")
    assert (done.returncode, done.stdout, calls) == (2, "", [])
    assert str(missing) in done.stderr
    assert done.stderr.count("\n") == 1


def report(available, name="tensorrt"):
    return json.dumps({"backends": {name: {"available": available, "detail": "it's so"}}})


@pytest.mark.parametrize(("available", "code"), [(True, 0), (False, 1)])
def test_health_is_whether_the_containers_backend_can_run(start, available, code):
    done, calls = start("healthcheck.sh", does=f"cat <<'END'\n{report(available)}\nEND")
    assert (done.returncode, done.stdout, calls) == (code, "it's so\n", ["doctor --json"])


def test_the_automatic_choice_is_as_healthy_as_its_last_resort(start):
    done, _ = start("healthcheck.sh", does=f"cat <<'END'\n{report(True, 'onnxruntime')}\nEND", IMPASTO_BACKEND="auto")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_doctor_that_fails_means_unhealthy(start):
    # 1 is the only exit code that Docker documents for it.
    done, _ = start("healthcheck.sh", does=f"cat <<'END'\n{report(True)}\nEND\nexit 3")
    assert done.returncode == 1


def raised(path):
    """The messages of the errors that a module makes, up to the remedy; every value in them is an ellipsis."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
            match node.args[0]:
                case ast.Constant(str(text)):
                    yield text.partition(": ")[0]
                case ast.JoinedStr(parts):
                    text = "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)
                    yield text.partition(": ")[0]


@pytest.mark.parametrize("source", GPU_SOURCES)
def test_the_guide_explains_every_error_of_a_gpu_host(source):
    guide = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    messages = set(raised(ROOT / source))
    assert messages
    missing = {message for message in messages if f"`{message}`" not in guide and f"`{message}: " not in guide}
    assert not missing
