"""One idiom for every command: parse_args, run, main; one error line; exit codes; the code of its own checkout."""

from __future__ import annotations

import argparse
import ast
import shutil
import subprocess
import sys
from pathlib import Path

from command_line import run_command

import pytest
from running import ROOT

TOOLS = sorted(path for path in (ROOT / 'tools').glob('*.py') if path.name != 'command_line.py')
BENCHMARKS = [path for path in (ROOT / 'tools/benchmark').glob('*.py') if '__main__' in path.read_text()]
ARGS = argparse.Namespace()


class OwnCodeError(ValueError):
    exit_code = 85


def fail_with(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize('result', [None, 0, 3])
def test_what_a_command_returns_is_its_exit_code(result: int | None) -> None:
    assert run_command(lambda args: result, ARGS) == (result or 0)


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (ValueError('no such data'), 1, 'error: no such data\n'),
        (OSError(28, 'No space left on device', 'F'), 1, "error: [Errno 28] No space left on device: 'F'\n"),
        (OwnCodeError('saved'), 85, 'error: saved\n'),
        (MemoryError(), 1, 'error: not enough memory\n'),
        (KeyboardInterrupt(), 130, 'error: interrupted\n'),
    ],
)
def test_an_expected_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda args: fail_with(error), ARGS) == code
    assert capsys.readouterr() == ('', line)


def test_an_unexpected_error_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match='a mistake in the code'):
        run_command(lambda args: fail_with(ValueError('a mistake in the code')), ARGS, (OSError,))


@pytest.mark.parametrize('path', [*TOOLS, *BENCHMARKS], ids=lambda path: path.stem)
def test_every_command_has_the_same_three_functions_and_leaves_the_path_alone(path: Path) -> None:
    text = path.read_text()
    functions = {
        node.name: [argument.arg for argument in node.args.args]
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }
    assert functions.items() >= {'parse_args': ['argv'], 'run': ['args'], 'main': ['argv']}.items()
    assert 'sys.path' not in text and 'ArgumentParser(' not in text
    assert text.endswith("if __name__ == '__main__':\n    sys.exit(main())\n")


def test_a_command_uses_the_checkout_it_lies_in_whatever_is_installed(tmp_path: Path) -> None:
    (tmp_path / 'tools').mkdir()
    shutil.copy(ROOT / 'tools/command_line.py', tmp_path / 'tools')
    (tmp_path / 'tools/where.py').write_text(
        'import command_line\nimport addp_backbone\nprint(addp_backbone.__file__)\n', encoding='utf-8'
    )
    package = tmp_path / 'addp_backbone' / '__init__.py'
    package.parent.mkdir()
    package.touch()
    done = subprocess.run(
        [sys.executable, tmp_path / 'tools/where.py'], cwd='/', capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == package


def test_a_package_that_is_not_installed_is_one_sentence_with_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, '-S', ROOT / 'tools/plot_curves.py', 'x'], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('error: the package matplotlib is not installed') and 'make setup' in done.stderr
