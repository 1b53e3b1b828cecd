"""From a `config.json` to a model, and back: what weft does not compute is refused.

`null` in a file means what absence means. A model is written in the first dialect of its family out
of which it can be read again unchanged, so nothing a file cannot say is lost on the way.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from weft.checkpoint.hf.dialect import Dialect
from weft.checkpoint.hf.dialects import DIALECTS
from weft.config.branch import written
from weft.config.model import ModelConfig
from weft.config.yarn import YarnConfig
from weft.errors import ConfigError

Json = Mapping[str, Any]
Report = Callable[[str], None]

# Models that people may try, and why they are not read.
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "deepseek_v3": "multi-head latent attention",
    }
)

# Keys that change nothing about logits, or that are looked at by name below.
_KNOWN = frozenset({
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward",
    "dtype", "eos_token_id", "experts_per_token", "head_dim", "id2label",
    "initial_context_length", "is_encoder_decoder", "label2id",
    "layer_types", "max_position_embeddings", "max_window_layers", "model_type",
    "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id",
    "partial_rotary_factor", "pretraining_tp", "problem_type", "return_dict", "rope_parameters",
    "rope_scaling", "rope_theta", "seq_aux", "sliding_window", "torch_dtype",
    "transformers_version", "use_cache",
})  # fmt: skip
_WINDOW = 128  # where a file says none: the class of gpt-oss in transformers
_TRAINING_ONLY = frozenset({"z_coef"})  # no file has a key for it, and no logit depends on it


def read_config(config: Json, *, report: Report) -> tuple[Dialect, ModelConfig]:
    """The dialect and the model of a `config.json`; keys that nobody knows are reported.

    Raises:
        ConfigError: a key is missing, or asks for what weft does not compute.
    """
    dialect = _dialect(config)
    for demand in dialect.demands:
        value = config.get(demand.key)
        if not demand.is_met(value):
            raise _refusal(demand.key, value, demand.rule, *demand.legal[:1])
    if not dialect.has_windows:
        _check_window(config, dialect)
    unknown = set(config) - _known_keys(dialect)
    if unknown:
        report(
            f"config.json: found {', '.join(sorted(unknown))}, which weft does not know; expected "
            "keys that change no logit; compare a few logits with those of transformers"
        )
    return dialect, _model(config, dialect)


def write_config(model: ModelConfig) -> tuple[Dialect, dict[str, Any]]:
    """The dialect a model can be written in, and what `config.json` says of it.

    Raises:
        ConfigError: no dialect can express the model; what each lacks is told.
    """
    reasons = []
    for dialect in (d for d in DIALECTS.values() if d.family == model.family):
        config = _config(model, dialect)
        lacking = _lacking(model, config)
        if lacking is None:
            return dialect, config
        reasons.append(f"{dialect.model_type} has no way to say {lacking}")
    raise ConfigError(
        f"no Hugging Face configuration fits this {model.family} model: {'; '.join(reasons)}; "
        "change the model, or keep it in weft's own checkpoints"
    )


def _lacking(model: ModelConfig, config: Json) -> str | None:
    """What of a model is lost or refused when its config is read again; None where nothing is."""
    try:
        _, again = read_config(config, report=_must_be_known)
    except ConfigError as error:
        return str(error)
    before, after = model.model_dump(), again.model_dump()
    lost = [k for k, v in before.items() if after[k] != v and k not in _TRAINING_ONLY]
    return ", ".join(f"{key} = {written(before[key])}" for key in lost) or None


def _must_be_known(message: str) -> None:
    raise AssertionError(message)


def _dialect(config: Json) -> Dialect:
    model_type = config.get("model_type")
    name = str(model_type)
    if name in DIALECTS:
        return DIALECTS[name]
    why = _REFUSED.get(name)
    raise _refusal(
        "model_type",
        model_type,
        f"weft does not compute {why}" if why else "weft does not know this model",
        *DIALECTS,
    )


def _known_keys(dialect: Dialect) -> set[str]:
    keys = {*_KNOWN, *dialect.keys.values(), *dialect.synonyms.values()}
    keys.update(demand.key for demand in dialect.demands)
    named = (dialect.dense_key, dialect.step_key, dialect.window_switch, dialect.next_key)
    keys.update(key for key in named if key)
    if dialect.dense_key:
        keys.add("intermediate_size")
    return keys


def _model(config: Json, dialect: Dialect) -> ModelConfig:
    values = {field: _value(config, dialect, field) for field in dialect.keys}
    head_dim = config.get("head_dim") if dialect.has_head_dim else None
    values["head_dim"] = head_dim or _quotient(values["hidden"], values["heads"])
    values.update(_rotation(config, dialect, values["head_dim"]))
    if dialect.has_windows:
        values.update(_windows(config, values["layers"]))
    dense = _dense_layers(config, dialect, values["layers"])
    values["dense_layers"] = _leading(dense)
    values["dense_at"] = tuple(dense[values["dense_layers"] :])
    if dense:
        values["dense_ffn_hidden"] = _required(config, "intermediate_size")
    if not dialect.renormalises_one and values["top_k"] == 1:
        values["renormalise"] = False
    return ModelConfig(family=dialect.family, **dialect.constants, **values)


def _config(model: ModelConfig, dialect: Dialect) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [dialect.architecture],
        "model_type": dialect.model_type,
        **{d.key: d.legal[0] for d in dialect.demands if d.is_written},
        **{key: getattr(model, field) for field, key in dialect.keys.items()},
        # both the old place of the base and the new one, so that any version reads it
        "rope_theta": model.rope_theta,
        "rope_parameters": _rope_parameters(model, dialect),
        # the class of gpt-oss wants a length even where no layer has a window
        "sliding_window": model.window or (_WINDOW if dialect.has_windows else None),
    }
    if dialect.rotary_share is not None:
        config["partial_rotary_factor"] = config["rope_parameters"]["partial_rotary_factor"]
    if dialect.has_yarn:
        scaled = {k: v for k, v in config["rope_parameters"].items() if k != "rope_theta"}
        config["rope_scaling"] = scaled if model.yarn else None
    if dialect.has_windows:
        names = ("full_attention", "sliding_attention")
        config["layer_types"] = [names[i in model.windowed] for i in range(model.layers)]
    if dialect.next_key:
        config[dialect.next_key] = 0  # layers that predict a second token are not trained
    if not model.shared_experts:
        config.pop("n_shared_experts", None)  # 0 would be one of no width
    if dialect.has_head_dim:
        config["head_dim"] = model.head_dim
    if dialect.dense_key == "mlp_only_layers":
        config["mlp_only_layers"] = [*range(model.dense_layers), *model.dense_at]
    elif dialect.dense_key:
        config[dialect.dense_key] = model.dense_layers
    if dialect.step_key:
        config[dialect.step_key] = 1  # the list says it all
    if dialect.dense_key:  # no layer has this width where none is dense, but the key must be there
        config["intermediate_size"] = model.dense_ffn_hidden or model.top_k * model.ffn_hidden
    return config


def _rope_parameters(model: ModelConfig, dialect: Dialect) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_theta": model.rope_theta, "rope_type": "default"}
    if dialect.rotary_share is not None:
        found["partial_rotary_factor"] = (model.rotary_dim or model.head_dim) / model.head_dim
    if model.yarn:
        named = {key: getattr(model.yarn, field) for key, field in _YARN.items()}
        found.update({"rope_type": "yarn", **named})
    return found


def _value(config: Json, dialect: Dialect, field: str) -> Any:
    key = dialect.keys[field]
    names = (key, dialect.synonyms.get(key, key))
    found = next((config[name] for name in names if config.get(name) is not None), None)
    if found is not None:
        return found
    if field == "kv_heads":
        return _required(config, dialect.keys["heads"])
    if field in dialect.defaults:
        return dialect.defaults[field]
    return _required(config, key)


def _required(config: Json, key: str) -> Any:
    if config.get(key) is None:
        raise ConfigError(
            f"config.json has no {key}; expected it beside the weights; take the file of the same "
            "release"
        )
    return config[key]


def _quotient(hidden: Any, heads: Any) -> int:
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise _refusal("head_dim", None, f"{heads} heads do not divide a hidden size of {hidden}")
    return hidden // heads


def _rotation(config: Json, dialect: Dialect, head_dim: object) -> dict[str, Any]:
    """The base of the rotary frequencies, what is rotated and how it is stretched, from where new
    versions keep them or old ones did.
    """
    given: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        found = config.get(key) or {}
        if not isinstance(found, dict):
            raise _refusal(key, found, "it is a table", {"rope_type": "default"})
        given.update({k: v for k, v in found.items() if v is not None})
        kind = found.get("rope_type", found.get("type", "default"))
        legal = ("default", "yarn") if dialect.has_yarn else ("default",)
        if kind not in legal:
            rule = "rotary frequencies are not scaled"
            if kind == "longrope":
                rule += " by the length of a sequence, which packed documents have none of"
            raise _refusal(key, found, rule, *({"rope_type": k} for k in legal))
    kind = given.pop("type", "default")
    kind = given.pop("rope_type", kind)
    theta = given.pop("rope_theta", config.get("rope_theta") or dialect.theta)
    share = given.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
    return {
        "rope_theta": _required(config, "rope_theta") if theta is None else theta,
        "rotary_dim": _rotary_dim(share, dialect, head_dim),
        "yarn": _yarn(given, kind),
    }


def _rotary_dim(share: Any, dialect: Dialect, head_dim: object) -> int:
    share = (dialect.rotary_share or 1.0) if share is None else share
    if dialect.rotary_share is None and share != 1:
        raise _refusal("partial_rotary_factor", share, "all channels of a head are rotated", 1.0)
    if not isinstance(head_dim, int) or share == 1:
        return 0
    return int(head_dim * share)


# The keys of YaRN, and the fields that they are.
_YARN = MappingProxyType(
    {
        "factor": "factor",
        "original_max_position_embeddings": "original",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
    }
)


def _yarn(given: Mapping[str, Any], kind: str) -> YarnConfig | None:
    """How frequencies are stretched; a key of another scaling is refused."""
    odd = set(given) - (set(_YARN) if kind == "yarn" else set())
    if odd:
        name = min(odd)
        raise _refusal(f"rope_parameters.{name}", given[name], f"not computed for {kind} positions")
    if kind == "default":
        return None
    return YarnConfig.model_validate({_YARN[key]: value for key, value in given.items()})


def _windows(config: Json, layers: object) -> dict[str, Any]:
    """Which layers see a window, and how long it is; every second one where no key says it."""
    kinds = config.get("layer_types")
    if kinds is None and isinstance(layers, int):
        kinds = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    legal = {"sliding_attention", "full_attention"}
    if not isinstance(kinds, list) or len(kinds) != layers or not set(map(str, kinds)) <= legal:
        raise _refusal("layer_types", kinds, f"one of {sorted(legal)} for each layer")
    windowed = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    window = config.get("sliding_window", _WINDOW) if windowed else 0
    return {"window": window or 0, "windowed": windowed if window else ()}


def _dense_layers(config: Json, dialect: Dialect, layers: object) -> list[int]:
    """Which layers have no experts: leading ones, listed ones, all but every n-th."""
    found = config.get(dialect.dense_key) if dialect.dense_key else None
    step = config.get(dialect.step_key) if dialect.step_key else None
    if not isinstance(layers, int):
        return []  # the model's own rule will say so
    if isinstance(step, int) and step < 1:
        raise _refusal(str(dialect.step_key), step, "every n-th layer has experts", 1)
    sparse = {i for i in range(layers) if (i + 1) % (step or 1) == 0}
    listed = found if isinstance(found, list) else range(found or 0)
    return sorted({i for i in range(layers) if i not in sparse or i in listed})


def _leading(layers: list[int]) -> int:
    """How many of these layers are the first ones.

    Example:
        >>> _leading([0, 1, 3])
        2
    """
    return next((i for i, layer in enumerate(layers) if i != layer), len(layers))


def _check_window(config: Json, dialect: Dialect) -> None:
    """Refuses a window that is shorter than the longest sequence the model is for."""
    rule = "attention sees its whole document"
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or set(map(str, kinds)) != {"full_attention"}:
            raise _refusal("layer_types", kinds, rule, ["full_attention", "..."])
        return
    window = config.get("sliding_window")
    is_off = dialect.window_switch and not config.get(dialect.window_switch)
    if window is None or is_off:
        return
    spared = dialect.window_start and _reaches(
        config, dialect.window_start, config.get("num_hidden_layers")
    )
    if not spared and not _reaches(config, "sliding_window", config.get("max_position_embeddings")):
        raise _refusal("sliding_window", window, rule, None)


def _reaches(config: Json, key: str, bound: object) -> bool:
    """Whether a key holds a number that is not below the bound."""
    value = config.get(key)
    return isinstance(value, int) and isinstance(bound, int) and value >= bound


def _refusal(key: str, value: object, rule: str, *legal: object) -> ConfigError:
    expected = " or ".join(map(_shown, legal)) if legal else "it to be absent"
    return ConfigError(
        f"config.json: {key} = {_shown(value)}: {rule}; expected {expected}; "
        "try a checkpoint without it, weights cannot be converted"
    )


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return repr(value) if isinstance(value, (dict, list)) else written(value)
