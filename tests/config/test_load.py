"""A recipe is a file and overrides; it comes back from its text, and nothing wrong gets through."""

import copy
import random
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from weft.config.load import build, dump, load
from weft.config.presets import PRESETS
from weft.config.run import RunConfig
from weft.errors import ConfigError, LayoutError

RECIPES = Path(__file__).parents[2] / "recipes"
QUICKSTART = RECIPES / "quickstart.toml"


def quickstart() -> dict[str, Any]:
    return tomllib.loads(QUICKSTART.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_we_ship_is_legal_and_named_as_its_file(path: Path) -> None:
    assert load(path).name == path.stem


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_comes_back_from_its_text(name: str) -> None:
    config = build(quickstart(), [f'model={{preset = "{name}"}}', "parallel={}", "train.threads=3"])
    assert build(tomllib.loads(dump(config))) == config


def test_awkward_values_come_back_from_their_text() -> None:
    path = 'a "quoted"\\ path\twith \x7f and \u00e9\U0001f600'
    config = build(
        {**quickstart(), "data": {"source": "text", "path": path, "sequence": 256}},
        [
            "optim.lr=1e-300",
            "optim.eps=5e-324",
            "model.rope_theta=1e22",
            "train.seed=9223372036854775807",
        ],
    )
    again = build(tomllib.loads(dump(config)))
    assert again == config
    assert again.data.path == path


def test_the_text_of_a_recipe_holds_every_resolved_value() -> None:
    text = dump(load(QUICKSTART))
    assert 'run_dir = "runs/quickstart"' in text
    assert "weight_decay = " in text
    assert "preset" not in dump(build(quickstart(), ["model.preset=tiny-mixtral"]))


def test_a_preset_stands_under_the_fields_beside_it() -> None:
    config = build({**quickstart(), "model": {"preset": "mixtral-8x7b", "layers": 2}})
    assert (config.model.hidden, config.model.layers) == (4096, 2)


def test_overrides_apply_in_order_and_reach_into_presets() -> None:
    recipe = {**quickstart(), "model": {"preset": "tiny-mixtral"}, "parallel": {}}
    config = build(
        recipe, ["model.layers=3", "model.layers=5", "train.precision=float64", "name=x"]
    )
    assert (config.model.layers, config.train.precision) == (5, "float64")
    assert config.train.run_dir == "runs/x"


def test_overrides_leave_the_tree_as_it_was() -> None:
    recipe = quickstart()
    before = copy.deepcopy(recipe)
    build(recipe, ["model.layers=3"])
    assert recipe == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", r'--set "optim.lr": expected key.path=value'),
        ("=3", "expected key.path=value"),
        ("optim..lr=3", "expected key.path=value"),
        ("name.first=x", r'name is "quickstart", which has no keys'),
        ("optim.lr.deep=1", "no key lies below optim.lr"),
        ("a." * 5000 + "a=1", "no key lies below a.a"),
        ("optim.lr=fast", r'optim.lr = "fast": must be a number'),
        ("optim.lr=1979-05-27", "optim.lr = .*must be a number"),
        ("optim.lr=1\nname='x'", "must be a number"),
        ("optim.learning_rate=1", "optim.learning_rate: unknown key"),
        ("optim.wieght_decay=1", "nearest legal key: optim.weight_decay"),
        ("model.preset=mixtral", 'unknown preset; nearest legal value: model.preset = "'),
        ("model.preset=3", "model.preset = 3: must be a string"),
        ("model=mixtral-8x7b", "model = .*: must be a table with the keys family"),
        ("train=[]", "train = a table or list: must be a table"),
        ("parallel.sp=3", "nearest legal value: parallel.sp = "),
    ],
)
def test_a_wrong_override_is_refused_with_its_path(override: str, message: str) -> None:
    with pytest.raises((ConfigError, LayoutError), match=message):
        load(QUICKSTART, [override])


def test_an_error_names_the_file_it_came_from() -> None:
    with pytest.raises(LayoutError, match=re.escape(str(QUICKSTART))):
        load(QUICKSTART, ["parallel.sp=3"])


def test_broken_toml_is_told_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text('name = "x"\n[model]\nlayers == 3\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r'broken.toml: not TOML in line 3, "layers == 3"'):
        load(path)
    path.write_text('name = "x', encoding="utf-8")
    with pytest.raises(ConfigError, match="not TOML in line 1"):
        load(path)
    for endless in (100_000 * "[", 10_000 * "9"):
        path.write_text(f"a = {endless}", encoding="utf-8")
        with pytest.raises(ConfigError, match="a recipe has tables of plain values"):
            load(path)


def test_a_file_that_cannot_be_read_is_told_with_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no such recipe; nearest recipe there: .*quickstart.toml"
    ):
        load(RECIPES / "quickstrat.toml")
    with pytest.raises(ConfigError, match="holds no .toml file"):
        load(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load("a\0b.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"\n')
    with pytest.raises(ConfigError, match="byte 8 is not UTF-8"):
        load(tmp_path / "latin.toml")


# ---- fuzz: 300 recipes, each spoiled in one to three places ---------------------------------

STRANGE: list[Any] = [
    *(0, 1, 2, 3, 5, 7, 8, 12, 64, 2**31 - 1, 2**31, 2**63, 10**40, -1, -(2**70), 10**5000),
    *(0.0, -0.0, 0.5, 1.0, 3.0, 1e300, 1e-320, float("inf"), float("nan"), True, False),
    *("", "x", "3", "true", "float32", "cuda", "\ud800", "\0", "a" * 10_000, "../up"),
    *([], [1], {}, {"a": 1}, {"preset": "tiny-mixtral"}, None),
]


def branches_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    return [recipe, *(value for value in recipe.values() if isinstance(value, dict))]


def spoil(rng: random.Random, recipe: dict[str, Any]) -> None:
    """One wrong type, wrong number, typo, lost key or impossible layout."""
    table = rng.choice([t for t in branches_of(recipe) if t])
    key = rng.choice(list(table))
    match rng.randrange(5):
        case 0:
            table[key] = rng.choice(STRANGE)
        case 1:
            at = rng.randrange(len(key) + 1)
            table[key[:at] + rng.choice("aeiou_.\u00e9") + key[at:]] = table.pop(key)
        case 2:
            del table[key]
        case 3:
            axes = {axis: rng.randrange(1, 17) for axis in ("dp", "sp", "ep")}
            recipe["parallel"] = {**axes, "dispatch": rng.choice(["all_to_all", "all_gather"])}
        case _:
            field = rng.choice(
                ["heads", "kv_heads", "experts", "top_k", "head_dim", "dense_layers"]
            )
            model = recipe.get("model")
            if isinstance(model, dict):
                model[field] = rng.randrange(20)


def outcome(recipe: dict[str, Any]) -> RunConfig | ConfigError | LayoutError:
    """The only three things that a recipe may become; anything else fails the test that asks."""
    try:
        return build(recipe)
    except (ConfigError, LayoutError) as error:
        return error


def test_300_spoiled_recipes_are_legal_or_refused_and_never_anything_else() -> None:
    rng = random.Random(0)
    kinds: Counter[str] = Counter()
    for _ in range(300):
        recipe = quickstart()
        for _ in range(rng.randrange(1, 4)):
            spoil(rng, recipe)
        result = outcome(recipe)
        kinds[type(result).__name__] += 1
        if isinstance(result, RunConfig):
            assert build(tomllib.loads(dump(result))) == result
        else:
            assert len(str(result)) < 4000
    assert min(kinds[kind] for kind in ("RunConfig", "ConfigError", "LayoutError")) >= 5, kinds


ADVICE = re.compile(r"(?:nearest legal value: |for instance )([a-z_.0-9]+) = (.+)$", re.MULTILINE)


def test_following_the_advice_of_each_error_ends_in_a_legal_recipe() -> None:
    rng = random.Random(1)
    values = [value for value in STRANGE if not isinstance(value, (dict, list))]
    followed = 0
    for _ in range(200):
        recipe = quickstart()
        table = rng.choice(branches_of(recipe)[1:])
        table[rng.choice(list(table))] = rng.choice(values)
        recipe["parallel"] = {axis: rng.randrange(1, 9) for axis in ("dp", "sp", "ep")}
        followed += steps_to_a_legal_recipe(recipe)
    assert followed > 200


def steps_to_a_legal_recipe(recipe: dict[str, Any]) -> int:
    """How often advice was taken before nothing was wrong; a branch may need it twice."""
    overrides: list[str] = []
    for step in range(8):
        try:
            build(recipe, overrides)
        except (ConfigError, LayoutError) as error:
            advice = ADVICE.findall(str(error)) or pytest.fail(f"no advice in: {error}")
            overrides += [f"{key}={value}" for key, value in advice]
        else:
            return step
    pytest.fail(f"still refused after {overrides}")
