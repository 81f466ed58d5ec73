"""Report pages: one HTML file each, pictures included. Made of result files and panels, without torch."""
