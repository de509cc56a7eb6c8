"""Validation of arguments: every check either raises one clear error or returns what the caller works on.

One module for each subject:

- ``options``: option values, counts;
- ``models``: the model that is explained or measured;
- ``layers``: layers, and which call of a layer is meant;
- ``inputs``: the arguments of the model;
- ``outputs``: the parts of what the model returns;
- ``targets``: the output of the model, targets, neurons;
- ``maps``: maps, pictures and masks;
- ``numbers``: checks that read numbers of tensors on the host: whether they are finite, whether a score is near zero.
"""

from captum_cav.checks.inputs import (
    additional_arguments,
    as_inputs,
    check_different,
    check_explained,
    check_floating,
    check_inputs,
    copied,
    input_name,
    is_floating,
    keyword_arguments,
    named_inputs,
    refuse_integers,
)
from captum_cav.checks.layers import check_call, choose_call, find_layer
from captum_cav.checks.layouts import (
    SIDES,
    Layout,
    check_channels,
    check_layout,
    check_places,
    check_samples,
    is_ids,
    sides_of,
)
from captum_cav.checks.maps import check_maps, check_masks, check_pictures, check_same_length
from captum_cav.checks.models import (
    check_device_ids,
    check_evaluation,
    check_measured_model,
    check_model,
    check_module,
    check_scripted,
)
from captum_cav.checks.numbers import check_finite_results, has_finite_sum, near_zero, sample_names, users_level
from captum_cav.checks.options import as_integer, check_count, check_delta, check_flag, check_option
from captum_cav.checks.outputs import check_part, describe_output, part_of, picked
from captum_cav.checks.targets import (
    Positions,
    check_classes,
    check_neuron,
    check_one_for_each,
    check_output,
    check_target_count,
    check_targets,
    positions,
    read_target,
    resolve_target,
)

__all__ = [
    "SIDES",
    "Layout",
    "Positions",
    "additional_arguments",
    "as_inputs",
    "as_integer",
    "check_call",
    "check_channels",
    "check_classes",
    "check_count",
    "check_delta",
    "check_device_ids",
    "check_different",
    "check_evaluation",
    "check_explained",
    "check_finite_results",
    "check_flag",
    "check_floating",
    "check_inputs",
    "check_layout",
    "check_maps",
    "check_masks",
    "check_measured_model",
    "check_model",
    "check_module",
    "check_neuron",
    "check_one_for_each",
    "check_option",
    "check_output",
    "check_part",
    "check_pictures",
    "check_places",
    "check_same_length",
    "check_samples",
    "check_scripted",
    "check_target_count",
    "check_targets",
    "choose_call",
    "copied",
    "describe_output",
    "find_layer",
    "has_finite_sum",
    "input_name",
    "is_floating",
    "is_ids",
    "keyword_arguments",
    "named_inputs",
    "near_zero",
    "part_of",
    "picked",
    "positions",
    "read_target",
    "refuse_integers",
    "resolve_target",
    "sample_names",
    "sides_of",
    "users_level",
]
