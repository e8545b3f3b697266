"""Python interpreters, and the packages that tests need, in the cache of the project.

The cache is `target/`, or `$STANDBY_TEST_CACHE`. What is in it is made once for each
requirements file and interpreter, from pinned versions.
"""
import contextlib
import fcntl
import glob
import hashlib
import os
import shutil
import subprocess
import sys

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The reference results of the conformance suite were obtained with the first of these.
PREFERRED = [(3, 11), (3, 12), (3, 13), (3, 14)]


class Unavailable(Exception):
    """Something that a test needs cannot be had here; the reason is the text."""


def cache():
    path = os.environ.get('STANDBY_TEST_CACHE') or os.path.join(PROJECT, 'target')
    os.makedirs(path, exist_ok=True)
    return os.path.abspath(path)


def interpreters():
    """{(major, minor): path} of the Pythons on PATH and in pyenv's versions."""
    found = {}
    for path in candidates():
        version = version_of(path)
        if version and version not in found:
            found[version] = path
    return found


def candidates():
    """Paths that may be interpreters, best first."""
    yield sys.executable
    root = os.environ.get('PYENV_ROOT') or os.path.expanduser('~/.pyenv')
    yield from sorted(glob.glob(os.path.join(root, 'versions', '*', 'bin', 'python')))
    names = ['python%d.%d' % v for v in PREFERRED]
    names += ['python3.10', 'python3.9', 'python3.8', 'python2.7', 'python3', 'python2']
    for name in names:
        path = shutil.which(name)
        if path:
            yield path


def version_of(path):
    """(major, minor), or None if this does not start (as shims for absent versions)."""
    try:
        text = subprocess.run(
            [path, '-c', 'import sys; print("%d %d" % sys.version_info[:2])'],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=20, check=True).stdout
        major, minor = text.split()
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def best_interpreter():
    """The interpreter for the tests of this project (>= 3.11)."""
    found = interpreters()
    for version in PREFERRED:
        if version in found:
            return found[version]
    raise Unavailable('no Python >= 3.11 (found: %s)' % (
        ', '.join('%d.%d' % v for v in sorted(found)) or 'none'))


def venv(requirements, python=None, directory=None):
    """The interpreter of a virtual environment with the packages of *requirements*."""
    python = python or best_interpreter()
    directory = directory or place('venv', requirements, python)
    inside = os.path.join(directory, 'bin', 'python')

    def build():
        if not os.path.exists(inside):
            make_venv(python, directory)
        pip([inside, '-m', 'pip', 'install'], requirements)

    once(directory, requirements, build)
    return inside


def site(requirements, python, *options):
    """A directory for PYTHONPATH with the packages of *requirements*, for *python*.

    Unlike a virtual environment this works for Python 2.7 as well. *options* are pip's.
    """
    directory = place('site', requirements, python)

    def build():
        shutil.rmtree(directory, ignore_errors=True)
        environ = dict(os.environ)
        more = []
        if version_of(python) == (2, 7):
            environ['PYTHONPATH'] = pip_for_python_2(python)
            more = ['--no-build-isolation']
        pip([python, '-m', 'pip', 'install', '--target', directory, *more, *options],
            requirements, environ)
        # Python 2 finds the packages `zope.*` by .pth files, which PYTHONPATH alone ignores.
        with open(os.path.join(directory, 'sitecustomize.py'), 'w') as f:
            f.write('import os, site\nsite.addsitedir(os.path.dirname(__file__))\n')

    once(directory, requirements, build)
    return directory


# The last pip for Python 2 (the one that comes with it finds no wheels), and what its packages are
# built with. What they ask for without a version is for Python 3 by now.
PIP_FOR_PYTHON_2 = ['pip==20.3.4', 'setuptools==44.1.1', 'wheel==0.37.1', 'cffi==1.15.1',
                    'pycparser==2.21']
HEADERS_FOR_PYTHON_2 = ['persistent==4.9.3', 'zope.interface==5.5.2', 'six==1.17.0']


def pip_for_python_2(python):
    """A directory for PYTHONPATH with all that installs packages for Python 2."""
    directory = os.path.join(cache(), 'pip-for-python-2')
    with locked(directory + '.lock'):
        if os.path.exists(directory):
            return directory
        new = directory + '.new'
        shutil.rmtree(new, ignore_errors=True)
        install = [python, '-m', 'pip', 'install', '--target', new]
        inside = dict(os.environ, PYTHONPATH=new)
        if not (run_quietly(install + PIP_FOR_PYTHON_2)
                and run_quietly(install + ['--no-build-isolation'] + HEADERS_FOR_PYTHON_2,
                                env=inside)):
            raise Unavailable('no pip for Python 2, or nothing that it builds with')
        # PYTHONPATH alone heeds no .pth files, and there is no other `zope` here.
        open(os.path.join(new, 'zope', '__init__.py'), 'w').close()
        os.rename(new, directory)
    return directory


def place(kind, requirements, python):
    with open(requirements, 'rb') as f:
        digest = hashlib.sha256(f.read() + os.path.realpath(python).encode()).hexdigest()
    return os.path.join(cache(), '%s-%s' % (kind, digest[:12]))


def once(directory, requirements, build):
    """Call *build* unless it was done for these requirements. One process at a time does."""
    with open(requirements) as f:
        wanted = f.read()
    stamp = os.path.join(directory, 'requirements-installed')
    with locked(directory + '.lock'):
        with contextlib.suppress(OSError), open(stamp) as f:
            if f.read() == wanted:
                return
        print('# preparing', directory, file=sys.stderr, flush=True)
        build()
        with open(stamp, 'w') as f:
            f.write(wanted)


@contextlib.contextmanager
def locked(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def make_venv(python, directory):
    if run_quietly([python, '-m', 'venv', directory]):
        return
    # Debian keeps what `venv` needs in a package of its own.
    shutil.rmtree(directory, ignore_errors=True)
    install_package('python3-venv')
    if not run_quietly([python, '-m', 'venv', directory]):
        raise Unavailable('%s -m venv does not work' % python)


def install_package(name):
    """Install a Debian package, if that is possible."""
    if os.geteuid() != 0 or not shutil.which('apt-get'):
        raise Unavailable('package %s is missing (not root, or no apt-get)' % name)
    environ = dict(os.environ, DEBIAN_FRONTEND='noninteractive')
    apt = ['apt-get', '-o', 'DPkg::Lock::Timeout=120']      # another part may be at it, too
    if not (run_quietly(apt + ['install', '-y', name], env=environ)
            or run_quietly(apt + ['update'], env=environ)
            and run_quietly(apt + ['install', '-y', name], env=environ)):
        raise Unavailable('package %s cannot be installed' % name)


def pip(command, requirements, environ=None):
    command = command + ['-q', '--disable-pip-version-check', '-r', requirements]
    done = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = done.stdout.decode('utf-8', 'replace').strip().splitlines() or ['']
        raise Unavailable('pip failed for %s: %s' % (os.path.basename(requirements), lines[-1]))


def run_quietly(command, **kw):
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, **kw).returncode == 0
    except OSError:
        return False
