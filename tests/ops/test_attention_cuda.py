"""The private operators that attention bodies call still take the arguments they are given.

What the bodies compute is checked where there is a GPU, in `test_registry`.
"""

import pytest
import torch

CALLED = {
    "_flash_attention_forward": (
        "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask"
    ),
    "_flash_attention_backward": (
        "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p "
        "is_causal rng_state unused"
    ),
    "_scaled_dot_product_cudnn_attention": (
        "query key value attn_bias compute_log_sumexp dropout_p is_causal"
    ),
    "_scaled_dot_product_cudnn_attention_backward": (
        "grad_out query key value out logsumexp philox_seed philox_offset attn_bias cum_seq_q "
        "cum_seq_k max_q max_k dropout_p is_causal"
    ),
    "_scaled_dot_product_flash_attention_for_cpu": "query key value dropout_p is_causal",
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        "grad_out query key value out logsumexp dropout_p is_causal"
    ),
}


@pytest.mark.parametrize("name", CALLED)
def test_private_operators_take_the_arguments_that_bodies_pass(name):
    schema = getattr(torch.ops.aten, name).default._schema
    wanted = CALLED[name].split()
    assert [a.name for a in schema.arguments][: len(wanted)] == wanted
    assert all(a.has_default_value() for a in schema.arguments[len(wanted) :])
