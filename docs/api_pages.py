"""Writes the pages of the Python API while the site is built: one page a package, a section for each of its modules.

mkdocs runs this file as a hook (see mkdocs.yml). Modules are found in the tree, so that a file that moves or is added
needs no change here. It also takes out the one script that Material's offline plugin would load from the web.
"""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[1]
WEB_WORKER, OWN_WORKER = 'https://unpkg.com/iframe-worker/shim', 'assets/file_worker.js'
PACKAGES = ('addp_backbone', 'pretrain', 'experiments')


def summary(path: Path) -> str:
    """First paragraph of a module's docstring, or nothing."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    return ' '.join(docstring.split('\n\n')[0].split())


def package_pages(root: Path = ROOT) -> dict[str, list[Path]]:
    """Dotted name of each package -> its modules, ``__init__`` left out; packages without modules are left out."""
    pages = {}
    for package in PACKAGES:
        for init in sorted((root / package).rglob('__init__.py')):
            modules = [path for path in sorted(init.parent.glob('*.py')) if path != init]
            if modules:
                pages['.'.join(init.parent.relative_to(root).parts)] = modules
    return pages


def page_text(name: str, modules: list[Path], root: Path = ROOT) -> str:
    """The Markdown of a package's page."""
    init = root.joinpath(*name.split('.')) / '__init__.py'
    sections = [f'# {name}', summary(init)]
    sections += [f'::: {name}.{path.stem}' for path in modules]
    return '\n\n'.join(sections) + '\n'


def index_text(pages: dict[str, list[Path]], root: Path = ROOT) -> str:
    """The Markdown of the page that lists all packages."""
    rows = ['| package | |', '|---|---|']
    for name in pages:
        init = root.joinpath(*name.split('.')) / '__init__.py'
        rows.append(f'| [`{name}`]({name}.md) | {summary(init)} |')
    return (
        '# Python API\n\n'
        'Made from the docstrings. Names that begin with an underscore are private and left out.\n\n'
        + '\n'.join(rows)
        + '\n'
    )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages; mkdocs calls this before it reads the navigation."""
    pages = package_pages()
    texts = {'api/index.md': index_text(pages)} | {f'api/{name}.md': page_text(name, m) for name, m in pages.items()}
    for uri, text in texts.items():
        files.append(File.generated(config, uri, content=text))
    for section in config.nav or ():
        for entry in next(iter(section.values())) if isinstance(next(iter(section.values())), list) else ():
            if entry == {'Python API': 'api/index.md'}:
                entry['Python API'] = ['api/index.md', *({name: f'api/{name}.md'} for name in pages)]
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Replaces the script that searches pages opened from a folder with our own."""
    return output.replace(WEB_WORKER, get_relative_url(OWN_WORKER, page.url))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """The same for the page of unknown addresses."""
    return output_content.replace(WEB_WORKER, OWN_WORKER)
