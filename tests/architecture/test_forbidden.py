"""No file of weft can run what a stranger's file or string says."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "weft"

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {("yaml", "load"), ("yaml", "unsafe_load"), ("os", "system"), ("os", "popen")}
SETTINGS = {("weights_only", False), ("allow_pickle", True), ("shell", True)}


def violations(source: str) -> list[str]:
    """What a file must not say, with its lines: read off the syntax, so that comments may."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [f"{node.lineno}: import {a.name}" for a in names if is_pickle(a.name)]
            case ast.ImportFrom(module=str(module)) if is_pickle(module):
                found.append(f"{node.lineno}: from {module}")
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                found.append(f"{node.lineno}: {name}()")
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)):
                found += [f"{node.lineno}: {owner}.{name}()"] if (owner, name) in METHODS else []
                found += [f"{node.lineno}: torch.load()"] if is_unsafe_load(node) else []
            case _:
                pass
        if isinstance(node, ast.keyword):
            found += setting(node)
        if isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            found.append(f"{node.lineno}: trust_remote_code")
    return found


def is_pickle(module: str) -> bool:
    return module.partition(".")[0] in PICKLES


def is_unsafe_load(call: ast.Call) -> bool:
    """Whether a `torch.load` does not say `weights_only=True` itself, whatever the default is."""
    function = call.func
    assert isinstance(function, ast.Attribute)
    assert isinstance(function.value, ast.Name)
    safe = any(
        k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True
        for k in call.keywords
    )
    return (function.value.id, function.attr) == ("torch", "load") and not safe


def setting(keyword: ast.keyword) -> list[str]:
    if keyword.arg == "trust_remote_code":
        return [f"{keyword.lineno}: trust_remote_code"]
    value = keyword.value
    wrong = isinstance(value, ast.Constant) and (keyword.arg, value.value) in SETTINGS
    return [f"{keyword.lineno}: {keyword.arg}"] if wrong else []


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_a_file_loads_no_code_from_data(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import dill as d",
        "from cloudpickle import loads",
        "def f():\n    from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
    ],
)
def test_a_planted_violation_is_found(planted: str) -> None:
    assert violations(planted)


@pytest.mark.parametrize(
    "innocent",
    ["model.eval()", "'eval(x)'", "# pickle", "torch.load(p, weights_only=True)", "re.compile(x)"],
)
def test_what_only_looks_alike_is_left_alone(innocent: str) -> None:
    assert violations(innocent) == []
