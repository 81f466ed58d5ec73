"""Dense probes: they read places of feature maps, for example where a point of one image is in another."""

SHARED = ()
