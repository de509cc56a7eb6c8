"""The private names of torch that the package uses: one module takes them, and each is what it was."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import threading
import types
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import captum_cav
from captum_cav import torch_internals as internals
from captum_cav.process_settings import Patch, SharedSetting

# Who takes private names --------------------------------------------------------------------------------------------

#: Private attributes of torch's objects.
ATTRIBUTES = {
    name
    for kind in (torch.Tensor, nn.Module, nn.Parameter, torch._ops.OpOverload, torch.autograd.Function)
    for name in [*dir(kind), *getattr(kind, "__annotations__", ())]
    if re.fullmatch(r"_[a-zA-Z]\w*", name)
}
ATTRIBUTES |= {name for name in vars(nn.Module()) if name.startswith("_")} | {"_sequence_nr", "_orig_mod"}
#: Modules as the users of torch see them, in which private names are attributes.
PRIVATE = re.compile(r"\b_[a-zA-Z]\w*")


def is_private(name: str) -> bool:
    """Whether a dotted name is of torch and has a private part."""
    return name.split(".")[0] == "torch" and any(PRIVATE.fullmatch(part) for part in name.split("."))


def private_names(source: str) -> set[str]:
    """What a module takes of torch by a private name: dotted names, and attributes of torch's objects as ``._base``."""
    tree = ast.parse(source)
    taken: set[str] = set()
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # Docstrings are no use.
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if node.attr in ATTRIBUTES and not own and not is_private(names[0]):
                taken.add(f".{node.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            names = [node.value]
            if node.value in ATTRIBUTES:
                taken.add(f".{node.value}")
        taken.update(name for name in names if is_private(name))
    # Of torch._C and torch._C.x the longer name says more.
    return {name for name in taken if not any(other.startswith(f"{name}.") for other in taken)}


SOURCES = {
    path.relative_to(Path(captum_cav.__file__).parent).as_posix(): path.read_text()
    for path in sorted(Path(captum_cav.__file__).parent.rglob("*.py"))
}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from torch._dynamo import disable", "torch._dynamo.disable"),
        ("import torch.utils._pytree", "torch.utils._pytree"),
        ("from torch.utils import _pytree as pytree", "torch.utils._pytree"),
        ("from torch.nn.modules.batchnorm import _BatchNorm", "torch.nn.modules.batchnorm._BatchNorm"),
        ("def f():\n    import torch\n    return torch._C._get_tracing_state()", "torch._C._get_tracing_state"),
        ("import importlib\nimportlib.import_module('torch._inductor')", "torch._inductor"),
        ("def f(x):\n    return x._base", "._base"),
        ("def f(x):\n    return x.layer._version", "._version"),
        ("def f(x):\n    return getattr(x, '_parameters')", "._parameters"),
        ("def f(x):\n    x.grad_fn._sequence_nr()", "._sequence_nr"),
        ("def f(self):\n    return self.model._forward_pre_hooks", "._forward_pre_hooks"),
    ],
)
def test_the_search_for_private_names_finds_them(source: str, name: str) -> None:
    assert private_names(source) == {name}


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.relu",
        "import torch\ntorch.__version__",
        "class A:\n    def f(self):\n        return self._modules",
        "'''A docstring of torch._C.'''",
        "from captum_cav.x import _base",
        "def f(x):\n    return x._mine",
    ],
)
def test_the_search_for_private_names_finds_no_others(source: str) -> None:
    assert private_names(source) == set()


@pytest.mark.parametrize("module", [name for name in SOURCES if name not in ("torch_internals.py", "torch_graphs.py")])
def test_no_other_module_takes_private_names_of_torch(module: str) -> None:
    assert private_names(SOURCES[module]) == set()


def test_everything_is_exported() -> None:
    for name in internals.__all__:
        assert hasattr(internals, name)


# Around a whole pass ------------------------------------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * 2


def never() -> bool:
    return False


def in_another_thread(act: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


def test_custom_functions_are_applied_as_asked_and_then_as_ever() -> None:
    before = torch.autograd.Function.__dict__["apply"]
    calls: list[Any] = []

    def apply(function: Any, args: Any, kwargs: Any) -> str:
        calls.append((function, args, kwargs))
        return "followed"

    with internals.patched_torch(apply, never):
        assert Doubled.apply(3, more=4) == "followed"
    assert calls == [(Doubled, (3,), {"more": 4})]
    assert torch.autograd.Function.__dict__["apply"] is before
    assert Doubled.apply(torch.ones(1)).tolist() == [2.0]


def test_custom_functions_are_applied_as_ever_at_rest_and_when_asked_to_and_by_other_threads() -> None:
    is_at_rest = [False]
    x = torch.ones(1)
    with internals.patched_torch(lambda *call: "followed", lambda: is_at_rest[0]):
        assert internals.apply_as_torch_does(Doubled, (x,), {}).tolist() == [2.0]
        assert Doubled.apply(x) == "followed"
        assert in_another_thread(lambda: Doubled.apply(x).tolist()) == [2.0]
        is_at_rest[0] = True
        assert Doubled.apply(x).tolist() == [2.0]


def test_a_pass_inside_a_pass_gives_the_functions_back() -> None:
    x = torch.ones(1)
    with internals.patched_torch(lambda *call: "outer", never):
        with internals.patched_torch(lambda *call: "inner", never):
            assert Doubled.apply(x) == "inner"
        assert Doubled.apply(x) == "outer"


def test_functions_of_rules_are_never_followed() -> None:
    class Own(internals.OwnFunction, Doubled):
        pass

    with internals.patched_torch(lambda *call: "followed", never):
        assert Own.apply(torch.ones(1)).tolist() == [2.0]


def test_full_backward_hooks_do_not_run_in_the_thread_that_follows() -> None:
    called: list[str] = []
    layer = nn.ReLU()
    layer.register_full_backward_hook(lambda *args: called.append("hook"))
    layer.register_full_backward_pre_hook(lambda *args: called.append("pre-hook"))
    x = torch.ones(1, requires_grad=True)

    def differentiate() -> list[float]:
        (found,) = torch.autograd.grad(layer(x * 1), x)
        return found.tolist()

    with internals.patched_torch(lambda *call: None, never):
        assert differentiate() == [1.0]
        assert called == []
        in_another_thread(differentiate)
        assert called == ["pre-hook", "hook"]
    differentiate()
    assert called == ["pre-hook", "hook"] * 2


def test_compiled_code_runs_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    stances: list[str] = []

    @contextmanager
    def set_stance(stance: str) -> Iterator[None]:
        stances.append(stance)
        yield
        stances.append("as before")

    monkeypatch.setitem(sys.modules, "torch._dynamo", types.ModuleType("torch._dynamo"))
    monkeypatch.setattr(torch.compiler, "set_stance", set_stance, raising=False)
    with internals.patched_torch(lambda *call: None, never):
        assert stances == ["force_eager"]
    assert stances == ["force_eager", "as before"]


def test_where_nothing_can_be_compiled_nothing_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setattr(torch.compiler, "set_stance", None)
    with internals.patched_torch(lambda *call: None, never):
        pass


def test_torch_has_the_stance() -> None:
    assert next(iter(inspect.signature(torch.compiler.set_stance).parameters)) == "stance"
    assert "force_eager" in (torch.compiler.set_stance.__doc__ or "")


def test_the_last_user_of_a_setting_puts_it_back() -> None:
    events: list[str] = []

    @contextmanager
    def change() -> Iterator[None]:
        events.append("changed")
        yield
        events.append("restored")

    shared: Callable[[], AbstractContextManager[None]] = SharedSetting(change)
    first, second = ExitStack(), ExitStack()
    first.enter_context(shared())
    second.enter_context(shared())
    first.close()  # The first user goes, and the second one still needs the setting.
    assert events == ["changed"]
    second.close()
    assert events == ["changed", "restored"]
    with shared():
        assert events == ["changed", "restored", "changed"]


class Patched:
    value, other = 1, 2


@pytest.mark.parametrize("times", [1, 2])
def test_a_patch_may_be_left_in_any_state(times: int) -> None:
    """An interrupt may come before everything is replaced, and while the patch is left."""

    def interrupted(before: int) -> int:
        raise KeyboardInterrupt

    patch = Patch((Patched, "value", lambda before: before + 10), (Patched, "other", interrupted))
    patch.__exit__()
    with pytest.raises(KeyboardInterrupt):
        patch.__enter__()
    assert (Patched.value, Patched.other) == (11, 2)
    for _ in range(times):
        patch.__exit__()
        assert (Patched.value, Patched.other) == (1, 2)


def test_a_setting_is_put_back_although_an_interrupt_came_while_it_was_left() -> None:
    class Interrupted(Patch):
        is_interrupted = True

        def __exit__(self, *error: object) -> None:
            if self.is_interrupted:
                self.is_interrupted = False
                raise KeyboardInterrupt
            super().__exit__(*error)

    shared = SharedSetting(lambda: Interrupted((Patched, "value", lambda before: before + 10)))
    with pytest.raises(KeyboardInterrupt), shared():
        assert Patched.value == 11
    assert Patched.value == 1


def test_the_forward_pass_of_a_custom_function_runs_like_plain_code() -> None:
    x = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        output, constants = internals.run_as_written(Doubled, (x,), {})
    assert output.grad_fn.name() == "MulBackward0"
    assert constants == set()


def test_the_context_of_a_custom_function_is_torchs_own() -> None:
    needed: list[Any] = []

    class Selecting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor, number: int) -> Any:
            needed.append(ctx.needs_input_grad)
            ctx.save_for_backward(x)
            ctx.kept = number
            indices = x * 0
            ctx.mark_non_differentiable(indices)
            return x * number, indices

    x, y = torch.ones(1, requires_grad=True), torch.ones(1)
    (output, indices), constants = internals.run_as_written(Selecting, (x, y, 3), {})
    assert needed == [(True, False, False)]
    assert output.tolist() == [3.0]
    assert constants == {id(indices)}


def test_a_custom_function_may_set_up_its_context_apart() -> None:
    class Apart(torch.autograd.Function):
        @staticmethod
        def forward(x: torch.Tensor, factor: int = 1) -> torch.Tensor:
            return x * factor

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            raise AssertionError

    output, constants = internals.run_as_written(Apart, (torch.ones(1),), {"factor": 5})
    assert output.tolist() == [5.0]
    assert constants == set()


# Functions ----------------------------------------------------------------------------------------------------------


def test_an_overload_has_a_module_and_a_plain_name() -> None:
    assert isinstance(torch.ops.aten.add.Tensor, internals.Overload)
    assert not isinstance(torch.ops.aten.add, internals.Overload)
    assert internals.overload_name(torch.ops.aten.add.Tensor) == ("torch._ops.aten", "add")
    assert internals.overload_name(torch.ops.aten.relu_.default) == ("torch._ops.aten", "relu_")


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (torch.nn.functional.linear, "torch._C"),
        (torch.nn.functional.relu, "torch.nn"),
        (torch.Tensor.split, "torch._tensor"),
        (torch.einsum, "torch.functional"),
        (torch.ops.aten.relu.default, "torch._ops.aten"),
    ],
    ids=["built-in", "of torch.nn", "of tensors", "functional", "overload"],
)
def test_functions_of_torch_say_in_which_module_they_are(function: Any, module: str) -> None:
    assert module in internals.TORCH_MODULES
    assert function.__module__.startswith(module)


class Noting(TorchFunctionMode):
    """Notes the functions that it sees, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_the_body_of_a_function_shows_its_operations() -> None:
    x = torch.tensor([0.5])
    tanhshrink: Any = F.tanhshrink
    with Noting() as outside:
        expected = tanhshrink(x)
    assert outside.seen == ["tanhshrink"]
    with Noting() as inside:
        found = internals.body_of(tanhshrink)(x)
    assert inside.seen == ["tanh", "sub"]
    assert torch.equal(found, expected)


def test_the_body_of_a_function_keeps_its_defaults() -> None:
    def function(a: int, b: int = 2, *, c: int = 3) -> tuple[int, int, int]:
        return a, b, c + extra

    extra = 10
    assert internals.body_of(function)(1) == (1, 2, 13)  # type: ignore[arg-type]


def test_functions_of_torch_check_for_overrides_by_three_names() -> None:
    names: set[str] = set()
    for function in vars(F).values():
        if isinstance(function, types.FunctionType) and function.__module__ == "torch.nn.functional":
            names.update(name for name in function.__code__.co_names if "has_torch_function" in name)
    assert names == {"has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"}


def test_the_innermost_module_is_read_off_the_stack() -> None:
    found: list[nn.Module | None] = []

    class Asking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def ask() -> None:
                found.append(internals.innermost_called())

            ask()
            found.append(in_another_thread(internals.innermost_called))
            return x

    asking = Asking()
    nn.Sequential(asking)(torch.zeros(1))
    asking.register_forward_hook(lambda *args: None)  # Torch calls a module with hooks in another way.
    nn.Sequential(asking)(torch.zeros(1))
    assert found == [asking, None] * 2
    assert internals.innermost_called() is None


def test_the_code_that_calls_is_known_by_its_module() -> None:
    def ask(depth: int) -> bool:
        return internals.is_called_by((__name__,), depth)

    assert ask(1)
    assert ask(2)
    assert not internals.is_called_by(("torch.autograd",), 1)
    assert internals.is_called_by((__name__.rpartition(".")[0],), 1)


def test_torch_derives_in_these_modules() -> None:
    callers: list[bool] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        frame: types.FrameType | None = sys._getframe(1)
        names = []
        while frame is not None:
            names.append(str(frame.f_globals.get("__name__")))
            frame = frame.f_back
        callers.append(any(name.startswith(internals.DERIVING_MODULES) for name in names))
        return x.sum()

    torch.autograd.functional.jacobian(function, torch.ones(1))
    assert callers == [True]
    # The first call of torch.func takes seconds. Its functions stand in this module, whatever module they name.
    assert torch.func.grad.__globals__["__name__"].startswith(internals.DERIVING_MODULES)


# Modules ------------------------------------------------------------------------------------------------------------


def test_every_module_comes_once_and_before_its_children() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Sequential(shared, nn.Tanh()), shared, nn.Linear(1, 1))
    model.register_module("missing", None)
    model[0].add_module("again", model[2])
    assert list(internals.modules_of(model)) == list(model.modules())


def test_a_model_that_holds_itself_ends() -> None:
    model = nn.Sequential(nn.ReLU())
    model[0].add_module("whole", model)
    assert list(internals.modules_of(model)) == [model, model[0]]


def test_wrappers_hold_the_model_where_they_did() -> None:
    compiling = (Path(torch.__file__).parent / "_dynamo" / "eval_frame.py").read_text()  # To import it takes long.
    assert "class OptimizedModule(torch.nn.Module):" in compiling
    assert "self._orig_mod = mod" in compiling
    model = nn.ReLU()
    wrapped = nn.DataParallel(model)
    assert getattr(wrapped, internals.WRAPPERS[type(wrapped).__name__]) is model
    assert internals.WRAPPERS[nn.parallel.DistributedDataParallel.__name__] == "module"


def test_a_module_has_parameters_of_its_own() -> None:
    layer = nn.Linear(1, 1, bias=False)
    assert [(name, parameter is layer.weight) for name, parameter in internals.own_parameters(layer)] == [
        ("weight", True)
    ]
    assert list(internals.own_parameters(nn.Sequential(layer))) == []


RANDOM: dict[str, Callable[[], Any]] = {
    "dropout": lambda: nn.Dropout(0.5),
    "dropout of channels": lambda: nn.Dropout2d(0.1),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "batch norm": lambda: nn.BatchNorm1d(2),
    "lazy batch norm": lambda: nn.LazyBatchNorm2d(),
    "random relu": lambda: nn.RReLU(),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)).parametrizations.weight[0],
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(2, 2)),
}
STEADY: dict[str, Callable[[], Any]] = {
    "dropout of nothing": lambda: nn.Dropout(0.0),
    "batch norm without statistics": lambda: nn.BatchNorm1d(2, track_running_stats=False),
    "layer norm": lambda: nn.LayerNorm(2),
    "linear": lambda: nn.Linear(2, 2),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
}


@pytest.mark.filterwarnings("ignore:.*spectral_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", [*RANDOM, *STEADY])
def test_modules_that_act_at_random_or_change_themselves(name: str) -> None:
    module: nn.Module = (RANDOM | STEADY)[name]()
    assert internals.acts_as_in_training(module) is (name in RANDOM)
    assert not internals.acts_as_in_training(module.eval())


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_old_backward_hooks_are_told_apart() -> None:
    module = nn.ReLU()
    assert not internals.has_old_backward_hook(module)
    handle = module.register_full_backward_hook(lambda *args: None)
    assert not internals.has_old_backward_hook(module)
    handle.remove()
    module = nn.ReLU()
    handle = module.register_backward_hook(lambda *args: None)
    assert internals.has_old_backward_hook(module)
    handle.remove()
    assert not internals.has_old_backward_hook(module)


# Tensors ------------------------------------------------------------------------------------------------------------


def test_later_operations_have_larger_ages() -> None:
    x = torch.ones(1, requires_grad=True)
    first = x * 2
    begin = internals.now()
    second = first * 2
    assert internals.age_of(first) < begin < internals.age_of(second) < internals.now()


def test_the_age_is_known_also_where_nothing_is_recorded() -> None:
    with torch.no_grad():
        begin = internals.now()
        assert internals.now() > begin
    with torch.device("meta"):
        assert internals.now() > begin


def test_the_base_of_a_view_is_known() -> None:
    x = torch.zeros(2, 3)
    assert internals.base_of(x) is None
    assert internals.base_of(x[0][1:]) is x
    assert internals.base_of(x.clone()) is None
    assert internals.base_of(x.detach()) is None


def test_writing_is_counted_unless_the_version_is_kept() -> None:
    x = torch.zeros(2)
    assert not internals.version_of(x)
    with internals.keeps_version(x):
        x.add_(1)
    assert not internals.version_of(x)
    x[:1].add_(1)
    assert internals.version_of(x)
    assert not internals.version_of(x.clone())


def test_what_autograd_saved_may_be_read_if_the_version_was_kept() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    y = x * 1
    z = y * y
    with internals.keeps_version(y), torch.no_grad():
        y.copy_(y.clone())
    assert torch.autograd.grad(z, x)[0].tolist() == [4.0]


class Counting:
    """Hooks on saved tensors that count what they are given."""

    def __init__(self) -> None:
        self.packed = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.packed += 1
        return tensor

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def __call__(self) -> AbstractContextManager[Any]:
        return torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)


def square_of_leaf() -> torch.Tensor:
    return torch.ones(1, requires_grad=True) ** 2


@pytest.fixture
def in_a_pass() -> Iterator[None]:
    """Torch as while a model is explained. Before version 2.8, only then are hooks on saved tensors known."""
    with internals.patched_torch(lambda function, args, kwargs: None, lambda: True):
        yield


@pytest.mark.usefixtures("in_a_pass")
def test_the_hooks_on_saved_tensors_are_known() -> None:
    assert internals.hooks_on_saved_tensors() is None
    outer, inner = Counting(), Counting()
    with outer():
        of_outer = internals.hooks_on_saved_tensors()
        assert of_outer is not None
        with inner():
            assert internals.hooks_on_saved_tensors() != of_outer
        assert internals.hooks_on_saved_tensors() == of_outer
    assert internals.hooks_on_saved_tensors() is None


@pytest.mark.usefixtures("in_a_pass")
def test_hooks_of_the_model_are_given_nothing_and_those_of_the_caller_stay() -> None:
    callers, models = Counting(), Counting()
    with callers():
        since = internals.hooks_on_saved_tensors()
        with internals.save_as_they_are(since):
            square_of_leaf()
        assert callers.packed == 1
        with models(), internals.save_as_they_are(since):
            square_of_leaf()
        assert (callers.packed, models.packed) == (1, 0)
    with models(), internals.save_as_they_are(None):
        square_of_leaf()
    assert models.packed == 0
    with internals.save_as_they_are(None):
        square_of_leaf()


# Structures ---------------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["first", "second"])


def test_structures_of_torch_are_mapped() -> None:
    value = {"a": (1, [2, None]), "b": Pair(3, "text")}
    assert internals.tree_map(lambda leaf: (leaf,), value) == {
        "a": ((1,), [(2,), (None,)]),
        "b": Pair((3,), ("text",)),
    }
    assert internals.tree_leaves(value) == [1, 2, None, 3, "text"]
    assert internals.tree_map(lambda leaf: leaf + 1, 1) == 2


def test_batched_coefficients_are_recognised() -> None:
    """Torch has two kinds: that of ``is_grads_batched``, and that of ``torch.vmap``."""
    x = torch.ones(2, requires_grad=True)
    seen = []

    class Noting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            seen.append(internals.is_batched(gradient))
            return gradient

    y = Noting.apply(x)
    torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True, retain_graph=True)
    torch.vmap(lambda seed: torch.autograd.grad(y, x, seed, retain_graph=True))(torch.eye(2))
    torch.autograd.grad(y, x, torch.ones(2))
    assert seen == [True, True, False]
