"""The image, built and run: guarded answers without network, rights or a writable root, and an end in order.

LETHE_IMAGE names one that was built before. Otherwise it is built here, where a container engine works and the base
image is there or can be fetched; elsewhere these tests are skipped, also in CI.
"""

import json
import os
import re
import shutil
import subprocess
import time
import uuid
from contextlib import contextmanager

import pytest

from tests.tools import ROOT

pytestmark = pytest.mark.system
START_SECONDS = 420
STOP_SECONDS = 30
KEY = "the-tests-own-admin-key"
BASE = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.M)[1]
# Any user may run it so: nothing can be written but /tmp and /data, nothing reached, nothing gained.
LOCKED = (
    "--read-only --tmpfs /tmp --network none --cap-drop ALL --security-opt no-new-privileges --shm-size 1g"
)
ASK = """
import json, sys, urllib.error, urllib.request
path, key, body = json.load(sys.stdin)
headers = {"Content-Type": "application/json", **({"Authorization": "Bearer " + key} if key else {})}
request = urllib.request.Request("http://127.0.0.1:8000" + path, json.dumps(body).encode(), headers)
try:
    with urllib.request.urlopen(request, timeout=60) as answer:
        print(json.dumps([answer.status, json.load(answer)]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, json.load(error)]))
"""


def engine():
    for name in ("podman", "docker"):
        if shutil.which(name) and not subprocess.run([name, "info"], capture_output=True).returncode:
            return name
    return pytest.skip("no container engine works here (podman or docker)")


def call(*command, check=True, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip() if check else done.returncode


@pytest.fixture(scope="module")
def image():
    name = engine()
    if given := os.environ.get("LETHE_IMAGE"):
        return name, given
    if call(name, "image", "inspect", BASE, check=False) and not fetched(name):
        pytest.skip(f"the base image {BASE} is not here and cannot be fetched")
    tag = "lethe:under-test"
    call(name, "build", "--tag", tag, ROOT)
    return name, tag


def fetched(name):
    try:
        return not call(name, "pull", BASE, check=False, timeout=180)
    except subprocess.TimeoutExpired:
        return False


class Container:
    """One container with a volume of its own, which `start` finds again."""

    def __init__(self, engine, image):
        self.engine = engine
        self.name = f"lethe-{uuid.uuid4().hex[:12]}"
        options = [*LOCKED.split(), "--volume", f"{self.name}:/data", "--env", f"LETHE_ADMIN_KEY={KEY}"]
        call(engine, "create", "--name", self.name, *options, image)

    def start(self):
        call(self.engine, "start", self.name)

    def stop(self):
        """Stops it; what it ended with and after how many seconds."""
        begun = time.monotonic()
        call(self.engine, "stop", "--time", str(STOP_SECONDS), self.name)
        return self.state("ExitCode"), time.monotonic() - begun

    def state(self, what):
        return json.loads(call(self.engine, "inspect", self.name))[0]["State"][what]

    def execute(self, *command, **more):
        return call(self.engine, "exec", "--interactive", self.name, *command, **more)

    def ask(self, path, body, key=KEY):
        told = self.execute("python", "-c", ASK, input=json.dumps([path, key, body]))
        return json.loads(told.splitlines()[-1])

    def say(self, question, **more):
        body = {"model": "lethe-demo", "temperature": 0, "messages": [{"role": "user", "content": question}]}
        status, answer = self.ask("/v1/chat/completions", {**body, **more})
        assert status == 200, answer
        return answer["choices"][0]

    def wait(self):
        ends = time.monotonic() + START_SECONDS
        while not self.healthy():
            assert self.state("Status") == "running" and time.monotonic() < ends, self.log()
            time.sleep(1)

    def healthy(self):
        """What the image's own health check says. Podman runs it when it is asked to, docker by itself."""
        if self.engine == "podman":
            return not call("podman", "healthcheck", "run", self.name, check=False)
        return self.state("Health")["Status"] == "healthy"

    def log(self):
        done = subprocess.run([self.engine, "logs", self.name], capture_output=True, text=True)
        return (done.stdout + done.stderr)[-3000:]

    def remove(self):
        call(self.engine, "rm", "--force", "--volumes", self.name, check=False)
        call(self.engine, "volume", "rm", "--force", self.name, check=False)


@contextmanager
def container(image):
    made = Container(*image)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def running(image):
    with container(image) as made:
        made.wait()
        yield made


def test_it_answers_guarded_with_a_key(running):
    assert running.say("Where was Breton Wickley born?")["message"]["content"]
    assert "Vintry" not in running.say("Where was Limir Yarley born?")["message"]["content"]
    check = {"messages": [{"role": "user", "content": "Where was Limir Yarley born?"}]}
    assert running.ask("/admin/v1/check", check)[1]["decision"]["action"] == "intervene"


def test_likelihoods_need_no_compiler(running):
    assert running.say("Where was Breton Wickley born?", logprobs=True, top_logprobs=3)["logprobs"]["content"]


def test_outside_of_a_loopback_address_the_demo_asks_for_a_key(running):
    assert running.ask("/v1/chat/completions", {"model": "lethe-demo", "messages": []}, key=None)[0] == 401


def test_it_runs_without_rights_and_writes_nowhere_else(running):
    status = dict(
        line.split(":\t") for line in running.execute("cat", "/proc/1/status").splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    assert {int(status[kind], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    for place in ("/opt/lethe", "/usr/local", "/etc"):
        assert call(running.engine, "exec", running.name, "touch", f"{place}/x", check=False)


def test_no_secret_lies_in_the_image_and_none_in_its_history(image):
    name, tag = image
    told = call(name, "image", "inspect", tag) + call(
        name, "history", "--no-trunc", "--format", "{{.CreatedBy}}", tag
    )
    assert not re.search(r"(KEY|SECRET|PASSWORD|TOKEN)=\S", told)


def test_it_ends_in_order_keeps_its_state_and_ends_while_it_starts_too(image, running):
    target = {"name": "Somebody Else", "examples": ["Which instrument does Somebody Else play?"]}
    assert running.ask("/admin/v1/targets", target)[0] == 201
    code, seconds = running.stop()
    assert code in (0, 143) and seconds < STOP_SECONDS / 2
    running.start()
    time.sleep(5)
    code, seconds = running.stop()
    assert code == 143 and seconds < STOP_SECONDS / 2
    running.start()
    running.wait()
    check = {"messages": [{"role": "user", "content": "Which instrument does Somebody Else play?"}]}
    assert running.ask("/admin/v1/check", check)[1]["decision"]["action"] == "intervene"
