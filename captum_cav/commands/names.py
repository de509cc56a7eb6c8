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
)
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
    "model_randomisation",
    "random_logit",
    "grid_pointing",
    "focus",
    "difull",
)
