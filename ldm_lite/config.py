"""Settings are frozen dataclasses; this file writes them to JSON or YAML and reads them back.

A wrong name is an error that lists the right ones. A dataclass that stands where one of several could stand (a model's
four parts, a preset) is written with its type: {"type": "UNet", ...}."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import time
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """A mistake in what the user gave: one line that names the file or field and the fix."""


class LostError(RuntimeError):
    """The other processes of a run cannot be reached any more."""


def suggest(name: str, known: typing.Iterable[str], what: str) -> InputError:
    """The error for an unknown name: it says which names there are, the closest one first."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return InputError(f"{name}: no such {what}; {hint}there are {', '.join(known)}")


def one_or_more(**values: int | None) -> None:
    """InputError, by name, for a number below 1; None is a number that is not given."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"{name}: {value} is not 1 or more")


def shares(**values: float) -> None:
    """InputError, by name, for a number outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name}: {value:g} is not between 0 and 1")


def to_dict(settings: Any) -> Any:
    """Plain JSON values: dataclasses become dicts, tuples lists, paths strings."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_dict(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {str(k): to_dict(v) for k, v in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [to_dict(v) for v in settings]
    return str(settings) if isinstance(settings, os.PathLike) else settings


def from_dict(cls: type, values: Any, where: str = "") -> Any:
    """The inverse of to_dict for dataclass `cls`. InputError names the field and lists the right names."""
    where = where or cls.__name__
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: a mapping of settings is needed, not {values!r}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for name in values:
        if name not in names:
            raise InputError(f"{name}: {where} has {', '.join(names)}")
    try:
        return cls(**{name: _parsed(hints[name], value, f"{where}.{name}") for name, value in values.items()})
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # a required field that is absent, or a value that the class refuses
        raise InputError(f"{where}: {error}") from None


def _parsed(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        if isinstance(value, Mapping):  # what to_dict wrote has all the fields of one of several dataclasses
            inner.sort(
                key=lambda a: not dataclasses.is_dataclass(a) or {f.name for f in dataclasses.fields(a)} != {*value}
            )
        errors = []
        for choice in inner:
            try:
                return _parsed(choice, value, where)
            except InputError as error:
                errors.append(error)
        raise errors[0]
    if origin is typing.Annotated:
        return _parsed(args[0], value, where)
    if origin is typing.Literal:
        if value not in args:
            raise InputError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: a list is needed, not {value!r}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(inner) != len(value):
            raise InputError(f"{where}: {len(inner)} values are needed, not {len(value)}")
        return tuple(_parsed(i, v, where) for i, v in zip(inner, value, strict=True))
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, str):  # YAML takes 1e-4 for a string
        with contextlib.suppress(ValueError):
            return float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise InputError(f"{where}: {hint.__name__} is needed, not {value!r}")
    return value


def read(path: str | Path) -> Any:
    """The values in a .json, .yaml or .yml file. InputError when it is missing or cannot be parsed."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            import yaml

            return yaml.safe_load(text)
        return json.loads(text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except Exception as error:  # the two parsers have different errors, and one line is enough for either
        form = "YAML" if path.suffix in (".yaml", ".yml") else "JSON"
        raise InputError(f"{path}: is not {form} ({str(error).splitlines()[0]})") from None


def write(path: str | Path, settings: Any) -> None:
    """Writes settings as YAML (.yaml, .yml) or JSON, whole or not at all."""
    values, path = to_dict(settings), Path(path)
    if path.suffix in (".yaml", ".yml"):
        import yaml

        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    else:
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class whole:
    """Context for a file written whole or not at all: yields a path beside `path` that takes its place on success.

    A run killed or a disk filled inside leaves the old file as it was. InputError when the place cannot be written."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.temporary.touch()
            self.mode = self.temporary.stat().st_mode
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); choose another place") from None
        return self.temporary

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            try:
                with open(self.temporary, "rb+") as file:
                    os.fsync(file.fileno())
                self.temporary.chmod(self.mode)  # some writers leave files that only their owner may read
                os.replace(self.temporary, self.path)
                return
            except OSError as problem:
                kind, error = OSError, problem
        self.temporary.unlink(missing_ok=True)
        # a full disk reaches us as OSError, as what torch raises while handling one, or as safetensors' text about one
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError) or "os error" in str(error):
            reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
            raise InputError(f"{self.path}: not written ({reason}); what was there before is unchanged") from error


def swept(folder: str | Path) -> None:
    """Deletes what `whole` left in a folder when it was killed: temporary files of processes that are gone, an hour
    after they were last written, since other machines may share the folder. What may not be deleted stays."""
    for left in Path(folder).glob(".*.tmp"):
        with contextlib.suppress(OSError):
            number, old = left.name.split(".")[-2], time.time() - left.stat().st_mtime > 3600
            if old and number.isdecimal() and not _runs(int(number)):
                left.unlink()


def _runs(process: int) -> bool:
    """Whether there is such a process on this machine. Windows is not asked: there the question would end it."""
    try:
        if os.name == "posix":
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's; or no number of a process
        pass
    return True
