"""Stages a Dockerfile without an engine, and runs the last stage as a container would be run.

Started by `run` beside it, as root, in a mount namespace of its own. The rules that it keeps:

- A stage holds its base and what its COPY lines bring, and nothing else of this machine: the build's
  base lends the machine's /usr and Rust, mounted read-only; what the image `rust` lacks is hidden.
- What .dockerignore keeps back is not there. A COPY of what is not there fails, as in an engine.
- An instruction that is not understood fails: nothing is passed over in silence.
- The last stage is run with its environment, user, command and health check, on a root that cannot
  be written, with no capability, in a network of its own in which only both stores answer.
"""

import gzip
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
# What is kept between runs.
KEPT = TARGET / "image"
# What an engine does not know of, inside a build's root.
OURS = "/.tests-image"
# Of the distroless images: their unprivileged user.
NONROOT = 65532
# What gcr.io/distroless/cc-debian12 has besides files that no program of ours opens:
# https://github.com/GoogleContainerTools/distroless/blob/main/cc/README.md
CC_LIBRARIES = """libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libresolv.so.2 libutil.so.1 libanl.so.1
    libnss_dns.so.2 libnss_files.so.2 libgcc_s.so.1 libstdc++.so.6 libgomp.so.1 libssl.so.3 libcrypto.so.3""".split()
# Compressed size of that base as far as it is not copied here: Debian's packages base-files, netbase,
# tzdata, by the sizes of their .deb files with room to spare.
BASE_REST = 4_000_000
# What issue and README promise of the image as it is pulled.
IMAGE_LIMIT = 40_000_000
# Programs that a developer's machine may have and the image `rust` has not.
HIDDEN = ["cmake", "clang", "clang++", "protoc", "nasm", "yasm", "go", "bindgen", "node", "java"]


class Wrong(Exception):
    """The Dockerfile or what comes of it; the text is for whoever changed it."""


def say(text):
    print(f"    {text}", flush=True)


def run(*command, **more):
    return subprocess.run([str(part) for part in command], check=True, **more)


# The Dockerfile and its context.


class Context:
    """A folder as it is sent to a build."""

    def __init__(self, folder):
        self.folder = folder
        ignore = folder / ".dockerignore"
        self.rules = []
        for line in ignore.read_text().splitlines() if ignore.exists() else []:
            line = line.strip()
            if line and not line.startswith("#"):
                keep = line.startswith("!")
                self.rules.append((keep, pattern(line.lstrip("!").strip().strip("/"))))

    def sends(self, path):
        """The last rule that matches the path or a folder above it decides."""
        parts = path.split("/")
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        sent = True
        for keep, rule in self.rules:
            if any(rule.fullmatch(name) for name in above):
                sent = keep
        return sent

    def files(self):
        """Every file that is sent, by its path in the context."""
        for at, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if (Path(at) / name) != TARGET]
            for name in names:
                path = str((Path(at) / name).relative_to(self.folder))
                if self.sends(path):
                    yield path


def pattern(text):
    """Go's filepath.Match with `**`, as .dockerignore has it."""
    out = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?)", text):
        out += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return re.compile(out)


def instructions(dockerfile):
    """Its instructions, continuation lines joined; a comment inside one is none of it."""
    whole, joined = [], ""
    for line in dockerfile.read_text().splitlines():
        if line.lstrip().startswith("#") or (not joined and not line.strip()):
            continue
        joined += line.rstrip("\\").strip() + " " if line.endswith("\\") else line.strip()
        if not line.endswith("\\"):
            word, _, rest = joined.strip().partition(" ")
            whole.append((word.upper(), rest.strip()))
            joined = ""
    return whole


def listed(text):
    """The list of an instruction in exec form; `None` for shell form."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, list) else None


class Stage:
    """One FROM with what follows it."""

    def __init__(self, base, place):
        self.base, self.place = base, place
        self.environment, self.workdir, self.user = {}, "/", "0"
        self.command, self.entrypoint, self.health, self.signal = None, [], None, signal.SIGTERM
        self.ports, self.health_times = [], {}
        self.copied = []

    def resolve(self, path):
        """A path of the image, absolute in the image."""
        return os.path.normpath(os.path.join(self.workdir, path))

    def here(self, path):
        """The same, where it is staged."""
        return self.place / self.resolve(path).lstrip("/")


class Build:
    """Stages a Dockerfile. `engine` runs what it says to run."""

    def __init__(self, folder, engine, scratch):
        self.context = Context(folder)
        self.engine, self.scratch = engine, scratch
        self.stages, self.names = [], {}

    def stage(self, dockerfile):
        """All of it; gives the last stage."""
        now = None
        for word, rest in instructions(dockerfile):
            if word not in ("FROM", "ARG") and now is None:
                raise Wrong(f"{word} stands before FROM")
            rest = self.expanded(now, rest) if word not in ("RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK") else rest
            if word == "FROM":
                now = self.begin(rest)
            elif word == "COPY":
                self.copy(now, rest)
            elif word == "RUN":
                say(f"RUN {rest[:100]}{'…' if len(rest) > 100 else ''}")
                self.engine.run(now, rest)
            elif word == "WORKDIR":
                now.workdir = now.resolve(rest)
                now.here(".").mkdir(parents=True, exist_ok=True)
            elif word == "ENV":
                for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', rest):
                    now.environment[name] = value.strip('"')
            elif word == "USER":
                now.user = rest
            elif word == "ENTRYPOINT":
                now.entrypoint, now.command = self.exec_form(word, rest), []
            elif word == "CMD":
                now.command = self.exec_form(word, rest)
            elif word == "STOPSIGNAL":
                now.signal = signal.Signals[rest]
            elif word == "EXPOSE":
                now.ports.append(int(rest.split("/")[0]))
            elif word == "HEALTHCHECK":
                options, _, command = rest.partition("CMD")
                now.health_times = dict(re.findall(r"--([a-z-]+)=(\d+)s?", options))
                now.health = self.exec_form(word, command)
            elif word == "LABEL":
                pass
            else:
                raise Wrong(f"tests/image does not know the instruction {word}: teach it, or leave it out")
        return now

    @staticmethod
    def exec_form(word, text):
        found = listed(text.strip())
        if found is None:
            raise Wrong(f"{word} {text}: write it as a list; there is no shell in the image")
        return found

    @staticmethod
    def expanded(stage, text):
        known = stage.environment if stage else {}

        def value(match):
            name = match.group(1) or match.group(2)
            if name not in known:
                raise Wrong(f"${name} is set nowhere before it is used")
            return known[name]

        return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, text)

    def begin(self, rest):
        words = [word for word in rest.split() if not word.startswith("--")]
        base = words[0]
        place = self.scratch / f"stage-{len(self.stages)}"
        place.mkdir()
        stage = Stage(base, place)
        if base in self.names:
            raise Wrong(f"FROM {base}: a stage on a stage is not staged by tests/image yet")
        if len(words) == 3 and words[1].upper() == "AS":
            self.names[words[2]] = stage
        say(f"FROM {rest}")
        base_of(stage)
        self.stages.append(stage)
        return stage

    def copy(self, stage, rest):
        words = rest.split()
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if set(options) - {"from"}:
            raise Wrong(f"COPY {rest}: tests/image knows --from alone")
        *sources, to = [word for word in words if not word.startswith("--")]
        into = to.endswith("/") or len(sources) > 1 or stage.here(to).is_dir()
        if len(sources) > 1 and not to.endswith("/"):
            raise Wrong(f"COPY {rest}: several sources need a folder that ends with /")
        for source in sources:
            if "from" in options:
                origin = self.names.get(options["from"])
                if origin is None:
                    raise Wrong(f"COPY {rest}: there is no stage {options['from']}")
                found = origin.here(source)
                if not found.is_file():
                    raise Wrong(f"COPY {rest}: {source} is not in stage {options['from']}, or is no file")
                self.put(stage, found, stage.here(to) / found.name if into else stage.here(to))
            else:
                self.copy_sent(stage, source, to, into)

    def copy_sent(self, stage, source, to, into):
        wanted = os.path.normpath(source.lstrip("/"))
        whole, found = wanted == ".", False
        for path in self.context.files():
            origin = self.context.folder / path
            if path == wanted or ("*" in wanted and pattern(wanted).fullmatch(path)):
                self.put(stage, origin, stage.here(to) / origin.name if into else stage.here(to))
            elif whole or path.startswith(f"{wanted}/"):
                # A folder's content is copied, not the folder.
                inside = path if whole else path[len(wanted) + 1 :]
                self.put(stage, origin, stage.here(to) / inside)
            else:
                continue
            found = True
        if not found:
            there = (self.context.folder / wanted).exists()
            raise Wrong(f"COPY {source}: {'.dockerignore keeps it back' if there else 'it is not there'}")

    @staticmethod
    def put(stage, origin, to):
        to.parent.mkdir(parents=True, exist_ok=True)
        # Times of change too, as an engine does: Cargo goes by them.
        shutil.copy2(origin, to)
        os.chown(to, 0, 0)
        stage.copied.append(to)


# Bases.


def base_of(stage):
    name = stage.base
    if name == "scratch":
        return
    if re.fullmatch(r"rust:[\d.]+-bookworm", name):
        rust_base(stage)
    elif name == "gcr.io/distroless/cc-debian12:nonroot":
        distroless_base(stage)
    else:
        raise Wrong(f"FROM {name}: tests/image does not know this base: teach it what is in it")


def mount(origin, to, *options):
    to.mkdir(parents=True, exist_ok=True)
    run("mount", "--rbind", origin, to)
    for option in options:
        run("mount", "-o", f"remount,bind,{option}", to)


def rust_base(stage):
    """This machine's /usr and Rust, for a build."""
    place = stage.place
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            (place / name).symlink_to(os.readlink(path))
        elif path.is_dir():
            mount(path, place / name, "ro")
    for path in ("/usr", "/etc"):
        mount(path, place / path.lstrip('/'), "ro")
    for path in ("/dev", "/proc"):
        mount(path, place / path.lstrip('/'))
    for name in HIDDEN:
        for folder in ("/usr/bin", "/usr/local/bin"):
            hidden = place / folder.lstrip('/') / name
            if hidden.is_file():
                run("mount", "--bind", "/dev/null", hidden)
    (place / "tmp").mkdir(mode=0o1777)
    cargo, rustup = homes()
    mount(cargo, place / str(cargo)[1:])
    mount(rustup, place / str(rustup)[1:], "ro")
    wanted = re.match(r"rust:([\d.]+)", stage.base).group(1)
    found = subprocess.check_output(["rustc", "--version"], text=True).split()[1]
    if not found.startswith(wanted):
        say(f"(the image builds with Rust {wanted}; this machine has {found})")


def homes():
    home = Path(os.environ.get("HOME", "/root"))
    cargo = Path(os.environ.get("CARGO_HOME", home / ".cargo"))
    rustup = Path(os.environ.get("RUSTUP_HOME", home / ".rustup"))
    return cargo.resolve(), rustup.resolve()


def distroless_base(stage):
    """What the base has that a program sees: C's runtime, authorities, users."""
    place = stage.place
    cache = subprocess.check_output(["/sbin/ldconfig", "-p"], text=True)
    # Of several of one name the first is the one that is used.
    known = dict(reversed(re.findall(r"^\s*(\S+) \(.*\) => (\S+)$", cache, re.MULTILINE)))
    for folder in ("lib", "lib64"):
        if Path("/", folder).is_symlink():
            (place / os.readlink(f"/{folder}")).mkdir(parents=True, exist_ok=True)
            (place / folder).symlink_to(os.readlink(f"/{folder}"))
    # The loader, also where the kernel looks for it for programs of this processor.
    loader = next(path for name, path in known.items() if name.startswith("ld-linux"))
    asked_for = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}[os.uname().machine]
    copies = {asked_for: loader} | {path: path for path in [known[name] for name in CC_LIBRARIES if name in known]}
    for path, origin in copies.items():
        to = place / path.lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(os.path.realpath(origin), to)
    etc = place / "etc"
    (etc / "ssl/certs").mkdir(parents=True)
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    if authorities.exists():
        shutil.copy2(authorities, etc / "ssl/certs/ca-certificates.crt")
    (etc / "passwd").write_text(f"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{NONROOT}:{NONROOT}:nonroot:/home/nonroot:/sbin/nologin\n")
    (etc / "group").write_text(f"root:x:0:\nnonroot:x:{NONROOT}:\n")
    (etc / "nsswitch.conf").write_text("hosts: files dns\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n")
    (place / "home/nonroot").mkdir(parents=True)
    os.chown(place / "home/nonroot", NONROOT, NONROOT)
    (place / "tmp").mkdir()
    (place / "tmp").chmod(0o1777)
    stage.environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
    }
    stage.user, stage.workdir = "nonroot", "/home/nonroot"


# Running the build's lines.

# `cargo build --release` becomes `cargo check`, and what stands in for its result is put where that
# would be. Everything else of Cargo is Cargo.
SHIM = """#!/bin/sh
set -e
[ "$1" = build ] || exec {cargo} "$@"
shift
bin= last=
for word do
    shift
    [ "$last" = --bin ] && bin=$word
    [ "$word" = --release ] || set -- "$@" "$word"
    last=$word
done
[ -n "$bin" ] || {{ echo "tests/image: cargo build without --bin" >&2; exit 64; }}
CARGO_TARGET_DIR={target} {cargo} check --quiet "$@"
mkdir -p target/release/deps target/release/.fingerprint
cp {ours}/stand-in "target/release/$bin"
"""


class Engine:
    """Runs RUN lines in a stage's root."""

    def __init__(self, full, stand_in, repository=None):
        self.full, self.stand_in, self.repository = full, stand_in, repository

    def run(self, stage, line):
        if line.startswith("--"):
            raise Wrong(f"RUN {line}: tests/image knows no options of RUN")
        ours = stage.place / OURS[1:]
        cargo, rustup = homes()
        environment = {
            name: value
            for name, value in os.environ.items()
            # Where packages come from, and how the tests are built: their results are used again.
            if name.startswith(("CARGO_NET", "CARGO_HTTP", "CARGO_REGISTR", "CARGO_SOURCE", "SSL_CERT", "RUSTUP_TOOLCHAIN"))
            or name.lower() in ("http_proxy", "https_proxy", "no_proxy")
            or (not self.full and name.startswith(("CARGO_PROFILE", "CARGO_INCREMENTAL")))
        }
        environment |= {"HOME": "/root", "CARGO_HOME": str(cargo), "RUSTUP_HOME": str(rustup)}
        environment["PATH"] = f"{cargo}/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        if self.repository:
            mount(self.repository[1], ours / "repository", "ro")
            environment |= as_repository(self.repository[0], f"{OURS}/repository")
        if not self.full:
            if not (ours / "bin").exists():
                (ours / "bin").mkdir(parents=True)
                shim = ours / "bin/cargo"
                shim.write_text(SHIM.format(cargo=f"{cargo}/bin/cargo", ours=OURS, target=TARGET))
                shim.chmod(0o755)
                shutil.copy2(self.stand_in, ours / "stand-in")
                # Where it is outside, for what was built there names its own place. Not what is mounted
                # below it: this root is.
                target = stage.place / str(TARGET).lstrip("/")
                target.mkdir(parents=True, exist_ok=True)
                run("mount", "--bind", TARGET, target)
            environment["PATH"] = f"{OURS}/bin:{environment['PATH']}"
            # The shim's builds share one folder, so a file that only looks old must be compiled.
            for path in stage.copied:
                os.utime(path)
        done = subprocess.run(
            ["chroot", stage.place, "/bin/sh", "-c", f'cd "$0" && {line}', stage.workdir],
            env=environment | stage.environment,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise Wrong(f"RUN ended with {done.returncode}: {line}")


def as_repository(url, place):
    """Git's settings under which `url` is the repository at `place`, for Cargo."""
    return {
        "CARGO_NET_GIT_FETCH_WITH_CLI": "true",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.file://{place}.insteadOf",
        "GIT_CONFIG_VALUE_0": url,
        "GIT_CONFIG_KEY_1": "safe.directory",
        "GIT_CONFIG_VALUE_1": "*",
    }


# Running the image.


class Container:
    """The last stage, run as an engine would run it."""

    # What an operator says: the rest is the image's own.
    OPERATOR = {
        "AWS_REGION": "us-east-1",
        "PROJECTOR__EVENTSTORE__CONNECTION": "esdb://127.0.0.1:2113?tls=false",
        "PROJECTOR__DYNAMODB__ENDPOINT": "http://127.0.0.1:8000",
        "PROJECTOR__DYNAMODB__CREATE_TABLES": "plain",
    }
    # For a binary without projections of its own.
    ORDERS = {
        "PROJECTOR__PROJECTION__ORDERS__FOLD": "merge-patch",
        "PROJECTOR__PROJECTION__ORDERS__SOURCE": "category:order",
    }

    def __init__(self, stage, log):
        self.stage, self.log = stage, log
        self.environment = stage.environment | {"HOME": "/home/nonroot"} | self.OPERATOR
        self.uid = self.user()
        if self.uid == 0:
            raise Wrong("the image runs as root: say USER nonroot:nonroot")
        if not stage.health or not stage.command:
            raise Wrong("the image has no CMD or no HEALTHCHECK: nobody could start it, or tell that it is alive")

    def user(self):
        name = self.stage.user.split(":")[0]
        if name.isdigit():
            return int(name)
        for line in (self.stage.place / "etc/passwd").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split(":")[2])
        raise Wrong(f"USER {name}: the base has no such user")

    def start(self, command, uid=None, **more):
        """Starts a command of the image; `command` is the whole of it."""
        uid = self.uid if uid is None else uid
        stage = self.stage

        def enter():
            os.chroot(stage.place)
            os.chdir(stage.workdir)
            without_capabilities()
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.umask(0o022)

        return subprocess.Popen(
            command, preexec_fn=enter, env=self.environment, stdin=subprocess.DEVNULL, text=True, **more
        )

    def ask(self, command, uid=None):
        """Runs one to its end, as `docker exec` or a health check does."""
        asked = self.start(command, uid, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            text, _ = asked.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            asked.kill()
            raise Wrong(f"{command} did not end within 60 s") from None
        return asked.returncode, text.strip()

    def files(self):
        """All that is in the image, to see whether anything was written."""
        found = {}
        for at, folders, names in os.walk(self.stage.place):
            folders[:] = [name for name in folders if not os.path.ismount(os.path.join(at, name))]
            for name in [*folders, *names]:
                status = os.lstat(os.path.join(at, name))
                found[os.path.join(at, name)] = (status.st_size, status.st_mtime_ns, status.st_mode)
        return found


def without_capabilities():
    """As `cap_drop: [ALL]` and `no-new-privileges` do, for the process that calls it."""
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    drop_bounding, no_new_privileges = 24, 38
    # Up to the first that the kernel does not know.
    known = 0
    while known < 64 and prctl(drop_bounding, known, 0, 0, 0) == 0:
        known += 1
    # setuid needs two of them until it is done; a process that is not root keeps none over exec.
    if prctl(no_new_privileges, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no-new-privileges")


def kernel_files(place):
    """What an engine mounts into every container: /proc, a few devices, 64 MB of shared memory."""
    for folder in ("proc", "dev"):
        if not (place / folder).exists():
            (place / folder).mkdir()
    run("mount", "-t", "proc", "proc", place / "proc")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place / "dev")
    for name in ("null", "zero", "full", "random", "urandom"):
        (place / "dev" / name).touch()
        run("mount", "--bind", f"/dev/{name}", place / "dev" / name)
    (place / "dev/shm").mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64m,mode=1777", "tmpfs", place / "dev/shm")


def loopback_up():
    """A new network has its loopback down."""
    flags, up = 0x8914, 0x1
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, flags, struct.pack("16sh14x", b"lo", up))


def until(seconds, what, ready):
    """Waits for a condition; says what was wrong with it when it does not come."""
    end = time.monotonic() + seconds
    while True:
        good, seen = ready()
        if good:
            return seen
        if time.monotonic() > end:
            raise Wrong(f"{what}: not within {seconds:.0f} s; last seen: {seen}")
        time.sleep(0.1)


ORDER = [
    {"stream": "order-1", "type": "OrderPlaced", "id": "0b6d2f1e-8a51-4a05-9d3a-000000000001", "data": {"customer": "ada"}},
    {"stream": "order-1", "type": "OrderShipped", "id": "0b6d2f1e-8a51-4a05-9d3a-000000000002", "data": {"parcel": "p-7"}},
]


def live(stage, stand_in, own, scratch):
    """Runs the image: it starts, answers, folds, drains; and says so when it is put wrong."""
    loopback_up()
    place = stage.place
    log = scratch / "log"
    kernel_files(place)
    container = Container(stage, log)
    if not own:
        container.environment |= Container.ORDERS
    program = stage.entrypoint or [stage.command[0]]
    linked(stage, program[0])

    events = scratch / "events.jsonl"
    events.write_text("".join(json.dumps(event) + "\n" for event in ORDER))
    stack, connection = both_stores(stand_in, scratch)

    # First on a root that can be written: an image that writes to it must not pass by being refused.
    before = container.files()
    importing = [stand_in, "import", events, "--eventstore"]
    serve(container, log, [*importing, connection], program, writable=True)
    written = sorted(name for name, status in container.files().items() if before.get(name) != status)
    if written:
        raise Wrong(f"the image writes to its root: {', '.join(written[:5])}")
    say("on a root that can be written it writes nothing")

    run("mount", "--bind", place, place)
    run("mount", "-o", "remount,bind,ro", place)
    kernel_files(place)
    # As on ECS, where certificates come from secrets: the text itself, and no file to mount.
    stop(stack)
    stack, connection = both_stores(stand_in, scratch, "--tls")
    container.environment["PROJECTOR__EVENTSTORE__CONNECTION"] = "esdb://127.0.0.1:2113"
    container.environment["PROJECTOR__EVENTSTORE__TLS_CA"] = Path(connection.split("tlsCaFile=")[1]).read_text()
    serve(container, log, [*importing, connection], program, writable=False)

    check = [*program, "run", "--check-config"]
    code, text = container.ask(check, uid=12_345)
    if code != 0:
        raise Wrong(f"as a user that the base does not know it ends with {code}: {text}")
    say("as another user (12345) its settings are read all the same")
    run("mount", "-t", "tmpfs", "tmpfs", place / stage.workdir[1:] / "config")
    code, text = container.ask(check)
    if code != 64 or "PROJECTOR_ENV" not in text or "config" not in text:
        raise Wrong(f"without its settings folder it ends with {code} and does not say which: {text}")
    say(f"without its settings: {text}")
    stop(stack)


def both_stores(stand_in, scratch, *options):
    """Starts them on their own ports; gives the process and EventStoreDB's connection string."""
    stack = subprocess.Popen(
        [stand_in, "stack", *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=scratch
    )
    connection = None
    for line in stack.stdout:
        name, _, value = line.strip().partition("=")
        if name == "PROJECTOR__EVENTSTORE__CONNECTION":
            connection = value
        if name == "PROJECTOR__DYNAMODB__ENDPOINT":
            return stack, connection
    raise Wrong("`projector stack` did not start")


def stop(stack):
    stack.terminate()
    stack.wait()


def serve(container, log, importing, program, writable):
    """One life of the image's command."""
    stage = container.stage
    how = "can" if writable else "cannot"
    began = time.monotonic()
    with open(log, "w") as out:
        daemon = container.start([*stage.entrypoint, *stage.command], stdout=out, stderr=out)
    try:
        times = {name: int(seconds) for name, seconds in stage.health_times.items()}
        # An engine's own are 30 s and three times.
        patience = times.get("start-period", 0) + times.get("interval", 30) * times.get("retries", 3)

        def healthy():
            if daemon.poll() is not None:
                raise Wrong(f"it ended with {daemon.returncode} at once")
            code, text = container.ask(stage.health)
            return code == 0, text

        until(patience, "the health check", healthy)
        say(f"root {how} be written: healthy after {time.monotonic() - began:.1f} s")
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        uids = re.search(r"Uid:\s+(\d+)", status).group(1)
        rights = re.search(r"CapEff:\s+(\w+)", status).group(1)
        if uids == "0" or int(rights, 16) != 0:
            raise Wrong(f"it runs as user {uids} with capabilities {rights}")
        health = stage.health
        until(60, "readiness", lambda: (lambda code, text: (code == 0, text))(*container.ask([*health, "--ready"])))
        # Repeated, it adds nothing.
        run(*importing, stdout=subprocess.DEVNULL, cwd="/")

        def folded():
            code, text = container.ask([*program, "get", "order-1", "--fresh"])
            return code == 0 and "p-7" in text, text

        until(60, "the replica of order-1", folded)
        for port in stage.ports:
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
        daemon.send_signal(stage.signal)
        began = time.monotonic()
        try:
            code = daemon.wait(timeout=30)
        except subprocess.TimeoutExpired:
            raise Wrong(f"{stage.signal.name} did not end it within 30 s") from None
        if code != 0 or '"stopped"' not in log.read_text():
            raise Wrong(f"{stage.signal.name} ended it with {code}, and it did not say that it drained")
        say(f"ready, order-1 folded, {stage.signal.name} drained it in {time.monotonic() - began:.1f} s")
    except Wrong as wrong:
        raise Wrong(f"{wrong}\nits log:\n{log.read_text()[-8_000:]}") from None
    finally:
        if daemon.poll() is None:
            daemon.kill()


def linked(stage, program):
    """What the binary is linked to is in the base, and it carries no symbols."""
    binary = stage.place / program.lstrip("/")
    needs = subprocess.check_output(["readelf", "--dynamic", binary], text=True)
    for name in re.findall(r"\(NEEDED\).*\[(.*)\]", needs):
        if not any((stage.place / folder).rglob(name) for folder in ("lib", "lib64", "usr/lib")):
            raise Wrong(f"{program} needs {name}, which is not in {stage.base}")
    sections = subprocess.check_output(["readelf", "--section-headers", "--wide", binary], text=True)
    for section in (".symtab", ".debug_info", ".debug_line"):
        if f" {section} " in sections:
            raise Wrong(f"{program} is not stripped: it has {section}")


def size(stage):
    """The image as it is pulled, by arithmetic: each layer compressed, and what the base has besides."""
    ours = sum(len(gzip.compress(path.read_bytes(), 6)) for path in stage.copied)
    at = [path for path in stage.place.rglob("*") if path.is_file() and not path.is_symlink()]
    base = sum(len(gzip.compress(path.read_bytes(), 6)) for path in at if path not in stage.copied)
    whole = ours + base + BASE_REST
    say(f"compressed: {ours / 1e6:.1f} MB of ours, {(base + BASE_REST) / 1e6:.1f} MB of the base, {whole / 1e6:.1f} MB in all")
    if whole >= IMAGE_LIMIT:
        raise Wrong(f"the image is {whole / 1e6:.1f} MB compressed; {IMAGE_LIMIT / 1e6:.0f} MB are promised")


# What is staged.


def snapshot(scratch):
    """This tree as a repository of one commit, tagged as the manifest's version: what a team depends on."""
    place = scratch / "repository"
    place.mkdir()
    listing = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    # Equal trees are equal commits, so what was built of one is used again.
    when = "2026-01-01T00:00:00Z"
    environment = os.environ | {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when, "GIT_CONFIG_GLOBAL": "/dev/null"}
    git = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "--all", "--force"], ["commit", "--quiet", "--message", "tree"], ["tag", f"v{version}"]):
        run(*git, *words, cwd=place, env=environment)
    return place


def team(scratch):
    """examples/team as a team would have it: on its own, with a lock file of the versions tested here."""
    folder = scratch / "team"
    shutil.copytree(ROOT / "examples/team", folder)
    manifest = (folder / "Cargo.toml").read_text()
    url = re.search(r'git = "(.*?)"', manifest).group(1)
    repository = snapshot(scratch)
    # Cargo's copies of what no URL leads to are kept apart from the machine's own.
    (KEPT / "git").mkdir(parents=True, exist_ok=True)
    cargo, _ = homes()
    (cargo / "git").mkdir(exist_ok=True)
    run("mount", "--bind", KEPT / "git", cargo / "git")
    shutil.copy2(ROOT / "Cargo.lock", folder / "Cargo.lock")
    environment = os.environ | as_repository(url, repository)
    run("cargo", "metadata", "--format-version", "1", cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    return folder, (url, repository)


def main(mode, what, stand_in, scratch):
    full, scratch = mode == "full", Path(scratch)
    print(f"{what}, {mode}", flush=True)
    if not full:
        say("(the release build is a check; the tests' build of `projector` stands in for its result)")
    folder, repository = (ROOT, None) if what == "image" else team(scratch)
    stage = Build(folder, Engine(full, Path(stand_in), repository), scratch).stage(folder / "Dockerfile")
    if full:
        size(stage)
    # Its own projections are in the binary, where that is the team's.
    own = full and what == "team"
    # In a network of its own, and in a group of its own, of which nothing is left behind.
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os._exit(told(lambda: in_a_network(lambda: live(stage, stand_in, own, scratch))))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if code == 0:
        print(f"{what}, {mode}: passed", flush=True)
    return code


def in_a_network(work):
    import ctypes

    new_mounts, new_network = 0x0002_0000, 0x4000_0000
    if ctypes.CDLL(None, use_errno=True).unshare(new_mounts | new_network) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    work()
    return 0


def told(work):
    """What is wrong is said, without the place in this script where it was seen."""
    try:
        return work()
    except Wrong as wrong:
        print(f"tests/image: {wrong}", file=sys.stderr, flush=True)
    except subprocess.CalledProcessError as failed:
        print(f"tests/image: {failed}", file=sys.stderr, flush=True)
    except Exception:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    sys.exit(told(lambda: main(*sys.argv[1:])))
