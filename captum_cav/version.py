"""The version of captum_cav, which any module may import."""

__version__ = "0.1.0"
