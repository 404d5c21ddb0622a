"""A command is a frozen dataclass: its fields are the flags, their help, the arguments of the call and the record.

@dataclass(frozen=True, kw_only=True)
class Plan(Command):
    "Measures planning success."

    run: Path = argument("run folder")
    n_envs: int = option(16, "environments evaluated at once", least=1)

Plan(run=Path("runs/x"))()                        # from Python
Plan.parse(["runs/x", "--n-envs", "8"])()         # from a command line
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from lewm_gym import cli

LARGEST = 2**63  # of whole numbers
METAVARS = {int: "N", float: "X", str: "NAME", Path: "FILE"}
Settings = dict[str, Any]  # a field of this type is given as NAME=VALUE ...


def argument(text: str, *, metavar: str | None = None) -> Any:
    """Returns a field that is a positional argument."""
    return dataclasses.field(metadata={"text": text, "metavar": metavar, "positional": True})


def option(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    metavar: str | None = None,
    flag: str | None = None,
    choices: Sequence[str] | None = None,
    positional: bool = False,
    const: Any = None,
) -> Any:
    """Returns a field that is an option.

    Args:
        default: Default value; for a tuple's field the values, for a `Settings` field none; `...` for a flag that must
            be given.
        text: Help, with the unit; the default is added.
        least: The smallest number allowed.
        most: The largest number allowed.
        metavar: Name of the value in the help.
        flag: In place of `--field-name`; `--no-...` for a field that is true by default.
        choices: Allowed values, if they are few.
        positional: Whether it is an optional positional argument.
        const: Value of the flag without an argument.
    """
    metadata = {"text": text, "metavar": metavar, "flag": flag, "least": least, "most": most, "choices": choices}
    metadata |= {"positional": positional, "const": const}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    if default == {}:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Command:
    """The base of commands: the docstring is the help, `__call__` runs the command and returns the exit status.

    With an `epilog`, which stands at the end of the help, the help keeps its lines.
    """

    epilog: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            self._check(field, getattr(self, field.name))

    def _check(self, field: dataclasses.Field[Any], value: Any) -> None:
        least, most, choices = (field.metadata.get(name) for name in ("least", "most", "choices"))
        for one in value if isinstance(value, tuple) else (value,):
            if least is not None and one is not None and not least <= one:
                raise ValueError(f"{_flag(field)} must {_at_least(least)}, got {one}")
            if most is not None and one is not None and one > most:
                raise ValueError(f"{_flag(field)} must be at most {most:g}, got {one}")
            if isinstance(one, float) and not math.isfinite(one):
                raise ValueError(f"{_flag(field)} must be a finite number, got {one}")
            if isinstance(one, int) and abs(one) >= LARGEST:
                raise ValueError(f"{_flag(field)} must fit into 64 bits, got {one}")
            if choices is not None and one is not None and one not in choices:
                raise ValueError(f"{_flag(field)} must be one of {', '.join(choices)}, got {one!r}")

    def __call__(self) -> int:
        """Runs the command; returns the exit status."""
        raise NotImplementedError(f"{type(self).__name__} does nothing")

    @classmethod
    def parser(cls, program: str) -> cli.Parser:
        """Returns the parser of the command line `program`."""
        form = cli.RawText if cls.epilog else argparse.HelpFormatter
        text = inspect.cleandoc(cls.__doc__ or "")
        parser = cli.Parser(prog=program, description=text, epilog=cls.epilog, formatter_class=form)
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.metadata:
                _add(parser, field, hints[field.name])
        return parser

    @classmethod
    def parse(cls, words: Sequence[str], program: str = "") -> Self:
        """Returns the command of a command line."""
        values = vars(cls.parser(program or cls.__name__.lower()).parse_args(words))
        hints = typing.get_type_hints(cls)
        for name, value in values.items():
            if hints[name] == Settings:
                values[name] = parse_settings(value)
            elif isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values)

    def words(self, *names: str) -> list[str]:
        """Returns the words of its command line: what is positional, then those of the options `names` that are set."""
        fields = {field.name: field for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        placed = [name for name, field in fields.items() if field.metadata.get("positional")]
        words: list[str] = []
        for name in (*placed, *names):
            value = getattr(self, name)
            if value not in (None, ()):
                words += [] if name in placed else [_flag(fields[name])]
                words += map(str, value) if isinstance(value, tuple) else [str(value)]
        return words

    def to_json(self) -> Settings:
        """Returns the fields as JSON holds them."""
        values: Settings = json.loads(json.dumps(dataclasses.asdict(self), default=str))  # type: ignore[call-overload]
        return values


def _flag(field: dataclasses.Field[Any]) -> str:
    if field.metadata.get("positional"):
        return field.name.upper()
    return field.metadata.get("flag") or "--" + field.name.replace("_", "-")


def _at_least(least: float) -> str:
    return "not be negative" if least == 0 else f"be at least {least:g}"


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> None:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
    several = hint == Settings or typing.get_origin(hint) is tuple
    kind = str if hint == Settings else typing.get_args(hint)[0] if several else hint
    choices = field.metadata.get("choices")
    named = "NAME=VALUE" if hint == Settings else "{" + ",".join(choices) + "}" if choices else METAVARS.get(kind)
    metavar = field.metadata["metavar"] or named
    options: dict[str, Any] = {"nargs": "+"} if several else {}
    if field.metadata.get("positional"):
        if field.metadata["metavar"] is None:
            metavar = field.name.removesuffix("s").upper() if several else field.name.upper()
        if field.default is not dataclasses.MISSING:
            options = {"nargs": "*", "default": field.default}
        parser.add_argument(field.name, type=kind, metavar=metavar, help=field.metadata["text"], **options)
        return
    text, default = field.metadata["text"], field.default
    if hint is bool:
        action = "store_false" if default else "store_true"
        parser.add_argument(_flag(field), dest=field.name, action=action, help=text)
        return
    if default is dataclasses.MISSING:
        default = ()
        options["required"] = field.default_factory is dataclasses.MISSING
    if default not in (None, ()):
        shown = " ".join(map(str, default)) if several else default
        text += f" (default: {shown})"
    text = text.replace("%", "%%")
    if field.metadata["const"] is not None:
        options |= {"nargs": "?", "const": field.metadata["const"]}
    parser.add_argument(
        _flag(field), dest=field.name, type=kind, default=default, metavar=metavar, help=text, **options
    )


def dispatch(
    program: str,
    description: str | None,
    texts: Mapping[str, str],
    load: Callable[[str], type[Command]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs the command that a program's command line names; returns the exit status.

    Args:
        program: Such as "python -m collect".
        description: What the program does, in its help.
        texts: Name of each command, of one word or two, and what it does.
        load: Returns the class of a command.
        arguments: The words; None: this process's.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in texts:
            return int(load(name).parse(words[count:], f"{program} {name}")())
    parser = cli.Parser(
        prog=program,
        description=description,
        epilog="\n".join(["commands:", *(f"  {name:16} {text}" for name, text in texts.items()), "",
                          f"Details: {program} COMMAND --help"]),
        formatter_class=cli.RawText,
    )  # fmt: skip
    parser.add_argument("command", metavar="COMMAND", choices=tuple(texts), help="one of the commands below")
    parser.parse_args(words[:1])
    return 0


def parse_settings(settings: Sequence[str]) -> Settings:
    """Returns NAME=VALUE pairs as a dictionary; numbers and JSON lists are read as such, anything else as text."""
    values: Settings = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"settings have the form NAME=VALUE, got {setting!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        values[name] = tuple(value) if isinstance(value, list) else value
    return values
