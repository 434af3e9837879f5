"""Runs the shipped alerts and boards in a real Prometheus beside running daemons; see `run`."""

import argparse
import contextlib
import http.client
import json
import math
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# A scrape and an evaluation each: several in the shortest range, a minute of the rules.
EVERY = 0.5
# Long enough for the slowest wait there is: marks are looked up every 10 s, on two busy cores.
PATIENCE = 60
# Streams to fill a schema from, and how long a put of one at a time takes at least until the phase has
# seen what it is for: together several times the five minutes of the rules that would page for a backlog,
# on however fast a machine. Then it takes no time, so that a slow one is not waited for.
STREAMS = 4000
SLOWLY = 0.02

failures = []


def fail(text):
    failures.append(text)
    print(f"FAILED: {text}", flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def at_pace(rules, minute):
    """The rules with a minute of `minute` seconds: every `for`, every range, every `60`."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    def span(number, unit):
        return f"{round(int(number) * units[unit] / 60 * minute * 1000)}ms"

    rules = re.sub(r"(for: )(\d+)([smhd])\b", lambda m: m[1] + span(m[2], m[3]), rules)
    rules = re.sub(r"\[(\d+)([smhd])\]", lambda m: f"[{span(m[1], m[2])}]", rules)
    return re.sub(r"([<>]=? )60\b", lambda m: f"{m[1]}{minute}", rules)


class World:
    def __init__(self, scratch, minute, rules):
        self.scratch, self.minute, self.delay = scratch, minute, SLOWLY
        self.running, self.targets = {}, {}
        self.ports = {name: free_port() for name in ("eventstore", "dynamodb", "spare1", "spare2", "prometheus")}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PROJECTOR_")}
        self.environment |= {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        self.environment["RUST_BACKTRACE"] = "0"
        (scratch / "alerts.yml").write_text(at_pace(rules, minute))
        self.discover()
        (scratch / "prometheus.yml").write_text(f"""
global: {{ scrape_interval: {int(EVERY * 1000)}ms, scrape_timeout: {int(EVERY * 1000)}ms, evaluation_interval: {int(EVERY * 1000)}ms }}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: projector
    file_sd_configs: [{{ files: [{scratch}/projector.json], refresh_interval: 1s }}]
  - job_name: bank
    file_sd_configs: [{{ files: [{scratch}/bank.json], refresh_interval: 1s }}]
""")

    def start(self, name, command, **environment):
        log = open(self.scratch / f"{name}.log", "ab")
        self.running[name] = subprocess.Popen(
            command, env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
        )

    def end(self, name, kill=False):
        process = self.running.pop(name)
        process.kill() if kill else process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            fail(f"{name} did not stop within 30 s")

    def eventstore(self):
        self.start(
            "eventstore",
            [os.environ["PROJECTOR"], "stack", "--eventstore-port", str(self.ports["eventstore"]),
             "--dynamodb-port", str(self.ports["spare1"]), "--data-dir", str(self.scratch / "events"),
             # So that conflicts name what cannot be read yet, as on a busy cluster.
             "--delay-commits", "20ms"],
        )

    def dynamodb(self):
        self.start(
            "dynamodb",
            [os.environ["PROJECTOR"], "stack", "--eventstore-port", str(self.ports["spare2"]),
             "--dynamodb-port", str(self.ports["dynamodb"])],
        )

    def settings(self, port, more="", slowly=False):
        dynamodb = self.slow_dynamodb() if slowly else self.ports["dynamodb"]
        return f"""
[eventstore]
connection = "esdb://127.0.0.1:{self.ports['eventstore']}?tls=false"
[dynamodb]
endpoint = "http://127.0.0.1:{dynamodb}"
create_tables = "plain"
[engine]
measure_every = "300ms"
[http]
listen = "127.0.0.1:{port}"
probe_every = "300ms"
[log]
format = "json"
summary_every = "5s"
{more}
"""

    def slow_dynamodb(self):
        """A way to DynamoDB on which every request takes its time; its port."""
        listener = socket.create_server(("127.0.0.1", 0))

        def pass_on(source, to, slowly):
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    time.sleep(self.delay if slowly else 0)
                    to.sendall(data)
            for end in (source, to):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        def accept():
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.ports["dynamodb"]))
                for way in ((near, far, True), (far, near, False)):
                    threading.Thread(target=pass_on, args=way, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return listener.getsockname()[1]

    def daemon(self, name, more, slowly=False):
        port = free_port()
        self.start(name, [os.environ["PROJECTOR"], "run"], PROJECTOR_CONFIG_TOML=self.settings(port, more, slowly))
        self.targets[name] = ("projector", f"127.0.0.1:{port}")
        self.discover()

    def bank(self, name):
        port = free_port()
        self.start(
            name,
            [os.environ["BANK"], "--listen", f"127.0.0.1:{port}"],
            PROJECTOR_CONFIG_TOML=self.settings(free_port()),
        )
        self.targets[name] = ("bank", f"127.0.0.1:{port}")
        self.discover()
        return port

    def discover(self):
        for job in ("projector", "bank"):
            found = [address for of, address in self.targets.values() if of == job]
            new = self.scratch / f".{job}.json"
            new.write_text(json.dumps([{"targets": found}]))
            new.rename(self.scratch / f"{job}.json")

    def append(self, lines):
        self.environment["PROJECTOR_CONFIG_TOML"] = self.settings(0)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        subprocess.run(
            [os.environ["PROJECTOR"], "import", "-", "--quiet", "--as", str(time.monotonic_ns())],
            input=text.encode(), env=self.environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )
        del self.environment["PROJECTOR_CONFIG_TOML"]

    def ask(self, path, **query):
        url = f"http://127.0.0.1:{self.ports['prometheus']}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expr):
        """Each series that an expression gives now: labels and value."""
        return [(s["metric"], float(s["value"][1])) for s in self.ask("/api/v1/query", query=expr)["result"]]

    def firing(self):
        """What fires, without its values: name, then its other labels, then how many are like it."""
        alerts = [a["labels"] for a in self.ask("/api/v1/alerts")["alerts"] if a["state"] == "firing"]
        names = [
            " ".join([a["alertname"]] + [f"{k}={a[k]}" for k in ("projection", "schema", "store") if k in a])
            for a in alerts
        ]
        return {f"{name} ({names.count(name)} times)" if names.count(name) > 1 else name for name in names}

    def wait(self, what, until, patience=PATIENCE):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            with contextlib.suppress(OSError, LookupError):
                if until():
                    return True
            if dead := [name for name, process in self.running.items() if process.poll() is not None]:
                raise SystemExit(f"{dead} ended: " + (self.scratch / f"{dead[0]}.log").read_text()[-2000:])
            time.sleep(EVERY / 2)
        fail(f"{what}: not within {patience} s; firing: {sorted(self.firing())}")
        return False

    def phase(self, name, expected, standing=(), rule_minutes=0.0, until=lambda: True):
        """Watches for this long and until `expected` has fired; nothing else may, beside what stands."""
        seen, began = set(), time.monotonic()

        def look():
            seen.update(self.firing())
            long_enough = time.monotonic() - began >= rule_minutes * self.minute
            return long_enough and set(expected) <= seen and until()

        self.wait(name, look)
        surplus = seen - set(expected) - set(standing)
        if surplus:
            fail(f"{name}: fired and should not: {sorted(surplus)}")
        print(f"{name}: {time.monotonic() - began:.0f} s; fired: {sorted(seen) or 'nothing'}", flush=True)


def traffic(ports, stop):
    """Deposits into one account by two services at once, and reads of it."""
    n = 0
    while not stop.is_set():
        for port in ports:
            with contextlib.suppress(OSError, http.client.HTTPException):
                to = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                headers = {"Content-Type": "application/json"}
                if n == 0:
                    to.request("POST", "/accounts/hot", '{"owner":"ada"}', headers)
                else:
                    to.request("POST", "/accounts/hot/deposits", '{"cents":5}', headers)
                to.getresponse().read()
                to.request("GET", "/accounts/hot?read=strong")
                to.getresponse().read()
                to.close()
        n += 1
        stop.wait(0.02)


def boards(world):
    """Each expression of each board, evaluated as Grafana would ask."""
    values = {"projection": ".*", "schema": ".*", "write_price": "0.625", "read_price": "0.125", "__rate_interval": "20s"}
    print("\n| board | panel | expression | series |\n|---|---|---|---|")
    for path in sorted((ROOT / "config/grafana/boards").glob("*.json")):
        board = json.loads(path.read_text())
        for variable in board["templating"]["list"]:
            if variable["name"] not in values:
                fail(f"{path.name}: no value for ${variable['name']}")
            if variable["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
                metric = metric.replace("$projection", ".*")
                if not any(label in series for series, _ in world.query(metric)):
                    fail(f"{path.name}: the variable {variable['name']} has no values")
        for panel in board["panels"]:
            for target in panel["targets"]:
                expr = target["expr"]
                asked = re.sub(r"\$(\w+)", lambda m: values[m[1]], expr)
                found = world.query(asked)
                numbers = [value for _, value in found if not math.isnan(value)]
                print(f"| {board['title']} | {panel['title']} | `{expr.replace('|', chr(92) + '|')}` | {len(numbers)} |")
                if not numbers:
                    fail(f"{path.name}, {panel['title']}: {expr} gives no series ({len(found)} that are no number)")
                for labels, _ in found:
                    for shown in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                        # A total beside its parts has no label.
                        if labels and shown not in labels:
                            fail(f"{path.name}, {panel['title']}: the legend asks for {shown}: {labels}")
    print(flush=True)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--minute", type=float, default=2.5, metavar="SECONDS")
    arguments.add_argument("--rules", default=ROOT / "config/prometheus/alerts.yml", type=pathlib.Path)
    arguments = arguments.parse_args()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="projector-prometheus-"))
    world = World(scratch, arguments.minute, arguments.rules.read_text())
    stop, threads = threading.Event(), []
    began = time.monotonic()
    try:
        story(world, stop, threads)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for name in list(world.running):
            world.end(name, kill=True)
    if failures:
        print(f"{len(failures)} failures; logs are in {scratch}")
        sys.exit(1)
    shutil.rmtree(scratch)
    print(f"all of it as it should be, in {time.monotonic() - began:.0f} s")


def story(world, stop, threads):
    orders = "[projection.orders]\nfold = 'merge-patch'\nsource = 'category:order'\n"
    world.eventstore()
    world.dynamodb()
    for name in ("eventstore", "dynamodb"):
        world.wait(name, lambda: socket.create_connection(("127.0.0.1", world.ports[name]), 1).close() or True)
    world.append({"stream": f"order-{n}", "type": "OrderPlaced", "data": {"n": n}} for n in range(STREAMS))
    # A state that outgrows an item, even compressed.
    world.append({"stream": "order-bad", "type": "OrderPlaced", "data": {str(n): os.urandom(150_000).hex()}} for n in range(4))
    world.daemon("a", orders)
    world.daemon("b", orders)
    world.start(
        "prometheus",
        ["prometheus", f"--config.file={world.scratch}/prometheus.yml", f"--storage.tsdb.path={world.scratch}/tsdb",
         f"--web.listen-address=127.0.0.1:{world.ports['prometheus']}", "--log.level=warn"],
    )
    ports = [world.bank("bank1"), world.bank("bank2")]

    def caught_up(schema):
        lag = world.query(f'max(projector_source_lag_events{{schema="{schema}"}})')
        return lag and lag[0][1] == 0

    world.wait("both tasks ready", lambda: world.query("sum(projector_ready)")[0][1] == 2)
    # Discovery takes some seconds to tell of its first targets.
    world.wait("nothing fires", lambda: not world.firing())
    world.phase("fresh", [], until=lambda: caught_up(1))
    for _ in range(2):
        threads.append(threading.Thread(target=traffic, args=(ports, stop)))
        threads[-1].start()
    world.phase("well", [], rule_minutes=2)

    # A new schema, which puts one replica at a time.
    world.daemon("c", orders + "schema = 2\nwrites = 1\n", slowly=True)
    quarantined = [f"ProjectionQuarantined projection=orders schema={n}" for n in (1, 2)]
    lag = f'min(min_over_time(projector_source_lag_seconds{{schema="2"}}[{round(5.5 * world.minute * 1000)}ms]))'
    behind = f"{lag} > {world.minute} and on () count(count_over_time(projector_source_lag_seconds{{schema=\"2\"}}[1h]) > {5.5 * world.minute / EVERY})"
    world.phase("a schema fills, longer behind than pages otherwise", [], standing=quarantined,
                rule_minutes=5.5, until=lambda: world.query(behind))
    world.delay = 0
    world.append({"stream": f"order-{n}", "type": "OrderShipped", "data": {"shipped": True}} for n in range(200))
    boards(world)
    world.phase("a stream is quarantined", quarantined[:1], quarantined, until=lambda: caught_up(2))

    world.end("eventstore", kill=True)
    world.phase("EventStoreDB is unavailable", ["ProjectorStoreAway store=eventstore"], quarantined, rule_minutes=7)
    world.eventstore()
    world.phase("EventStoreDB is back", [], [*quarantined, "ProjectorStoreAway store=eventstore"],
                until=lambda: caught_up(1) and not any("StoreAway" in name for name in world.firing()))
    world.phase("nothing follows", [], quarantined, rule_minutes=2.5)

    stop.set()
    for name in ("a", "b", "c"):
        world.end(name)
        del world.targets[name]
        world.discover()
    world.phase("all tasks are stopped and forgotten", ["ProjectorDown"], quarantined)
    world.phase("nothing else is said of it", ["ProjectorDown"], rule_minutes=2.5)


main()
