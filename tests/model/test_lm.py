from types import SimpleNamespace

from weft.model import lm


class Algebra:
    def embed(self, tokens, w):
        return f"embed({tokens}, {w})"

    def rope_table(self, positions):
        return "cos", f"sin({positions})"

    def rms_norm(self, x, w):
        return f"norm({x}, {w})"

    def cross_entropy(self, h, w, targets):
        return f"loss({h}, {w}, {targets})"


def test_embedding_gives_the_hidden_state_and_one_rotary_table():
    w = SimpleNamespace(embed="E")
    assert lm.embedding(Algebra(), "t", "p", w) == ("embed(t, E)", "cos", "sin(p)")


def test_the_head_norms_before_the_loss():
    w = SimpleNamespace(norm="n", head="H")
    assert lm.head(Algebra(), "x", "t", w) == "loss(norm(x, n), H, t)"
