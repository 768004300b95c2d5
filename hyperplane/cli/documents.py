"""`apply` and `export`: the declarative document."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from hyperplane.cli.failures import DocumentError
from hyperplane.cli.options import Caller, asks_daemon
from hyperplane.codec import convert, to_json
from hyperplane.errors import HyperplaneError, InvalidValue
from hyperplane.resources import DEFAULT_ACCOUNT, ApplyRequest, Document

if TYPE_CHECKING:
    from hyperplane.resources import Plan


@click.command(short_help="Make everything as a file says.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--prune", is_flag=True, help="Delete what the account has and the file does not name.")
@asks_daemon
def apply(caller: Caller, file: str, dry_run: bool, prune: bool) -> int:
    """Creates and updates what FILE (TOML; - is standard input) declares, all of it or nothing.

    Doing it twice changes nothing the second time. Prints what changes: + created, ~ updated, - deleted.

    \b
    [[vpc]]
    name = "customer"
    namespace = "customer"
    dns = ["198.19.0.10"]

    \b
    [[subnet]]
    name = "private"
    vpc = "customer"
    cidr = "198.19.0.0/24"

    \b
    [[security_group]]
    name = "database"
    vpc = "customer"
    rules = ["tcp/5432 198.19.0.0/24", "udp/53", "tcp/53"]

    \b
    [[function]]
    name = "reports"
    subnets = ["private"]
    security_groups = ["database"]
    """
    name, text = _text(file)
    document = read(name, text, caller.account)
    with caller.client() as client:
        try:
            plan = client.apply(ApplyRequest(document=document, dry_run=dry_run, prune=prune))
        except HyperplaneError as error:
            raise placed(name, text, error) from None
    _print(caller, plan)
    return 0


@click.command(short_help="Print what there is, as a file that apply takes.")
@asks_daemon
def export(caller: Caller) -> int:
    """Prints an account's VPCs, subnets, security groups and functions as TOML. `apply` of it changes nothing."""
    from hyperplane.cli.toml_text import write

    with caller.client() as client:
        document = client.export(account=caller.own)
    print(to_json(document).decode() if caller.as_json else write(document), end="\n" if caller.as_json else "")
    return 0


def read(name: str, text: str, account: str | None = None) -> Document:
    """Reads a document; tables without an account are of the document's, which is `account` where it names none.

    Raises DocumentError.
    """
    import tomllib

    from hyperplane.cli.toml_lines import syntax_error

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line, message = syntax_error(text, error)
        raise DocumentError(f"{name}:{line}: {message}" if line else f"{name}: {message}") from None
    own = data.setdefault("account", account or DEFAULT_ACCOUNT)
    for tables in data.values():
        for table in tables if isinstance(tables, list) else ():
            if isinstance(table, dict):
                table.setdefault("account", own)
    if account not in (None, own):
        raise placed(name, text, InvalidValue(f"the document is of account {own}, not {account}", field="account"))
    try:
        document: Document = convert(data, Document)
    except InvalidValue as error:
        remedy = error.remedy if error.field else f"tables are {', '.join(Document.__struct_fields__[1:])}"
        raise placed(name, text, InvalidValue(error.message, field=error.field, remedy=remedy)) from None
    return document


def placed(name: str, text: str, error: HyperplaneError) -> HyperplaneError:
    """The same error with file and line, where it names a field of the document."""
    from hyperplane.cli.toml_lines import line_of

    field = error.field.removeprefix("document.")
    if not field and not isinstance(error, InvalidValue):
        return error
    line = line_of(text, field, error.message)
    return DocumentError(f"{name}:{line}: {error}" if line else f"{name}: {error}", error)


def _text(file: str) -> tuple[str, str]:
    """The file's name, and what it says."""
    try:
        # A byte order mark, which editors on Windows write in front, is no part of the text.
        if file == "-":
            return "stdin", sys.stdin.buffer.read().decode("utf-8-sig")
        with open(file, encoding="utf-8-sig") as opened:
            return file, opened.read()
    except UnicodeDecodeError as error:
        raise DocumentError(f"{file}: no UTF-8 from byte {error.start} on; TOML is UTF-8") from None
    except OSError as error:
        raise DocumentError(f"{file}: {error.strerror}") from None


def _print(caller: Caller, plan: Plan) -> None:
    if caller.as_json:
        print(to_json(plan).decode())
        return
    from hyperplane.cli.tables import plan_lines

    printer = caller.printer()
    for line in plan_lines(plan):
        printer.line(*line)
