"""What must never be, beyond what import-linter can say (its contracts stand in pyproject.toml)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "research").rglob("*.py"))
# Where arrays live is the business of engine/parallel.py alone.
DEVICE_NAMES = {
    "Mesh",
    "NamedSharding",
    "PartitionSpec",
    "make_mesh",
    "pmap",
    "shard_map",
    "set_mesh",
}


def where(path):
    return path.relative_to(ROOT).as_posix()


def imported(tree):
    """Every module that a file imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names(tree):
    """Every name and attribute that a file's code mentions, and every name it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rsplit(".", 1)[-1]


def users_of(uses):
    return {where(path) for path in FILES if uses(ast.parse(path.read_text()))}


def imports(package):
    return lambda tree: any(
        name == package or name.startswith(package + ".") for name in imported(tree)
    )


def test_only_the_checkpoint_touches_orbax():
    assert users_of(imports("orbax")) == {"research/engine/checkpoint.py"}


def test_only_parallel_names_meshes_and_mapped_axes():
    assert users_of(lambda tree: DEVICE_NAMES & set(names(tree))) == {"research/engine/parallel.py"}


def test_no_model_names_a_platform():
    """Forms are chosen in ops: by `lax.platform_dependent`, or in its platform.py."""
    words = {"cpu", "gpu", "cuda", "rocm", "tpu"}

    def names_one(tree):
        told = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        asked = {"platform_dependent", "default_backend", "on_cpu"} & set(names(tree))
        return bool(asked or {x for x in told if isinstance(x, str)} & words)

    found = users_of(names_one)
    assert "research/ops/platform.py" in found
    assert not {w for w in found if w.startswith(("research/models/", "research/tasks/"))}
    asked = users_of(lambda tree: "default_backend" in set(names(tree)))
    assert asked == {"research/ops/platform.py"}


def test_nothing_reads_or_writes_pickles():
    assert not users_of(
        lambda tree: any(imports(p)(tree) for p in ("pickle", "dill", "joblib", "torch"))
    )
    assert not users_of(lambda tree: {"allow_pickle", "load_pickle"} & set(names(tree)))
    # Weight files of PyTorch are pickles: they are walked through, never loaded (tests/transfer/test_torch_files.py).
    assert users_of(imports("pickletools")) == {"research/transfer/formats/opcodes.py"}


def test_reading_weight_files_calls_nothing_by_a_name_that_came_from_a_file():
    room = {w for w in map(where, FILES) if w.startswith("research/transfer/formats/")}
    assert room
    runners = {"eval", "exec", "compile", "getattr", "__import__", "import_module", "system"}
    assert not users_of(lambda tree: runners & set(names(tree))) & room


def test_models_and_ops_import_no_data_and_no_files():
    pure = {w for w in map(where, FILES) if w.startswith(("research/models/", "research/ops/"))}
    for package in ("tensorflow_datasets", "grain", "orbax", "optax", "ml_collections"):
        assert not users_of(imports(package)) & pure, package


@pytest.mark.parametrize("room", ["data", "config", "task"])
def test_importing_it_imports_no_jax(room):
    found = [
        p for p in map(where, FILES) if p.startswith((f"research/{room}/", f"research/{room}.py"))
    ]
    modules = [p.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for p in found]
    assert modules
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\n"
    code += "sys.exit(' '.join({'jax', 'flax', 'optax', 'grain'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=where)
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), where(path)
