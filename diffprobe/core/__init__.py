"""What every other package may use: errors, digests, seeded noise, pictures, catalogues, artifact headers, result records."""
