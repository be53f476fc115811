"""Hash losses: the written-out formulas, centres, pair weights, and what they refuse."""

import math

import pytest
import torch
from torch import Tensor, nn

from apical import retrieval
from apical.retrieval import CSQ, DPH, DPN, DPSH, DSH, LOSSES, Bank, Continuation, HashNet, Memory
from victims import digits

B, N, K, C = 5, 7, 8, 3
ONE = torch.tensor([0])


def example(*, several: bool = False) -> tuple[Tensor, Tensor, Bank]:
    generator = torch.Generator().manual_seed(1)
    u, other = (
        torch.tanh(torch.randn(n, K, dtype=torch.float64, generator=generator)) for n in (B, N)
    )
    if several:
        y, z = ((torch.rand(n, C, generator=generator) < 0.5).long() for n in (B, N))
    else:
        y, z = (torch.randint(C, (n,), generator=generator) for n in (B, N))
    return u, y, Bank(other, z)


def alike(a: Tensor, b: Tensor) -> float:
    return (
        float(a == b) if a.dim() == 0 else float(sum(p * q for p, q in zip(a, b, strict=True)) > 0)
    )


def by_pairs(term, u: Tensor, y: Tensor, bank: Bank, *, balanced: bool) -> float:
    """The mean over pairs of `term(u_i, U_j, s)`, with plain loops."""
    same = [[alike(a, b) for b in bank.labels] for a in y]
    pairs, positive = len(y) * len(bank.labels), sum(map(sum, same))
    total = 0.0
    for i in range(len(y)):
        for j in range(len(bank.labels)):
            weight = pairs / (positive if same[i][j] else pairs - positive) if balanced else 1
            total += weight * float(term(u[i], bank.codes[j], same[i][j]))
    return total / pairs


def dot(a: Tensor, b: Tensor) -> float:
    return sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True))


def dsh(a, b, s, m=2 * K):
    square = sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist(), strict=True))
    return 0.5 * s * square + 0.5 * (1 - s) * max(0.0, m - square)


def dpsh(a, b, s):
    return math.log(1 + math.exp(dot(a, b) / 2)) - s * dot(a, b) / 2


def dph(a, b, s):
    return (dot(a, b) / K - (2 * s - 1)) ** 2


def hashnet(a, b, s, scale=10 / K):
    return math.log(1 + math.exp(scale * dot(a, b))) - s * scale * dot(a, b)


def away_from_one(u):
    return sum(abs(abs(v) - 1) for v in u.flatten().tolist()) / u.numel()


def squared_away(u):
    return sum((math.copysign(1, v) - v) ** 2 for v in u.flatten().tolist()) / u.numel()


FORMULAS = {
    "dsh": (DSH(), dsh, lambda u: 0.1 * away_from_one(u)),
    "dsh margin": (
        DSH(margin=3.0),
        lambda a, b, s: dsh(a, b, s, 3.0),
        lambda u: 0.1 * away_from_one(u),
    ),
    "dpsh": (DPSH(), dpsh, lambda u: 0.1 * squared_away(u)),
    "dpsh saat": (
        DPSH(quantisation=50 * K / N),
        dpsh,
        lambda u: 50 * squared_away(u) * u.numel() / (B * N),
    ),
    "dph": (DPH(), dph, lambda u: 0.0),
    "hashnet": (HashNet(), hashnet, lambda u: 0.0),
    "hashnet scale": (HashNet(scale=0.1), lambda a, b, s: hashnet(a, b, s, 0.1), lambda u: 0.0),
}  # fmt: skip


def test_a_loss_on_pairs_is_its_formula():
    for several in (False, True):
        for weight in ("none", "balanced"):
            for name in FORMULAS:
                loss, term, penalty = FORMULAS[name]
                loss = type(loss)(**{**vars(loss), "pair_weight": weight})
                u, y, bank = example(several=several)
                balanced = weight == "balanced"
                for given in (bank, None):
                    expected = by_pairs(
                        term, u, y, given or Bank(u, y), balanced=balanced
                    ) + penalty(u)
                    found = loss(u, y, given)
                    assert found.dtype == torch.float64 and found.shape == ()
                    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_every_loss_is_in_the_table_and_hashnet_alone_is_balanced_as_published():
    kinds = {loss for loss, *_ in FORMULAS.values()} | {CSQ(3), DPN(3)}
    assert {type(loss) for loss in kinds} == set(LOSSES.values())
    balanced = {name for name, kind in LOSSES.items() if kind is HashNet}
    assert balanced == {
        name for name, kind in LOSSES.items() if getattr(kind, "pair_weight", "none") == "balanced"
    }


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_central_similarity_is_its_formula(several):
    u, y, _ = example(several=several)
    loss = CSQ(C, quantisation=0.05)
    targets = loss.targets(y, K)
    total = 0.0
    for i in range(B):
        for k in range(K):
            p, t = (u[i, k].item() + 1) / 2, (targets[i, k].item() + 1) / 2
            total -= t * math.log(p) + (1 - t) * math.log(1 - p)
    push = sum((abs(v) - 1) ** 2 for v in u.flatten().tolist())
    assert loss(u, y).item() == pytest.approx((total + 0.05 * push) / (B * K), rel=1e-12)


def test_saturated_bits_and_autocast_leave_a_loss_finite():
    for name in LOSSES:
        kind = LOSSES[name]
        loss = kind(C) if name in ("csq", "dpn") else kind()
        h = torch.tensor(
            [[40.0, -40.0] * 4, [-40.0, 40.0] * 4, [0.1, -0.1] * 4], requires_grad=True
        )
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(retrieval.relax(h), torch.tensor([0, 1, 2]))
        value.backward()
        assert value.isfinite() and h.grad.isfinite().all() and h.grad[2].any()


def test_the_polarised_network_is_its_formula():
    u, y, _ = example()
    for margin in (1.0, 0.5):
        loss = DPN(C, margin=margin)
        centres = loss.centres(K)
        total = sum(
            max(0.0, margin - u[i, k].item() * centres[y[i], k].item())
            for i in range(B)
            for k in range(K)
        )
        assert loss(u, y).item() == pytest.approx(total / (B * K), rel=1e-12)


def test_hadamard_centres_are_half_the_bits_apart_and_serve_twice_the_bits():
    centres = CSQ(32).centres(16)
    products = centres @ centres.T
    expected = 16 * torch.eye(32)
    expected[:16, 16:] -= 16 * torch.eye(16)
    expected[16:, :16] -= 16 * torch.eye(16)
    assert torch.equal(products, expected)
    assert CSQ(10).centres(16).unique(dim=0).shape == (10, 16)


def test_polarised_centres_are_balanced_different_and_repeat():
    centres = DPN(70, seed=3).centres(8)  # all there are
    assert (centres.sum(1) == 0).all()
    assert centres.unique(dim=0).shape == (70, 8)
    assert torch.equal(centres, DPN(70, seed=3).centres(8))
    assert not torch.equal(centres, DPN(70, seed=4).centres(8))


def test_several_labels_meet_where_most_of_their_centres_are():
    loss = CSQ(4, seed=2)
    centres = loss.centres(8)
    y = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]])
    targets = loss.targets(y, 8)
    assert torch.equal(targets[0], centres[:3].sum(0).sign())
    assert torch.equal(targets[1], centres[0])
    tied = (centres[0] + centres[1] == 0) & (centres[1] + centres[2] == 0)
    assert tied.any() and (targets.abs() == 1).all()
    assert torch.equal(targets[2][tied], targets[3][tied])


def test_descending_a_loss_gives_each_class_its_code():
    """From free codes: what the loss itself wants, without a net. Pairs are balanced."""
    for name in LOSSES:
        kind = LOSSES[name]
        loss = kind(4) if name in ("csq", "dpn") else kind(pair_weight="balanced")
        y = torch.arange(4).repeat(5)
        h = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        optimizer = torch.optim.Adam([h], 0.05)
        for step in range(150):
            u = retrieval.relax(h, Continuation(every=20, rate=0.1).sharpness(step))
            optimizer.zero_grad()
            loss(u, y).backward()
            optimizer.step()
        distance = retrieval.distances(retrieval.pack(h), retrieval.pack(h))
        same = retrieval.relevant(y, y)
        assert distance[same].float().mean() < 0.3 and distance[~same].min() >= 2


def test_balanced_weights_make_both_kinds_of_pairs_count_half():
    u, y, bank = example()
    u.requires_grad_()
    same = retrieval.relevant(y, bank.labels)
    share = same.double().mean()
    term = DPH().pairs(u, bank.codes, same.double())
    halves = term[same].mean() + term[~same].mean()
    assert share < 0.5
    torch.testing.assert_close(DPH("balanced")(u, y, bank), halves)


def constant_bits_after_training(loss, images: Tensor, labels: Tensor) -> int:
    """Of a small net that learned against a memory of all its codes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.SGD(net.parameters(), 0.2, momentum=0.9)
    memory, generator = Memory(labels, 16), torch.Generator().manual_seed(0)
    for _ in range(5):
        for rows in torch.randperm(len(images), generator=generator).split(64):
            u = retrieval.relax(net(images[rows]))
            optimizer.zero_grad()
            loss(u, labels[rows], memory.renew(rows, u)).backward()
            optimizer.step()
    return len(retrieval.encode(net.eval(), images).constant_bits())


def test_without_balanced_weights_codes_collapse_against_a_memory():
    for name in ("dpsh", "dsh", "hashnet"):
        images, labels = digits()
        images = (images - images.mean(0)).flatten(1)[:600]
        assert constant_bits_after_training(LOSSES[name]("none"), images, labels[:600]) > 8
        assert constant_bits_after_training(LOSSES[name]("balanced"), images, labels[:600]) == 0


def test_a_batch_of_one_class_has_a_loss():
    u, _, _ = example()
    zeros = torch.zeros(B, dtype=torch.int64)
    for loss in (DSH("balanced"), HashNet()):
        assert torch.isfinite(loss(u, zeros))


def test_the_memory_holds_the_last_codes_and_no_graph():
    y = torch.tensor([0, 1, 2, 1])
    memory = Memory(y, 3)
    first = torch.full((2, 3), 0.5, requires_grad=True)
    bank = memory.renew(torch.tensor([3, 1]), first)
    assert not bank.codes.requires_grad and torch.equal(bank.labels, y)
    assert bank.codes[:, 0].tolist() == [0, 0.5, 0, 0.5]
    memory.renew(torch.tensor([1]), torch.ones(1, 3))
    assert bank.codes[1, 0] == 0.5 and memory.codes[1, 0] == 1
    assert set(memory.state_dict()) == {"codes", "labels"}
    loss = DPSH()(first * 1.0, y[[3, 1]], bank)
    loss.backward()
    assert first.grad is not None


def test_the_continuation_of_deephash_counts_epochs():
    schedule = Continuation(rate=1 / 20, every=20)
    for epoch in range(100):
        assert schedule.sharpness(epoch) == pytest.approx(math.sqrt(epoch // 20 + 1))
    assert Continuation(rate=0).sharpness(10**6) == 1


def test_a_hash_head_has_small_weights_and_learns():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    assert retrieval.hash_head(net, 16) == "2"
    assert net(torch.randn(2, 4)).shape == (2, 16)
    assert 0.003 < net[2].weight.std() < 0.03 and (net[2].bias == 0).all()


def test_bad_input_is_named():
    for build, message in (
        (lambda: CSQ(17).centres(8), "17 classes, but 8 bits have centres for 16; use 16 bits"),
        (lambda: CSQ(40).centres(8), "use 32 bits"),
        (lambda: CSQ(4).centres(12), r"codes of 12 bits are not supported.*\(8 or 16\)"),
        (lambda: CSQ(5).centres(2), "5 classes, but 2 bits have only 4 codes; use at least 3"),
        (lambda: DPN(4).centres(7), "codes of 7 bits are not supported.*use 8"),
        (lambda: DPN(71).centres(8), "71 classes, but 8 bits have only 70 balanced codes"),
        (lambda: DPSH().check(3, 9), "DPSH: 9 classes, but 3 bits have only 8 codes"),
        (lambda: DSH(margin=-1.0), "margin=-1.0 must be at least 0"),
        (lambda: DSH("equal"), "pair_weight='equal' is not one of 'balanced', 'none'"),
        (lambda: CSQ(3)(torch.zeros(2, 8), torch.tensor([0, 3])), "labels from 0 to 3, but"),
        (lambda: CSQ(3)(torch.zeros(1, 8), torch.ones(1, 4).long()), "labels of 4 classes"),
        (lambda: DPH()(torch.zeros(2, 8), torch.tensor([0])), "for 2 items"),
        (
            lambda: DPH()(torch.zeros(1, 8), ONE, Bank(torch.zeros(2, 9), torch.ones(2).long())),
            "same number of bits",
        ),
        (lambda: Continuation(every=0), "every=0 at least 1"),
        (lambda: retrieval.relax(torch.zeros(1), 0.0), "sharpness=0.0 must be above 0"),
        (
            lambda: retrieval.hash_head(nn.Linear(2, 2), 1),
            "bits=1 must be a whole number of at least 2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build()
