# Sets up the project's Python environments. Sourced by ops/run and ops/test, with $root set; POSIX sh.
#
# An environment is ready when its stamp says so. The stamp is written last and names everything that the environment
# was made from, so a set-up that was interrupted, a changed lock file and a moved checkout are all simply redone.
# Everything is installed from lock files with hashes; nothing is resolved, and nothing unlocked is fetched.

say() { printf '%s\n' "portcullis: $*" >&2; }
fail() { say "$@"; exit 1; }

# stamp_of LOCK...: what an environment made from these lock files would be stamped with.
stamp_of() {
    printf '%s\n' "$root"
    (cd "$root" && sha256sum pyproject.toml "$@")
}

# is_ready DIRECTORY NAME STAMP
is_ready() {
    [ -x "$1/bin/python" ] && [ -r "$1/$2" ] && [ "$(cat "$1/$2")" = "$3" ]
}

# find_python: sets $python to an interpreter of at least 3.11, or ends with what to install.
find_python() {
    for candidate in ${PYTHON:-python3.11 python3 python3.13 python3.12}; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    [ -n "${python:-}" ] || fail "Python 3.11 or newer is needed and was not found (looked for ${PYTHON:-python3.11, python3});" \
        "on Debian: apt-get install python3 python3-venv. PYTHON=/path/to/python chooses another."
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments;" \
        "on Debian: apt-get install $("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
}

# make_environment DIRECTORY STAMP_NAME LOCK [project]: an environment with exactly the locked versions in it, and with
# "project" the project itself too, from this tree.
make_environment() {
    directory=$1 stamp_name=$2 lock=$3 with=${4:-}
    stamp=$(stamp_of "$lock")
    if is_ready "$directory" "$stamp_name" "$stamp"; then
        return 0
    fi
    command -v flock >/dev/null 2>&1 || fail "flock is needed; on Debian: apt-get install util-linux"
    mkdir -p "$(dirname "$directory")"
    exec 9>"$directory.lock"
    flock 9
    if ! is_ready "$directory" "$stamp_name" "$stamp"; then # nobody else made it meanwhile
        say "setting up $directory (once; needs the package index)"
        rm -f "$directory/$stamp_name"
        # An environment that was moved would still run, but the scripts in it name the place where it was made.
        if ! "$directory/bin/python" -c 'import pip' 2>/dev/null ||
            { [ -r "$directory/.portcullis-home" ] && [ "$(cat "$directory/.portcullis-home")" != "$directory" ]; }; then
            find_python
            rm -rf "$directory"
            "$python" -m venv "$directory" || fail "could not create $directory"
            printf '%s\n' "$directory" >"$directory/.portcullis-home"
        fi
        quiet_pip "$directory" --require-hashes --no-deps --requirement "$root/$lock"
        if [ "$with" = project ]; then
            quiet_pip "$directory" --no-deps --no-build-isolation --editable "$root"
        fi
        printf '%s\n' "$stamp" >"$directory/$stamp_name.new"
        mv "$directory/$stamp_name.new" "$directory/$stamp_name"
        say "ready"
    fi
    exec 9>&- # closes the lock too: what is started next must not hold it
}

# quiet_pip DIRECTORY ARGUMENT...: pip install, silent unless it fails.
quiet_pip() {
    target=$1
    shift
    if ! output=$("$target/bin/python" -m pip --disable-pip-version-check --no-input install --quiet "$@" 2>&1 9>&-); then
        printf '%s\n' "$output" >&2
        fail "pip could not install into $target; running the same command again goes on where this stopped"
    fi
}
