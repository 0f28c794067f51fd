"""Who writes text: one engine a file, `connect(*, knobs) -> Generator`."""
