"""What every other package may use: errors, digests, noise, pictures, catalogues, artifact headers, result records."""
