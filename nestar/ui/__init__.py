"""The page: its layout and events, its runs of the pipeline, its templates, styles and scripts."""
