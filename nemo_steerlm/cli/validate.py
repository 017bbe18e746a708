"""``steerlm validate``."""


def validate(file: str) -> None:
    """Check a pipeline file."""
    print(file)
