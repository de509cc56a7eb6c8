"""Explain a whole dataset: a job that can be stopped at any moment and goes on where it stopped.

:func:`explain_dataset` explains every picture and writes maps and a table of rows. :func:`open` reads them again, row
by row, also while the job still runs::

    out = datasets.explain_dataset(LayerCAV(model, ["layer4", "layer1"], normalize="abs"), "photos/", "explained",
                                   preprocess=preprocess)
    out = datasets.open("explained")
    out[0].row["score"], out[0].maps["layer4"]         # one row: its values by column, and its map at each layer
    out.map(0, "layer4")                               # one map, float32
    out.table()                                        # all rows, a table of pandas
    for row in out.rows(): ...                         # all rows, without pandas
    out.layers, out.classes, out.manifest              # what was explained, and what the numbers hang on
    datasets.analyze(out)                              # what the maps say, class by class (needs scikit-learn)

The columns of a row:

======================  ===============================================================================================
``row``                 number of the row
``index``, ``id``       number of the picture in the dataset, and its name
``path``                the file of the picture; empty if the dataset does not tell it
``label``               index of the class that the dataset names; None if it names none
``target``              the class that was explained
``best``                the class with the highest score
``score``               what was explained
``probability``         of the target
``raised:LAYER``        for each layer the sum of its positive contributions,
``lowered:LAYER``       of its negative contributions,
``constants:LAYER``     what the constants behind the layer contributed, such as biases,
``unexplained:LAYER``   and the rest. All four are parts of the size of the score, and add up to 1, or to -1 for a
                        negative score
``shard``               the shard with the map, ``group`` and ``position`` are the place of the map in the shard
``error``               why the picture could not be read or explained; empty if all is well
======================  ===============================================================================================

The pictures are cut into shards. A shard is a function of the job and its number, so whoever computes it writes the
same bytes. :mod:`captum_cav.datasets.layout` describes the files.
"""

from captum_cav.datasets.analysis import analyze
from captum_cav.datasets.explain import explain_dataset
from captum_cav.datasets.hdf5 import export_hdf5
from captum_cav.datasets.reading import Explained, ExplainedDataset
from captum_cav.datasets.reading import open_output as open  # noqa: A004 (datasets.open(folder), as Image.open(file))

__all__ = ["Explained", "ExplainedDataset", "analyze", "explain_dataset", "export_hdf5", "open"]
