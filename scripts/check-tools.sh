#!/bin/sh
# Say what this machine lacks for building and simulating moska, one line each; exit 2 if anything.
# Usage: scripts/check-tools.sh [PYTHON]
python=${1:-python3}
status=0

missing() {
    echo "moska: missing: $1; on Debian or Ubuntu: sudo apt-get install $2" >&2
    status=2
}

if ! command -v "$python" >/dev/null 2>&1 || ! "$python" -c '' >/dev/null 2>&1; then
    missing "Python 3.10 or newer (no usable '$python')" "python3 python3-venv"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    missing "Python 3.10 or newer ('$python' is $("$python" -V 2>&1); set PYTHON=)" \
        "python3 python3-venv"
else
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        missing "Python's venv module with ensurepip" "python3-venv"
    # The simulator loads Python as a shared library.
    "$python" - >/dev/null 2>&1 <<'EOF' || missing "Python's shared library" "libpython3-dev"
import ctypes, os, sysconfig
name = sysconfig.get_config_var("INSTSONAME") or ""
folder = sysconfig.get_config_var("LIBDIR") or ""
if ".so" not in name:
    name = f"libpython{sysconfig.get_python_version()}.so.1.0"
for path in (name, os.path.join(folder, name)):
    try:
        ctypes.CDLL(path)
        break
    except OSError:
        continue
else:
    raise SystemExit(1)
EOF
fi
command -v g++ >/dev/null 2>&1 || missing "g++ (Verilator's models are C++)" "g++"
command -v make >/dev/null 2>&1 || missing "make" "make"
command -v perl >/dev/null 2>&1 || missing "perl (Verilator's front end)" "perl"
exit $status
