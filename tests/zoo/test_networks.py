"""Networks and their classes: what is loaded is right, and what cannot be loaded is refused with a reason."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import urllib.error
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import functional as pictures

from captum_cav import zoo
from captum_cav.errors import CAVTypeError, InputError, ModelError
from captum_cav.zoo.weights import read_arrays


class TestFactories:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "own_networks.py").write_text(
            "import torch\n"
            "from captum_cav.zoo import Network\n"
            "constant = 3\n"
            "class Net(torch.nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.fc = torch.nn.Linear(2, 3)\n"
            "def network():\n"
            "    return Network('mine', Net(), None, None, ('cat', 'dog'), ('fc',))\n"
            "def needs(width):\n"
            "    return Net()\n"
            "def wrong():\n"
            "    return [1]\n"
            "def broken():\n"
            "    raise KeyError('of the factory')\n"
        )
        (tmp_path / "lacks_something.py").write_text("import a_package_that_nobody_has\n")
        monkeypatch.syspath_prepend(tmp_path)

    def test_a_module_is_wrapped(self) -> None:
        network = zoo.load_factory("own_networks:Net")
        assert (network.name, network.classes, network.depths) == ("own_networks:Net", (), ())
        assert not network.model.training
        picture = zoo.demo_picture()
        expected = torchvision.models.AlexNet_Weights.DEFAULT.transforms()(picture)
        assert torch.equal(network.preprocess(picture), expected)
        assert network.display(picture).size == (224, 224)

    def test_a_network_is_used_as_it_is(self) -> None:
        network = zoo.load_factory("own_networks:network")
        assert (network.name, network.classes, network.depths) == ("mine", ("cat", "dog"), ("fc",))
        assert not network.model.training

    def test_weights_are_put_in(self, tmp_path: Path) -> None:
        state = nn.Linear(2, 3).state_dict(prefix="fc.")
        network = zoo.load_factory("own_networks:Net", saved(state, tmp_path))
        assert torch.equal(network.model.get_parameter("fc.weight"), state["fc.weight"])
        with pytest.raises(ModelError, match="do not fit own_networks:Net"):
            zoo.load_factory("own_networks:Net", saved({"other": torch.zeros(1)}, tmp_path))

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("own_networks", "does not name a factory"),
            ("own_networks:", "does not name a factory"),
            (":Net", "does not name a factory"),
            (".own_networks:Net", "does not name a factory"),
            ("own_networks:Net()", "does not name a factory"),
            ("own_networks:Net.forward", "does not name a factory"),
            ("__import__('os'):system", "does not name a factory"),
            ("no_such_module:Net", "cannot import no_such_module .*PYTHONPATH"),
            ("own_networks.inner:Net", "cannot import own_networks.inner"),
            ("lacks_something:Net", "a_package_that_nobody_has"),
            ("own_networks:netwrok", "has no 'netwrok'; near matches: network"),
            ("own_networks:constant", "is no function: it is int"),
            ("own_networks:needs", "without arguments: missing a required argument: 'width'"),
        ],
    )
    def test_a_bad_spec_is_refused(self, spec: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            zoo.load_factory(spec)

    def test_anything_else_that_it_returns_is_refused(self) -> None:
        with pytest.raises(CAVTypeError, match=r"own_networks:wrong returned list: expected a Network or a torch\.nn"):
            zoo.load_factory("own_networks:wrong")

    def test_an_error_of_the_factory_is_passed_on(self) -> None:
        with pytest.raises(KeyError, match="of the factory"):
            zoo.load_factory("own_networks:broken")


PACKAGED = ("squeezenet1_1", "efficientnet_lite0")


@pytest.fixture(scope="module")
def networks() -> dict[str, zoo.Network]:
    return {name: zoo.load(name) for name in PACKAGED}


@pytest.fixture(scope="module")
def small() -> nn.Module:
    model: nn.Module = torchvision.models.mobilenet_v3_small().eval()
    return model


def network_with(classes: tuple[str, ...]) -> zoo.Network:
    return zoo.Network("toy", nn.Identity(), lambda picture: torch.zeros(3, 1, 1), lambda picture: picture, classes)


def saved(state: Any, folder: Path, name: str = "weights.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


def sizes_of(network: zoo.Network) -> list[int]:
    """The height of the output of each layer in ``depths``."""
    sizes: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            sizes[name] = output.shape[-2]

        return hook

    hooks = [network.model.get_submodule(name).register_forward_hook(note(name)) for name in network.depths]
    with torch.no_grad():
        network.model(network.preprocess(zoo.demo_picture())[None])
    for hook in hooks:
        hook.remove()
    return [sizes[name] for name in network.depths]


class TestClasses:
    TOY = network_with(("tabby", "Tiger Cat", "tiger", "German shepherd", "sand viper", "sand bar"))

    @pytest.mark.parametrize(
        ("given", "index"),
        [
            (0, 0),
            (5, 5),
            ("3", 3),
            (" 3 ", 3),
            (np.int64(2), 2),
            ("tabby", 0),
            ("TABBY", 0),
            ("tiger cat", 1),
            ("tiger", 2),
            ("shepherd", 3),
        ],
    )
    def test_finds_the_class(self, given: Any, index: int) -> None:
        assert self.TOY.class_index(given) == index

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("tabbi", "near matches: tabby"),
            ("German shepard", "near matches: German shepherd"),
            ("qqqq", "no name comes near"),
            ("sand", r"fits 2 classes of toy: sand viper \(4\), sand bar \(5\)"),
            ("", "is empty"),
            (6, "no class 6: give an index from 0 to 5"),
            ("6", "no class 6: give an index from 0 to 5"),
            (-1, "no class -1"),
            ("-1", "no class -1"),
            (1.0, "not 1.0"),
            (True, "not True"),
            (None, "not None"),
        ],
    )
    def test_refuses_what_is_no_class(self, given: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            self.TOY.class_index(given)

    def test_a_long_list_of_candidates_is_cut(self) -> None:
        with pytest.raises(InputError, match=r"fits 12 classes .* dog 7 \(7\) and 4 more"):
            network_with(tuple(f"dog {number}" for number in range(12))).class_index("dog")

    def test_without_names_any_index_passes_and_names_do_not(self) -> None:
        nameless = network_with(())
        assert nameless.class_index("4711") == 4711
        with pytest.raises(InputError, match="from 0 on"):
            nameless.class_index(-1)
        with pytest.raises(InputError, match="class names of toy are not known"):
            nameless.class_index("tabby")

    def test_imagenet_names_are_found_although_some_contain_others(self, networks: dict[str, zoo.Network]) -> None:
        network = networks["squeezenet1_1"]
        assert len(network.classes) == 1000
        assert [network.class_index(name) for name in ("tabby", "tiger cat", "boxer", "crane")] == [281, 282, 242, 517]

    def test_class_name(self) -> None:
        assert [self.TOY.class_name(index) for index in (0, 5, 6, -1)] == ["tabby", "sand bar", "class 6", "class -1"]


class TestPackagedNetworks:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            (
                "squeezenet1_1",
                {"German shepherd": 36.2, "tabby": 33.0, "Egyptian cat": 32.0, "dingo": 31.3, "tiger cat": 31.0},
            ),
            ("efficientnet_lite0", {"Egyptian cat": 6.99, "German shepherd": 5.68, "tabby": 5.47, "tiger cat": 4.59}),
        ],
    )
    def test_scores_of_the_demo_picture(
        self, networks: dict[str, zoo.Network], name: str, expected: dict[str, float]
    ) -> None:
        network = networks[name]
        with torch.no_grad():
            scores = network.model(network.preprocess(zoo.demo_picture())[None])[0]
        top = scores.topk(len(expected)).indices.tolist()
        assert [network.class_name(index) for index in top] == list(expected)
        # Another version of Pillow may round the resized pixels differently.
        assert scores[top].tolist() == pytest.approx(list(expected.values()), rel=0.01)

    @pytest.mark.parametrize(("name", "size"), [("squeezenet1_1", 227), ("efficientnet_lite0", 224)])
    def test_show_the_whole_picture_as_the_network_gets_it(
        self, networks: dict[str, zoo.Network], name: str, size: int
    ) -> None:
        network = networks[name]
        wide = Image.new("RGB", (400, 200), (250, 10, 20))
        wide.paste((0, 0, 200), (0, 0, 40, 200))
        shown = network.display(wide)
        assert shown.size == (size, size)
        assert shown.getpixel((2, size // 2)) == (0, 0, 200)
        tensor = network.preprocess(wide)
        assert tensor.shape == (3, size, size)
        assert tensor.dtype == torch.float32
        rgb = pictures.pil_to_tensor(shown).float()
        if name == "squeezenet1_1":
            assert tensor[0] == pytest.approx(rgb[2] - 104.006)
            assert tensor[2] == pytest.approx(rgb[0] - 122.679)
        else:
            assert tensor == pytest.approx(rgb / 127.5 - 1, abs=1e-6)

    @pytest.mark.parametrize("name", PACKAGED)
    def test_are_in_eval_mode(self, networks: dict[str, zoo.Network], name: str) -> None:
        assert not any(module.training for module in networks[name].model.modules())

    @pytest.mark.parametrize("name", PACKAGED)
    def test_take_weights_from_a_file(self, networks: dict[str, zoo.Network], name: str, tmp_path: Path) -> None:
        model = networks[name].model
        # Weights other than the packaged ones, or reading those would pass as well.
        state = {key: value / 2 if value.is_floating_point() else value for key, value in model.state_dict().items()}
        loaded = zoo.load(name, saved(state, tmp_path)).model.state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in model.state_dict())

    def test_squeezenet_from_a_file_gets_the_preprocessing_of_torchvision(
        self, networks: dict[str, zoo.Network], tmp_path: Path
    ) -> None:
        network = zoo.load("squeezenet1_1", saved(networks["squeezenet1_1"].model.state_dict(), tmp_path))
        expected = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()(zoo.demo_picture())
        assert torch.equal(network.preprocess(zoo.demo_picture()), expected)

    @pytest.mark.parametrize("name", PACKAGED)
    def test_a_missing_package_is_named_with_its_remedy(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(distribution: str) -> Any:
            raise importlib.metadata.PackageNotFoundError(distribution)

        monkeypatch.setattr(importlib.metadata, "distribution", missing)
        with pytest.raises(ModelError, match=r'is not installed: pip install "captum_cav\[demo\]"'):
            zoo.load(name)

    def test_a_package_without_its_file_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Emptied:
            version = "9.9"

            def locate_file(self, file: str) -> Path:
                return tmp_path / file

        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Emptied())
        with pytest.raises(ModelError, match=r"ndf 9\.9 does not hold .*squeezenet_weights\.pkl"):
            zoo.load("squeezenet1_1")

    def test_efficientnet_adds_its_inputs_where_the_shapes_allow(self) -> None:
        adding = [index for index, block in enumerate(zoo.EfficientNetLite0().blocks) if block.adds_input]
        assert adding == [2, 4, 6, 7, 9, 10, 12, 13, 14]


class TestRestrictedUnpickler:
    def place(self, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Puts ``content`` where the weights of the package are looked for."""
        path = folder / "weights.pkl"
        path.write_bytes(content)

        class Replaced:
            version = "0.1.4"

            def locate_file(self, file: str) -> Path:
                return path

        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Replaced())

    def test_refuses_a_call_and_does_not_make_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trace = tmp_path / "trace"

        class Malicious:
            def __reduce__(self) -> Any:
                return os.system, (f'echo > "{trace}"',)

        content = pickle.dumps({"conv1": Malicious()})
        self.place(content, tmp_path, monkeypatch)
        with pytest.raises(ModelError, match=r"asks for (posix|nt)\.system, but only numpy arrays"):
            zoo.load("squeezenet1_1")
        assert not trace.exists()
        pickle.loads(content)  # noqa: S301 - made above
        assert trace.exists(), "the pickle was harmless and proves nothing"

    @pytest.mark.parametrize("function", [np.load, np.ones, eval])
    def test_refuses_other_functions_even_of_numpy(
        self, function: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.place(pickle.dumps(function), tmp_path, monkeypatch)
        with pytest.raises(ModelError, match="only numpy arrays"):
            zoo.load("squeezenet1_1")

    @pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
    def test_reads_arrays_of_numpy_1_and_2(self, module: bytes, tmp_path: Path) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        content = pickle.dumps({"a": array}, protocol=3)
        content = content.replace(b"numpy._core.multiarray", module).replace(b"numpy.core.multiarray", module)
        path = tmp_path / "arrays.pkl"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = read_arrays(path)
        assert np.array_equal(read["a"], array)

    def test_a_damaged_file_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place(pickle.dumps({"conv1": np.ones(3)})[:-20], tmp_path, monkeypatch)
        with pytest.raises(ModelError, match=r"cannot read the weights .*weights\.pkl"):
            zoo.load("squeezenet1_1")


class TestTorchvisionModels:
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_weights_from_a_file(self, small: nn.Module, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"weights{suffix}"
        if suffix == ".pth":
            torch.save(small.state_dict(), path)
        else:
            save_file(small.state_dict(), path)
        network = zoo.load("mobilenet_v3_small", path)
        x = network.preprocess(zoo.demo_picture())[None]
        with torch.no_grad():
            assert torch.equal(network.model(x), small(x))
        assert network.name == "mobilenet_v3_small"
        assert network.class_index("tabby") == 281
        assert network.depths == ()

    def test_display_is_what_preprocess_feeds(self, small: nn.Module, tmp_path: Path) -> None:
        network = zoo.load("mobilenet_v3_small", saved(small.state_dict(), tmp_path))
        tall = zoo.demo_picture().resize((300, 500))
        shown = network.display(tall)
        assert shown.size == (224, 224)
        mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        assert network.preprocess(tall) == pytest.approx(
            pictures.normalize(pictures.to_tensor(shown), mean, deviation), abs=1e-6
        )

    def test_default_weights_are_asked_for(self, small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = {}

        def get_model(name: str, weights: Any) -> nn.Module:
            asked[name] = weights
            return small.train()

        monkeypatch.setattr(torchvision.models, "get_model", get_model)
        network = zoo.load("mobilenet_v3_small")
        assert asked == {"mobilenet_v3_small": torchvision.models.MobileNet_V3_Small_Weights.DEFAULT}
        assert network.model is small
        assert not small.training

    def test_a_failed_download_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise urllib.error.URLError("no route to host")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        monkeypatch.setattr(torch.hub, "urlopen", refuse)
        with pytest.raises(ModelError) as caught:
            zoo.load("mobilenet_v3_small")
        message = str(caught.value)
        assert message.startswith("the weights of mobilenet_v3_small could not be downloaded: no route to host. ")
        assert "weights=FILE" in message
        assert "--weights FILE" in message

    def test_googlenet_takes_weights_with_and_without_auxiliary_heads(self, tmp_path: Path) -> None:
        model = torchvision.models.googlenet(init_weights=False, aux_logits=True, transform_input=True).eval()
        with_heads = model.state_dict()
        without = {key: value for key, value in with_heads.items() if not key.startswith("aux")}
        assert len(without) < len(with_heads)
        x = torch.rand(1, 3, 64, 64)
        for state in (with_heads, without):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                network = zoo.load("googlenet", saved(state, tmp_path))
            with torch.no_grad():
                assert torch.equal(network.model(x), model(x))

    def test_densenet_takes_the_old_names_of_the_published_file(self, tmp_path: Path) -> None:
        model = torchvision.models.densenet121().eval()
        state = model.state_dict()
        old = {
            key.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1.")
            if "denselayer" in key
            else key: value
            for key, value in state.items()
        }
        assert old.keys() != state.keys()
        loaded = zoo.load("densenet121", saved(old, tmp_path)).model.state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)

    def test_a_model_that_looks_at_the_version_of_its_state_dict(self, tmp_path: Path) -> None:
        state = torchvision.models.mnasnet0_5().state_dict()
        loaded = zoo.load("mnasnet0_5", saved(dict(state), tmp_path)).model.state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("resnet81", "resnet18"),
            ("squeezenet1_2", "near matches: squeezenet1_1"),
            ("efficientnet_lite", "efficientnet_lite0"),
            ("?", "no name comes near"),
        ],
    )
    def test_an_unknown_name_is_refused(self, name: str, hint: str) -> None:
        with pytest.raises(InputError, match=hint):
            zoo.load(name)


class TestUnfitWeights:
    def refused(self, weights: Any, name: str = "mobilenet_v3_small") -> str:
        with pytest.raises(ModelError) as caught:
            zoo.load(name, weights)
        assert str(weights) in str(caught.value)
        return str(caught.value)

    def test_missing_and_unexpected_keys_are_listed(self, small: nn.Module, tmp_path: Path) -> None:
        state = small.state_dict()
        for key in list(state)[:5]:
            state[f"module.{key}"] = state.pop(key)
        message = self.refused(saved(state, tmp_path))
        assert "missing are features.0.0.weight, features.0.1.weight, features.0.1.bias and 2 more" in message
        assert "unexpected are module.features.0.0.weight, " in message

    def test_another_shape_is_told(self, small: nn.Module, tmp_path: Path) -> None:
        state = small.state_dict()
        state["features.0.0.weight"] = torch.zeros(16, 1, 3, 3)
        message = self.refused(saved(state, tmp_path))
        assert "features.0.0.weight is (16, 1, 3, 3), expected (16, 3, 3, 3)" in message
        assert "outputs" not in message

    def test_other_widths_in_several_layers_are_not_taken_for_another_number_of_classes(
        self, small: nn.Module, tmp_path: Path
    ) -> None:
        state = small.state_dict() | {
            "features.0.0.weight": torch.zeros(8, 3, 3, 3),
            "features.0.1.bias": torch.zeros(8),
        }
        message = self.refused(saved(state, tmp_path))
        assert "features.0.1.bias is (8,), expected (16,)" in message
        assert "outputs" not in message

    def test_another_number_of_classes_is_told_as_such(self, tmp_path: Path) -> None:
        state = torchvision.models.mobilenet_v3_small(num_classes=10).state_dict()
        message = self.refused(saved(state, tmp_path))
        assert "last layer has 10 outputs instead of 1000" in message
        assert '"package.module:factory"' in message

    def test_a_checkpoint_around_the_state_dict_is_described(self, tmp_path: Path) -> None:
        assert "a dict with the keys epoch, state_dict" in self.refused(saved({"epoch": 3, "state_dict": {}}, tmp_path))
        assert "holds list" in self.refused(saved([1, 2], tmp_path))
        assert "the keys 0" in self.refused(saved({0: torch.zeros(1)}, tmp_path))

    def test_a_whole_model_is_not_unpickled(self, small: nn.Module, tmp_path: Path) -> None:
        assert "torch.save(model.state_dict(), FILE)" in self.refused(saved(small, tmp_path))

    @pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
    def test_files_that_hold_no_weights(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / name
        assert "No such file" in self.refused(path)
        path.write_text("not weights at all")
        assert "cannot read the weights" in self.refused(path)
        path.write_bytes(b"")
        assert "cannot read the weights" in self.refused(path)

    def test_efficientnet_lite0_names_a_key_it_does_not_know(self, tmp_path: Path) -> None:
        state = zoo.EfficientNetLite0().state_dict() | {"_blocks.0._se_reduce.weight": torch.zeros(1)}
        assert "unexpected are blocks.0._se_reduce.weight" in self.refused(saved(state, tmp_path), "efficientnet_lite0")


class TestDepths:
    @pytest.mark.parametrize("name", PACKAGED)
    def test_packaged_networks_go_from_coarse_to_fine(self, networks: dict[str, zoo.Network], name: str) -> None:
        expected = {"squeezenet1_1": [14, 28, 56, 56, 113], "efficientnet_lite0": [7, 14, 28, 56, 112]}
        assert sizes_of(networks[name]) == expected[name]

    @pytest.mark.parametrize(
        ("name", "sizes"),
        [
            ("vgg11", [7, 14, 28, 56, 112]),
            ("vgg16", [7, 14, 28, 56, 112]),
            ("vgg16_bn", [7, 14, 28, 56, 112]),
            ("resnet18", [7, 14, 28, 56, 112]),
            ("resnet50", [7, 14, 28, 56, 112]),
        ],
    )
    def test_torchvision_models_go_from_coarse_to_fine(
        self, name: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built = torchvision.models.get_model
        # Drawing 138 million random weights of a VGG takes seconds, and the shapes do not depend on them.
        monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: built(name, **cheap(name)))
        network = zoo.load(name)
        assert sizes_of(network) == sizes
        if name == "vgg16":
            assert network.depths == ("features.30", "features.23", "features.16", "features.9", "features.4")


def cheap(name: str) -> dict[str, Any]:
    return {"init_weights": False, "num_classes": 2} if name.startswith("vgg") else {}
