# For the scripts beside it: other languages' clients, and a server to talk to. What is fetched is
# kept under the build's target directory, so that the next run finds it.
# A script that cannot be run for want of something exits with 3, and says so.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
tools=$CARGO_TARGET_DIR/tools

not_run() {
    echo "" >&2
    echo "=== NOT RUN: $1 ===" >&2
    echo "" >&2
    exit 3
}

# node_client: the packages that tests/conformance/package-lock.json names; says where they are.
# A script that is copied there finds them.
node_client() {
    command -v node >/dev/null && command -v npm >/dev/null || not_run "node and npm are not both installed"
    local from=$root/tests/conformance fresh log sum
    sum=$(cat "$from/package.json" "$from/package-lock.json" | cksum | cut -d' ' -f1)
    local at=$tools/node-client-$sum
    if [ ! -d "$at" ]; then
        # Installed beside its place and moved there, so that a run that is cut off leaves no half of it.
        mkdir -p "$tools"
        fresh=$(mktemp -d "$at.XXXXXX")
        log=$fresh/npm.log
        cp "$from/package.json" "$from/package-lock.json" "$fresh/"
        (cd "$fresh" && npm ci --ignore-scripts --no-audit --no-fund) >"$log" 2>&1 \
            || { tail -n 20 "$log" >&2; rm -rf "$fresh"; not_run "npm could not fetch EventStoreDB's Node client"; }
        mv -T "$fresh" "$at" 2>/dev/null || rm -rf "$fresh"
    fi
    echo "$at"
}

# python_client PACKAGE==VERSION: that package in an environment of its own; says which Python has it.
python_client() {
    command -v python3 >/dev/null || not_run "python3 is not installed"
    local at=$tools/${1//==/-} log
    if [ ! -f "$at/complete" ]; then
        mkdir -p "$tools"
        log=$(mktemp)
        rm -rf "$at"
        { python3 -m venv "$at" && "$at/bin/pip" install --quiet --disable-pip-version-check "$1"; } >"$log" 2>&1 \
            || { tail -n 20 "$log" >&2; rm -rf "$at" "$log"; not_run "pip could not fetch $1"; }
        rm -f "$log"
        touch "$at/complete"
    fi
    echo "$at/bin/python"
}

# stack ARGUMENT...: builds, and starts `projector stack` on free ports; $connection is where its
# EventStoreDB answers. It ends with the script.
stack() {
    # As the tests build it: on its own it would have every dependency compiled again, with other features.
    (cd "$root" && cargo test --locked --quiet --no-run --test it)
    scratch=$(mktemp -d)
    : >"$scratch/out"
    "$CARGO_TARGET_DIR/debug/projector" stack --eventstore-port 0 --dynamodb-port 0 "$@" \
        >"$scratch/out" 2>"$scratch/err" &
    server=$!
    trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT
    local _
    for _ in $(seq 1 200); do
        connection=$(sed -n 's/^PROJECTOR__EVENTSTORE__CONNECTION=//p' "$scratch/out")
        [ -n "$connection" ] && grep -q '^PROJECTOR__DYNAMODB__ENDPOINT=.' "$scratch/out" && return
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    cat "$scratch/out" "$scratch/err" >&2
    echo "projector stack did not start" >&2
    exit 1
}
