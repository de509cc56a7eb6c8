"""Language and other sequences: which tokens gave each output its score."""

from captum_cav.text.figure import show_matrix, show_output
from captum_cav.text.html import write_page
from captum_cav.text.result import SequenceContributions
from captum_cav.text.sequence import SequenceCAV

__all__ = ["SequenceCAV", "SequenceContributions", "show_matrix", "show_output", "write_page"]
