"""The explorer: a folder of pages on the latents of autoencoders that opens from disk, without a server."""
