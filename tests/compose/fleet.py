"""A fleet in containers, driven through the compose tool that this machine has."""

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "flotilla-test"
CLUSTER = "ops/docker/compose.cluster.yml"


def compose_tool():
    """`docker compose` where the plugin is there, else `docker-compose`, which 1.29 is the last of."""
    for tool in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(tool[0]) and subprocess.run([*tool, "version"], capture_output=True).returncode == 0:
            return tool
    raise SystemExit("no compose tool is here: sudo apt-get install -y docker-compose")


def free_port():
    """Under the ports of outgoing connections, one of which could sit on it before the fleet is up."""
    for port in random.sample(range(12_000, 32_000), 100):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise SystemExit("a hundred ports of this machine are in use")


class Fleet:
    """One compose project, apart from every other fleet of this machine; `files` are overrides."""

    def __init__(self, models, files=()):
        self.tool = compose_tool()
        self.files = ["docker-compose.yml", *files]
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        # Whatever the shell or a file .env says: this fleet is its own. An empty variable means the default.
        named = re.findall(r"\$\{(FLOTILLA_\w+):-", "".join((ROOT / file).read_text() for file in [self.files[0], CLUSTER]))
        self.variables = {
            **dict.fromkeys(named, ""),
            "FLOTILLA_NATS_PORT": str(self.port),
            "FLOTILLA_NATS_PORT_2": str(free_port()),
            "FLOTILLA_NATS_PORT_3": str(free_port()),
        }
        if models:
            self.variables["FLOTILLA_MODELS"] = str(models)

    @property
    def urls(self):
        """Every NATS server that clients reach."""
        names = ["FLOTILLA_NATS_PORT", "FLOTILLA_NATS_PORT_2", "FLOTILLA_NATS_PORT_3"]
        ports = names if CLUSTER in self.files else names[:1]
        return [f"nats://127.0.0.1:{self.variables[name]}" for name in ports]

    def compose(self, *arguments, check=True, **variables):
        """Runs the tool; its output is shown where it failed and should not have."""
        files = [word for file in self.files for word in ("-f", file)]
        command = [*self.tool, "-p", PROJECT, *files, *arguments]
        environment = {**os.environ, "DOCKER_BUILDKIT": "0", **self.variables, **variables}
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(arguments)} failed:\n{done.stdout}")
        return done

    def up(self, workers=1, check=True, **variables):
        return self.compose("up", "-d", "--no-build", "--scale", f"worker={workers}", check=check, **variables)

    def down(self):
        return self.compose("down")

    def remove(self):
        """Down with everything that was kept."""
        self.compose("down", "--volumes", "--remove-orphans", check=False)

    def containers(self, service):
        labels = [f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}"]
        filters = [word for label in labels for word in ("--filter", f"label={label}")]
        return docker("ps", "--quiet", "--no-trunc", *filters).split()

    def states(self, *services):
        """Health, starts and restarts of each container: what must not change where nothing may die."""
        found = [inspect(container) for service in services for container in self.containers(service)]
        return sorted((one["Id"], one["RestartCount"], one["State"]["StartedAt"]) for one in found)

    def healthy(self, *services):
        found = [inspect(container)["State"] for service in services for container in self.containers(service)]
        return bool(found) and all(state.get("Health", {}).get("Status") == "healthy" for state in found)

    def logs(self, service):
        return self.compose("logs", "--no-color", service).stdout


def docker(*arguments):
    done = subprocess.run(["docker", *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise AssertionError(f"docker {' '.join(arguments)} failed:\n{done.stdout}")
    return done.stdout


def inspect(thing):
    return json.loads(docker("inspect", thing))[0]


def until(what, holds, patience=90):
    """Asks until it holds; what is asked takes its time itself."""
    limit = time.monotonic() + patience
    while not (found := holds()):
        if time.monotonic() > limit:
            raise AssertionError(f"not within {patience} s: {what}")
        time.sleep(0.1)
    return found
