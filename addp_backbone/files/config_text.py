"""Strings from outside in config files: written so that neither mmengine nor Python reads them as anything but strings.

mmengine looks for templates (``{{ fileDirname }}``, ``{{$VARIABLE:default}}``, ``{{ _base_.key }}``) in the raw text of
a config before Python sees it, and puts values in unquoted. A class name or a path with such a pattern would pull in
environment variables or run code. Templates need two braces in a row, so braces are written as Python escapes here.
Every config that the project writes takes its strings from :func:`python_literal` and :func:`docstring_text`; configs
that are dumped and read again (work dirs, checkpoints) are :class:`LiteralConfig`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

_FIRST_OF_TWO_BRACES = re.compile(r'\{(?=\{)')  # within '{{{' too: the escape must leave no pair behind


def python_literal(value: Any) -> str:
    """Python's literal of a value, in ASCII and without a brace inside its strings.

    Args:
        value: A string, number, bool, None, or lists and tuples of them.

    Returns:
        Text that evaluates to an equal value.

    Raises:
        TypeError: If the value is of another type, whose ``repr`` may not be a literal.
    """
    if isinstance(value, (list, tuple)):
        inner = ', '.join(python_literal(item) for item in value)
        return f'[{inner}]' if isinstance(value, list) else f'({inner}{"," * (len(value) == 1)})'
    if isinstance(value, str):
        return ascii(value).replace('{', r'\x7b').replace('}', r'\x7d')
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    raise TypeError(f'{value!r} is a {type(value).__name__}, wanted strings, numbers, bools, None or lists of them')


def python_call(value: Any) -> str:
    """As :func:`python_literal`; dicts, also nested ones, become ``dict(name=value)``.

    Raises:
        TypeError: If a value is of another type, or a key is no Python name.
    """
    if not isinstance(value, Mapping):
        return python_literal(value)
    if wrong := [key for key in value if not (isinstance(key, str) and key.isidentifier())]:
        raise TypeError(f'{wrong[0]!r} is no name of an option')
    return f'dict({", ".join(f"{name}={python_call(inner)}" for name, inner in value.items())})'


def docstring_text(text: str) -> str:
    """A string as it may stand within a docstring of triple double quotes; Python reads it back unchanged."""
    return python_literal(text)[1:-1].replace('"', r'\"')


class LiteralConfig(Config):
    """mmengine's config, whose dumped text gives the same values when it is read again.

    Args:
        config: The config to take over.
    """

    @classmethod
    def of(cls, config: Config) -> LiteralConfig:
        """Takes over a config with its file name and text."""
        return cls(config._cfg_dict, cfg_text=config.text, filename=config.filename, env_variables=config.env_variables)

    @property
    def pretty_text(self) -> str:
        """The config as Python, without two opening braces in a row, which only strings can have."""
        return _FIRST_OF_TWO_BRACES.sub(lambda _: r'\x7b', super().pretty_text)
