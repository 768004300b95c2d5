from rich.console import Console


def run(environments: int, console: Console, *, as_json: bool) -> int:
    return 0
