"""Level-triggered reconciling: observe from caches, plan purely, act thinly, tell the status, look again."""
