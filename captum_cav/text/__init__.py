"""Language and other sequences: which tokens gave each output its score."""

from captum_cav.text.result import SequenceContributions
from captum_cav.text.sequence import SequenceCAV

__all__ = ["SequenceCAV", "SequenceContributions"]
