"""Blocks that see the future: their equations, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F

from archsearch import build, cost
from archsearch.blocks import Mixer
from archsearch.blocks.attention import Attention
from archsearch.blocks.bidirectional import Bidirectional
from archsearch.blocks.linformer import Linformer
from archsearch.blocks.synthesizer import Synthesizer
from archsearch.spec import ModelSpec
from archsearch.standalone.generation import generate

D, H, T = 16, 2, 9


def heads(z: torch.Tensor) -> torch.Tensor:
    return z.unflatten(-1, (H, -1)).transpose(1, 2)


def whole(z: torch.Tensor) -> torch.Tensor:
    return z.transpose(1, 2).flatten(-2)


def noise() -> torch.Tensor:
    return torch.randn(2, T, D, dtype=torch.float64)


def test_linformer_attends_to_summaries() -> None:
    block, x = Linformer(D, heads=H, summaries=3, length=20).double(), noise()
    q, k, v = block.qkv(x).chunk(3, -1)
    E, into = block.summarise.weight[:3, :T], block.summarise.weight[3:, :T]
    k, v = torch.einsum("rt,btd->brd", E, k), torch.einsum("rt,btd->brd", into, v)
    weights = torch.softmax(heads(q) @ heads(k).mT / 8**0.5, -1)
    torch.testing.assert_close(block(x)[0], block.out(whole(weights @ heads(v))))
    padded = torch.cat((x, torch.zeros(2, 20 - T, D, dtype=torch.float64)), 1)
    torch.testing.assert_close(block(padded)[0][:, :T], block(x)[0])  # its first T columns


def test_synthesizer_weights_come_from_no_key() -> None:
    x = noise()
    dense = Synthesizer(D, heads=H, length=20).double()
    hidden = heads(F.relu(dense.hidden(x)))
    a = torch.einsum("bhtk,hkl->bhtl", hidden, dense.scores)[..., :T] + dense.bias[..., :T]
    v = heads(dense.values(x))
    torch.testing.assert_close(dense(x)[0], dense.out(whole(a.softmax(-1) @ v)))
    for rank in (None, 3):
        random = Synthesizer(D, heads=H, weights="random", rank=rank, length=20).double()
        R = random.R[0] if rank is None else random.R[0] @ random.R[1].mT
        a = R[:, :T, :T]
        torch.testing.assert_close(
            random(x)[0], random.out(whole(a.softmax(-1) @ heads(random.values(x))))
        )
        assert 0.5 < R.std() < 2  # unit variance at birth


def test_bidirectional_is_two_mixers() -> None:
    block, x = Bidirectional(D).double(), noise()
    back = block.back(x.flip(1))[0].flip(1)
    torch.testing.assert_close(block(x)[0], (block.onward(x)[0] + back) / 2)
    reverse = Bidirectional(D).double()
    reverse.onward, reverse.back = block.back, block.onward
    torch.testing.assert_close(reverse(x.flip(1))[0], block(x)[0].flip(1))


@pytest.mark.parametrize("positions", ["rope", "alibi", "none"])
def test_attention_without_a_mask(positions) -> None:
    block = Attention(D, heads=H, causal=False, positions=positions).double()
    x = noise()
    y, state = block(x)
    assert state is None
    if positions != "rope":
        torch.testing.assert_close(block(x.flip(1))[0], y.flip(1))  # both sides alike
    masked = Attention(D, heads=H, positions=positions).double()
    masked.load_state_dict(block.state_dict())
    torch.testing.assert_close(masked(x)[0][:, -1], y[:, -1])  # who is last sees all in both


def test_refusals() -> None:
    x = torch.randn(1, 5, D)
    for cls in Mixer.members.values():
        if not cls.causal:
            with pytest.raises(ValueError, match=f"{cls.name}: sees the future, so it takes whole"):
                cls(D)(x, ())
    for cls in (Linformer, Synthesizer):
        with pytest.raises(ValueError, match="takes at most length = 4 tokens, got 5"):
            cls(D, length=4)(x)
    with pytest.raises(ValueError, match=r"rank .3. is of random weights; leave it"):
        Synthesizer(D, rank=3)
    with pytest.raises(ValueError, match=r"window .3. is of the past; leave it at null"):
        Attention(D, window=3, causal=False)


NONCAUSAL = [
    "linformer",
    "synthesizer",
    {"type": "attention", "causal": False},
    {"type": "bidirectional", "mixer": "mamba", "merge": "gate"},
]


@pytest.mark.parametrize("mixer", NONCAUSAL, ids=str)
def test_models_that_see_the_future(mixer) -> None:
    """Refused where a model is causal; where it is not, it neither streams nor generates."""
    topology = {"type": "parallel", "branches": ["retention", mixer]}
    model = {"dim": D, "layers": 1, "topology": topology}
    name = mixer if isinstance(mixer, str) else mixer["type"]
    where = rf"topology.branches\[1\]: {name} sees the future; take a causal mixer, or set `causal"
    with pytest.raises(ValueError, match=where):
        ModelSpec.model_validate(model)
    spec = ModelSpec.model_validate(model | {"causal": False})
    net = build(spec, vocab=11).eval()
    tokens = torch.randint(11, (1, 8))
    logits, state = net(tokens)
    assert state is None
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 11
    assert not torch.allclose(net(changed)[0][:, 0], logits[:, 0])
    with pytest.raises(ValueError, match="goes on from no state"):
        net(tokens, ())
    with pytest.raises(ValueError, match="cannot continue a prompt"):
        next(generate(net, tokens, 1))
    costs = cost(spec, batch=1, seq_len=8, vocab=11)
    assert (costs.decode_flops, costs.state_bytes) == (0, 0)
    assert costs.forward_flops > 0
