"""Broadcast rules whose samples are positions: `DFA(positions="samples")` and its relatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.rules import DFA, DRTP, RULES, BroadcastRule, LocalError, SignDFA, build

BROADCASTING = [name for name, rule in RULES.items() if isinstance(rule, BroadcastRule)]
CLASSES = 5


class Attending(nn.Module):
    """Two position-wise layers with causal attention between them: (N, T, 4) -> (N, T, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def mixing(self, length: int) -> Tensor:
        """Fixed causal attention: row t has the weights of positions 0 to t."""
        return torch.softmax(torch.ones(length, length).tril().log(), -1).double()

    def forward(self, x_NTF: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x_NTF))
        return self.second(self.mixing(x_NTF.shape[1]) @ hidden)


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def attending() -> Attending:
    torch.manual_seed(0)
    return Attending().double()


def by_position(name: str, **options: object) -> BroadcastRule:
    rule = build(name, **{"positions": "samples", **options})
    assert isinstance(rule, BroadcastRule)
    return rule


def loss_of(output: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), labels.flatten(), ignore_index=-100)


def test_the_written_out_equations_hold_for_sequences_of_any_length() -> None:
    model = apical.convert(attending(), DFA(positions="samples"))
    for length in (7, 3):  # one B for both
        x, labels = seeded(2, length, 4), torch.arange(2 * length).view(2, length) % CLASSES
        labels[0, -1] = -100
        model.zero_grad()
        output = model(x)
        output.retain_grad()
        loss_of(output, labels).backward()
        matrix = model.second.feedback.matrix  # (classes, 6)
        assert matrix.shape == (CLASSES, 6)
        error = torch.softmax(output.detach(), -1) - F.one_hot(labels.clamp_min(0), CLASSES)
        error = error * (labels >= 0).unsqueeze(-1) / (labels >= 0).sum()
        torch.testing.assert_close(output.grad, error)
        hidden = torch.tanh(x @ model.first.weight.T + model.first.bias)
        mixing = model.mixing(length)
        expected_second = torch.einsum("ntc,ntu->cu", error, mixing @ hidden)
        # the tap lies at the input of the second layer; attention below it stays exact
        delta = (mixing.T @ (error @ matrix)) * (1 - hidden**2)
        torch.testing.assert_close(model.second.weight.grad, expected_second)
        torch.testing.assert_close(model.first.weight.grad, torch.einsum("ntu,ntf->uf", delta, x))
        torch.testing.assert_close(model.first.bias.grad, delta.sum((0, 1)))


@pytest.mark.parametrize("name", BROADCASTING)
def test_a_sequence_equals_its_positions_one_by_one(name: str) -> None:
    """Without attention, positions are the samples of an ordinary net: every rule agrees with
    itself on rows, and ignored positions are as if they were not there."""

    def net() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, CLASSES)
        ).double()

    sequences, rows = net(), net()
    apical.convert(sequences, by_position(name), example=seeded(2, 3, 4))
    apical.convert(rows, name, example=seeded(6, 4))
    for length in (4, 6):
        x, labels = seeded(2, length, 4), torch.arange(2 * length).view(2, length) % CLASSES
        labels[1, 1:3] = -100
        with apical.labels(sequences, labels):
            loss_of(sequences(x), labels).backward()
        kept = labels.flatten() >= 0
        with apical.labels(rows, labels.flatten()[kept]):
            F.cross_entropy(rows(x.flatten(0, 1)[kept]), labels.flatten()[kept]).backward()
        for (full, ours), theirs in zip(
            sequences.named_parameters(), rows.parameters(), strict=True
        ):
            if full.startswith("0.feedback"):  # nothing below the first layer receives a signal
                assert ours.grad is theirs.grad is None
                continue
            assert ours.grad is not None and ours.grad.any(), full
            torch.testing.assert_close(ours.grad, theirs.grad, msg=full)


def test_an_error_at_one_position_reaches_that_position_alone() -> None:
    for rule in (
        DRTP(magnitude="one", positions="samples"),
        SignDFA(positions="samples"),
        LocalError(readout="trained", positions="samples"),
    ):
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
        model = apical.convert(net, rule, example=seeded(2, 3, 4))
        x = seeded(3, 5, 4).requires_grad_()
        labels = torch.full((3, 5), -100)
        labels[1, 2] = 4
        with apical.labels(model, labels):
            loss_of(model(x), labels).backward()
        assert x.grad is not None
        assert x.grad.any(-1).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("size", [4, 6])
def test_time_first(size: int) -> None:
    """`nn.TransformerEncoderLayer(batch_first=False)`: attention has its inputs batch first."""

    def transformer() -> nn.Sequential:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)
        return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, CLASSES)).double()

    x = seeded(4, size, 4)  # (time, samples, features)
    model = apical.convert(transformer(), DFA(positions="samples"))
    with pytest.raises(ValueError, match=r"self_attn.*sample_axis=1|output_axis=1"):
        model(x)
    rules = {
        "*.self_attn": DFA(positions="samples"),
        "*": DFA(positions="samples", sample_axis=1),
    }
    model = apical.convert(transformer(), rules, output_axis=1)
    for steps in (4, 3):
        given = x[:steps].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(given)[:, 0].sum(), given)
        assert gradient.any(-1).any(0).nonzero().flatten().tolist() == [0]


def test_positions_that_differ_are_refused_with_the_remedy() -> None:
    class Folds(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def net(kind: type[nn.Sequential]) -> nn.Sequential:
        return kind(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()

    model = apical.convert(net(Folds), DFA(positions="samples"))
    with pytest.raises(ValueError, match=r"0: .*positions \(6,\).*sample_axis='folded'"):
        model(seeded(2, 3, 4))
    model = apical.convert(net(Folds), DFA(positions="samples", sample_axis="folded"))
    model(seeded(2, 3, 4)).sum().backward()
    assert model[0].weight.grad is not None

    class Pools(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](torch.tanh(self[0](x)).mean(1))

    model = apical.convert(
        nn.Sequential(nn.Linear(4, 4), Pools(*net(nn.Sequential))).double(),
        DFA(positions="samples"),
        output_axis=0,
    )
    with pytest.raises(ValueError, match=r"0: .*\(2, 3\).*output \(2,\).*'0': 'fa'"):
        model(seeded(2, 3, 4))
    for kind in (DFA, LocalError, SignDFA):
        with pytest.raises(ValueError, match="positions='samples' needs sample_axis"):
            kind(positions="samples", sample_axis="steps")
    model = apical.convert(net(nn.Sequential), DFA(), output_axis=0)
    model(seeded(2, 3, 4)).sum().backward()
    with pytest.raises(ValueError, match="2: its input is .*positions='samples'"):
        model(seeded(2, 4, 4))


def test_swapped_axes_of_equal_sizes_are_refused() -> None:
    class Swaps(Attending):
        def forward(self, x_TNF: Tensor) -> Tensor:
            hidden = torch.tanh(self.first(x_TNF)).transpose(0, 1)
            mixed = (self.mixing(hidden.shape[1]) @ hidden).transpose(0, 1)  # time first again
            return self.second(mixed).transpose(0, 1)

    torch.manual_seed(0)
    model = apical.convert(Swaps().double(), DFA(positions="samples"))
    with pytest.raises(ValueError, match=r"second: .*sample_axis=1"):
        model(seeded(3, 3, 4))
    model = apical.convert(Swaps().double(), DFA(positions="samples", sample_axis=1))
    model(seeded(3, 3, 4)).sum().backward()


def test_batches_of_one_do_not_end_the_verification() -> None:
    class Swaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x_TNF: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x_TNF)).transpose(0, 1))

    model = apical.convert(Swaps().double(), DFA(positions="samples"))
    for _ in range(4):
        model(seeded(1, 1, 4).requires_grad_()).sum().backward()
    with pytest.raises(ValueError, match=r"first: .*sample_axis=1"):
        model(seeded(3, 3, 4).requires_grad_())


def test_the_equations_of_maps_at_two_resolutions() -> None:
    """A layer at half the resolution receives the sum of the errors of the four pixels over each
    of its own, through one matrix (classes, channels)."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.deep = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
            self.last = nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            low = F.avg_pool2d(torch.tanh(self.first(x)), 2)
            return self.last(F.interpolate(torch.tanh(self.deep(low)), x.shape[2:]))

    for name in ("dfa", "sdfa", "dkp", "dldfa"):
        apical.convert(Net(), by_position(name, positions="pixels"), example=torch.ones(1, 2, 2, 2))
    torch.manual_seed(0)
    model = apical.convert(Net().double(), DFA(positions="pixels"))
    for side in (8, 4):
        x = seeded(3, 2, side, side)
        model.zero_grad()
        output = model(x)
        output.retain_grad()
        output.square().mean().backward()
        error = output.grad
        first = torch.tanh(model.first(x).detach())
        low = F.avg_pool2d(first, 2)
        cells = error.unfold(2, 2, 2).unfold(3, 2, 2).sum((4, 5))
        at_low = torch.einsum("nchw,cu->nuhw", cells, model.deep.feedback.matrix)
        delta = F.interpolate(at_low, scale_factor=2) / 4 * (1 - first**2)
        torch.testing.assert_close(
            model.first.weight.grad[..., 0, 0], torch.einsum("nuhw,nfhw->uf", delta, x)
        )
        deep = torch.tanh(model.deep(low).detach())
        at_full = torch.einsum("nchw,cu->nuhw", error, model.last.feedback.matrix)
        below = F.avg_pool2d(at_full, 2) * 4 * (1 - deep**2)
        torch.testing.assert_close(
            model.deep.weight.grad[..., 0, 0], torch.einsum("nuhw,nfhw->uf", below, low)
        )
    with pytest.raises(ValueError, match="DRTP: positions='pixels'"):
        DRTP(positions="pixels")
    with pytest.raises(ValueError, match="positions='pixels' needs sample_axis=0"):
        DFA(positions="pixels", sample_axis=1)
    flat = apical.convert(
        nn.Sequential(Net(), nn.Flatten(), nn.Linear(48, 3)), DFA(positions="pixels")
    )
    with pytest.raises(ValueError, match="0.first: .*positions='pixels' they must agree"):
        flat(torch.ones(2, 2, 4, 4))


def test_labels_of_another_shape_are_refused() -> None:
    model = apical.convert(attending(), DRTP(positions="samples"))
    for labels in (torch.zeros(2), torch.zeros(2, 4, dtype=torch.long)):
        with (
            apical.labels(model, labels),
            pytest.raises(ValueError, match=r"second: labels are .*one for each position"),
        ):
            model(seeded(2, 3, 4))


# torch's compilers use what torch deprecates
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")
def test_compiled_with_two_lengths() -> None:
    model = apical.convert(attending(), DFA(positions="samples"))
    compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
    for length in (7, 3):
        x = seeded(2, length, 4)
        model.zero_grad()
        model(x).square().sum().backward()
        eager = model.first.weight.grad.clone()
        model.zero_grad()
        compiled(x).square().sum().backward()
        torch.testing.assert_close(model.first.weight.grad, eager)
