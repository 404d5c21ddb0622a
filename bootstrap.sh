#!/bin/sh
# Prepares this checkout and prints, on standard output, the Python to run it with. The Makefile calls it before
# everything; a call that finds nothing to do takes some hundredths of a second.
#
#   sh bootstrap.sh core    the package and what Two-Room and Push-T need (make demo)
#   sh bootstrap.sh all     and MuJoCo, the tests and the developer's tools (make test, make lint, ...)
#   sh bootstrap.sh gl      the system libraries that draw MuJoCo without a screen (make setup-gl); prints no Python
#
# From the environment:
#   VENV     the virtual environment to make or to use, .venv by default; one made by hand is kept and completed
#   PYTHON   an interpreter that has everything is used as it is; any other one is what VENV is made from
#   TORCH    a pip requirement for torch, in place of the choice by hardware
#
# Exit status 2: the machine lacks something that only its owner can install; the message is the command to type.
set -u
cd "$(dirname "$0")" || exit 1

LEVEL=${1:-core}
VENV=${VENV:-.venv}
PYTHON=${PYTHON:-}
TORCH=${TORCH:-}
CPU_INDEX=https://download.pytorch.org/whl/cpu

# Settings of the user's that would lead pip astray inside a virtual environment.
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
unset PIP_TARGET PIP_PREFIX PYTHONHOME

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { # status, message
    status=$1
    shift
    printf 'error: %s\n' "$*" >&2
    exit "$status"
}

case $LEVEL in
core) EXTRAS="" ;;
all) EXTRAS="[all]" ;;
gl) EXTRAS="" ;;
*) fail 2 "bootstrap.sh: expected core, all or gl, got '$LEVEL'" ;;
esac

# ---------------------------------------------------------------------------------------------- the system's part

missing_gl() { # the Debian packages whose library is not there; none on macOS, which draws with its own
    [ "$(uname -s)" = Linux ] || return 0
    libraries=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null)
    for pair in libEGL.so.1:libegl1 libEGL_mesa.so.0:libegl-mesa0 libGL.so.1:libgl1 libOSMesa.so:libosmesa6; do
        case $libraries in
        *"${pair%%:*}"*) ;;
        *) printf '%s ' "${pair#*:}" ;;
        esac
    done
}

is_root() { [ "$(id -u)" = 0 ]; }
has_apt() { command -v apt-get >/dev/null 2>&1; }

apt_install() { # packages; root only
    say "installing from the system's packages: $*"
    log=$(mktemp) || return 1
    # Another apt may hold the lock; a bare machine has no package lists yet.
    set -- -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
    export DEBIAN_FRONTEND=noninteractive
    if apt-get install "$@" >"$log" 2>&1 || { apt-get update -qq && apt-get install "$@"; } >"$log" 2>&1; then
        rm -f "$log"
    else
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
}

known_to_apt() { apt-cache show "$1" >/dev/null 2>&1; }

setup_gl() { # required (make setup-gl) or optional (make test)
    # shellcheck disable=SC2046
    set -- "$1" $(missing_gl)
    need=$1
    shift
    [ $# -gt 0 ] || return 0
    # One way to draw is enough, and newer releases have no OSMesa any more.
    [ "$*" = libosmesa6 ] && has_apt && ! known_to_apt libosmesa6 && return 0
    if has_apt && is_root; then
        apt_install "$@" && return 0
        for package in "$@"; do apt_install "$package" 2>/dev/null || say "$package is not to be had here"; done
        return 0
    fi
    hint="your distribution's packages of Mesa's EGL or OSMesa"
    has_apt && hint="sudo apt-get install -y $*"
    [ "$need" = optional ] || fail 2 "MuJoCo cannot draw here without: $hint"
    say "tests that draw MuJoCo will skip; to run them: $hint"
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# The first Python of 3.11 or later: one that can make virtual environments rather than one that cannot, then one that
# every dependency has wheels for, then in the order of the names.
find_python() {
    if [ -n "$PYTHON" ]; then
        printf '%s' "$PYTHON"
        return 0
    fi
    for usable in can_make_venv version_of; do
        for accepted in "3.11 3.12" "3.13 3.14 3.15"; do
            for name in python3 python3.12 python3.11 python3.13 python3.14 python; do
                version=$(version_of "$name") || continue
                case " $accepted " in *" $version "*) ;; *) continue ;; esac
                $usable "$name" >/dev/null || continue
                printf '%s' "$name"
                return 0
            done
        done
    done
    return 1
}

missing_for_python() { # the Debian packages that a virtual environment needs, if any; $1: the Python found, if any
    if [ -n "$1" ]; then
        can_make_venv "$1" && return 0
        case $(command -v "$1") in
        /usr/bin/python3 | /bin/python3) printf 'python3-venv' ;;
        /usr/bin/* | /bin/*) printf 'python%s-venv' "$(version_of "$1")" ;;
        *) return 1 ;;
        esac
        return 0
    fi
    default=$(apt-cache depends python3 2>/dev/null | sed -n 's/.*Depends: python3\.\([0-9]*\)$/\1/p' | head -n 1)
    if [ "${default:-11}" -ge 11 ]; then # without package lists, the default of a current release
        printf 'python3 python3-venv'
        return 0
    fi
    for minor in 12 11 13; do
        known_to_apt "python3.$minor-venv" && printf 'python3.%s-venv' "$minor" && return 0
    done
    return 1
}

# Sets `base`, a Python that can make a virtual environment, installing or naming what that takes.
setup_python() {
    base=$(find_python)
    [ -n "$base" ] && can_make_venv "$base" && command -v make >/dev/null && return 0

    manual="install Python 3.11 or later with its venv module (https://www.python.org/downloads, on macOS: brew install python@3.13), then: make demo PYTHON=/path/to/python3"
    has_apt || fail 2 "no Python of 3.11 or later with its venv module found: $manual"
    if ! known_to_apt python3 && is_root; then apt-get update -qq >/dev/null 2>&1; fi
    packages=$(missing_for_python "$base") || fail 2 "no usable Python of 3.11 or later found, and apt offers none: $manual"
    command -v make >/dev/null || packages="$packages make"
    [ "$LEVEL" = all ] && packages="$packages $(missing_gl)"
    # shellcheck disable=SC2086
    set -- $packages
    if ! is_root; then
        update=""
        known_to_apt "$1" || update="sudo apt-get update && "
        fail 2 "this machine lacks system packages; type: ${update}sudo apt-get install -y $*"
    fi
    apt_install "$@" || fail 2 "apt-get install $* did not succeed"
    base=$(find_python)
    can_make_venv "$base" || fail 2 "the Python that apt installed cannot make a virtual environment: $manual"
}

# --------------------------------------------------------------------------------------- the environment's part

key() { # what the installed state depends on; $1: the environment's Python
    { cat setup.cfg pyproject.toml bootstrap.sh && pwd -P && "$1" -c 'import sys; print(sys.version)'; } 2>/dev/null | cksum
}

is_ready() { # by the stamp of this level or of a higher one
    [ -x "$vpy" ] && [ ! -e "$VENV/.lewm-installing" ] || return 1
    now=$(key "$vpy")
    for level in all ${1:+"$1"}; do
        [ "$(cat "$VENV/.lewm-$level" 2>/dev/null)" = "$now" ] && return 0
    done
    return 1
}

# Whether $1 has this checkout and every requirement of the level at the versions wanted, asked of the metadata only;
# -P, lest an egg-info in this folder stand in for what is installed.
has_everything() {
    "$1" -P - "$LEVEL" 2>/dev/null <<'PY'
import configparser, importlib.metadata as metadata, json, pathlib, sys
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

config = configparser.ConfigParser()
config.read("setup.cfg")
extras = config["options.extras_require"]
wanted = config["options"]["install_requires"].splitlines()
if sys.argv[1] == "all":
    wanted += [line for extra in extras if extra != "all" for line in extras[extra].splitlines()]
for line in wanted:
    if line.strip() and not line.strip().startswith("#"):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            version = metadata.version(requirement.name)
            assert requirement.specifier.contains(version, prereleases=True), line
direct = json.loads(metadata.distribution("lewm-gym").read_text("direct_url.json") or "{}")
assert direct.get("url") == pathlib.Path.cwd().as_uri(), "another checkout"
PY
}

has_torch() { # $1: a Python; prints its torch's version
    "$1" -c 'import importlib.metadata as m; v = m.version("torch"); print(v); assert tuple(map(int, v.split(".")[:2])) >= (2, 6)' 2>/dev/null
}

# Runs pip and shows one line per package, on a terminal each in place of the last; all of it if pip fails.
pip_quietly() {
    log="$VENV/.lewm-pip.log"
    { "$vpy" -m pip install "$@" 2>&1 || echo "pip failed"; } | tee "$log" | awk -v tty="$([ -t 2 ] && echo 1)" '
        /^ *(Collecting|Downloading|Building|Installing) / {
            line = substr($0, 1, 100); sub(/^ */, "", line)
            if (tty) printf "\r\033[K  %s", line; else if (line ~ /^Installing/) print "  " line
            fflush()
        }
        END { if (tty) printf "\r\033[K" }' >&2
    if [ "$(tail -n 1 "$log")" = "pip failed" ]; then
        grep -v -E '^ *(Requirement already|Using cached|Collecting|Downloading|Obtaining)' "$log" | tail -n 40 >&2
        return 1
    fi
    rm -f "$log"
}

install_torch() {
    if version=$(has_torch "$vpy"); then
        say "torch $version is already there"
        return 0
    fi
    if [ -n "$TORCH" ]; then
        say "torch: $TORCH, as TORCH says"
        set -- "$TORCH"
    elif [ "$(uname -s)" != Linux ]; then
        say "torch: the standard build"
        set -- "torch>=2.6,<3"
    elif nvidia-smi >/dev/null 2>&1; then
        say "torch: the standard build with CUDA, for the NVIDIA GPU found (some GB)"
        set -- "torch>=2.6,<3"
    else
        # The standard build for Linux brings some 3 GB of CUDA libraries, of no use here. `pip index` lists what
        # PyTorch's CPU index and pip's own configuration (find-links) offer, without a download.
        cpu=$("$vpy" -m pip index versions torch --index-url "$CPU_INDEX" --timeout 5 --retries 0 2>/dev/null |
            tr -s ', ()' '\n' | grep '+cpu$' | head -n 1)
        if [ -n "$cpu" ]; then
            say "torch $cpu: no NVIDIA GPU found"
            # Its dependencies come with the package's, from the user's own index. A local file first: no network.
            "$vpy" -m pip install --quiet --no-deps --no-index "torch==$cpu" >/dev/null 2>&1 && return 0
            set -- --no-deps --index-url "$CPU_INDEX" "torch==$cpu"
        else
            say "torch: $CPU_INDEX cannot be reached, so this is the standard build, with some 3 GB of CUDA"
            say "libraries that this machine will not use; to choose another: make ... TORCH='torch @ file:///path/to.whl'"
            free=$(df -Pk "$VENV" | awk 'NR == 2 { print int($4 / 1048576) }')
            [ "${free:-99}" -ge 12 ] || fail 2 "$free GB of disk are free, the standard build of torch needs 12: free some, or set TORCH"
            set -- "torch>=2.6,<3"
        fi
    fi
    # Straight to the terminal: this is the one long download, and pip draws its progress.
    "$vpy" -m pip install "$@" >&2
}

make_venv() {
    if "$vpy" -c '' 2>/dev/null && [ ! -e "$VENV/.lewm-installing" ]; then
        [ -e "$VENV/.lewm-made" ] || say "completing the $VENV that is there"
        "$vpy" -m pip --version >/dev/null 2>&1 && return 0
        "$vpy" -m ensurepip >/dev/null 2>&1 || fail 2 "$VENV has no pip; remove it, or install pip into it"
        return 0
    fi
    setup_python
    [ -e "$VENV/.lewm-installing" ] && say "an earlier set-up was interrupted: starting again"
    if [ ! -e "$VENV/pyvenv.cfg" ] && [ ! -e "$VENV/.lewm-installing" ] && [ -n "$(ls -A "$VENV" 2>/dev/null)" ]; then
        fail 2 "$VENV exists and is no virtual environment: set VENV to another path"
    fi
    system=""
    version=$(has_torch "$base") && system=--system-site-packages
    say "Python $(version_of "$base") ($(command -v "$base")) -> $VENV${system:+, sharing its torch $version}"
    # shellcheck disable=SC2086
    "$base" -m venv --clear $system "$VENV" >&2 || fail 1 "could not make $VENV"
    : >"$VENV/.lewm-made"
}

setup() {
    # One set-up at a time; the second finds it done. Without flock (macOS) the user has to see to it.
    if command -v flock >/dev/null 2>&1; then
        mkdir -p .cache && exec 9>.cache/setup.lock
        flock -n 9 || { say "waiting for the set-up that is running"; flock 9; }
        is_ready "$LEVEL" && return 0
    fi
    start=$(date +%s)
    make_venv
    [ "$LEVEL" = all ] && setup_gl optional
    # An environment of ours that was interrupted in the middle is made anew: pip takes a half-copied package for whole.
    [ -e "$VENV/.lewm-made" ] && : >"$VENV/.lewm-installing"
    trap 'echo >&2; say "interrupted; the next call starts again"; exit 130' INT TERM
    if ! install_torch || ! constrain || ! pip_quietly -c "$VENV/.lewm-constraints.txt" -e ".$EXTRAS" ||
        ! install_without_labmaze; then
        rm -f "$VENV/.lewm-installing"
        fail 1 "the set-up failed; see pip's message above. The same command goes on from here"
    fi
    rm -f "$VENV/.lewm-installing"
    "$vpy" -c 'import gymnasium, numpy, pyarrow, pygame, pymunk, torch' >&2 || fail 1 "what was installed cannot be imported; see above"
    if nvidia-smi >/dev/null 2>&1 && ! "$vpy" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        say "this torch does not see the GPU (is the driver older than its CUDA?): everything will run on the CPU; see docs/install.md"
    fi
    key "$vpy" >"$VENV/.lewm-$LEVEL"
    say "done in $(($(date +%s) - start)) s"
}

# What pip cannot resolve on Python 3.13 and later (see setup.cfg); nothing checks the pair, hence exact versions.
install_without_labmaze() {
    case "$LEVEL $(version_of "$vpy")" in
    "all 3.11" | "all 3.12" | core*) return 0 ;;
    esac
    pip_quietly --no-deps dm_control==1.0.50 ogbench==1.2.2
}

constrain() { # the torch that is there stays, whatever another package asks for
    "$vpy" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >"$VENV/.lewm-constraints.txt"
}

# ------------------------------------------------------------------------------------------------------- the call

if [ "$LEVEL" = gl ]; then
    setup_gl required
    exit 0
fi

case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
vpy=$VENV/bin/python

if [ -n "$PYTHON" ]; then
    case $(version_of "$PYTHON") in
    3.1[1-9]) ;;
    *) fail 2 "PYTHON=$PYTHON: expected a Python of 3.11 or later, found $(version_of "$PYTHON" || echo none)" ;;
    esac
    if has_everything "$PYTHON"; then
        command -v "$PYTHON"
        exit 0
    fi
    say "$PYTHON has not everything that is needed: using $VENV"
fi
is_ready "$LEVEL" || setup
printf '%s\n' "$vpy"
