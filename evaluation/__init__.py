"""The evaluation: suites × judges → rates and reports. ``superdiff eval`` and ``python -m evaluation`` run it.

    suites/        what is measured: one file each, divided into blocks that can be run in any order
    judges/        who says how it came out: the oracle of shapes, features and distances of sets of pictures
    ways           how a picture is drawn: by one of our operators, or by the authors' own algorithm
    reference      that algorithm restated, independent of the product
    statistics     rates with their intervals, differences of ways on the same seeds
    store, runner  blocks on disk: a run that was stopped goes on where it stopped
    report, page   one JSON, one HTML page, Markdown tables

It imports pipelines, never service.
"""
