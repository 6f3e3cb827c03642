"""A real vLLM server on loopback, from an environment of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def vllm_server(venv: str | os.PathLike, model: Path, *arguments: str, log: Path) -> Iterator[str]:
    """The address of a server of a model, in float32.

    Args:
        venv: Environment with vLLM in it.
        model: Folder; a model whose heads are as large as the attention of vLLM on a CPU knows (32, 64, ...).
        arguments: Further ones of ``vllm serve``.
        log: File for what it says.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [f"{venv}/bin/vllm", "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", *arguments]
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_ENDPOINT", "HF_HOME")}
    own |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    own |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=own, start_new_session=True)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()[-3000:]
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)
