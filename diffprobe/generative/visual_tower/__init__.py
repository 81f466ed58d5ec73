"""Diffusion features as visual tokens of LLaVA, next to those of CLIP (Revelio, 2411.16725).

`projector.py` turns a feature map into tokens and interleaves them with CLIP's, `network.py` is the adapter on
transformers' LLaVA classes, `assembly.py` builds it from its parts, `sequences.py` makes token sequences of captions,
`data.py` streams images, `settings.py` and `module.py` are the training run.
"""
