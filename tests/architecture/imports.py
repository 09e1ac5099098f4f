"""The project's imports, read from the source text: rooms, import levels, circles. Nothing of the project is run.

python tests/architecture/imports.py     # prints the figures that docs/architecture.md quotes
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('addp_backbone', 'pretrain', 'experiments', 'tools')


def python_files(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file, of every module of the project; configs, which mmengine executes, are left out."""
    files = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob('*.py')):
            parts = path.relative_to(root).with_suffix('').parts
            if 'configs' not in parts:
                files['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return files


def imports_of(name: str, path: Path, modules: Iterable[str]) -> set[str]:
    """Names of the project's modules that a module imports anywhere in its text, but for type checking only."""
    known = set(modules)
    tree = ast.parse(path.read_text(encoding='utf-8'))
    ignored = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith('TYPE_CHECKING')
        for child in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in ignored:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f'{node.module}.{alias.name}'
                found |= {full} if full in known else {node.module} & known
    return found - {name}


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> modules it imports."""
    files = python_files(root)
    return {name: imports_of(name, path, files) for name, path in files.items()}


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of imports, its first name again at the end; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if circle := visit(target, [*trail, name]):
                return circle
        done.add(name)
        return []

    for name in sorted(graph):
        if circle := visit(name, []):
            return circle
    return []


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest chain of imports, in a graph without circles."""
    chains: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in chains:
            chains[name] = [name, *max((chain(target) for target in sorted(graph[name])), key=len, default=[])]
        return chains[name]

    return max((chain(name) for name in sorted(graph)), key=len, default=[])


def rooms(package: str, root: Path = ROOT) -> list[str]:
    """What a reader of a package's folder sees: its modules and sub-folders."""
    return sorted(
        path.name
        for path in (root / package).iterdir()
        if (path.is_dir() and not path.name.startswith(('_', '.')))
        or (path.suffix == '.py' and path.stem != '__init__')
    )


def room_of(module: str) -> str:
    """The room that a module is in: ``addp_backbone.layers`` of ``addp_backbone.layers.mlp``."""
    return '.'.join(module.split('.')[:2])


def room_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Room -> rooms its modules import; a package's own ``__init__`` is none, as it only registers and re-exports."""
    found: dict[str, set[str]] = {}
    for name, targets in graph.items():
        found.setdefault(room_of(name), set()).update(room_of(target) for target in targets)
    return {room: {name for name in targets - {room} if '.' in name} for room, targets in found.items() if '.' in room}


def main() -> None:
    """Prints the figures."""
    graph = import_graph()
    for package in PACKAGES[:3]:
        names = rooms(package)
        print(f'{package}: {len(names)} rooms: {", ".join(names)}')
    circle = find_circle(graph)
    print(f'circles between files: {" -> ".join(circle) or "none"}')
    print(f'circles between rooms: {" -> ".join(find_circle(room_graph(graph))) or "none"}')
    if not circle:
        chain = longest_chain(graph)
        print(f'import levels: {len(chain)}: {" -> ".join(chain)}')


if __name__ == '__main__':
    main()
