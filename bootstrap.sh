#!/bin/sh
# Prepares this checkout and prints, on standard output, the Python to run it with. The Makefile calls it before
# everything; a call that finds nothing to do takes some hundredths of a second.
#
#   sh bootstrap.sh core    the package and what Two-Room and Push-T need (make demo)
#   sh bootstrap.sh all     and MuJoCo, the tests and the developer's tools (make test, make lint, ...)
#   sh bootstrap.sh docs    and what builds the site (make docs)
#   sh bootstrap.sh ci      all of these, and what tests compare with: Ray, stable-worldmodel's modules, ... (.ci/run)
#   sh bootstrap.sh gl      the system libraries that draw MuJoCo without a screen (make setup-gl); prints no Python
#
# uv does the work: the user's, else one that pip puts into the environment, else pip does. From the environment:
#   VENV     the environment, .venv by default; one that is there (a virtual one, conda's, a container's) is completed
#   PYTHON   the interpreter to make it from, such as python3.12
#   TORCH    a requirement for torch, in place of the choice by hardware
set -u
cd "$(dirname "$0")" || exit 1
LEVEL=${1:-core} VENV=${VENV:-.venv} PYTHON=${PYTHON:-} TORCH=${TORCH:-}
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
python=$VENV/bin/python making=$VENV/.lewm-installing
# Settings of the user's that would lead pip astray inside an environment.
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_VENV_CLEAR=1
backend=${UV_TORCH_BACKEND:-auto} # for torch itself; what comes after it keeps the torch that is there
unset PIP_TARGET PIP_PREFIX PYTHONHOME UV_TORCH_BACKEND

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2 && exit 2; }
have() { command -v "$1" >/dev/null 2>&1; }

setup_gl() { # Debian's packages of the libraries that are missing; macOS draws with its own
    [ "$(uname -s)" = Linux ] || return 0
    there=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null) && set --
    for pair in libEGL.so.1:libegl1 libEGL_mesa.so.0:libegl-mesa0 libGL.so.1:libgl1 libOSMesa.so:libosmesa6; do
        case $there in *"${pair%%:*}"*) ;; *) set -- "$@" "${pair#*:}" ;; esac
    done
    [ "$*" = libosmesa6 ] && set -- # one way to draw is enough, and newer releases have no OSMesa any more
    [ $# -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && have apt-get; then
        say "installing from the system's packages: $*"
        export DEBIAN_FRONTEND=noninteractive
        for try in 1 2; do
            apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >/dev/null && return 0
            [ $try = 1 ] && apt-get update -qq # a bare machine has no package lists yet
        done
    fi
    say "MuJoCo's tasks (Cube, Reacher) cannot draw here without: sudo apt-get install -y $*"
    return 2
}

key() { { cat setup.cfg pyproject.toml bootstrap.sh "$VENV/pyvenv.cfg"; pwd -P; } 2>/dev/null | cksum; }
is_ready() { # by the stamp of this level or of one that holds it
    [ -x "$python" ] && [ ! -e "$making" ] && now=$(key) || return 1
    for level in "$LEVEL" ci $([ "$LEVEL" = core ] && echo all docs); do
        [ "$(cat "$VENV/.lewm-$level" 2>/dev/null)" = "$now" ] && return 0
    done
    return 1
}

make_venv() {
    [ -e "$making" ] && say "an earlier set-up was interrupted: starting again"
    [ -e "$making" ] || [ -e "$VENV/pyvenv.cfg" ] || [ -z "$(ls -A "$VENV" 2>/dev/null)" ] ||
        fail "$VENV exists and is no Python environment: set VENV to another path"
    for base in ${PYTHON:-python3 python3.12 python3.11 python3.13 python}; do
        "$base" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break || base=
    done
    if [ -z "$base" ] && ! have uv && have curl; then
        say "neither uv nor a Python of 3.11 or later with its venv module is here: fetching uv into .cache"
        curl -LsSf https://astral.sh/uv/install.sh | UV_UNMANAGED_INSTALL=$PWD/.cache/uv sh >&2
        PATH=$PWD/.cache/uv:$PATH
    fi
    if have uv; then
        uv venv --quiet --seed --python "${PYTHON:->=3.11,<3.13}" "$VENV" || exit 2
    elif [ -n "$base" ]; then
        "$base" -m venv --clear "$VENV" || exit 2
    else
        fail "expected ${PYTHON:-a Python} of 3.11 or later with its venv module, or uv: sudo apt-get install -y python3-venv, or https://docs.astral.sh/uv"
    fi
    : >"$making" # pip and uv take a half-copied package for whole: an interrupted environment is made anew
}

install_torch() { # one that is there stays; then what pip's configuration has on disk; then by hardware
    "$python" -c 'from importlib.metadata import version as v; assert [*map(int, v("torch").split(".")[:2])] >= [2, 6]' \
        2>/dev/null && return 0
    [ -n "$TORCH" ] && { install "$TORCH"; return; }
    "$python" -m pip install -qq --no-index --no-deps 'torch>=2.6,<3' >/dev/null 2>&1 && return 0
    have uv && uv pip install --quiet --python "$python" --torch-backend="$backend" 'torch>=2.6,<3' && return 0
    [ "$(uname -s)" = Linux ] && ! have nvidia-smi && ! have uv &&
        "$python" -m pip install -qq --index-url https://download.pytorch.org/whl/cpu 'torch>=2.6,<3' && return 0
    [ "$(uname -s)" = Linux ] && say "torch: the standard build, with some 3 GB of CUDA; another: make ... TORCH='torch @ file:///path.whl'"
    install 'torch>=2.6,<3'
}

install() {
    if have uv; then uv pip install --quiet --python "$python" "$@"; else "$python" -m pip install -qq "$@"; fi
}

case $LEVEL in
core) extras="" ;;
all) extras="[all]" ;;
docs) extras="[docs]" ;;
ci) extras="[all,docs,peers]" ;;
gl) setup_gl && exit 0 || exit 2 ;;
*) fail "bootstrap.sh: expected core, all, docs, ci or gl, got '$LEVEL'" ;;
esac
if ! is_ready; then
    # One set-up at a time; the second finds it done. Without flock (macOS) the user has to see to it.
    mkdir -p .cache && have flock && exec 9>.cache/setup.lock && flock 9
    if ! is_ready; then
        { "$python" -c '' 2>/dev/null && [ ! -e "$making" ]; } || make_venv
        case $LEVEL in all | ci) setup_gl ;; esac
        PATH=$VENV/bin:$PWD/.cache/uv:$PATH
        have uv || "$python" -m pip install -qq uv || say "uv cannot be had: pip does the work"
        say "installing torch, then lewm-gym$extras, into $VENV"
        install_torch && install -e ".$extras" ||
            { rm -f "$making" && fail "the set-up failed; see above. The same command goes on from here"; }
        case "$LEVEL $("$python" -V)" in # labmaze, which dm_control requires and we never use, has no later wheel
        all\ Python\ 3.1[3-9]* | ci\ Python\ 3.1[3-9]*) install --no-deps dm_control==1.0.50 ogbench==1.2.2 || exit 2 ;;
        esac
        # Its requirements would bring a screenful of simulators, and torchvision: tests load its modules one by one.
        [ "$LEVEL" != ci ] || install --no-deps 'stable-worldmodel==0.1.1' || exit 2
        rm -f "$making" && key >"$VENV/.lewm-$LEVEL"
    fi
fi
printf '%s\n' "$python"
