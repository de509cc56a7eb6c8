"""Names that options take. The registries with these names need torch or Captum, which take seconds to load.

A test checks that each tuple equals its registry.
"""

#: ``captum_cav.presets.NAMES``
PRESETS = (
    "paper",
    "epsilon",
    "gamma",
    "epsilon_plus",
    "epsilon_plus_flat",
    "alpha2_beta1",
    "alpha2_beta1_flat",
    "attnlrp",
    "cp_lrp",
    "pinpoint",
    "absolute_epsilon_flat",
)
#: What ``--rules`` takes: a preset, or the name that stands for the recommended one, ``captum_cav.presets.AUTO``.
RULES = (*PRESETS, "auto")
#: ``captum_cav.comparison.NAMES``
METHODS = (
    "saliency",
    "input_x_gradient",
    "integrated_gradients",
    "deeplift",
    "gradient_shap",
    "occlusion",
    "guided_backprop",
    "lrp",
    "guided_gradcam",
    "gradcam",
    "layer_gradient_x_activation",
    "layer_lrp",
    "layer_integrated_gradients",
    "layer_conductance",
    "internal_influence",
    "cav",
    *(f"cav:{preset}" for preset in PRESETS),
)
#: The names of ``captum_cav.comparison.methods.CONTROLS``
CONTROLS = ("random", "uniform")
#: ``captum_cav.datasets.jobs.KEEP``
KEEP = ("maps", "channels", "scores", "constants")
#: ``captum_cav.comparison.METRICS``
DEFAULT_METRICS = ("deletion", "insertion", "single_deletion", "sparseness")
#: The names of ``captum_cav.metrics.MEASURES``
METRICS = (
    "sparseness",
    "entropy",
    "completeness",
    "agreement",
    "mass_accuracy",
    "rank_accuracy",
    "pointing_hit",
    "deletion",
    "insertion",
    "morf_lerf",
    "single_deletion",
    "effect_agreement",
    "model_randomisation",
    "random_logit",
    "grid_pointing",
    "focus",
    "difull",
)
#: What ``reproduce`` writes.
REPRODUCED_FIGURES = ("figure5.png", "figure6.png", "figure7.png", "figure8.png")
REPRODUCED_TABLE = "table1.md"
#: Where ``demo`` writes what it makes, unless another folder is given.
DEMO_FOLDER = "captum_cav_demo"
#: The folder of photographs that ``demo`` writes, so that the other commands can be tried with them.
PHOTOGRAPHS = "photographs"
#: These photographs: left, top, right, bottom in the embedded picture, in pixels.
DEMO_PHOTOGRAPHS = {
    "dog_above_cat.png": (0, 0, 448, 448),
    "dog.png": (200, 0, 424, 224),
    "cat.png": (112, 224, 336, 448),
}
#: The table that ``explain`` writes about all pictures.
SHARES_FILE = "shares.csv"


def explained_files(stem: str, *, arrays: bool) -> tuple[str, ...]:
    """The files that ``explain`` writes of one picture: two figures, and its maps if ``--save-arrays`` is given."""
    return (f"{stem}_contributions.png", f"{stem}_rules.png", *((f"{stem}_maps.npz",) if arrays else ()))


#: The table that ``compare`` writes about all pictures.
COMPARISON_TABLE = "comparison.csv"
#: What ``captum_cav.Comparison.save`` writes, and what the comparison was made from.
COMPARISON_FILES = ("maps.safetensors", "comparison.json", "manifest.json", "made_from.json")


def comparison_figure(stem: str) -> str:
    """The figure that ``compare`` writes of one picture."""
    return f"{stem}_comparison.png"


def comparison_folder(stem: str) -> str:
    """The folder in which ``compare`` writes the maps of one picture."""
    return f"{stem}_maps"
