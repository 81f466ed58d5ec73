"""The rendered world of the data set `scenes`: factors, drawing, truth, captions, counterfactual pairs.

`world.load_world` reads the specification, `render.render_batch` draws scenes with their truth, `pairs.counterfactual`
changes one factor, `captions` writes and reads captions, and `splits` assigns scenes to splits.
"""
