"""The page's tabs: one Python file a tab, with the templates, styles and scripts it shows beside it."""
