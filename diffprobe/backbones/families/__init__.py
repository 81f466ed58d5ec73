"""One file a family of diffusion models; the file's name is the family's name. The contract is in `backbones/base.py`."""
