"""Networks that drop tokens: every image by itself, however it is batched, and never to the last patch."""

import pytest
import torch

from search_spaces import Arch
from search_spaces.arch import AT_ONCE, Network
from search_spaces.blocks import MB3D, BlockSpec, ClassToken, Embed, Head, Patch, Position, Stem, TokenPrune
from search_spaces.tokens import Chosen

BLOCK = MB3D(2, 8, 8, 2, layer_scale=0.5)
CUT = MB3D(2, 8, 8, 2, layer_scale=0.5, loops=2, groups=(4, 2), orders=("permuted", "strided"))
PLAIN = MB3D(2, 8, 8, 2, residual="plain", bias=False)


def hybrid(keeps: tuple[int, int], adaptive: bool) -> Arch:
    """64 patches, a block in groups before the first location."""
    one, two = (TokenPrune(keep, adaptive) for keep in keeps)
    return Arch(32, 3, (Stem(16), CUT, one, BLOCK, two, BLOCK, Head(4)))


def vit(keeps: tuple[int, int], adaptive: bool) -> Arch:
    one, two = (TokenPrune(keep, adaptive) for keep in keeps)
    start = (Patch(16, 4), ClassToken(), Position())
    return Arch(32, 3, (*start, PLAIN, one, PLAIN, two, PLAIN, Head(4, pool="token")))


def network(arch: Arch, spread: float = 3.0) -> Network:
    """Weights large enough that the patches' scores differ."""
    torch.manual_seed(0)
    built = arch.build().eval()
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if "qkv.weight" in name or name.endswith("biases"):
                weight.normal_(0, spread * weight.shape[1] ** -0.5)
    return built


def run(built: Network, images: torch.Tensor) -> tuple[torch.Tensor, list[Chosen]]:
    trace: list[Chosen] = []
    with torch.no_grad():
        return built(images, trace), trace


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("make", [hybrid, vit])
def test_a_batch_gives_each_image_what_it_gets_alone(make: type, adaptive: bool) -> None:
    arch: Arch = make((40, 20), adaptive)
    built, images = network(arch), arch.example(6)
    together, chosen = run(built, images)
    counts = torch.stack([one.counts for one in chosen], 1)
    for number in range(6):
        alone, own = run(built, images[number : number + 1])
        torch.testing.assert_close(together[number], alone[0], rtol=0, atol=1e-5)
        assert [int(one.counts) for one in own] == counts[number].tolist()
    if adaptive:
        assert len(set(counts[:, 0].tolist())) > 1, "images differ in how many patches they keep"
        assert (counts[:, 1] <= counts[:, 0]).all()
        assert (counts < 64).any()
    else:
        assert counts.tolist() == [[40, 20]] * 6


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("make", [hybrid, vit])
def test_keeping_all_is_the_dense_network(make: type, adaptive: bool) -> None:
    arch: Arch = make((64, 64), adaptive)
    built = network(arch)
    dense = Arch(arch.image_size, 3, tuple(spec for spec in arch.blocks if not isinstance(spec, TokenPrune)))
    names = [name for name, _ in dense.build().named_parameters()]
    own = [value for name, value in built.named_parameters() if not name.endswith("threshold")]
    bare = dense.build().eval()
    bare.load_state_dict({**bare.state_dict(), **dict(zip(names, own, strict=True))})
    for part in built.modules():
        if getattr(part, "threshold", None) is not None:
            torch.nn.init.constant_(part.threshold, -1.0)
    for images in (arch.example(3), arch.example(1)):
        torch.testing.assert_close(run(built, images)[0], run(bare, images)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [hybrid, vit])
def test_the_last_patch_is_never_dropped(make: type) -> None:
    built = network(make((40, 20), True))
    for part in built.modules():
        if getattr(part, "threshold", None) is not None:
            torch.nn.init.constant_(part.threshold, 1e6)
    for images in (make((40, 20), True).example(3), make((40, 20), True).example(1)):
        logits, chosen = run(built, images)
        assert all(one.counts.tolist() == [1] * len(images) for one in chosen)
        assert logits.isfinite().all()


@pytest.mark.parametrize("make", [hybrid, vit])
def test_training_masks_what_inference_drops(make: type) -> None:
    """Masks multiply: a patch that the second location would take again stays dropped."""
    arch: Arch = make((40, 20), True)
    built, images = network(arch), arch.example(4)
    logits, chosen = run(built, images)
    trace: list[Chosen] = []
    built.train()
    built.blocks[0].eval()  # its BN as in inference
    trained = built(images, trace)
    torch.testing.assert_close(trained, logits, rtol=0, atol=2e-4)
    assert [one.counts.tolist() for one in trace] == [one.counts.tolist() for one in chosen]
    first, second = (one.kept for one in trace)
    assert (second <= first).all()
    (trace[0].counts.sum() + trace[1].counts.sum() + trained.sum()).backward()
    for name, weight in built.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("make", [hybrid, vit])
@pytest.mark.parametrize("count", [AT_ONCE + 1, 2 * AT_ONCE + 3])
def test_large_batches_run_in_parts_that_nobody_notices(count: int, make: type) -> None:
    arch = make((40, 20), True)
    built, images = network(arch), arch.example(count)
    logits, chosen = run(built, images)
    alone = [run(built, image) for image in images.split(1)]
    torch.testing.assert_close(logits, torch.cat([own for own, _ in alone]), rtol=0, atol=2e-5)
    for place, one in enumerate(chosen):
        assert one.counts.tolist() == [int(own[place].counts) for _, own in alone]
        assert torch.equal(one.kept.flatten(), torch.cat([own[place].kept.flatten() for _, own in alone]))
        assert one.scores.shape == one.kept.shape


@pytest.mark.parametrize("make", [hybrid, vit])
def test_a_masks_gradient_goes_to_thresholds_alone(make: type) -> None:
    """On to the scores it would be as steep as 1 / temperature, and drown what weights learn from the task."""
    arch = make((12, 5), True)
    built, trace = network(arch).train(), list[Chosen]()
    built(arch.example(4), trace)
    sum(one.counts.sum() for one in trace).backward()
    reached = {name for name, weight in built.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert reached == {f"blocks.{place}.threshold" for place in arch.locations}


def test_macs_and_parameters_follow_the_kept_patches() -> None:
    dense, half = (
        sum(spec.macs(state) for spec, state in hybrid(keeps, False).steps()) for keeps in ((64, 64), (32, 32))
    )
    blocks = [BLOCK.macs(state) for state in hybrid((64, 64), False).states[3:4]]
    assert dense - half == 2 * (blocks[0] - BLOCK.macs(hybrid((32, 32), False).states[3]))
    assert sum(weight.numel() for weight in hybrid((9, 4), True).build().parameters()) == sum(
        spec.params(state) for spec, state in hybrid((9, 4), True).steps()
    )


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((Stem(8), TokenPrune(4), BLOCK, Head(2)), "pruned after a block whose attention scores"),
        ((Stem(8), BLOCK, TokenPrune(65), BLOCK, Head(2)), "65 patches cannot be kept of 64"),
        ((Stem(8), BLOCK, TokenPrune(4), TokenPrune(3), BLOCK, Head(2)), "pruned after a block whose attention scores"),
        ((Stem(8), BLOCK, TokenPrune(4), Embed(8, "separable"), Head(2)), "embed needs every token"),
        ((Stem(8), BLOCK, TokenPrune(4), Position(), Head(2)), "table needs every token"),
        ((Stem(8), BLOCK, TokenPrune(4), CUT, Head(2)), "groups need every token"),
        ((Patch(8, 4), ClassToken(), BLOCK, Head(2)), "bias must be false"),
        ((Patch(8, 4), PLAIN, Head(2, pool="token")), "no class token to pool"),
        ((Patch(8, 4), ClassToken(), ClassToken(), Head(2)), "before all patches, once"),
        ((Patch(8, 5), Head(2)), "cannot be cut into patches of 5"),
        ((Stem(8), BLOCK, TokenPrune(9, True), BLOCK, TokenPrune(4), BLOCK, Head(2)), "adaptive must be the same"),
        ((Stem(8), MB3D(loops=2, recursion="external"), TokenPrune(4)), "last block must give class scores"),
    ],
)
def test_what_cannot_run_is_refused(blocks: tuple[BlockSpec, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arch(32, 3, blocks)


def test_an_external_loop_runs_its_blocks_in_turn() -> None:
    """b1 b2 b1 b2 with a projection for each application, against the blocks applied by hand."""
    block = MB3D(2, 8, 8, 2, layer_scale=0.5, loops=2, nll=1, recursion="external")
    arch = Arch(32, 3, (Stem(16), block, block, Head(4)))
    torch.manual_seed(0)
    built = arch.build().eval()
    stem, one, two, head = built.blocks
    images = arch.example(2)
    with torch.no_grad():
        tokens = stem(images).flatten(2).transpose(1, 2)
        for loop in range(2):
            tokens = two(one(tokens, loop), loop)
        torch.testing.assert_close(built(images), head(tokens))
        assert not torch.allclose(built(images), head(two(one(stem(images)))), atol=1e-4)
    assert sum(spec.macs(state) for spec, state in arch.steps()) == sum(
        spec.macs(state)
        for spec, state in Arch(32, 3, (Stem(16), *[MB3D(2, 8, 8, 2, loops=2, nll=1)] * 2, Head(4))).steps()
    )
    with pytest.raises(ValueError, match="inside an external loop"):
        Arch(32, 3, (Stem(16), block, TokenPrune(9), block, Head(4)))


def test_at_another_size_the_same_share_of_the_patches_stays() -> None:
    assert [spec.keep for spec in hybrid((40, 20), True).at(64).blocks if isinstance(spec, TokenPrune)] == [160, 80]
    smaller = vit((40, 20), False).at(16)
    assert [spec.keep for spec in smaller.blocks if isinstance(spec, TokenPrune)] == [10, 5]
    assert smaller.at(32) == vit((40, 20), False)
