"""Fusing and merging, against both papers spelled out token by token, and what must change nothing."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compress import curve_of, thresholds_of
from nas.train.thresholds import budget_of
from search_spaces import Arch, InputError
from search_spaces.arch import Network
from search_spaces.blocks import MB3D, AttentionPool, BlockSpec, ClassToken, Head, Norm, Patch, Position, TokenPrune
from search_spaces.blocks.mb3d import MB3DModule
from search_spaces.blocks.token_prune import TokenPruneModule
from search_spaces.states import Scorer, Tokens
from search_spaces.tokens import Kept
from tests.search_spaces.test_token_prune import BLOCK, CUT, PLAIN, network, run

KINDS = ("fused", "merged")
ENDS: dict[str, tuple[tuple[BlockSpec, ...], tuple[BlockSpec, ...]]] = {  # before the first block, and behind the last
    "class token": ((ClassToken(),), (Head(4, pool="token"),)),
    "mean": ((), (Head(4),)),
    "mean, class token left out": ((ClassToken(2),), (Head(4, mean_first=True),)),
    "attention pooling": ((ClassToken(),), (Norm(), AttentionPool(2, 2), Head(4, norm="none"))),
}


def reduced(rest: str, keeps: tuple[int, int] = (40, 25), end: str = "class token", place: bool = True) -> Arch:
    """64 patches, and two locations."""
    one, two = (TokenPrune(keep, rest=rest) for keep in keeps)
    before, behind = ENDS[end]
    start = (Patch(16, 4), *before, *([Position()] if place else []))
    return Arch(32, 3, (*start, PLAIN, one, PLAIN, two, PLAIN, *behind))


def rows(x: Tensor) -> list[list[float]]:
    return [[float(value) for value in row] for row in x]


def mean(tokens: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [
        sum(w * value for w, value in zip(weights, column, strict=True)) / total for column in zip(*tokens, strict=True)
    ]


class Reference:
    """A network on one image, by lists: attention pair by pair, tokens fused and merged one by one."""

    def __init__(self, built: Network, rest: str, prefix: int) -> None:
        self.built, self.rest, self.prefix = built, rest, prefix
        self.sizes: list[float] = []
        self.weight = 0.0  # of the fused token

    def __call__(self, image: Tensor) -> Tensor:
        x: Tensor = image[None]
        for block in self.built.blocks:
            if isinstance(block, MB3DModule):
                self.sizes = self.sizes or [1.0] * x.shape[1]
                x, scores, keys = self.attend(block, x[0])
            elif isinstance(block, TokenPruneModule):
                less = self.fuse if self.rest == "fused" else self.merge
                x = torch.tensor([less(rows(x[0]), scores if self.rest == "fused" else keys, block.keep)])
            elif isinstance(block, type(self.built.blocks[-1])):
                x = self.head(block, x[0])
            else:
                x = block(x)
        return x[0]

    def attend(self, block: MB3DModule, x: Tensor) -> tuple[Tensor, list[float], list[list[float]]]:
        """One block; the scores of AS-ViT, and each token's key, the mean over the heads."""
        mixer, count = block.token_mixer, len(x)
        qkv = mixer.qkv(block.norm1(x)).reshape(count, mixer.heads, -1)
        context, looks = torch.zeros(count, mixer.heads, mixer.value_dim), torch.zeros(count, mixer.heads)
        for head in range(mixer.heads):
            q, k, v = qkv[:, head].split([mixer.key_dim, mixer.key_dim, mixer.value_dim], 1)
            for i in range(count):
                seen = [float(q[i] @ k[j]) / math.sqrt(mixer.key_dim) for j in range(count)]
                seen = [size * math.exp(one - max(seen)) for size, one in zip(self.sizes, seen, strict=True)]
                weights = torch.tensor(seen) / sum(seen)
                context[i, head] = weights @ v
                if i == 0 and self.prefix:
                    looks[:, head] = weights
                elif not self.prefix:
                    looks[:, head] += weights / count
        x = x + mixer.proj(context.flatten(1))
        x = x + block.mlp(block.norm2(x))
        norms = context.norm(dim=2)
        scores = (looks * norms / (norms.sum(1, keepdim=True) + 1e-8)).sum(1)
        keys = qkv[:, :, mixer.key_dim : 2 * mixer.key_dim].mean(1)
        return x[None], scores.tolist(), rows(keys)

    def fuse(self, tokens: list[list[float]], scores: list[float], keep: int) -> list[list[float]]:
        """The best patches, and the mean of the others and of the token fused before, weighted by scores."""
        last = len(tokens) - (self.weight > 0)
        order = sorted(range(self.prefix, last), key=lambda i: -scores[i])
        gone = order[keep:]
        weights = [scores[i] for i in gone] + [self.weight] * (self.weight > 0)
        fused = mean([tokens[i] for i in gone] + tokens[last:], weights)
        self.weight = sum(weights)
        self.sizes = [1.0] * (self.prefix + keep + 1)
        return [*tokens[: self.prefix], *(tokens[i] for i in order[:keep]), fused]

    def merge(self, tokens: list[list[float]], keys: list[list[float]], keep: int) -> list[list[float]]:
        """Every other patch into the one most like it, the most alike first."""
        first, second = (list(range(self.prefix + start, len(tokens), 2)) for start in (0, 1))
        cosines = {
            i: max(
                (
                    sum(a * b for a, b in zip(keys[i], keys[j], strict=True))
                    / math.hypot(*keys[i])
                    / math.hypot(*keys[j]),
                    j,
                )
                for j in second
            )
            for i in first
        }
        gone = sorted(first, key=lambda i: -cosines[i][0])[: len(tokens) - self.prefix - keep]
        groups = [[i] for i in range(self.prefix)] + [[i] for i in first if i not in gone]
        groups += [[j, *(i for i in gone if cosines[i][1] == j)] for j in second]
        out = [mean([tokens[i] for i in group], [self.sizes[i] for i in group]) for group in groups]
        self.sizes = [sum(self.sizes[i] for i in group) for group in groups]
        return out

    def head(self, head: torch.nn.Module, x: Tensor) -> Tensor:
        if head.pool == "token":
            return head.head(head.norm(x[0]))[None]
        sizes = self.sizes[self.prefix :]
        if self.rest == "fused":
            sizes[-1] = 64 - (len(sizes) - 1)
        own = x if head.mean_first else head.norm(x)
        pooled = torch.tensor(mean(rows(own[self.prefix :]), sizes))
        return head.head(head.norm(pooled) if head.mean_first else pooled)[None]


@pytest.mark.parametrize("end", ["class token", "mean", "mean, class token left out"])
@pytest.mark.parametrize("rest", KINDS)
@torch.no_grad()
def test_a_network_is_that_of_the_paper(rest: str, end: str) -> None:
    arch = reduced(rest, end=end)
    built, images = network(arch, spread=2.0), arch.example(3)
    prefix = sum(spec.count for spec in arch.blocks if isinstance(spec, ClassToken))
    logits, chosen = run(built, images)
    assert [one.counts.tolist() for one in chosen] == [[40] * 3, [25] * 3]
    wanted = torch.stack([Reference(built, rest, prefix)(image) for image in images])
    torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-5)


def test_the_fused_token_weighs_what_it_was_made_of() -> None:
    """Two tokens of weight .1 each, then one of weight .3: a mean of all three in which the first two have a fifth each."""
    x = torch.arange(8.0).reshape(1, 4, 2) ** 2
    state = Tokens(4, 2, (2, 2), scored_by=Scorer(1, 2, 2))
    spec = TokenPrune(2, rest="fused")
    first = spec.build(state)(Kept(x, score=torch.tensor([[0.5, 0.1, 0.3, 0.1]])))
    torch.testing.assert_close(first.x[0, 2], (x[0, 1] + x[0, 3]) / 2)
    torch.testing.assert_close(first.fused, torch.tensor([[0.2]]))
    state = replace(spec.output(state), scored_by=Scorer(1, 2, 2))
    assert state == Tokens(3, 2, (2, 2), pruned=True, scored_by=Scorer(1, 2, 2), fused=True) and state.patches == 2
    best = first.places[0].argmin()  # the patch 0, of the patches 0 and 2
    scores = torch.where(torch.arange(2) == best, 0.6, 0.3)[None]
    second = TokenPrune(1, rest="fused").build(state)(replace(first, score=scores))
    torch.testing.assert_close(second.x[0], torch.stack([x[0, 0], 0.2 * x[0, 1] + 0.2 * x[0, 3] + 0.6 * x[0, 2]]))
    torch.testing.assert_close(second.fused, torch.tensor([[0.5]]))
    kept = TokenPrune(2, rest="fused").build(state)(replace(first, score=scores))  # nothing more to take in
    torch.testing.assert_close(kept.x[0, 2], first.x[0, 2])


def test_where_nobody_looks_at_what_is_fused_all_of_it_counts_alike() -> None:
    x = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0))
    state = Tokens(4, 2, (2, 2), scored_by=Scorer(1, 2, 2))
    out = TokenPrune(1, rest="fused").build(state)(Kept(x, score=torch.tensor([[1.0, 0.0, 0.0, 0.0]])))
    torch.testing.assert_close(out.x[0, 1], x[0, 1:].mean(0))


def fours(seed: int) -> Tensor:
    """(2, 3, 32, 32) images whose first 32 of 64 patches are fours of equal ones, the others all different."""
    generator = torch.Generator().manual_seed(seed)
    upper = torch.randn(2, 4, 2, 3, 4, 4, generator=generator).repeat_interleave(4, 2)
    patches = torch.cat([upper, torch.randn(2, 4, 8, 3, 4, 4, generator=generator)], 1)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 32, 32)


def dense_of(arch: Arch, built: Network) -> Network:
    """The network without pruning locations, with the same weights."""
    bare = Arch(32, 3, tuple(spec for spec in arch.blocks if not isinstance(spec, TokenPrune))).build().eval()
    own = [part for part in built.blocks if not isinstance(part, TokenPruneModule)]
    for part, source in zip(bare.blocks, own, strict=True):
        part.load_state_dict(source.state_dict())
    return bare


@pytest.mark.parametrize("end", ENDS)
def test_merging_equal_patches_changes_nothing(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fours of them become twos and then ones, which are looked at, and count, as four are."""
    arch = reduced("merged", (48, 40), end, place=False)
    built, images = network(arch), fours(0)
    wanted = run(dense_of(arch, built), images)[0]
    logits, chosen = run(built, images)
    assert all((one.scores[~one.kept] > 1 - 1e-5).all() and (~one.kept).any() for one in chosen)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-5)
    monkeypatch.setattr("search_spaces.blocks.attention.proportional", lambda sizes, dtype: None)
    assert not torch.allclose(run(built, images)[0], wanted, atol=1e-3)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("rest", KINDS)
def test_keeping_all_is_the_dense_network(rest: str, end: str) -> None:
    arch = reduced(rest, (64, 64), end)
    assert not any(isinstance(state, Tokens) and (state.fused or state.sized) for state in arch.states)
    built = network(arch)
    for images in (arch.example(3), arch.example(1)):
        logits, chosen = run(built, images)
        torch.testing.assert_close(logits, run(dense_of(arch, built), images)[0], rtol=0, atol=1e-5)
        assert [one.counts.tolist() for one in chosen] == [[64] * len(images)] * 2
    if rest == "merged":
        assert torch.equal(logits, run(dense_of(arch, built), images)[0])


@pytest.mark.parametrize("rest", KINDS)
def test_images_are_by_themselves_and_training_is_as_inference(rest: str) -> None:
    arch = reduced(rest, end="mean")
    built, images = network(arch), arch.example(5)
    together, _ = run(built, images)
    alone = torch.cat([run(built, image)[0] for image in images.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(run(built.train(), images)[0], together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("rest", KINDS)
def test_gradients_reach_all_weights(rest: str, end: str) -> None:
    arch = reduced(rest, end=end)
    built = network(arch).train()
    built(arch.example(4)).square().sum().backward()
    for name, weight in built.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.abs().sum() > 0, name


def test_what_is_fused_tells_the_scores_their_worth() -> None:
    """The weights of the mean are scores with a gradient, as in the paper."""
    scores = torch.tensor([[0.5, 0.1, 0.3, 0.1]], requires_grad=True)
    state = Tokens(4, 2, (2, 2), scored_by=Scorer(1, 2, 2))
    x = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0))
    TokenPrune(2, rest="fused").build(state)(Kept(x, score=scores)).x[:, 2].sum().backward()
    slope = float((x[0, 1] - x[0, 3]).sum()) / 4  # of the mean (a x1 + b x3) / (a + b) at a = b = .1, by a, times .1
    torch.testing.assert_close(scores.grad * 0.1, torch.tensor([[0.0, slope, 0.0, -slope]]))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("rest", KINDS)
def test_half_precision_runs_whole_and_mixed(rest: str, end: str) -> None:
    arch = reduced(rest, end=end)
    built, images = network(arch, spread=1.0), arch.example(3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = built.train()(images)
        logits.float().sum().backward()
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in built.parameters())
    whole = built.eval().to(torch.bfloat16)(images.to(torch.bfloat16))
    assert whole.dtype == torch.bfloat16 and whole.isfinite().all()


@pytest.mark.parametrize("cuts", [(1, "contiguous"), (4, "strided"), (8, "permuted")])
@torch.no_grad()
def test_keys_are_in_the_order_of_the_patches_however_they_were_grouped(cuts: tuple[int, str]) -> None:
    groups, order = cuts
    spec = MB3D(2, 8, 8, 2, groups=(groups,), orders=(order,)) if groups > 1 else MB3D(2, 8, 8, 2)
    block = spec.build(Tokens(64, 16, (8, 8)))
    x = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))
    keys = block(x, None, False, True).keys
    wanted = block.token_mixer.qkv(block.norm1(x)).reshape(2, 64, 2, 24)[..., 8:16].mean(2)
    torch.testing.assert_close(keys, wanted)


def test_costs_count_the_fused_token_and_the_products_of_keys() -> None:
    fused, merged = reduced("fused"), reduced("merged")
    dropped = replace(
        fused, blocks=tuple(replace(s, rest="dropped") if isinstance(s, TokenPrune) else s for s in fused.blocks)
    )
    locations = [[arch.steps()[place] for place in arch.locations] for arch in (fused, merged)]
    assert [spec.macs(state) for spec, state in locations[0]] == [64 * 16, 41 * 16]
    assert [spec.macs(state) for spec, state in locations[1]] == [32 * 32 * 8, 20 * 20 * 8]
    assert [row.positions for row in fused.rows if row.op == "mb3d.ffn"] == [65, 42, 27]
    new = {row.key for arch in (fused, merged) for row in arch.rows} - {row.key for row in dropped.rows}
    assert new == {
        "token_prune@65[c=16,heads=2,v=8,fused=1]",
        "token_prune@42[c=16,heads=2,v=8,fused=1,kept=1]",
        "token_prune@65[c=16,heads=2,qk=8,merged=1]",
        "token_prune@41[c=16,heads=2,qk=8,merged=1,kept=1]",
        *(f"mb3d.attention@{n}[c=16,heads=2,qk=8,v=8,unbiased=1,kept=1,residual=2]" for n in (42, 27)),
        *(f"mb3d.ffn@{n}[c=16,hidden=32,kept=1,residual=2]" for n in (42, 27)),
        *(f"mb3d.attention@{n}[c=16,heads=2,qk=8,v=8,unbiased=1,kept=1,residual=2,sized=1]" for n in (41, 26)),
        "head@27[c=16,classes=4,heads=1,token=1,kept=1]",
    }
    assert "token_prune@65[c=16,heads=2,v=8]" in {row.key for row in dropped.rows}  # as before there was anything else
    means = [reduced(rest, end="mean").rows[-1].key for rest in KINDS]
    assert means == [f"head@{n}[c=16,classes=4,heads=1,kept=1,{dim}=1]" for n, dim in ((26, "fused"), (25, "sized"))]
    assert [row.op for row in reduced("merged", (64, 64)).rows].count("token_prune") == 0  # nothing is done there


@pytest.mark.parametrize("rest", KINDS)
def test_networks_at_other_sizes_and_numbers_do_the_same(rest: str) -> None:
    arch = reduced(rest)
    assert Arch.from_json(arch.to_json()) == arch
    assert all(
        (spec.rest == rest) == ("rest" in arch.to_json()) for spec in arch.blocks if isinstance(spec, TokenPrune)
    )
    assert "rest" not in reduced("dropped").to_json()
    assert arch.keeping((50, 30)) == reduced(rest, (50, 30)) and arch.keeping() == arch.keeping(adaptive=False) == arch
    assert [arch.at(64).blocks[place].keep for place in arch.locations] == [160, 100]
    assert arch.at(64).at(32) == arch and arch.at(64).rest == rest


def test_at_sizes_of_odd_grids_no_more_than_half_are_merged() -> None:
    odd = reduced("merged", (32, 16)).at(28)  # of 49, shares of .5 and .25 are 24 and 12
    assert [odd.blocks[place].keep for place in odd.locations] == [25, 13]
    assert run(odd.build().eval(), odd.example(2))[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": 3, "rest": "pooled"}, "rest must be one of dropped, fused, merged, got 'pooled'"),
        ({"keep": 3, "adaptive": True, "rest": "fused"}, "fused in fixed numbers.*leave adaptive out"),
        ({"keep": 3, "adaptive": True, "rest": "merged"}, "merged in fixed numbers.*leave adaptive out"),
    ],
)
def test_blocks_that_contradict_themselves_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenPrune(**fields)


MERGE, FUSE = (TokenPrune(40, rest=rest) for rest in ("merged", "fused"))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            (PLAIN, TokenPrune(31, rest="merged"), PLAIN),
            "no more than half of 64 patches can be merged in one go, got keep=31",
        ),
        ((PLAIN, MERGE, BLOCK), "bias must be false behind them"),
        ((PLAIN, FUSE, BLOCK), "bias must be false behind them"),
        ((PLAIN, TokenPrune(39, rest="fused"), CUT), "groups need every token"),
        ((PLAIN, FUSE, PLAIN, TokenPrune(20), PLAIN), "rest must be the same"),
        ((PLAIN, MERGE, PLAIN, TokenPrune(20, rest="fused"), PLAIN), "rest must be the same"),
        ((PLAIN, TokenPrune(64, rest="merged"), Position(), PLAIN), "table needs every token"),
        ((PLAIN, MERGE, MERGE, PLAIN), "pruned after a block whose attention"),
    ],
)
def test_networks_that_cannot_run_are_refused(blocks: tuple[BlockSpec, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arch(32, 3, (Patch(16, 4), *blocks, Head(4)))


@pytest.mark.parametrize("rest", KINDS)
def test_thresholds_are_for_dropped_patches(rest: str) -> None:
    arch = reduced(rest)
    with pytest.raises(
        InputError, match=f"are {rest}, in fixed numbers, and thresholds are for dropped ones; train it without"
    ):
        budget_of(arch)
    with pytest.raises(ValueError, match="so its cost has no curve"):
        curve_of(arch, lambda spec, state: spec.macs(state), (1, 64))
    with pytest.raises(ValueError, match="thresholds are for dropped ones"):
        thresholds_of(arch.build(), arch)
    with pytest.raises(ValueError, match="leave adaptive out"):
        arch.keeping(adaptive=True)
