"""What a container can reach: not its site's secrets, not its neighbours, and of the network what the policy says."""

from __future__ import annotations

import socket
import subprocess
import threading
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.beds.images import BUSYBOX
from tests.hostile_tasks.conftest import SECRET, Site
from tests.hostile_tasks.words import codes, output, said, stdout
from tests.runner.gateway_fake import AGENT_TOKEN, wait_for

LOOK = """for dir in / /proc/1 /proc/self /tmp /run /var /root /home /etc /mnt /srv /opt; do ls -a $dir
            done > /work/list 2>&1
cat /proc/*/environ /.tesgate/control/* /proc/mounts /proc/net/unix > /work/seen 2>&1
for dir in /.tesgate /tmp /run /var /root /home /etc /mnt /srv /opt /data; do
    test ! -d $dir || find $dir -xdev -type f -size -200k ! -path '*/ssl/*' -exec cat {} + >> /work/seen 2>&1
done
ls -la /proc/self/fd >> /work/seen; env >> /work/seen; find /tmp /run /var /etc /dev /work /.tesgate -type s
for path in /var/run/docker.sock /run/docker.sock /run/containerd/containerd.sock /dev/mem \
    /dev/kmsg /dev/vda /dev/sda; do
    test ! -w $path || echo "REACHED $path"
done"""


def test_no_secret_of_the_site_is_in_sight(site: Site) -> None:
    """Tokens of agent and attempt, the agent's environment, plan and journal, the engine's socket, host devices."""
    neighbour = site.submit(site.document("echo neighbour-secret-815 > /work/mine; sleep 20", volumes=["/work"]))
    wait_for(lambda: site.bench.reports(neighbour), "the neighbour to run")
    key = site.submit(
        site.document(
            LOOK,
            outputs=[output("/work/seen", site.url("seen-" + site.runtime)), output("/work/list", site.url("list"))],
        )
    )
    body = site.end(key)
    assert body["state"] == "COMPLETE", said(body)
    seen = (site.root / ("seen-" + site.runtime)).read_bytes()
    for secret in (AGENT_TOKEN, SECRET, f"tgt_{key[0]}", "tgt_", '"external_name"', "neighbour-secret-815"):
        assert secret.encode() not in seen, secret
    assert "REACHED" not in stdout(body)
    assert ".sock" not in stdout(body)
    site.bench.gateway.cancel(neighbour)
    site.bench.gateway.end_of(neighbour)


@pytest.fixture
def listener() -> Generator[int]:
    """A server of the host on every address, as a gateway may be; the port."""
    server = socket.create_server(("0.0.0.0", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            peer.sendall(b"HTTP/1.0 200 OK\r\n\r\nreached\n")
            peer.close()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def _reach(*places: str) -> str:
    """A script that says which of some servers (host:port, IPv4) answer with `reached`."""
    ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 2 nc %s 2>/dev/null | grep -q reached && echo 'REACHED %s'"
    return " & ".join("(%s)" % (ask % (place.replace(":", " "), place)) for place in places) + " & wait; true"


def test_without_a_network_nothing_is_reached(site: Site, listener: int) -> None:
    """Bubblewrap's default, and `runtime.network: none`: not the host's loopback, its bridge, its abstract sockets."""
    name = f"tesgate-hostile-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + name)
        abstract.listen()
        places = [f"127.0.0.1:{listener}", f"172.17.0.1:{listener}"]
        body = site.run(_reach(*places) + "; cat /proc/net/unix; true")
    assert codes(body) == [0], said(body)
    assert "REACHED" not in stdout(body)
    assert name not in stdout(body)


def test_the_fenced_network_of_the_documentation(docker_site: Site, listener: int) -> None:
    """docs/security.md, *A fence for containers*: no neighbours, no metadata address, no port of the host.

    The engine's usual bridge is the control: there the host's ports are reached, and the same script shows it.
    """
    mark = uuid.uuid4().hex[:8]
    name, bridge = f"tesgate-hostile-{mark}", f"tgh{mark}"
    options = ["-o", f"com.docker.network.bridge.name={bridge}", "-o", "com.docker.network.bridge.enable_icc=false"]
    rule = ["INPUT", "-i", bridge, "-j", "DROP"]
    _run("docker", "network", "create", "--internal", *options, name)
    try:
        _run("iptables", "-w", "-I", *rule)
        shape = "{{(index .IPAM.Config 0).Gateway}}"
        own, usual = (_run("docker", "network", "inspect", "-f", shape, network) for network in (name, "bridge"))
        serve = "ip -4 addr show eth0 | sed -n 's/.*inet \\([0-9.]*\\).*/\\1/p'; "
        serve += "while true; do echo reached | nc -l -p 8080; done"
        neighbour = docker_site.submit(docker_site.document(serve), network=name)
        address = wait_for(lambda: docker_site.bench.gateway.log(neighbour, 0, "stdout"), "the neighbour's address")
        places = [f"{address.decode().strip()}:8080", "169.254.169.254:80", f"{usual}:{listener}", f"{own}:{listener}"]
        fenced = docker_site.submit(docker_site.document(_reach(*places)), network=name)
        open_ = docker_site.submit(docker_site.document(_reach(f"{usual}:{listener}")), network="default")
        assert stdout(docker_site.end(open_)) == f"REACHED {usual}:{listener}\n"
        assert stdout(docker_site.end(fenced)) == ""
        docker_site.bench.gateway.cancel(neighbour)
        for key in (neighbour, fenced, open_):
            docker_site.bench.gateway.end_of(key)
            docker_site.bench.gateway.gone_from_have(key)
        wait_for(lambda: not docker_site.bench.steps(), "the containers to be removed")
    finally:
        subprocess.run(["iptables", "-w", "-D", *rule], check=False, capture_output=True)
        subprocess.run(["docker", "network", "rm", name], check=False, capture_output=True)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_network_of_another_container_cannot_be_joined(docker_site: Site) -> None:
    for network in ("container:x", "container:tg", "a b", "-v", "none --privileged", "ns:/proc/1/ns/net"):
        body = docker_site.end(docker_site.submit(docker_site.document("true"), network=network))
        assert body["state"] == "SYSTEM_ERROR"


def test_an_images_links_do_not_lead_a_mount_out(docker_site: Site, tmp_path: Path) -> None:
    """/data in the image is a link to a folder of the host's name: volume, input and workdir stay in the container."""
    victim = docker_site.root.parent / "image-victim"
    victim.mkdir()
    name = f"tesgate-test/links-{uuid.uuid4().hex[:8]}"
    links = f"ln -s {victim} /data; ln -s /etc /conf; ln -s ../../../../{victim} /up"
    made = subprocess.run(
        ["docker", "run", "-d", BUSYBOX, "sh", "-c", links],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    try:
        subprocess.run(["docker", "wait", made], check=True, capture_output=True)
        subprocess.run(["docker", "commit", made, name], check=True, capture_output=True)
        document = docker_site.document("")
        script = "echo out > /data/x; echo out > /up/out/x; cat /conf2/in; pwd -P; ls /etc/passwd"
        document["executors"][0].update(image=name, command=["/bin/sh", "-c", script], workdir="/data/deep")
        document["inputs"] = [{"content": "in\n", "path": "/conf2/in"}]
        document["volumes"] = ["/data"]
        document["outputs"] = [
            output("/up/out/x", docker_site.url("up-x")),
            output("/data/x", docker_site.url("data-x")),
        ]
        body = docker_site.end(docker_site.submit(document))
        assert body["state"] in ("COMPLETE", "SYSTEM_ERROR"), said(body)
        assert list(victim.iterdir()) == []
        docker_site.bench.gateway.gone_from_have(docker_site.keys[-1])
    finally:
        subprocess.run(["docker", "rm", "-f", made], check=False, capture_output=True)
        subprocess.run(["docker", "rmi", "-f", name], check=False, capture_output=True)
