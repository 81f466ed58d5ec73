"""Score probes: they classify by the model's own denoising error, for example which text fits an image."""

SHARED = ()
