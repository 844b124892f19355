"""Rewrite the table of settings in CONFIGURATION.md from the docstrings of `Config`.

python docs/generate.py            rewrite it
python docs/generate.py --check    fail if it differs
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from ckptd_daemon import config

FILE = Path(__file__).with_name("CONFIGURATION.md")
BEGIN, END = "<!-- settings -->\n", "<!-- end of settings -->\n"


def meanings() -> dict[str, str]:
    """Return what the docstring below each setting says, by name."""
    found: dict[str, str] = {}
    (tree,) = (
        node
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef) and node.name == config.Config.__name__
    )
    name = ""
    for node in tree.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)):
                pass
            case ast.Expr(value=ast.Constant(value=str(text))) if name:
                found[name] = " ".join(text.split())
                name = ""
            case _:
                name = ""
    return found


def default(field: FieldInfo) -> str:
    """Return a setting's default, as its table shows it."""
    if field.default_factory is not None:
        return "depends"
    value = field.default
    empty = value is None or value in ((), {}, frozenset())
    return "none" if empty else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def table() -> str:
    """Return the table."""
    said = meanings()
    rows = [
        f"| `{name}` | {default(field)} | {said[name].replace('|', '/')} |\n"
        for name, field in config.Config.model_fields.items()
    ]
    return "| setting | default | |\n|---|---|---|\n" + "".join(rows)


def main() -> int:
    """Write or compare."""
    text = FILE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    fresh = before + BEGIN + table() + END + after
    if "--check" in sys.argv[1:]:
        return int(fresh != text)
    FILE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
