"""Every method on other kinds of CLIP, and on photographs of every size and shape.

The course works with small square pictures and the small model that comes with it. Here
photographs (`photographs`) are shown to random models of other kinds (`models`), and
every method runs on them for two short epochs (`cases`). `tests/test_conformance.py`
does so with narrow models, `benchmarks/conformance.py` with a whole ViT-B/32.
"""
