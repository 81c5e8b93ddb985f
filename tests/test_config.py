"""Settings to files and back, and the one line that says what is wrong with them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from ldm_lite.config import InputError, from_dict, read, suggest, to_dict, whole, write


@dataclass(frozen=True)
class Inner:
    width: int = 3
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width: {self.width} is not 1 or more")


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 0.5
    flag: bool = False
    folder: Path = Path("x")
    many: tuple[int, ...] = (1, 2)
    two: tuple[float, float] = (0.5, 0.25)
    perhaps: int | None = None
    either: int | tuple[int, int] = 1
    inner: Inner = Inner()
    anything: Any = None


FILLED = Outer("né", 1e-6, True, Path("a/b"), (3,), (1.0, 1e20), 7, (2, 3), Inner(5, "b"), {"x": [1, None]})


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
@pytest.mark.parametrize("settings", [Outer("plain"), FILLED])
def test_settings_come_back_from_a_file_as_they_were(settings, suffix, tmp_path):
    path = tmp_path / f"settings{suffix}"
    write(path, settings)
    assert from_dict(Outer, read(path)) == settings
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_plain_values_in_the_order_of_the_fields(tmp_path):
    write(tmp_path / "s.json", Outer("né"))
    text = (tmp_path / "s.json").read_text(encoding="utf-8")
    assert '"name": "né"' in text and list(json.loads(text)) == list(Outer.__dataclass_fields__)
    write(tmp_path / "s.yaml", Outer("né"))
    assert (tmp_path / "s.yaml").read_text(encoding="utf-8").startswith("name: né\nrate: 0.5\n")


def test_numbers_are_taken_as_people_write_them(tmp_path):
    (tmp_path / "s.yaml").write_text("name: a\nrate: 1e-4\ntwo: [1, 0]\n")  # for YAML 1e-4 is a string, 1 an integer
    settings = from_dict(Outer, read(tmp_path / "s.yaml"))
    assert settings.rate == 1e-4 and settings.two == (1.0, 0.0) and type(settings.two[0]) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"name": "a", "widht": 3},
            "widht: Outer has name, rate, flag, folder, many, two, perhaps, either, inner, anything",
        ),
        ({"name": "a", "inner": {"widht": 3}}, "widht: Outer.inner has width, kind"),
        ({}, "Outer: .*missing 1 required positional argument: 'name'"),
        ({"name": 3}, "Outer.name: str is needed, not 3"),
        ({"name": "a", "rate": "fast"}, "Outer.rate: float is needed, not 'fast'"),
        ({"name": "a", "rate": True}, "Outer.rate: float is needed, not True"),
        ({"name": "a", "flag": 1}, "Outer.flag: bool is needed, not 1"),
        ({"name": "a", "perhaps": 1.5}, "Outer.perhaps: int is needed, not 1.5"),
        ({"name": "a", "perhaps": True}, "Outer.perhaps: int is needed, not True"),
        ({"name": "a", "many": 3}, "Outer.many: a list is needed, not 3"),
        ({"name": "a", "many": [1, "x"]}, "Outer.many: int is needed, not 'x'"),
        ({"name": "a", "two": [0.5]}, "Outer.two: 2 values are needed, not 1"),
        ({"name": "a", "either": "x"}, "Outer.either: int is needed, not 'x'"),
        ({"name": "a", "inner": {"kind": "c"}}, "Outer.inner.kind: 'c' is not one of 'a', 'b'"),
        ({"name": "a", "inner": {"width": 0}}, "Outer.inner: width: 0 is not 1 or more"),
        ({"name": "a", "inner": 3}, "Outer.inner: a mapping of settings is needed, not 3"),
        ([1], r"Outer: a mapping of settings is needed, not \[1\]"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(values, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        from_dict(Outer, values)


def test_to_dict_turns_tuples_paths_and_dataclasses_to_plain_values():
    assert to_dict({"a": (Path("x/y"), Inner()), 3: None}) == {
        "a": [str(Path("x/y")), {"width": 3, "kind": "a"}],
        "3": None,
    }


# Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.json", '{"a": 1', "is not JSON"),
        ("s.json", "\xff\xfe", "is not JSON"),
        ("s.yaml", "a: [1", "is not YAML"),
        ("s.yaml", "!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_named_in_one_line(name, text, message, tmp_path):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=f"{name}: {message}") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.json: no such file"):
        read(tmp_path / "none.json")
    with pytest.raises(InputError, match=f"{tmp_path.name}: "):
        read(tmp_path)


def test_an_unknown_name_is_told_the_closest_one_first():
    assert (
        str(suggest("ddmi", ["plms", "ddim"], "sampler"))
        == "ddmi: no such sampler; did you mean ddim? there are plms, ddim"
    )
    assert str(suggest("zzz", ["plms", "ddim"], "sampler")) == "zzz: no such sampler; there are plms, ddim"


def test_a_file_is_replaced_only_once_it_is_whole(tmp_path):
    path = tmp_path / "folder" / "file"
    with whole(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), whole(path) as temporary:
        temporary.write_text("tw")
        raise ZeroDivisionError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(28, "No space left on device"),
        Exception("I/O error: No space left on device (os error 28)"),  # as safetensors says it
    ],
)
def test_a_disk_that_is_full_leaves_the_old_file(failure, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with (
        pytest.raises(InputError, match=r"file: not written .*No space left.*what was there before is unchanged"),
        whole(path) as t,
    ):
        t.write_text("ne")
        raise failure
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_settings_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write(tmp_path / "s.json", Inner())
    monkeypatch.setattr(Path, "write_text", lambda path, text, **how: path.write_bytes(b"{") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "s.json", Inner(7))
    assert from_dict(Inner, read(tmp_path / "s.json")) == Inner()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(InputError, match=r"cannot be written .*choose another place"), whole(tmp_path / "file" / "x"):
        pass
    with pytest.raises(InputError, match="not written"), whole(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_is_as_readable_as_any_other_whatever_wrote_it(tmp_path):
    (tmp_path / "other").touch()
    with whole(tmp_path / "file") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


@dataclass(frozen=True)
class Wide:
    names: tuple[str, ...] = ()
    f: int = 4
    channels: int = 3


@dataclass(frozen=True)
class Narrow:
    channels: int = 3
    f: int = 4


@dataclass(frozen=True)
class Either:
    one: Wide | Narrow | None = None


def test_of_several_dataclasses_the_one_with_the_fields_that_were_written_comes_back():
    for one in (Wide(("a",)), Wide(), Narrow(5), None):
        assert from_dict(Either, to_dict(Either(one))) == Either(one)
    assert from_dict(Either, {"one": {"names": ["b"]}}) == Either(Wide(("b",)))
    with pytest.raises(InputError, match=r"nams: Either\.one has names, f, channels"):
        from_dict(Either, {"one": {"nams": ["b"]}})
