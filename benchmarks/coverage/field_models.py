"""Networks of medical imaging, segmentation and detection, small and with random parameters: nothing is downloaded."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.coverage.problem import Problem
from benchmarks.coverage.randomise import SEED, randomised

Reader = Callable[[Any], torch.Tensor]


class Network(NamedTuple):
    """A network of a library, and what is known of it.

    Attributes:
        make: builds the network.
        shape: the shape of one sample.
        layer: the name of a layer through which all paths from the input lead.
        read: takes scores of shape (N, classes) from the output.
        is_piecewise_linear: whether the ratios are gradient x input over the score: all operations are linear, choose
            (ReLU, maximum), or have constant slopes on both sides of zero.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layer: str
    read: Reader
    is_piecewise_linear: bool = False


def _of_middle(output: Any) -> torch.Tensor:
    """The scores of the classes at the pixel (or voxel) in the middle."""
    while not isinstance(output, torch.Tensor):
        output = output[0]
    pixels: torch.Tensor = output.flatten(2)
    return pixels[:, :, pixels.shape[2] // 2]


def _scores(output: Any) -> torch.Tensor:
    scores: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return scores.flatten(1)


def _of_anchor(output: Any) -> torch.Tensor:
    """The logits of the classes of one anchor."""
    scores: torch.Tensor = output[1]["scores"]
    return scores[:, :, scores.shape[2] // 2]


def _last_patches(output: Any) -> torch.Tensor:
    return _of_middle(output[-1])


def _monai(name: str, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net: nn.Module = getattr(importlib.import_module("monai.networks.nets"), name)(*arguments, **options)
        return net

    return make


_FLAT: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
_SOLID: dict[str, Any] = {**_FLAT, "spatial_dims": 3}
_STEPS: dict[str, Any] = {"channels": (4, 8, 8), "strides": (2, 2)}
_BLOCKS: dict[str, Any] = dict.fromkeys(("blocks_down", "blocks_up"), (1, 1, 1, 1))
_SMALL, _PICTURE, _VOLUME = (1, 16, 16), (1, 32, 32), (1, 16, 16, 16)

# A network is a line or two, not one for each argument.
# fmt: off
MONAI = {
    "UNet": Network(_monai("UNet", **_SOLID, **_STEPS, norm="batch", num_res_units=1), _VOLUME, "model.0", _of_middle,
                    is_piecewise_linear=True),
    "BasicUNet": Network(_monai("BasicUNet", **_FLAT, features=(4, 4, 8, 8, 8, 4)), _PICTURE, "conv_0", _of_middle),
    "BasicUNetPlusPlus": Network(_monai("BasicUNetPlusPlus", **_FLAT, features=(4, 4, 8, 8, 8, 4), norm="batch"),
                                 _PICTURE, "conv_0_0", _of_middle, is_piecewise_linear=True),
    "AttentionUnet": Network(_monai("AttentionUnet", **_FLAT, **_STEPS), _PICTURE, "model.0", _of_middle),
    "SegResNet": Network(_monai("SegResNet", **_SOLID), _VOLUME, "convInit", _of_middle),
    "SegResNetDS": Network(_monai("SegResNetDS", **_SOLID, init_filters=8, blocks_down=(1, 1, 1)), _VOLUME,
                           "encoder.conv_init", _of_middle, is_piecewise_linear=True),
    "DynUNet": Network(_monai("DynUNet", **_SOLID, kernel_size=[3] * 3, strides=[1, 2, 2],
                              upsample_kernel_size=[2, 2], filters=[4, 8, 8]), _VOLUME, "upsamples.1", _of_middle),
    "VNet": Network(_monai("VNet", **_FLAT, dropout_dim=2), _PICTURE, "in_tr", _of_middle),
    "UNETR": Network(_monai("UNETR", 1, 3, 16, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=3,
                            spatial_dims=2), _SMALL, "decoder2", _of_middle),
    "SwinUNETR": Network(_monai("SwinUNETR", 1, 3, feature_size=12, depths=(1, 1, 1, 1), window_size=4,
                                spatial_dims=2), (1, 64, 64), "decoder1", _of_middle),
    "ResNet": Network(_monai("ResNet", "basic", [1] * 4, [4, 8, 8, 8], n_input_channels=1, num_classes=3), _VOLUME,
                      "layer2", _scores, is_piecewise_linear=True),
    "DenseNet": Network(_monai("DenseNet", **_SOLID, init_features=8, growth_rate=4, block_config=(2, 2)), _VOLUME,
                        "features.transition1", _scores, is_piecewise_linear=True),
    "SEResNet": Network(_monai("SEResNet50", spatial_dims=2, in_channels=1, num_classes=3, layers=(1, 1, 1, 1),
                               inplanes=8), _PICTURE, "layer2", _scores),
    "EfficientNet": Network(_monai("EfficientNetBN", "efficientnet-b0", pretrained=False, spatial_dims=2,
                                   in_channels=1, num_classes=3), _PICTURE, "_blocks.3", _scores),
    "HighResNet": Network(_monai("HighResNet", **_SOLID), (1, 8, 8, 8), "blocks.3", _of_middle,
                          is_piecewise_linear=True),
    "AHNet": Network(_monai("AHNet", layers=(1, 1, 1, 1), spatial_dims=2, out_channels=3, psp_block_num=2),
                     (1, 64, 64), "conv1", _of_middle, is_piecewise_linear=True),
    "ViT": Network(_monai("ViT", 1, 16, 4, 24, 32, 2, 3, classification=True, num_classes=3, spatial_dims=2), _SMALL,
                   "blocks.0", _scores),
    "Classifier": Network(_monai("Classifier", _SMALL, 3, (4, 8), (2, 2), norm="batch"), _SMALL, "net.layer_0",
                          _scores, is_piecewise_linear=True),
    "FlexibleUNet": Network(_monai("FlexibleUNet", 1, 3, "resnet10", decoder_channels=(8, 8, 8, 8, 8)), _PICTURE,
                            "encoder.conv1", _of_middle, is_piecewise_linear=True),
    "MedNeXt": Network(_monai("MedNeXt", **_FLAT, **_BLOCKS, init_filters=4, kernel_size=3, blocks_bottleneck=1,
                              global_resp_norm=True, use_residual_connection=True), _PICTURE, "stem", _of_middle),
    "AutoEncoder": Network(_monai("AutoEncoder", **_FLAT, channels=(4, 8), strides=(2, 2)), _SMALL, "encode",
                           _of_middle),
    "PatchDiscriminator": Network(_monai("PatchDiscriminator", 2, 4, 1, num_layers_d=2), _PICTURE, "0",
                                  _last_patches, is_piecewise_linear=True),
    "RegUNet": Network(_monai("RegUNet", 2, 1, 4, 2, concat_skip=True), _PICTURE, "encode_convs.0", _of_middle,
                       is_piecewise_linear=True),
    "VoxelMorphUNet": Network(_monai("VoxelMorphUNet", 2, 2, 8, (4, 4, 8, 8), (8, 8)), (2, 32, 32), "net.0",
                              _of_middle, is_piecewise_linear=True),
    "MILModel": Network(_monai("MILModel", 3, "att_trans", pretrained=False, trans_blocks=1), (2, 3, 32, 32), "net",
                        _scores),
}
# fmt: on


def _segmentation(architecture: str, encoder: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = importlib.import_module("segmentation_models_pytorch")
        net: nn.Module = library.create_model(architecture, encoder, encoder_weights=None, classes=3, **options)
        return net

    return make


#: Gates, or norms of groups and layers, are not piecewise linear.
_CURVED = ("manet", "fpn", "pan", "upernet")
_OF_RESNET = "unet unetplusplus manet linknet fpn pspnet deeplabv3 deeplabv3plus pan upernet segformer".split()
SEGMENTATION = {
    name: Network(_segmentation(name, "resnet18"), (3, 64, 64), "encoder.conv1", _of_middle, name not in _CURVED)
    for name in _OF_RESNET
}
# Its pyramid pools four times behind the encoder.
SEGMENTATION["pan"] = SEGMENTATION["pan"]._replace(shape=(3, 128, 128))
SEGMENTATION["dpt"] = Network(
    _segmentation("dpt", "tu-vit_tiny_patch16_224", dynamic_img_size=True), (3, 64, 64), "decoder", _of_middle
)


def _yolo(name: str, activation: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        tasks = importlib.import_module("ultralytics.nn.tasks")
        plan = {**tasks.yaml_model_load(name), "nc": 3, "activation": activation}
        net: nn.Module = tasks.DetectionModel(plan, verbose=False)
        return net

    return make


_SILU, _RELU = "torch.nn.SiLU()", "torch.nn.ReLU()"
YOLO = {
    **{
        name: Network(_yolo(f"{name}n.yaml", _SILU), (3, 64, 64), "model.4", _of_anchor)
        for name in ("yolov5", "yolov8", "yolo11", "yolo12")
    },
    "yolov8 with ReLU": Network(
        _yolo("yolov8n.yaml", _RELU), (3, 64, 64), "model.4", _of_anchor, is_piecewise_linear=True
    ),
}


def _queries(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = importlib.import_module("transformers")
        config = getattr(library, f"{name}Config")(num_labels=3, **options)
        net: nn.Module = getattr(library, f"{name}ForObjectDetection")(config)
        return net

    return make


def _of_first_query(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits
    return logits[:, 0]


_WIDTHS: dict[str, Any] = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
_WIDTHS.update(dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4))
_WIDTHS.update(dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48))
_STAGES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}
_OF_DETR: dict[str, Any] = {
    **_WIDTHS,
    "d_model": 32,
    "num_queries": 4,
    "backbone_config": {"model_type": "resnet", "out_features": ["stage2"], **_STAGES},
}
_BACKBONE = "model.backbone.model.embedder"
DETR = {
    "YOLOS": Network(
        _queries(
            "Yolos",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=[32, 32],
            patch_size=8,
            num_detection_tokens=4,
        ),
        (3, 32, 32),
        "vit.encoder.layer.0",
        _of_first_query,
    ),
    "DETR": Network(_queries("Detr", **_OF_DETR), (3, 32, 32), _BACKBONE, _of_first_query),
    "conditional DETR": Network(_queries("ConditionalDetr", **_OF_DETR), (3, 32, 32), _BACKBONE, _of_first_query),
    "deformable DETR": Network(
        _queries("DeformableDetr", **_OF_DETR, num_feature_levels=1), (3, 32, 32), _BACKBONE, _of_first_query
    ),
    "RT-DETR": Network(
        _queries(
            "RTDetr",
            **{**_WIDTHS, "encoder_layers": 1},
            d_model=32,
            encoder_hidden_dim=32,
            encoder_in_channels=[16, 32, 32],
            decoder_in_channels=[32, 32, 32],
            num_queries=4,
            backbone_config={
                "model_type": "rt_detr_resnet",
                "embedding_size": 8,
                "hidden_sizes": [8, 16, 32, 32],
                "depths": [1, 1, 1, 1],
                "layer_type": "basic",
                "out_features": ["stage2", "stage3", "stage4"],
            },
        ),
        (3, 64, 64),
        _BACKBONE,
        _of_first_query,
    ),
}

SUITES: Mapping[str, Mapping[str, Network]] = {"monai": MONAI, "segmentation": SEGMENTATION, "yolo": YOLO, "detr": DETR}
#: The package of each suite, as it is installed.
PACKAGES = {
    "monai": "monai",
    "segmentation": "segmentation-models-pytorch",
    "yolo": "ultralytics",
    "detr": "transformers",
}


def cases(suite: str) -> Iterator[tuple[str, Callable[[], Problem]]]:
    """Name and builder of each network of a suite."""
    for name, network in SUITES[suite].items():
        yield name, functools.partial(build, network)


def build(network: Network) -> Problem:
    """A network, an input and the class that the network gives the highest score."""
    torch.manual_seed(SEED)
    net = randomised(network.make())
    x = torch.randn(1, *network.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))

    def score(inputs: torch.Tensor) -> torch.Tensor:
        return network.read(net(inputs))

    with torch.no_grad():
        return Problem(score, net, x, int(score(x).argmax(1)))
