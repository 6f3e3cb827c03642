"""Text files: read with errors that say what to do, written whole or not at all. UTF-8 both."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError, SaveError

StrPath = str | os.PathLike[str]

# Files that hold answers or rows, as opposed to reports beside them.
LOG_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


# ---- Reading ----


def read_text(path: StrPath, what: str = "file") -> str:
    """The text of a UTF-8 file, which messages call ``what``, without a byte-order mark at its beginning; a
    MuscleError where it is not there, cannot be read, or is not UTF-8."""
    try:
        head = (content := Path(path).read_bytes())[:4]
        # As spreadsheets and PowerShell write it: by its mark, or by a Latin letter in two bytes.
        if head[:2] in _UTF_16 or (len(head) == 4 and any(head) and not (any(head[::2]) and any(head[1::2]))):
            raise MuscleError(f"{path} is UTF-16 text; save it as UTF-8")
        return io.StringIO(content.decode("utf-8-sig"), newline=None).read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise MuscleError(f"there is no {what} {path}") from error
    except OSError as error:
        raise MuscleError(f"the {what} {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


@contextlib.contextmanager
def readable(what: str, hint: str = "") -> Iterator[None]:
    """Turn what libraries raise for files that are missing, cut off, altered or of another kind into one sentence:
    ``what`` cannot be loaded, why, and the ``hint``."""
    try:
        yield
    except MuscleError:
        raise
    except Exception as error:  # readers of JSON, of weights and of tokenizers have no class in common
        raise MuscleError(f"{what} cannot be loaded ({type(error).__name__}): {error}{hint}") from error


def not_utf8(path: StrPath, error: UnicodeDecodeError) -> MuscleError:
    """What to raise for a file that is no UTF-8 text."""
    return MuscleError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})")


def parse_json(text: str | bytes, where: str) -> Any:
    """A JSON value; a MuscleError, which says ``where`` it comes from (``old.jsonl, line 3``), where it is none, or
    nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise MuscleError(f"{where}: nested too deeply to be read") from error
    except ValueError as error:
        raise MuscleError(f"{where}: not valid JSON ({error})") from error


def read_json(path: StrPath, what: str = "file") -> Any:
    """The value in a JSON file; arguments and errors as of :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, what), str(path))


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """As :func:`parse_json`, of a JSON object; anything else is refused."""
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise MuscleError(f"{where}: expected an object with named fields")
    return value


def read_object(path: StrPath, what: str = "file") -> dict[str, Any]:
    """The JSON object in a file; arguments and errors as of :func:`read_text` and :func:`parse_object`."""
    return parse_object(read_text(path, what), str(path))


def read_yaml(path: StrPath, what: str = "file") -> Any:
    """The value in a YAML file; arguments and errors as of :func:`read_text`, and it may not be YAML."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [str(key.value) for key, _ in node.value]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise MuscleError(f"{path} has the entry {twice!r} twice; keep one of them")
            return super().construct_mapping(node, deep)

    text = read_text(path, what)
    try:
        return yaml.load(text, Loader)
    except RecursionError as error:
        raise MuscleError(f"{path}: nested too deeply to be read") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise MuscleError(f"{path} is not valid YAML: {error}") from error


def json_rows(lines: Iterable[str], where: StrPath) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines, each with the number of its line from 1; blank lines are passed over."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, parse_object(line, f"{where}, line {number}")


# ---- Writing ----


def is_stdout(path: StrPath) -> bool:
    """Whether a path means the standard output: ``-``, ``/dev/stdout``, or the file that it is redirected to."""
    if os.fspath(path) == "-":
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # no such file, no such descriptor, a replaced stdout
        return False


def is_stream(path: StrPath) -> bool:
    """Whether what is written to a path goes elsewhere than into a file: the standard output, a device, a pipe."""
    return is_stdout(path) or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path))


def write_text(path: StrPath, text: str | Iterable[str]) -> Path:
    """Write text, whole or its parts in order, to a file, which appears whole or not at all; or as it is to a device,
    a pipe or the standard output (``-``). What there is no room or permission for is a :class:`SaveError`, and what
    was there before is whole.

    A symbolic link stays, and the file that it leads to is replaced; a file that is replaced keeps its permissions.
    What cannot be encoded is written as ``\\udcff``, which in JSON means the same.
    """
    parts = (text,) if isinstance(text, str) else text
    try:
        if is_stdout(path):
            _to_stdout(parts)
        elif is_stream(path):
            with open(path, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.writelines(parts)
        else:
            _replace(Path(os.path.realpath(path)), parts)
    except BrokenPipeError:
        raise  # whoever reads has enough: no fault of the path
    except OSError as error:
        raise SaveError(f"{path} cannot be written: {error.strerror or error}") from error
    return Path(path)


def write_json(
    path: StrPath, content: Any, *, indent: int | None = 2, default: Callable[[Any], Any] | None = None
) -> Path:
    """Write a value as JSON, without nan: to a path and with errors as of :func:`write_text`."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False, default=default)
    return write_text(path, text + "\n")


def write_outputs(outputs: Iterable[tuple[StrPath | None, Callable[[], str]]]) -> bool:
    """Write what was asked for (files that are not None), rendered before the first is written: an error leaves no
    half of a result behind. Gives whether one of them went to the screen."""
    texts = [(path, render()) for path, render in outputs if path]
    for path, text in texts:
        write_text(path, text)
    return any(is_stdout(path) for path, _ in texts)


def _to_stdout(parts: Iterable[str]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stdout.writelines(parts)
    sys.stdout.flush()


def _replace(target: Path, parts: Iterable[str]) -> None:
    # Beside the target, so that moving is a rename; a short name, as the target's may be as long as names can be.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(parts)
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_outputs(outputs: Iterable[StrPath | None], inputs: Iterable[StrPath | None] = ()) -> None:
    """Before any work: refuse outputs that cannot be written, or would replace each other or what is read; None is a
    file that was not asked for."""
    paths = [path for path in outputs if path is not None and os.fspath(path)]
    if sum(map(is_stdout, paths)) > 1:
        raise MuscleError("only one output can go to the screen (-); give the others a file")
    given = [Path(path) for path in inputs if path is not None and os.fspath(path)]
    files = [Path(os.path.realpath(path)) for path in paths if not is_stream(path)]
    for file in files:
        _check_place(file)
        if files.count(file) > 1:
            raise MuscleError(f"two outputs would go to {file}; give each a file of its own")
        if read := next((path for path in given if _is_part(file, path)), None):
            raise MuscleError(f"{file} would be written over what is read ({read}); give the output another file")


@contextlib.contextmanager
def alone(path: StrPath) -> Iterator[None]:
    """Within the block this process alone writes to a path, among those that ask so; another one is refused."""
    from filelock import FileLock, Timeout

    file = Path(os.path.realpath(path))
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise MuscleError(f"another process is writing {path}; wait for it, or choose another output") from error
    try:
        yield
    finally:
        if os.name == "posix":  # elsewhere a file that is open cannot be removed
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _check_place(file: Path) -> None:
    if not file.parent.is_dir():
        raise MuscleError(f"cannot write {file.name}: its folder {file.parent} does not exist")
    if file.is_dir():
        raise MuscleError(f"cannot write {file}: it is a folder; name a file in it")
    if not os.access(file.parent, os.W_OK):
        raise MuscleError(f"cannot write {file.name}: its folder {file.parent} is not writable")


def _is_part(file: Path, source: Path) -> bool:
    """Whether a file that exists is what is read, or one of the logs in a folder that is read."""
    if not file.exists() or not source.exists():
        return False
    return file.samefile(source) or (
        source.is_dir() and file.suffix in LOG_SUFFIXES and file.is_relative_to(source.resolve())
    )
