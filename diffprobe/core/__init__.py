"""What every other package may use: errors, digests, seeded noise, catalogues, artifact headers, result records."""
