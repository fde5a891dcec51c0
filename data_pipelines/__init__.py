"""From raw footage to clips that `vdit train` reads.

Each stage is a pure function in a file of its own, and needs no Beam:

    probe.py        probe(record, options) -> ClipRecord                what a file is, from its header and first frame
    scenes.py       cut(record, options) -> list[ClipRecord]            one record a scene, exact to the frame
    split.py        split(record, options) -> list[ClipRecord]          long scenes into clips of the wanted durations
    measures.py     measure(record, options) -> ClipRecord              one column each; also the clip's signature
    scan.py         scan(record, options) -> list[ClipRecord]           cut, split and measure with one decoding
    ocr.py          OcrText, a measure of overlaid text by a network
    duplicates.py   keys(record, options), compare(a, b, options), cluster(records, pairs)
    transnet.py     TransNetV2, a network that finds cuts, in JAX

`stage.Stage(function, options)` is the Beam DoFn of any of them.
"""
