"""`nas tables`."""

from nas.cli.options import Json, show

__all__ = ["tables"]


def tables(json: Json = False) -> None:
    """The latency tables that ship, and those that this machine has measured."""
    from nas.table_list import list_tables

    found = list_tables()
    if not json:  # a table's path is its folder's and its name
        for name in ("shipped", "measured"):
            found[name] = [{key: value for key, value in one.items() if key != "path"} for one in found[name]]
    show(found, json)
