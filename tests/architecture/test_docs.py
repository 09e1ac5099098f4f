"""The documentation: links lead somewhere, the README stays short, the site builds and needs no network."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
README_LINES, README_COLUMNS = 130, 160


def without_code(text):
    return re.sub(r'```.*?```', '', text, flags=re.DOTALL)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_local_link_leads_to_a_file(page):
    for target in re.findall(r'\]\(([^)\s#]+)', without_code(page.read_text(encoding='utf-8'))):
        made = target.startswith('api/')  # written while the site is built
        assert made or '://' in target or (page.parent / target).exists(), f'{page.name} links to {target}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    rooms = r'(?:addp_backbone|pretrain|experiments|det_configs|seg_configs|tools|tests|docs)'
    for path in re.findall(rf'(?<![\w/]){rooms}/[\w/]+(?:\.py|\.sh|\.md|/)', page.read_text(encoding='utf-8')):
        assert (ROOT / path).exists(), f'{page.name} names {path}'


def test_the_readme_is_short():
    lines = (ROOT / 'README.md').read_text(encoding='utf-8').splitlines()
    assert len(lines) <= README_LINES
    assert max(map(len, lines)) <= README_COLUMNS


@pytest.mark.skipif(
    importlib.util.find_spec('mkdocs') is None, reason='mkdocs is not installed; make setup installs it'
)
def test_the_site_builds_without_warnings_and_loads_nothing_from_the_web(tmp_path):
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', str(tmp_path)]
    environment = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'WARNING' not in done.stderr, done.stderr
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="https?:'
    )
    for page in tmp_path.rglob('*.html'):
        assert not loaded.search(page.read_text(encoding='utf-8')), page
