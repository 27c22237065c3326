"""The recipes and groups that ship with genlab; a package, so that Hydra finds them as pkg://genlab.configs."""
