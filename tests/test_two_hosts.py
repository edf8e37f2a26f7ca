"""A build on two hosts, in network namespaces of their own, each with its own disk; where the machine lets a test make them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid

import pytest
from test_ranks import SCRIPT, files, finished, laid_out, start


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def hosts():
    """Two network namespaces with a cable between them: their names and the name of the cable's end in both."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2 and the right to make them")
    mark = uuid.uuid4().hex[:6]
    names = [f"hs{mark}{side}" for side in "ab"]
    try:
        steps = [("netns", "add", name) for name in names]
        steps += [
            ("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        ]
        for number, name in enumerate(names):
            steps += [("-n", name, "addr", "add", f"10.213.77.{number + 1}/24", "dev", "cable")]
            steps += [("-n", name, "link", "set", device, "up") for device in ("lo", "cable")]
        for step in steps:
            done = ip(*step)
            if done.returncode:
                pytest.skip(f"this machine does not make network namespaces: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def test_two_hosts_build_what_one_does(hosts, tmp_path, tiny_teacher_folder, texts):
    """Ranks on two machines talk to the wrong interface, look for each other's files, or build something else."""
    laid_out(tmp_path, texts)
    assert "work_dir" in SCRIPT
    finished(start(tmp_path, tiny_teacher_folder, 1, "alone", ""))
    ranks = []
    for rank, host in enumerate(hosts):
        command = [
            sys.executable,
            "build.py",
            str(tiny_teacher_folder),
            "texts.txt",
            f"made-{rank}",
            f"disk-{rank}",
            "0",
            "{}",
        ]
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "RANK": str(rank), "LOCAL_RANK": "0",
            "WORLD_SIZE": "2", "MASTER_ADDR": "10.213.77.1", "MASTER_PORT": "29431", "GLOO_SOCKET_IFNAME": "cable",
        }  # fmt: skip
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ranks.append(subprocess.Popen(["ip", "netns", "exec", host, *command], cwd=tmp_path, env=environment, **pipes))
    try:
        finished(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    for rank in range(2):
        assert files(tmp_path / f"made-{rank}") == files(tmp_path / "alone-0")
    assert not list(tmp_path.glob("disk-*"))
