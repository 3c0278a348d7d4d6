"""Scores, masks and packing of tokens, against hand-made values, their definitions and each other."""

from itertools import pairwise

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces import tokens
from search_spaces.tokens import (
    FEW,
    attend,
    choose_above,
    keep_above,
    masked_softmax,
    multiply,
    pack,
    packed_attention,
    packed_score,
    score,
    soft_mask,
    unpack,
)

# Two heads, three tokens; the outputs' norms are 5, 0, 1 and 5, 2, 3, so the heads' shares .5 .5, 0 1, .25 .75.
ATTENTION = torch.tensor(
    [[[[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.3, 0.1, 0.6]], [[0.6, 0.1, 0.3], [0.0, 0.7, 0.3], [0.6, 0.4, 0.0]]]]
)
CONTEXT = torch.tensor([[[[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]], [[-5.0, 0.0], [0.0, 2.0], [3.0, 0.0]]]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_score_is_the_class_tokens_attention_weighted_by_each_heads_share_of_the_output() -> None:
    wanted = torch.tensor([[0.5 * 0.2 + 0.5 * 0.6, 0.1, 0.25 * 0.3 + 0.75 * 0.3]])
    torch.testing.assert_close(score(ATTENTION, CONTEXT, 0), wanted)


def test_score_without_a_class_token_is_the_mean_over_the_tokens_that_are_left() -> None:
    wanted = torch.tensor([[(0.5 * 1.5 + 0.5 * 1.2) / 3, 1.2 / 3, (0.25 * 0.9 + 0.75 * 0.6) / 3]])
    torch.testing.assert_close(score(ATTENTION, CONTEXT, None), wanted)
    two = torch.tensor([[(0.5 * 1.2 + 0.5 * 0.6) / 2, 0.8 / 2, (0.25 * 0.3 + 0.75 * 0.6) / 2]])
    torch.testing.assert_close(score(ATTENTION, CONTEXT, None, torch.tensor([[1.0, 1.0, 0.0]])), two)


def test_a_silent_token_has_no_score_and_a_finite_gradient() -> None:
    context = torch.zeros(1, 2, 3, 2, requires_grad=True)
    scores = score(ATTENTION, context, 0)
    scores.sum().backward()
    assert torch.equal(scores, torch.zeros(1, 3))
    assert context.grad is not None
    assert context.grad.isfinite().all()


def test_soft_mask_is_hard_forward_and_a_sigmoid_backward() -> None:
    temperature, count = 1e-4, 4
    scores = torch.tensor([[0.25, 0.2502, 0.2499, 0.2501]], dtype=torch.float64, requires_grad=True)
    scaled = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    mask = soft_mask(scores, scaled, count, temperature)
    assert mask.tolist() == [[0, 1, 0, 1]]  # a score on the threshold is not above it
    mask.sum().backward()
    s = torch.sigmoid((scores.detach() - 0.25) / temperature)
    wanted = s * (1 - s) / temperature
    assert scores.grad is not None and scaled.grad is not None
    assert wanted.min() > 900
    torch.testing.assert_close(scores.grad, wanted)
    torch.testing.assert_close(scaled.grad, -wanted.sum() / count)


def test_a_scaled_threshold_of_one_is_the_mean_score_on_every_grid() -> None:
    for count in (16, 196):
        scores = uniform(2, count).softmax(-1)
        assert torch.equal(keep_above(scores, 1.0, count), scores > scores.mean(-1, keepdim=True))


@pytest.mark.parametrize("scaled", [float("inf"), 1e9, 40.0])
def test_the_best_token_is_kept_however_high_the_threshold(scaled: float) -> None:
    scores = uniform(5, 30)
    kept = keep_above(scores, scaled, 30)
    assert kept.sum(-1).tolist() == [1] * 5
    assert torch.equal(kept.int().argmax(-1), scores.argmax(-1))
    assert keep_above(torch.zeros(1, 4), scaled, 4).tolist() == [[True, False, False, False]]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.lists(st.floats(0, 4), min_size=2, max_size=4))
def test_masks_never_bring_a_token_back_never_empty_and_are_the_choice_of_inference(
    seed: int, thresholds: list[float]
) -> None:
    mask: Tensor | None = None
    for location, scaled in enumerate(thresholds):
        scores = uniform(3, 12, seed=seed + location).softmax(-1)
        after = soft_mask(scores, torch.tensor(scaled), 12, earlier=mask)
        assert ((after == 0) | (after == 1)).all()
        assert (after.sum(-1) >= 1).all()
        assert torch.equal(after.bool(), keep_above(scores, torch.tensor(scaled), 12, mask))
        if mask is not None:
            assert (after <= mask).all()
        mask = after


def test_the_best_token_is_sought_among_those_that_are_left() -> None:
    scores, left = torch.tensor([[0.9, 0.1, 0.2]]), torch.tensor([[0.0, 1.0, 1.0]])
    assert soft_mask(scores, torch.tensor(30.0), 3, earlier=left).tolist() == [[0, 0, 1]]
    assert keep_above(scores, 30.0, 3, left.bool()).tolist() == [[False, False, True]]


def test_multiplied_masks_send_gradients_to_both_locations() -> None:
    first = torch.tensor([[1.0, 1.0, 0.0]], requires_grad=True)
    second = torch.tensor([[0.0, 1.0, 1.0]], requires_grad=True)
    both = multiply(second, first)
    assert both.tolist() == [[0, 1, 0]]
    both.sum().backward()
    assert first.grad is not None and second.grad is not None
    assert first.grad.tolist() == [[0, 1, 1]]
    assert second.grad.tolist() == [[1, 1, 0]]


def test_a_later_mask_sends_gradients_to_earlier_thresholds() -> None:
    scores, scaled = torch.full((1, 3), 1 / 3), torch.full((2,), 0.9999, requires_grad=True)
    first = soft_mask(scores, scaled[0], 3)
    soft_mask(scores, scaled[1], 3, earlier=first).sum().backward()
    assert scaled.grad is not None
    assert (scaled.grad < 0).all()


def test_masked_softmax_is_softmax_over_what_is_seen() -> None:
    logits = 3 * normal(2, 3, 6, 6)
    torch.testing.assert_close(masked_softmax(logits, torch.ones(2, 6)), logits.softmax(-1), atol=2e-6, rtol=0)
    mask = torch.tensor([[1.0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0]])
    unseen = (mask == 0)[:, None, None, :] & ~torch.eye(6, dtype=torch.bool)
    weights = masked_softmax(logits, mask)
    torch.testing.assert_close(weights, logits.masked_fill(unseen, float("-inf")).softmax(-1), atol=2e-6, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 6))
    dropped = weights[unseen.expand_as(weights)]
    assert 0 < dropped.min() <= dropped.max() < 1e-6
    assert weights[0, :, 1, 1].min() > 1e-4  # a dropped token sees itself


def test_a_dropped_token_cannot_drown_the_others() -> None:
    logits = normal(1, 1, 4, 4)
    logits[..., 3] += 200  # whose exponential overflows
    weights = masked_softmax(logits, torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    torch.testing.assert_close(weights[:, :, :3, :3], logits[:, :, :3, :3].softmax(-1), atol=2e-6, rtol=0)


def test_masked_softmax_is_differentiable_and_keeps_the_type() -> None:
    logits = normal(2, 2, 5, 5).requires_grad_()
    mask = torch.tensor([[1.0, 0, 1, 1, 0]]).repeat(2, 1).requires_grad_()
    (masked_softmax(logits, mask) * normal(2, 2, 5, 5, seed=1)).sum().backward()
    assert logits.grad is not None and mask.grad is not None
    assert logits.grad.isfinite().all()
    assert (mask.grad != 0).all()  # dropped tokens too: a threshold learns to bring them back
    half = logits.detach().to(torch.bfloat16)
    assert torch.equal(masked_softmax(half, mask), masked_softmax(half.float(), mask).to(torch.bfloat16))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 10**6))
def test_unpack_gives_each_image_its_kept_tokens(batch: int, count: int, seed: int) -> None:
    kept = keep_above(uniform(batch, count, seed=seed), count / 2, count)
    x = normal(batch, count, 3, seed=seed)
    packed, lengths = pack(x, kept)
    assert packed.shape == (int(kept.sum()), 3)
    images = unpack(packed, lengths)
    assert len(images) == batch
    assert all(torch.equal(image, x[i][kept[i]]) for i, image in enumerate(images))


@pytest.mark.parametrize("biased", [False, True])
def test_packed_attention_gives_each_image_what_it_gets_alone(biased: bool) -> None:
    lengths, scale = torch.tensor([4, 1, 7]), 0.3
    q, k, v = normal(12, 2, 4), normal(12, 2, 4, seed=1), normal(12, 2, 6, seed=2)
    bias = normal(2, 9, 9, seed=3) if biased else None
    places = torch.cat([torch.randperm(9, generator=torch.Generator().manual_seed(n))[:n] for n in lengths.tolist()])
    together = packed_attention(q, k, v, lengths, scale, bias, places)
    assert together.shape == (12, 2, 6)
    for i, (start, end) in enumerate([(0, 4), (4, 5), (5, 12)]):
        own_q, own_k, own_v, own = q[start:end], k[start:end], v[start:end], places[start:end]
        alone = packed_attention(own_q, own_k, own_v, lengths[i : i + 1], scale, bias, own)
        torch.testing.assert_close(together[start:end], alone, atol=1e-7, rtol=0)
        logits = torch.einsum("qhd,khd->hqk", own_q, own_k) * scale
        if bias is not None:
            logits = logits + torch.stack([torch.stack([bias[:, a, b] for b in own], -1) for a in own], -2)
        torch.testing.assert_close(alone, torch.einsum("hqk,khd->qhd", logits.softmax(-1), own_v))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 4.0, 99.0])
)
def test_packed_choices_are_each_images_own(lengths: list[int], seed: int, threshold: float) -> None:
    scores = (uniform(sum(lengths), seed=seed) * 4).round() / 4  # with ties
    above = choose_above(scores, threshold, 9, torch.tensor(lengths))
    for own, kept in zip(scores.split(lengths), above.split(lengths), strict=True):
        assert torch.equal(kept, keep_above(own[None], threshold, 9)[0])


def varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, scale: float
) -> Tensor:
    """What torch documents of `varlen_attn`, image by image."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and max_q == max_k == int(cu_q.diff().max())
    out = torch.empty_like(v)
    for start, end in pairwise(cu_q.tolist()):
        logits = torch.einsum("qhd,khd->hqk", q[start:end], k[start:end]) * scale
        out[start:end] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), v[start:end])
    return out


def test_the_kernel_for_packed_sequences_is_called_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    q, k, v = (normal(12, 2, 4, seed=seed) for seed in range(3))
    lengths = torch.tensor([4, 1, 7])
    torch.testing.assert_close(tokens._varlen(q, k, v, lengths, 0.3), packed_attention(q, k, v, lengths, 0.3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_packed_attention_on_a_gpu() -> None:
    lengths = torch.tensor([40, 3, 70])
    q, k, v = (normal(113, 2, 64, seed=seed) for seed in range(3))
    wanted = packed_attention(q, k, v, lengths, 0.125)
    half = [x.cuda().bfloat16() for x in (q, k, v)]
    found = packed_attention(*half, lengths.cuda(), 0.125).float().cpu()
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0.03)


def test_a_bias_without_places_is_refused() -> None:
    x = normal(3, 2, 4)
    with pytest.raises(ValueError, match="places"):
        packed_attention(x, x, x, torch.tensor([1, 2]), 1.0, torch.zeros(2, 4, 4))


@pytest.mark.parametrize("row", [None, 0])
def test_masked_training_and_packed_inference_agree(row: int | None) -> None:
    q, k, v = normal(3, 2, 8, 4), normal(3, 2, 8, 4, seed=1), normal(3, 2, 8, 6, seed=2)
    bias, scale = normal(2, 8, 8, seed=3), 0.5
    mask = soft_mask(uniform(3, 8), torch.tensor(4.0), 8)
    mask[:, 0] = 1
    attention = masked_softmax(q @ k.transpose(-2, -1) * scale + bias, mask)
    context = attention @ v
    scores = score(attention, context, row, mask)

    kept = mask.bool()
    (q_in, lengths), (k_in, _), (v_in, _) = (pack(x.transpose(1, 2), kept) for x in (q, k, v))
    assert len(set(lengths.tolist())) > 1
    places, _ = pack(torch.arange(8).expand(3, 8), kept)
    packed = packed_attention(q_in, k_in, v_in, lengths, scale, bias, places)
    torch.testing.assert_close(packed, pack(context.transpose(1, 2), kept)[0], atol=1e-5, rtol=0)
    packed_scores = packed_score(q_in, k_in, packed, lengths, scale, row, bias, places)
    torch.testing.assert_close(packed_scores, scores[kept], atol=1e-5, rtol=0)


class Chosen(nn.Module):
    """The choice of tokens by score."""

    def forward(self, attention: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        scores = score(attention, context, 0)
        return scores, pack(context.transpose(1, 2), keep_above(scores, 1.0, 9))[0]


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_choices_are_the_same_in_onnx_runtime_with_ties_and_silent_tokens() -> None:
    attention, context = normal(1, 2, 9, 9).softmax(-1), normal(1, 2, 9, 3)
    context[:, :, [2, 5, 6]] = 0
    attention[..., [3, 4, 7, 8]] = 0.01
    program = torch.onnx.export(Chosen(), (attention, context), dynamo=True, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    got = session.run(None, {"attention": attention.numpy(), "context": context.numpy()})
    for ours, theirs in zip(Chosen()(attention, context), got, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours)


@pytest.mark.parametrize("count", [1, FEW, FEW + 1])
def test_attention_is_the_same_by_either_kernel(count: int) -> None:
    q, k, v = (torch.randn(1, 2, count, width, dtype=torch.float64) for width in (8, 8, 5))
    expected = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, 0.3), expected)
