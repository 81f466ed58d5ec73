"""Open discovery: which attributes vary in images, found as independent components of latents, without any label."""
