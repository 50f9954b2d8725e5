"""A synthetic checkpoint of 8 billion parameters, written shard by shard, and what ``debugkit weights`` makes of it.

``python benchmarks/large_checkpoint.py FOLDER [--budget 120] [--blocks 32]`` writes FOLDER (16 GB for 32 blocks), runs
the command on it, and prints wall time, peak memory and the time extrapolated to all layers. FOLDER is left there.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

WIDTH, INNER, GROUPS, VOCABULARY = 4096, 14336, 1024, 128256
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (GROUPS, WIDTH),
    "self_attn.v_proj": (GROUPS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Random weights with a few strong directions, as bfloat16 bits."""
    values = rng.standard_normal(shape, np.float32) * 0.02
    strengths = np.arange(1, 17, dtype=np.float32)[:, None] ** -0.7
    left, right = (rng.standard_normal((16, side), np.float32) for side in shape)
    values += 0.02 * (left * strengths).T @ right
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write(folder: Path, blocks: int) -> int:
    """Write one shard per block and one for the tables; returns the number of parameters."""
    rng = np.random.default_rng(0)
    owners: dict[str, str] = {}
    total = 0
    for number in range(blocks + 1):
        shapes = {f"model.layers.{number}.{name}.weight": shape for name, shape in SHAPES.items()}
        if number == blocks:
            shapes = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (VOCABULARY, WIDTH))
        shard = f"model-{number + 1:05d}-of-{blocks + 1:05d}.safetensors"
        header, end = {}, 0
        for name, shape in shapes.items():
            header[name] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": [end, end := end + 2 * shape[0] * shape[1]],
            }
            owners[name] = shard
            total += shape[0] * shape[1]
        text = json.dumps(header).encode()
        with (folder / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for rows, columns in shapes.values():
                for start in range(0, rows, 4096):
                    heavy_tailed(rng, (min(4096, rows - start), columns)).tofile(file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owners}))
    config = {"hidden_size": WIDTH, "vocab_size": VOCABULARY, "num_hidden_layers": blocks}
    (folder / "config.json").write_text(json.dumps(config))
    return total


def peak_of(process: subprocess.Popen[bytes], found: list[int]) -> None:
    """Follow the resident memory of a process, in kB, until it ends."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            match = re.search(r"VmHWM:\s+(\d+)", status.read_text())
        except OSError:
            return
        if match:
            found[0] = int(match[1])
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget", type=float, default=120.0)
    parser.add_argument("--blocks", type=int, default=32)
    options = parser.parse_args()
    if not (options.folder / "config.json").is_file():
        options.folder.mkdir(parents=True, exist_ok=True)
        print(f"{write(options.folder, options.blocks):,} parameters written")
    command = [
        sys.executable,
        "-m",
        "debugkit",
        "weights",
        str(options.folder),
        "--budget",
        f"{options.budget:g}",
    ]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peak = [0]
    follower = threading.Thread(target=peak_of, args=(process, peak))
    follower.start()
    text = process.communicate()[0].decode()
    wall = time.monotonic() - start
    follower.join()
    print(text[:4000])
    reached = re.search(r"\((\d+) of (\d+) parameters\s+analysed", text)
    done, everything = (int(reached[1]), int(reached[2])) if reached else (1, 1)
    print(f"exit code {process.returncode}, wall {wall:.0f} s, peak memory {peak[0] / 1e6:.2f} GB")
    print(
        f"{done} of {everything} matrices; all of them would take about {wall * everything / done / 60:.0f} min"
    )


if __name__ == "__main__":
    main()
