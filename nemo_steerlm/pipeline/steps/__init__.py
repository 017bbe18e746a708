"""What each stage does, in its own process: a function from the run to its metrics, or to None if another process ends the stage.

A stage's description in ``pipeline/stages`` names its function.
"""
