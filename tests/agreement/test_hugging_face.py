"""The models of weft are those of transformers: logits, loss and every gradient, in float64.

Tiny random models of transformers' own classes are saved with `save_pretrained`, read with
`checkpoint.hf`, and compared: through autograd (the oracle) and through the explicit backward (the
executor). What weft writes is read by transformers again, bit for bit. Swapped experts must fail
every one of these checks.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before transformers is imported: nothing here may want a network
)

from transformers import (
    AutoModelForCausalLM,
    Dots1Config,
    Dots1ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2TextConfig
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2TextModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeMLP, Qwen3MoeSparseMoeBlock
from transformers.utils import logging

from weft.checkpoint.hf.read import Pretrained, load, open_pretrained
from weft.checkpoint.hf.write import export
from weft.comm.mesh import Mesh
from weft.comm.transports.stacked import StackedWorld
from weft.compose.plan import LOSS, Plan, Update
from weft.compose.recipe import arithmetic, shape
from weft.data.batches import MicroBatch
from weft.errors import VerificationError
from weft.model.families import Kind
from weft.model.params import Logical
from weft.ops.registry import reference_bodies
from weft.parallel.layout import Layout
from weft.parallel.share import whole as whole_share
from weft.runtime.batch import Batch, stage
from weft.runtime.eager import Oracle
from weft.runtime.stage import Rates, Stage, build
from weft.testing.tolerance import GRADIENT_FLOAT64, require_close

VOCAB, HIDDEN, LAYERS, EXPERTS, CHOICES = 61, 32, 3, 8, 2
SEQUENCES, LENGTH = 4, 13
TRAINED_FLOAT64 = 1e-8  # after five steps of AdamW, which divides by the root of its own sums
DIVISOR = float(SEQUENCES * (LENGTH - 1))  # the last token of a sequence has no target
CPU = torch.device("cpu")
BODIES = reference_bodies()

logging.set_verbosity_error()
logging.disable_progress_bar()


class Lifted(TorchFunctionMode):
    """Turns every float32 that a model asks for by name into float64.

    The classes of transformers cast to float32 inside norms, routers, softmax and rotary tables,
    whatever the dtype of the model. That is right for training and useless for a proof: differences
    of 1e-7 would hide a wrong term. Under this mode `x.float()`, `x.to(torch.float32)`,
    `x.type(torch.float32)` and `dtype=torch.float32` mean float64, in the constructor (rotary
    frequencies) and in the forward alike. No line of transformers is changed.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        lift = lambda value: torch.float64 if value is torch.float32 else value  # noqa: E731
        return func(*map(lift, args), **{k: lift(v) for k, v in (kwargs or {}).items()})


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A model of transformers: the folders of its weights and gradients, what it computes."""

    model: nn.Module
    folder: Path
    gradients: Path
    tokens: Tensor
    logits: Tensor
    loss: Tensor


def mixtral(**changes) -> nn.Module:
    return MixtralForCausalLM(
        MixtralConfig(**_numbers(intermediate_size=48, num_local_experts=EXPERTS, **changes))
    )


def qwen3_moe(**changes) -> nn.Module:
    numbers = {
        "intermediate_size": 80,
        "moe_intermediate_size": 24,
        "num_experts": EXPERTS,
        "head_dim": 12,
        "norm_topk_prob": True,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_numbers(**{**numbers, **changes})))


def dots1() -> nn.Module:
    return Dots1ForCausalLM(
        Dots1Config(
            **_numbers(
                intermediate_size=80,
                moe_intermediate_size=24,
                n_routed_experts=EXPERTS,
                n_shared_experts=2,
                first_k_dense_replace=1,
                norm_topk_prob=True,
                routed_scaling_factor=2.5,
                head_dim=12,
            )
        )
    )


def qwen2_moe(**changes) -> nn.Module:
    numbers = {
        "intermediate_size": 80,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 36,
        "num_experts": EXPERTS,
    }
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**_numbers(**{**numbers, **changes})))


def olmoe(**changes) -> nn.Module:
    return OlmoeForCausalLM(
        # without a padding token: torch keeps the gradient of its row from the embedding
        OlmoeConfig(
            **_numbers(
                **{"intermediate_size": 24, "num_experts": EXPERTS, "pad_token_id": None, **changes}
            )
        )
    )


def glm4_moe(**changes) -> nn.Module:
    numbers = {
        "intermediate_size": 80,
        "moe_intermediate_size": 24,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.5,
        "n_group": 4,
        "topk_group": 2,
        "attention_bias": True,
        "use_qk_norm": True,
        "head_dim": 12,
    }
    return Glm4MoeForCausalLM(Glm4MoeConfig(**_numbers(**{**numbers, **changes})))


def phimoe(**changes) -> nn.Module:
    numbers = {
        "intermediate_size": 24,
        "num_local_experts": EXPERTS,
        "attention_bias": True,
        "lm_head_bias": True,
        "router_jitter_noise": 0.2,  # so that several scores are near the best
    }
    return PhimoeForCausalLM(PhimoeConfig(**_numbers(**{**numbers, **changes})))


def gpt_oss(**changes) -> nn.Module:
    numbers = {
        "intermediate_size": 24,
        "num_local_experts": EXPERTS,
        "head_dim": 12,
        "sliding_window": 5,
        "swiglu_limit": 0.7,  # so that many operands are clamped
    }
    return GptOssForCausalLM(GptOssConfig(**_numbers(**{**numbers, **changes})))


class SharedBlock(Qwen3MoeSparseMoeBlock):
    """The feed-forward of DeepSeekMoE: routed experts beside shared ones."""

    def __init__(self, config: Qwen3MoeConfig) -> None:
        super().__init__(config)
        self.shared_experts = Qwen3MoeMLP(config, 2 * config.moe_intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shared_experts(x)


class ReleaseFolder(nn.Module):
    """A model without a class in transformers to load it: on the disk it is what was released."""

    config_json: ClassVar[str]

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            tensors.update(_by_expert(name, tensor))
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(
            json.dumps(RELEASES[self.config_json]), encoding="utf-8"
        )

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        model, tensors = cls(), load_file(folder / "model.safetensors")
        for name, whole in model.state_dict().items():
            for single, part in _by_expert(name, whole):
                part.copy_(tensors.pop(single))
        assert not tensors
        return model


class DeepseekModel(ReleaseFolder, LlamaForCausalLM):
    """DeepSeekMoE out of parts of transformers, which has no class for it.

    Attention and the dense first layer are Llama's, softmax routers and experts are Qwen's, with
    shared experts beside them. On the disk it is what DeepSeek published.
    """

    config_json = "deepseek"

    def __init__(self) -> None:
        super().__init__(LlamaConfig(**_numbers(num_key_value_heads=4, intermediate_size=80)))
        config = Qwen3MoeConfig(
            **_numbers(moe_intermediate_size=24, num_experts=EXPERTS, norm_topk_prob=False)
        )
        config._experts_implementation = "eager"
        for layer in self.model.layers[1:]:
            layer.mlp = SharedBlock(config)
            for parameter in layer.mlp.parameters():
                nn.init.normal_(parameter, std=config.initializer_range)


class DeepseekV2Model(ReleaseFolder):
    """DeepSeek-V2 with plain attention, two heads a key: a part of DeepSeek-OCR in transformers."""

    config_json = "deepseek_v2"

    def __init__(self) -> None:
        super().__init__()
        numbers = _numbers(
            intermediate_size=80,
            moe_intermediate_size=24,
            n_routed_experts=EXPERTS,
            n_shared_experts=2,
            head_dim=HIDDEN // 4,
            mlp_layer_types=["dense", *["sparse"] * (LAYERS - 1)],
            routed_scaling_factor=DEEPSEEK_V2_CONFIG["routed_scaling_factor"],
        )
        self.model = DeepseekOcr2TextModel(DeepseekOcr2TextConfig(**numbers))
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)
        nn.init.normal_(self.lm_head.weight, std=numbers["initializer_range"])

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> CausalLMOutput:
        logits = self.lm_head(self.model(input_ids=input_ids).last_hidden_state)
        if labels is None:
            return CausalLMOutput(logits=logits)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(logits=logits, loss=loss)


# The keys of the release, with our numbers.
DEEPSEEK_CONFIG = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.2,
    "intermediate_size": 80,
    "max_position_embeddings": 4096,
    "model_type": "deepseek",
    "moe_intermediate_size": 24,
    "moe_layer_freq": 1,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": CHOICES,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCAB,
}

DEEPSEEK_V2_CONFIG = {
    **DEEPSEEK_CONFIG,
    "architectures": ["DeepseekV2ForCausalLM"],
    "kv_lora_rank": None,
    "model_type": "deepseek_v2",
    "n_group": 1,
    "num_key_value_heads": 2,
    "q_lora_rank": None,
    "qk_nope_head_dim": 0,
    "qk_rope_head_dim": 0,
    "routed_scaling_factor": 2.5,
    "topk_group": 1,
    "topk_method": "greedy",
    "use_mla": False,
    "v_head_dim": 0,
}
RELEASES = {config["model_type"]: config for config in (DEEPSEEK_CONFIG, DEEPSEEK_V2_CONFIG)}
MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "mixtral": mixtral,
    "mixtral_tied": partial(mixtral, tie_word_embeddings=True, head_dim=12),
    "qwen3_moe": qwen3_moe,
    "qwen3_moe_dense_first": partial(qwen3_moe, mlp_only_layers=[0], norm_topk_prob=False),
    "qwen2_moe": qwen2_moe,
    "qwen2_moe_every_second": partial(qwen2_moe, decoder_sparse_step=2, norm_topk_prob=True),
    "qwen2_moe_dense_between": partial(qwen2_moe, mlp_only_layers=[1], qkv_bias=False),
    "olmoe": olmoe,
    "olmoe_grouped": partial(olmoe, num_key_value_heads=4, norm_topk_prob=True),
    "glm4_moe": glm4_moe,
    "glm4_moe_plain": partial(
        glm4_moe, n_group=1, topk_group=1, use_qk_norm=False, first_k_dense_replace=0
    ),
    "phimoe": phimoe,
    "phimoe_without_biases": partial(phimoe, attention_bias=False, router_jitter_noise=0.01),
    "gpt_oss": gpt_oss,
    "gpt_oss_full": partial(
        gpt_oss,
        layer_types=["full_attention"] * LAYERS,
        attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "dots1": dots1,
    "deepseek": DeepseekModel,
    "deepseek_v2": DeepseekV2Model,
}


def _numbers(**changes) -> dict:
    numbers = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts_per_tok": CHOICES,
        "initializer_range": 0.2,  # ten times the usual: experts differ, and routing is no toss-up
        "attn_implementation": "eager",
        "experts_implementation": "eager",
        "rms_norm_eps": 1e-6,
    }
    return {**numbers, **changes}


def _by_expert(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors of single experts out of those that transformers holds in memory."""
    stem, _, last = name.rpartition(".")
    if not stem.endswith(".experts"):
        yield name, tensor
        return
    for expert, part in enumerate(tensor):
        if last == "down_proj":
            yield f"{stem}.{expert}.down_proj.weight", part
        else:
            gate, up = part.chunk(2)
            yield f"{stem}.{expert}.gate_proj.weight", gate
            yield f"{stem}.{expert}.up_proj.weight", up


def _spread(model: nn.Module) -> None:
    """Gives norms and biases values of their own: among ones and zeros no swap would show."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "norm" in name and not name.endswith("bias"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "sinks")):
                tensor.uniform_(-0.3, 0.3)


@pytest.fixture(scope="module", params=MODELS)
def sample(request, tmp_path_factory) -> Sample:
    home = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    with Lifted():
        model = MODELS[request.param]().eval()
        _spread(model)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):  # float32 in every checkpoint
            buffer.data = buffer.data.float()
    for parameter in model.parameters():  # routers are made in float32 by name, and were lifted
        parameter.data = parameter.data.float()
    with Lifted():
        model.save_pretrained(home / "weights")
        model.double()
        tokens = torch.randint(VOCAB, (SEQUENCES, LENGTH))
        out = model(input_ids=tokens, labels=tokens)
        out.loss.backward()
    logits, loss = out.logits.detach().flatten(0, 1), out.loss.detach()
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    _replace(model, {name: p.grad for name, p in model.named_parameters()})
    model.save_pretrained(home / "gradients")
    _replace(model, kept)
    return Sample(
        model=model,
        folder=home / "weights",
        gradients=home / "gradients",
        tokens=tokens,
        logits=logits,
        loss=loss,
    )


def _replace(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = values[name]


def stage_of(
    pretrained: Pretrained,
    precision: str = "float64",
    *,
    clip_norm: float = 1.0,
) -> Stage:
    """One rank of the model of a checkpoint, without the balance loss, which differs there."""
    model = pretrained.model.model_copy(update={"aux_coef": 0.0})
    plan = Plan(
        shape=shape(model),
        arithmetic=arithmetic(model),
        layout=Layout(),
        rank=0,
        sequence=LENGTH,
        micro_batch=SEQUENCES,
        micro_batches=1,
        precision=precision,
        order="overlapped",
        update=Update(beta1=0.9, beta2=0.95, eps=1e-8, clip_norm=clip_norm),
    )
    world = StackedWorld(Mesh(dp=1, sp=1, ep=1))
    made = build(plan, bodies=BODIES, transport=world.transport(0), device=CPU)
    load(made.state, pretrained)
    return made


def oracle_of(made: Stage) -> Oracle:
    statics = made.state.statics
    weights = {
        p.name: statics[f"param:{p.name}"].clone().requires_grad_() for p in made.step.parameters
    }
    biases = {k.removeprefix("state:"): v for k, v in statics.items() if k.startswith("state:")}
    return Oracle(plan=made.plan, bodies=BODIES, weights={**weights, **biases})


def batch_of(tokens: Tensor) -> Batch:
    """Sequences [B, S] as documents of their own, each token's target the one behind it."""
    count, length = tokens.shape
    targets = torch.cat((tokens[:, 1:], torch.full((count, 1), -100)), dim=1)
    return pack(tokens.flatten(), targets.flatten(), [length] * count)


def pack(tokens: Tensor, targets: Tensor, lengths: list[int]) -> Batch:
    text = MicroBatch(
        tokens=tokens.numpy(),
        targets=targets.numpy(),
        positions=np.concatenate([np.arange(n) for n in lengths]),
        ends=tuple(np.cumsum(lengths).tolist()),
    )
    return stage(text, whole_share(len(text.tokens)), device=CPU)


def parts(made: Stage, values: Mapping[str, Tensor]) -> dict[Logical, Tensor]:
    """The logical parts of values that are given for physical parameters."""
    return {
        part: values[p.name].reshape(-1)[part.start : part.stop].view(part.shape)
        for p in made.step.parameters
        for part in p.parts
    }


def require_gradients(found: Mapping[Logical, Tensor], folder: Path) -> None:
    """Passes where all are those that transformers saved."""
    with open_pretrained(folder) as expected:
        for part, values in found.items():
            require_close(values, expected.read(part), GRADIENT_FLOAT64, part.name)


def explicit_gradients(made: Stage) -> Mapping[str, Tensor]:
    return {p.name: made.state.statics[f"grad:{p.name}"] for p in made.step.parameters}


def trained(pretrained: Pretrained, sample: Sample) -> Stage:
    """A stage after a step that changes nothing and leaves its gradients and statistics."""
    made = stage_of(pretrained)
    rates = Rates(lr=0.0, weight_decay=0.0, step=1)
    made.train([batch_of(sample.tokens)], divisor=DIVISOR, rates=rates)
    return made


def logits_of(folder: Path, batch: Batch) -> Tensor:
    with open_pretrained(folder) as pretrained:
        return oracle_of(stage_of(pretrained)).logits(batch).detach()


def export_again(folder: Path, target: Path, alter: Callable[[Logical], Logical]) -> Path:
    """Reads a checkpoint into a stage and writes what `alter` picks from it."""
    with open_pretrained(folder) as pretrained:
        made = stage_of(pretrained)
        statics = made.state.statics
        held = parts(made, {p.name: statics[f"param:{p.name}"] for p in made.step.parameters})
        named = {part.name: values for part, values in held.items()}
        named.update({k.removeprefix("state:"): v for k, v in statics.items() if "state:" in k})
        return export(
            target, pretrained.model, lambda part: named[alter(part).name], dtype="float32"
        )


def swapped(part: Logical) -> Logical:
    """Expert 1 for expert 0 of every layer, and the other way round."""
    first, second = (f".experts.{e}." for e in (0, 1))
    for here, there in ((first, second), (second, first)):
        if here in part.name:
            return replace(part, name=part.name.replace(here, there))
    return part


def transformers_logits(sample: Sample, folder: Path) -> Tensor:
    """What transformers computes of a checkpoint in float32, its own precision."""
    if isinstance(sample.model, ReleaseFolder):
        model = type(sample.model).of_folder(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
        )
    with torch.no_grad():
        return model.eval()(input_ids=sample.tokens).logits


def test_logits_are_those_of_transformers(sample):
    found = logits_of(sample.folder, batch_of(sample.tokens))
    require_close(found, sample.logits, GRADIENT_FLOAT64, "logits")


def test_two_swapped_experts_do_not_pass_for_the_model(sample, tmp_path):
    swap = export_again(sample.folder, tmp_path / "swapped", swapped)
    found = logits_of(swap, batch_of(sample.tokens))
    with pytest.raises(VerificationError, match="logits"):
        require_close(found, sample.logits, GRADIENT_FLOAT64, "logits")
    with open_pretrained(swap) as pretrained:
        made = trained(pretrained, sample)
    with pytest.raises(VerificationError, match="relative error"):
        require_gradients(parts(made, explicit_gradients(made)), sample.gradients)


def test_autograd_gives_the_loss_and_the_gradients_of_transformers(sample):
    with open_pretrained(sample.folder) as pretrained:
        made = stage_of(pretrained)
    oracle = oracle_of(made)
    losses = oracle.losses(batch_of(sample.tokens), DIVISOR)
    losses.sum().backward()
    require_close(losses[0], sample.loss, GRADIENT_FLOAT64, "loss")
    found = {p.name: oracle.weights[p.name].grad for p in made.step.parameters}
    require_gradients(parts(made, found), sample.gradients)


def test_the_explicit_backward_gives_the_loss_and_the_gradients_of_transformers(sample):
    with open_pretrained(sample.folder) as pretrained:
        made = trained(pretrained, sample)
    require_close(made.state.stats[LOSS], sample.loss, GRADIENT_FLOAT64, "loss")
    require_gradients(parts(made, explicit_gradients(made)), sample.gradients)


def test_every_gradient_is_compared_and_most_experts_have_tokens(sample):
    with open_pretrained(sample.folder) as pretrained:
        made = trained(pretrained, sample)
    found = {part.name for part in parts(made, explicit_gradients(made))}
    in_memory = sum(p.numel() for p in sample.model.parameters())
    assert sum(p.numel for p in made.step.parameters) == in_memory
    assert len(found) == sum(len(p.parts) for p in made.step.parameters)
    routed = [i for i in range(LAYERS) if made.plan.shape.kind(i) is not Kind.DENSE]
    for layer in routed:
        tally = made.state.statics[f"stats:tally.layers.{layer}"]
        assert tally.sum() == SEQUENCES * LENGTH * CHOICES
        assert (tally > 0).sum() > EXPERTS // 2


def test_a_document_is_the_same_alone_in_a_pack_and_in_transformers(sample):
    tokens, lengths = sample.tokens.flatten(), [LENGTH, 2 * LENGTH - 5, 1, LENGTH + 4]
    nothing = torch.full_like(tokens, -100)
    packed = logits_of(sample.folder, pack(tokens, nothing, lengths)).split(lengths)
    for document, found in zip(tokens.split(lengths), packed, strict=True):
        alone = pack(document, torch.full_like(document, -100), [len(document)])
        require_close(found, logits_of(sample.folder, alone), GRADIENT_FLOAT64, "alone")
        with Lifted(), torch.no_grad():
            expected = sample.model(input_ids=document.unsqueeze(0)).logits[0]
        require_close(found, expected, GRADIENT_FLOAT64, "transformers")


def test_without_its_edges_a_document_sees_its_neighbour(sample):
    tokens = sample.tokens.flatten()
    nothing = torch.full_like(tokens, -100)
    half = len(tokens) // 2
    apart, joined = (
        logits_of(sample.folder, pack(tokens, nothing, lengths))[half:]
        for lengths in ([half, half], [2 * half])
    )
    with pytest.raises(VerificationError):
        require_close(joined, apart, GRADIENT_FLOAT64, "second document")


def test_what_is_read_is_written_again_bit_for_bit(sample, tmp_path):
    again = export_again(sample.folder, tmp_path / "again", lambda part: part)
    before, after = (load_file(f / "model.safetensors") for f in (sample.folder, again))
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert torch.equal(after[name], values), name


def test_transformers_computes_the_same_bits_of_what_weft_writes(sample, tmp_path):
    again = export_again(sample.folder, tmp_path / "again", lambda part: part)
    expected = transformers_logits(sample, sample.folder)
    assert torch.equal(transformers_logits(sample, again), expected)
    swap = export_again(sample.folder, tmp_path / "swapped", swapped)
    assert not torch.equal(transformers_logits(sample, swap), expected)


RATES = {"lr": 3e-3, "weight_decay": 0.1}
STEPS = 5


def steps_of_transformers(sample: Sample, folder: Path) -> list[Tensor]:
    """Trains a copy with torch's own AdamW in float64, saves it, and returns its losses."""
    model = deepcopy(sample.model)  # in evaluation mode, as the logits are compared
    named = list(model.named_parameters())
    shrinks = lambda name: "norm" not in name and not name.endswith("bias") and "sinks" not in name  # noqa: E731
    groups = [
        {"params": [p for n, p in named if shrinks(n)], "weight_decay": RATES["weight_decay"]},
        {"params": [p for n, p in named if not shrinks(n)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATES["lr"], betas=(0.9, 0.95), eps=1e-8)
    losses = []
    with Lifted():
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = model(input_ids=sample.tokens, labels=sample.tokens).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        model.save_pretrained(folder)
    return losses


def steps_of_weft(made: Stage, sample: Sample) -> list[Tensor]:
    losses = []
    for step in range(1, STEPS + 1):
        batch = batch_of(sample.tokens)
        made.train([batch], divisor=DIVISOR, rates=Rates(**RATES, step=step))
        losses.append(made.state.stats[LOSS].clone())
    return losses


@pytest.fixture(scope="module")
def adamw(sample: Sample, tmp_path_factory) -> tuple[Path, list[Tensor]]:
    """What transformers makes of the sample in these steps, and its losses."""
    folder = tmp_path_factory.mktemp("adamw") / "trained"
    return folder, steps_of_transformers(sample, folder)


def test_five_steps_train_as_transformers_and_adamw_do(sample, adamw):
    folder, expected = adamw
    with open_pretrained(sample.folder) as pretrained:
        made = stage_of(pretrained, clip_norm=1e9)  # no clipping: torch's AdamW has none
    found = steps_of_weft(made, sample)
    require_close(torch.stack(found), torch.stack(expected), TRAINED_FLOAT64, "losses")
    assert found[-1] < found[0]
    with open_pretrained(folder) as after:
        weights = parts(
            made, {p.name: made.state.statics[f"param:{p.name}"] for p in made.step.parameters}
        )
        for part, values in weights.items():
            require_close(values, after.read(part), TRAINED_FLOAT64, part.name)


def test_training_without_decay_is_not_that_of_transformers(sample, adamw):
    """The control: one number of the optimizer off, and the weights part."""
    folder, _ = adamw
    with open_pretrained(sample.folder) as pretrained:
        made = stage_of(pretrained, clip_norm=1e9)
    for step in range(1, STEPS + 1):
        rates = Rates(lr=RATES["lr"], weight_decay=0.0, step=step)
        made.train([batch_of(sample.tokens)], divisor=DIVISOR, rates=rates)
    with open_pretrained(folder) as after:
        expected = after.read(next(p for p in made.step.parameters if p.name == "embed").parts[0])
    with pytest.raises(VerificationError):
        require_close(made.state.statics["param:embed"], expected, TRAINED_FLOAT64, "embed")
