"""What scripts/test-worker runs. Exits 1 at the first thing that is not as docs/scale.md says; prints what it has seen."""

import argparse
import asyncio
import collections
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError, ObjectNotFoundError

parser = argparse.ArgumentParser()
parser.add_argument("--server", required=True)
parser.add_argument("--binary", required=True)
parser.add_argument("--jobs", type=int, default=60)
parser.add_argument("--workers", type=int, default=4)
args = parser.parse_args()

SMALL = "--device emulator --width 64 --height 64 --steps 1 --t5-length 16".split()
ACK_WAIT = 5
folder = tempfile.TemporaryDirectory(prefix="schnell-worker-")
begun = time.monotonic()
running = []


def run(*command, **more):
    running.append(subprocess.Popen(command, **more))
    return running[-1]


def say(text):
    print(f"{time.monotonic() - begun:6.1f} s  {text}", flush=True)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Server:
    """nats-server, whose streams outlive it."""

    def __init__(self, *more):
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.monitor = free_port()
        self.flags = ["-a", "127.0.0.1", "-p", str(self.port), "-m", str(self.monitor), "-l", f"{folder.name}/nats-{self.port}.log", *more]

    def start(self):
        self.process = run(args.server, *self.flags)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return self
            time.sleep(0.05)
        raise SystemExit("nats-server does not listen")

    def numbers(self):
        """Messages and bytes, in and out, since it was started."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/varz") as answer:
            told = json.load(answer)
        return [told[what] for what in ("in_msgs", "out_msgs", "in_bytes", "out_bytes")]

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


class Worker:
    def __init__(self, server, prefix, node, *more):
        self.node = node
        self.said = f"{folder.name}/{prefix}-{node}.log"
        flags = ["worker", *SMALL, "--nats", server.url, "--prefix", prefix, "--node", node, *more]
        with open(self.said, "a") as log:
            self.process = run(args.binary, *flags, stderr=log)
        self.lines = len(self.log().splitlines())

    def log(self):
        with open(self.said) as log:
            return log.read()

    async def ready(self):
        for _ in range(1200):
            if self.process.poll() is not None:
                raise SystemExit(f"{self.node} has ended: {self.log()}")
            if "\nready\n" in f"\n{self.log()}":
                return self
            await asyncio.sleep(0.1)
        raise SystemExit(f"{self.node} is not ready: {self.log()}")

    def send(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()
        os.remove(self.said)

    async def drain(self):
        """Ends with 0, having said so."""
        self.send(signal.SIGTERM)
        await asyncio.to_thread(self.process.wait, 120)
        assert self.process.returncode == 0, (self.node, self.process.returncode, self.log())
        assert "drained: all that was taken has been answered" in self.log(), self.log()
        return self.log()


async def workers(server, prefix, number, *more):
    started = [Worker(server, prefix, f"node-{i}", "--ack-wait", f"{ACK_WAIT}s", *more) for i in range(number)]
    for worker in started:
        await worker.ready()
    return started


async def ask(js, prefix, name, body, **headers):
    headers = {"Nats-Msg-Id": name, **headers}
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    for _ in range(100):
        try:
            return await js.publish(f"{prefix}.jobs", payload, headers=headers)
        except (nats.errors.TimeoutError, nats.errors.NoRespondersError, nats.js.errors.NoStreamResponseError):
            # The server starts again; a job that was taken has its id.
            await asyncio.sleep(0.3)
    raise SystemExit("the server takes no job")


async def answer(js, prefix, name, seconds=120):
    """The one answer to a job."""
    for _ in range(seconds * 5):
        with contextlib.suppress(NotFoundError, nats.errors.TimeoutError):
            return json.loads((await js.get_last_msg(f"{prefix}-results", f"{prefix}.results.{name}")).data)
        await asyncio.sleep(0.2)
    raise SystemExit(f"no answer to {name}")


def request(seed, **more):
    return {"prompt": ["a red circle", "a blue ring", "a green star"][seed % 3], "seed": seed, **more}


async def pictures(js, prefix, answers):
    """Digests of the pictures' files, by job; each as long and of the digest that the answer says."""
    store = await js.object_store(f"{prefix}-pictures")
    found = {}
    for name, told in answers.items():
        assert "error" not in told, told
        [picture] = told["data"]
        file = (await store.get(picture["object"])).data
        assert (len(file), hashlib.sha256(file).hexdigest()) == (picture["bytes"], picture["sha256"]), name
        assert file[:8] == b"\x89PNG\r\n\x1a\n", name
        found[name] = picture["sha256"]
    return found, store


async def many(server, js):
    """Every job is answered once, whatever happens to workers and the server; with the bytes of a single worker."""
    names = [f"job-{i}" for i in range(args.jobs)]
    [single] = await workers(server, "alone", 1)
    # No one asks for anything else meanwhile.
    for i, name in enumerate(names):
        await ask(js, "alone", name, request(i))
    left, before = (await js.stream_info("alone-jobs")).state.messages, server.numbers()
    while (await js.stream_info("alone-jobs")).state.messages:
        await asyncio.sleep(5)
    share = [(now - then) / left for now, then in zip(server.numbers(), before)]
    alone = {name: await answer(js, "alone", name, 1200) for name in names}
    reference, _ = await pictures(js, "alone", alone)
    assert len(set(reference.values())) == args.jobs
    said = "{:.0f} messages in, {:.0f} out; {:.0f} bytes in, {:.0f} out".format(*share)
    size = sum(told["data"][0]["bytes"] for told in alone.values()) / args.jobs
    say(f"{args.jobs} jobs by one worker; for each: {said}, of a file of {size:.0f} bytes")
    await single.drain()

    four = await workers(server, "many", args.workers)
    seen = collections.Counter()
    sub = await js.subscribe("many.results.*", stream="many-results", config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL))
    done = lambda share: len(seen) >= args.jobs * share

    async def listen():
        while len(seen) < args.jobs:
            with contextlib.suppress(nats.errors.TimeoutError):
                message = await sub.next_msg(1)
                seen[message.subject.rsplit(".")[-1]] += 1
                await message.ack()

    async def until(share):
        while not done(share):
            await asyncio.sleep(0.02)

    async def send():
        for i, name in enumerate(names):
            ack = await ask(js, "many", name, request(i))
            again = await ask(js, "many", name, request(i))
            assert again.duplicate and again.seq == ack.seq, name

    async def disturb():
        await until(0.2)
        four[0].kill()
        say(f"{four[0].node} killed after {len(seen)} answers")
        await until(0.35)
        four[1].send(signal.SIGSTOP)
        say(f"{four[1].node} frozen after {len(seen)} answers")
        await until(0.55)
        server.stop()
        say(f"the server stopped after {len(seen)} answers")
        await asyncio.sleep(2)
        server.start()
        await until(0.8)
        four[1].send(signal.SIGCONT)
        say(f"{four[1].node} goes on after {len(seen)} answers")

    await asyncio.wait_for(asyncio.gather(listen(), send(), disturb()), 3600)
    # A worker that was frozen may still be at what others have answered.
    nodes = await js.key_value("many-nodes")
    entries = [json.loads((await nodes.get(worker.node)).value) for worker in four[1:]]
    for entry in entries:
        [shape] = entry["shapes"]
        assert entry["card"] == "emulator" and entry["state"] == "ready" and entry["arena_bytes"] > 1 << 20, entry
        assert shape["size"] == "64x64" and shape["p99_ms"] >= shape["p50_ms"] > 0 and shape["expected_ms"] > 0, entry
    for worker in four[1:]:
        await worker.drain()
    extra = [name for name, count in seen.items() if count != 1]
    assert set(seen) == set(names) and not extra, extra
    info = await js.stream_info("many-results")
    assert info.state.messages == args.jobs, info.state
    assert (await js.stream_info("many-jobs")).state.messages == 0
    answers = {name: await answer(js, "many", name) for name in names}
    found, store = await pictures(js, "many", answers)
    assert found == reference
    named = {told["data"][0]["object"] for told in answers.values()}
    listed = {entry.name for entry in await store.list() if not entry.deleted}
    # What a killed worker had put and not answered stays until it is old.
    assert named <= listed and len(listed - named) <= 1, listed - named
    by = collections.Counter(told["node"] for told in answers.values())
    again = sum(told["attempt"] > 1 for told in answers.values())
    say(f"{args.jobs} jobs answered once each, {again} at a second attempt, by {dict(sorted(by.items()))}; bytes as by one worker")
    with contextlib.suppress(nats.js.errors.KeyNotFoundError, nats.js.errors.KeyDeletedError):
        await nodes.get("node-2")
        raise SystemExit("a worker that has drained is still listed")


async def poison(client, server, js):
    """A job that takes its workers with it is given up; jobs behind it are drawn."""
    [worker] = await workers(server, "poison", 1)
    progress = await client.subscribe("poison.progress.bad")
    await client.flush()
    await ask(js, "poison", "bad", request(1, steps=50))
    await ask(js, "poison", "good", request(2))
    for attempt in range(1, 4):
        told = json.loads((await progress.next_msg(60)).data)
        while told["attempt"] != attempt:
            told = json.loads((await progress.next_msg(60)).data)
        assert told["node"] == "node-0", told
        worker.kill()
        [worker] = await workers(server, "poison", 1)
    told = await answer(js, "poison", "bad")
    assert told["error"]["code"] == "given_up" and told["status"] == 500 and told["attempt"] == 4, told
    buried = await js.get_last_msg("poison-dead", "poison.dead")
    assert json.loads(buried.data) == request(1, steps=50)
    assert buried.headers["Nats-Msg-Id"] == "bad" and "3 times" in buried.headers["Schnell-Reason"], buried.headers
    assert "error" not in await answer(js, "poison", "good")
    await worker.drain()
    say("a job that kills is given up after 3 tries")


async def refusals(server, js):
    """What cannot be drawn is answered at once, in words."""
    [worker] = await workers(server, "refuse", 1)
    cases = {
        "no-json": (b"\xff{", "invalid_json"),
        "empty": (b"", "invalid_json"),
        "no-prompt": ({}, "missing_parameter"),
        "unknown": (request(1, bogus=1), "unknown_parameter"),
        "large": (request(1, size="1024x1024"), "image_too_large"),
        "model": (request(1, model="other"), "model_not_found"),
        "late": (request(1, deadline_ms=1), "deadline_exceeded"),
    }
    for name, (body, _) in cases.items():
        await ask(js, "refuse", name, body)
    for name, (_, code) in cases.items():
        told = await answer(js, "refuse", name)
        assert told["error"]["code"] == code and told["attempt"] == 1, told
    # Names that are none, and none at all.
    sequence = (await ask(js, "refuse", "a.b *", request(3))).seq
    unnamed = (await js.publish("refuse.jobs", json.dumps(request(4)).encode())).seq
    sub = await js.subscribe("refuse.results.*", stream="refuse-results", config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL))
    told = [json.loads((await sub.next_msg(60)).data) for _ in range(len(cases) + 2)]
    for seq, is_renamed in [(sequence, True), (unnamed, False)]:
        [one] = [one for one in told if one["id"].startswith(f"{seq}-")]
        assert len(one["data"]) == 1 and ("warning" in one) == is_renamed, one
    # Several pictures, in another format, without a seed.
    await ask(js, "refuse", "two", {"prompt": "a red circle", "n": 2, "output_format": "webp", "stream": True})
    two = await answer(js, "refuse", "two")
    assert [picture["object"] for picture in two["data"]] == ["two-0-1.webp", "two-1-1.webp"], two
    seeds = [picture["schnell"]["seed"] for picture in two["data"]]
    assert seeds[1] == seeds[0] + 1, seeds
    assert "no effect" in str(two["data"][0]["schnell"]["warnings"]), two
    # The same job elsewhere has the same seed.
    other = Worker(server, "other", "node-0")
    await other.ready()
    await ask(js, "other", "two", {"prompt": "a red circle", "n": 2})
    assert (await answer(js, "other", "two"))["data"][0]["schnell"]["seed"] == seeds[0]
    await other.drain()
    # The middle of a picture is no place to end.
    await ask(js, "refuse", "long", request(5, steps=50))
    progress = 0
    while progress == 0:
        await asyncio.sleep(0.05)
        progress = (await js.consumer_info("refuse-jobs", "workers")).num_ack_pending
    await worker.drain()
    assert (await answer(js, "refuse", "long", 1))["data"][0]["schnell"]["steps"] == 50
    say("refusals, names, several pictures, draining")


async def queues(server, js):
    """A full queue says so; what has come too late by its own word goes unseen."""
    await (await Worker(server, "full", "node-0", "--queue", "5").ready()).drain()
    for i in range(5):
        await ask(js, "full", f"job-{i}", request(i))
    try:
        await js.publish("full.jobs", json.dumps(request(5)).encode())
        raise SystemExit("a sixth job was taken")
    except APIError as error:
        assert "maximum messages exceeded" in error.description, error
    await js.purge_stream("full-jobs")
    await ask(js, "full", "brief", request(1), **{"Nats-TTL": "1s"})
    await asyncio.sleep(2.5)
    assert (await js.stream_info("full-jobs")).state.messages == 0
    say("a full queue pushes back, and a message's time ends")


async def audits(server, js):
    """Workers draw each other's pictures again, and a picture that differs is told of."""
    two = await workers(server, "audit", 2, "--audit", "100%")
    for i in range(6):
        await ask(js, "audit", f"job-{i}", request(i))
    for i in range(6):
        await answer(js, "audit", f"job-{i}")
    nodes = await js.key_value("audit-nodes")

    async def counts(what):
        return sum([json.loads((await nodes.get(worker.node)).value)["counts"][what] for worker in two])

    # Each is told of by another node, and a moment after it is so; a node that is handed its own leaves it to others for a while.
    for _ in range(600):
        found = [await counts(what) for what in ("audited", "disagreed", "answered")]
        if found == [6, 0, 6]:
            break
        await asyncio.sleep(0.2)
    assert found == [6, 0, 6], found
    # What a node with a fault would have sent.
    [consumer, *_] = [info.name for info in await js.consumers_info("audit-audits")]
    forged = {"id": "forged", "node": "elsewhere", "latents": "0" * 64, "pixels": "0" * 64, "body": json.dumps(request(1))}
    await js.publish(f"audit.audits.{consumer}", json.dumps(forged).encode())
    await js.publish(f"audit.audits.{consumer}", b"no wish")
    for _ in range(300):
        with contextlib.suppress(NotFoundError):
            told = json.loads((await js.get_last_msg("audit-disagreed", "audit.disagreed")).data)
            break
        await asyncio.sleep(0.2)
    assert told["id"] == "forged" and told["drawn"][0]["node"] == "elsewhere", told
    honest = told["drawn"][1]
    assert honest["node"].startswith("node-") and len(honest["pixels"]) == 64, told
    logs = [await worker.drain() for worker in two]
    assert "job forged: node elsewhere drew other pixels" in "".join(logs)
    say("six pictures drawn again elsewhere, and a forged one found")


def flags():
    """What cannot work is refused before anything is loaded."""

    def refused(code, words, *more):
        ran = subprocess.run([args.binary, "worker", *SMALL, *more], capture_output=True, text=True, timeout=60)
        assert ran.returncode == code and words in ran.stderr, (more, ran.returncode, ran.stderr)
        assert "hunter2" not in ran.stderr and "panicked" not in ran.stderr, ran.stderr

    nowhere = f"nats://somebody:hunter2@127.0.0.1:{free_port()}"
    refused(11, "no NATS server at 127.0.0.1", "--nats", nowhere)
    refused(2, "--nats is no address", "--nats", "nats://:hunter2@")
    refused(2, "--prefix", "--prefix", "a.b")
    refused(2, "--node", "--node", "a b")
    refused(2, "is no share", "--audit", "101%")
    refused(2, "--ack-wait", "--ack-wait", "1ms")
    refused(7, "read", "--credentials", f"{folder.name}/none.creds")
    refused(7, "read", "--ca", f"{folder.name}/none.pem")
    bare = Server().start()
    refused(5, "--jetstream", "--nats", bare.url)
    bare.stop()
    streams = Server("--jetstream", "-sd", f"{folder.name}/brief").start()
    # A picture's longest stage takes longer than a third of it.
    refused(2, "allow more", "--nats", streams.url, "--ack-wait", "100ms", "--size", "256x256")
    streams.stop()
    say("flags")


async def main():
    flags()
    server = Server("--jetstream", "-sd", f"{folder.name}/streams").start()
    client = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
    js = client.jetstream(timeout=10)
    await refusals(server, js)
    await queues(server, js)
    await audits(server, js)
    await poison(client, server, js)
    await many(server, js)
    await client.close()
    server.stop()
    say("worker: all as docs/scale.md says")


try:
    asyncio.run(main())
except BaseException:
    for name in sorted(os.listdir(folder.name)):
        if name.endswith(".log"):
            with open(f"{folder.name}/{name}") as log:
                print(f"---- {name}\n{log.read()[-3000:]}")
    raise
finally:
    for process in running:
        process.kill()
