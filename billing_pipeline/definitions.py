"""What workspace.yaml points at."""

from billing_pipeline.defs import build_defs

defs = build_defs()
