"""The base layer: errors, digests, random numbers, images, registries, progress, artifact headers, result records."""
