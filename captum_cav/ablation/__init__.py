"""Disable features of a layer inside a mask and compare the scores: a test of a map (the paper's figure 8).

A contribution says how much of the score came from a place, as the network computed the score. An ablation says what
the network computes without the place. If only linear operations follow the layer, the two agree. In other cases the
network may react in a way that the map does not tell, and an ablation shows it.
"""

from captum_cav.ablation.disabling import ablate
from captum_cav.ablation.masks import box_mask, positive_spots, resize_mask
from captum_cav.ablation.result import Ablation, Standing

__all__ = ["Ablation", "Standing", "ablate", "box_mask", "positive_spots", "resize_mask"]
