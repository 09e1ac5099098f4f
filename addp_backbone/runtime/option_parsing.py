"""``--cfg-options`` as they are written: blanks and commas in a value may be those of a path.

mmengine's ``DictAction`` removes every blank from a value and splits it at commas, so that ``data_root=/my data`` means
``/mydata`` and a folder called ``a,b`` becomes a list. Here the same forms are read (numbers, ``True``, ``None``, lists
with and without brackets), but blanks within a value stay, and what stands in quotes is one string.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

_QUOTED = re.compile(r'\s*(["\'])(.*?)\1\s*(?=[,)\]]|$)', re.DOTALL)  # a quote within a word is a letter
_CONSTANTS = {'true': True, 'false': False}
_OPENING, _CLOSING, _BRACKETS = '([', ')]', ('()', '[]')


class ConfigOptions(argparse.Action):
    """Collects ``key=value`` words in a dict; later ones replace earlier ones."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Takes the words of one use of the option."""
        try:
            options = parse_options(values or ())
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest, None) or {}), **options})


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Reads ``key=value`` words.

    Raises:
        ValueError: If one has no key or no ``=``, or a value cannot be read.
    """
    options = {}
    for word in words:
        key, equals, text = word.partition('=')
        if not equals or not key:
            raise ValueError(f'options are of the form key=value, got {word}')
        try:
            options[key] = parse_value(text)
        except ValueError as error:
            raise ValueError(f'{word!r}: {error}') from error
    return options


def config_option(name: str, value: object) -> str:
    """A word ``name=value`` that is read back as this text, whatever is in it.

    Args:
        name: Dotted name of a value of the config.
        value: A path, or other text that is no number, constant or list.

    Raises:
        ValueError: If the text has commas, brackets and both kinds of quotes so that no quotes can enclose it.
    """
    text = str(value)
    for word in (text, f"'{text}'", f'"{text}"'):
        with suppress(ValueError):
            if parse_value(word) == text:
                return f'{name}={word}'
    raise ValueError(f'{name}: {text!r} cannot be given as an option: rename the file or folder')


def parse_value(text: str) -> Any:
    """Reads the value of an option.

    Args:
        text: A number, ``True``, ``False``, ``None``, text, or values with commas between them, in ``[]``, ``()`` (a
            tuple) or without brackets. Text in quotes is taken as it is, unless it is itself a number, a constant or
            in brackets, as some shells leave quotes around those.

    Raises:
        ValueError: If a list has brackets without a partner.
    """
    parts = [] if _is_enclosed(text.strip()) else _split(text)
    return _parse_item(text) if not parts or parts == [text] else [_parse_item(part) for part in parts]


def _parse_item(text: str) -> Any:
    """A value that is no list, or a list in brackets."""
    text = text.strip()
    inner = _unquoted(text)
    if inner is not None and inner[:1] not in _OPENING:
        return inner if ',' in inner else _scalar(inner)
    text = text.strip('\'"') if inner is None else inner
    if _is_enclosed(text):
        items = [_parse_item(item) for item in _split(text[1:-1])]
        return tuple(items) if text[0] == '(' else items
    return _scalar(text)


def _is_enclosed(text: str) -> bool:
    """Whether it is in brackets, as a list is: the first is closed by the last."""
    if len(text) < 2 or text[0] + text[-1] not in _BRACKETS:
        return False
    depths = accumulate((letter in _OPENING) - (letter in _CLOSING) for letter in text[:-1])
    return min(depths) > 0


def _unquoted(text: str) -> str | None:
    """What stands between the quotes if they enclose all of the text, else None."""
    found = _QUOTED.match(text)
    return found[2] if found and found.end() == len(text) else None


def _split(text: str) -> list[str]:
    """The parts between the commas that stand outside of brackets and quotes; nothing behind the last comma is none."""
    parts, begin, position, depth = [], 0, 0, 0
    while position < len(text):
        if not text[begin:position].strip(_OPENING + ' ') and (found := _QUOTED.match(text, position)):
            position = found.end()
            continue
        depth += (text[position] in _OPENING) - (text[position] in _CLOSING)
        if depth < 0:
            break
        if text[position] == ',' and not depth:
            parts.append(text[begin:position])
            begin = position + 1
        position += 1
    if depth and ',' in text:
        raise ValueError('a bracket has no partner; put text with brackets and commas into quotes')
    return [*parts, text[begin:]] if text[begin:].strip() else parts


def _scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None if text == 'None' else _CONSTANTS.get(text.lower(), text)
