"""Weights that a model multiplies outside the forward of converted layers, where no rule can act.

`F.linear(x, layer.weight)` passes the exact gradient to what is below, whatever the layer's rule
is. The graph of a training call shows it: a product with the weight that is not the layer's own. It
is examined at the calls 1, 2, 4, 8 and so on, so that in the long run it costs next to nothing.

So does a layer that the model got after the conversion, as a new head. Layers are compared with
those of the conversion in the same calls, and in the first after any module got a child.
"""

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from apical.core import outputs, updates
from apical.core.adapters import mixin_for
from apical.core.converted import broadcasts
from apical.core.graph import Graph
from apical.core.layers import feedback_modules, is_converted
from apical.core.search import Found, Kept, Search, address, module_named, parameters_of


class Guard:
    """Finds uses of weights outside their layers in training calls of a converted model.

    Its methods `before` and `after` are hooks of the model.

    Attributes:
        layers: by name of a converted layer, the class of its rule;
        exact: names of layers that the user keeps exact; "" if all that have no name here are;
        kept: parameters that should be no factors of products;
        raises: whether it raises ValueError; else it warns, once of each;
        calls: training calls so far;
        changes: of all models of the process, how often a module got a child.
    """

    changes: ClassVar[int] = 0

    def __init__(
        self, layers: dict[str, str], exact: set[str], kept: list[Kept], *, raises: bool
    ) -> None:
        self.layers = layers
        self.exact = exact
        self.kept = kept
        self.raises = raises
        self.calls = 0
        self._reported: set[str] = set()
        self._exact_blocks = 0
        self._compared: int | None = None  # `changes` when layers were last compared
        self._modules: WeakSet[nn.Module] = WeakSet()  # of the model when it was converted

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_modules": list(self._modules)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _compared=None, _modules=WeakSet(state["_modules"]))
        _count_changes()

    def attach(self, model: nn.Module) -> None:
        """Register the hooks."""
        _count_changes()
        self._modules.update(model.modules())
        model.register_forward_pre_hook(self.before)
        model.register_forward_hook(self.after)

    def accept(self, found: Iterable[str]) -> None:
        """The user accepts these uses, keys of what a search found."""
        for place in found:
            self.layers.pop(place, None)
            self.exact.add(place)
        self.kept = [kept for kept in self.kept if f"{kept.layer}.{kept.parameter}" not in found]

    def before(self, model: nn.Module, args: Any) -> None:
        """Forward pre-hook. Raises: ValueError while torch.jit.trace records a training call."""
        if torch.jit.is_tracing() and torch.is_grad_enabled():
            exporting = torch.onnx.is_in_onnx_export() and not broadcasts(model)
            if not (exporting or all(feedback.exact for feedback in feedback_modules(model))):
                raise ValueError(
                    f"{next(iter(self.layers), '') or '(root)'}: torch.jit.trace and exporters that"
                    " use it cannot record the backward pass of a rule; trace for inference, inside"
                    " torch.no_grad(), and train the model itself or torch.compile(model)"
                )
        if not torch.compiler.is_compiling() and torch.is_grad_enabled() and self._examines():
            self._exact_blocks = _exact_blocks(model)

    def after(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook. Raises: ValueError, or warns, naming all uses that it found."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if self._examines():
            if torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
                return  # not counted: the next call is due
            exact = any(feedback.exact for feedback in feedback_modules(model))
            if exact or self._exact_blocks != _exact_blocks(model):
                return  # all of it, or a part, ran inside `exact_gradients`
            changes = Guard.changes
            found = {} if hasattr(model, "_is_replica") else dict(self._new_layers(model))
            if found:
                found = self._used(model, output, found)
            if self._is_due():
                search = Search(model, self.layers, self.kept, partial(self._report, model))
                found |= search.run(output) | self._changed_ties(model)
            self._report(model, found)
            self._compared = changes
        self.calls += 1

    def _report(self, model: nn.Module, found: Found) -> None:
        """Raise ValueError of what was found, or warn of what is new."""
        if found and self.raises:
            raise ValueError(report(found.values()))
        new = {place: text for place, text in found.items() if place not in self._reported}
        if new:
            self._reported.update(new)
            for name in self.layers.keys() & new:
                updates.reported(model.get_submodule(name))
            warnings.warn(report(new.values()), stacklevel=3)

    def _changed_ties(self, model: nn.Module) -> Found:
        """Layers whose feedback follows a weight that another layer shares since the conversion, or
        shares no longer."""
        holders: dict[int, list[tuple[str, nn.Module]]] = {}
        for name, module in model.named_modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    holders.setdefault(_place(parameter), []).append((name, module))
        alike: dict[int, tuple[str, set[int]]] = {}
        found = {}
        for name, rule in self.layers.items():
            layer = module_named(model, name)
            if layer is None or not is_converted(layer):
                continue
            following = {id(f) for f in updates.feedback_of(layer) if f.rule.follows_weight}
            if not following:
                continue
            own, places = set(layer.modules()), {_place(p) for p in parameters_of(layer)}
            for key in following:
                before, others = alike.setdefault(key, (name, places))
                if others.isdisjoint(places):
                    found[name] = _of_tie(name, before, rule, "no longer shares its weight with")
            for other, module in (holder for key in places for holder in holders.get(key, ())):
                both = set(map(id, updates.feedback_of(module))) if is_converted(module) else set()
                if module not in own and following.isdisjoint(both):
                    found[name] = _of_tie(name, other, rule, "now shares its weight with")
        return found

    def _new_layers(self, module: nn.Module, within: str = "") -> Iterator[tuple[str, str]]:
        """Layers that a rule could convert and that the model got since the conversion.

        A module that is no container and directly holds a converted layer is an adapter around it,
        whose own layers are meant to be exact. Frozen layers count where they replace others.
        """
        for key, child in module.named_children():
            name = f"{within}{key}"
            if is_converted(child):
                continue
            if child in self._modules or mixin_for(child) is None:
                adapts = child not in self._modules and not isinstance(child, _CONTAINERS)
                if not (adapts and any(map(is_converted, child.children()))):
                    yield from self._new_layers(child, f"{name}.")
            elif not self._is_exact(name) and (
                name in self.layers or any(p.requires_grad for p in child.parameters())
            ):
                yield name, _of_new(name, type(child).__name__)

    def _used(self, model: nn.Module, output: Any, new: Found) -> Found:
        """New layers but for those that the output does not depend on, as a discriminator's or a
        loss's, which the call of the model leaves out."""
        nodes = Graph(outputs.tensors(output)).nodes
        if any(name.startswith(_HIDES) for name, _ in nodes):
            return new  # checkpointed or compiled, which hides parameters
        seen = {id(getattr(node, "variable", None)) for _, node in nodes}
        used = {}
        for name, text in new.items():
            parameters = list(model.get_submodule(name).parameters())
            plain = all(type(p) is nn.Parameter for p in parameters)  # not sharded
            if name in self.layers or not plain or not seen.isdisjoint(map(id, parameters)):
                used[name] = text
        return used

    def _is_exact(self, name: str) -> bool:
        """Whether the user keeps exact what is in this place of the model."""
        while name and name not in self.layers and name not in self.exact:
            name = name.rpartition(".")[0]
        return name in self.exact

    def _examines(self) -> bool:
        """Whether this call is examined: all uses of weights, or new layers at least."""
        return self._is_due() or self._compared != Guard.changes

    def _is_due(self) -> bool:
        return not self.calls & (self.calls + 1)


_HIDES = ("CheckpointFunction", "CompiledFunction")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HOOKS: list[Any] = []


def _count_changes() -> None:
    """Count, from now on, how often a module got a child."""
    if not _HOOKS:
        _HOOKS.append(register_module_module_registration_hook(_note_change))


def _note_change(module: nn.Module, name: str, child: nn.Module) -> None:
    Guard.changes += 1


def release(module: nn.Module) -> None:
    """Remove the hooks of guards from a module."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), Guard):
                del hooks[key]


def report(texts: Iterable[str]) -> str:
    """All that was found, in one message."""
    return "a gradient would be that of backpropagation, not of the rule:" + "".join(
        f"\n  - {text}" for text in texts
    )


def _of_new(layer: str, kind: str) -> str:
    return (
        f"{layer} ({kind}): is new in the model since apical.convert, and no rule acts on it."
        " apical.switch(model, rule, optimizer=optimizer) converts it, and leaves the feedback of"
        " the other layers as it is; or keep its exact gradient by name:"
        f" apical.switch(model, {{{layer!r}: 'bp', '*': rule}}, optimizer=optimizer)"
    )


def _of_tie(layer: str, other: str, rule: str, change: str) -> str:
    return (
        f"{layer or '(root)'}: {change} {other or '(root)'}, other than when it was converted, and"
        f" the feedback of {rule} would not follow it: apical.revert(model), then convert again"
    )


def _place(parameter: Tensor) -> int:
    """Equal for tensors that begin at one place of the memory; else the tensor's own."""
    return address(parameter) or id(parameter)


def _exact_blocks(model: nn.Module) -> int:
    return sum(feedback.exact_blocks for feedback in feedback_modules(model))
