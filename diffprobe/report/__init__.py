"""Result files in, tables, figures and pages out. Nothing here imports torch, and nothing is computed again."""
