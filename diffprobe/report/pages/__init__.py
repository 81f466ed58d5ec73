"""Report pages: self-contained HTML files, rendered from result files and panels without torch."""
