"""The smaller comparison: onnxruntime (f32, dynamic int8), tract (f32) and this runtime, on the shipped models and sample tiles.

  own.py NAME CACHE BINARIES TRACT OUT.md      (by benches/peers/own.sh, which makes what is needed)

NAME is a model of models/. BINARIES holds `nadir-peer` and `quantize`; TRACT is the program `nadir-peer-tract`, or `-` without it. All
engines get the same f32 tiles of the held-out samples, are loaded once, stay alive together, and are called in shuffled rounds on one core.
"""
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic

from export_onnx import export
from report import output, platform, processor, table

HERE = os.path.dirname(os.path.abspath(__file__))
ROUNDS = int(os.environ.get("PEERS_ROUNDS", "11"))
SLICE_MS = float(os.environ.get("PEERS_SLICE_MS", "220"))
CORE = os.environ.get("PEERS_CPU", "1")
TILES = 16


def prepare(name, cache, binaries):
    """Tiles, the reference embeddings (ours in f32), the ONNX files; and how far onnxruntime is from ours."""
    root = f"{HERE}/../.."
    tiles, split = (np.load(f"{root}/samples/eurosat-rgb/{part}.npy") for part in ("tiles", "split"))
    x = f"{cache}/x-{name}.npy"
    np.save(x, tiles[split == 2][:TILES].astype(np.float32))
    y = f"{cache}/y-{name}.npy"
    command = [f"{binaries}/quantize", "embed", "--model", f"{root}/models/{name}-f32.nadir", "--tiles", x, "--out", y]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    onnx = {spelling: f"{cache}/{name}-{spelling}.onnx" for spelling in ("conv", "matmul", "int8")}
    for spelling in ("conv", "matmul"):
        export(f"{root}/models/{name}.safetensors", onnx[spelling], spelling)
    quantize_dynamic(onnx["matmul"], onnx["int8"], per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    ours, inputs = np.load(y).astype(np.float64), np.load(x)
    for spelling in ("conv", "matmul"):
        session = onnxruntime.InferenceSession(onnx[spelling], providers=["CPUExecutionProvider"])
        theirs = np.concatenate([session.run(None, {"x": tile[None]})[0] for tile in inputs]).astype(np.float64)
        error = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
        print(f"{name}, {spelling}: relative error of onnxruntime against ours in f32 {error:.1e}")
        if not error < 1e-4:
            raise SystemExit(f"{onnx[spelling]} does not compute what the runtime computes")
    return x, y, onnx


class Worker:
    """One engine in a process of its own: see benches/src/worker.rs."""

    def __init__(self, name, command, x, y):
        pinned = ["taskset", "-c", CORE] if shutil.which("taskset") else []
        environment = dict(os.environ, OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1", PEER_BATCH="1")
        self.process = subprocess.Popen(pinned + command + [x, y, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.name, self.rounds = name, []
        self.file = next(part for part in command if part.endswith((".nadir", ".onnx")))
        self.info = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the worker ended")
        return json.loads(line)

    def ask(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.answer()


def measure(workers):
    calls = {}
    for worker in workers:
        fastest = min(wall for wall, _ in worker.ask("run 3"))
        calls[worker.name] = max(2, int(SLICE_MS / fastest))
    order = random.Random(1)
    for _ in range(ROUNDS):
        for worker in order.sample(workers, len(workers)):
            # The first call refills the caches that the others emptied.
            worker.rounds.append(worker.ask(f"run {calls[worker.name]}")[1:])
    for worker in workers:
        worker.info.update(worker.ask("quit"))
        worker.process.stdin.close()
        worker.process.wait(20)


def main():
    name, cache, binaries, tract, out = sys.argv[1:6]
    x, y, onnx = prepare(name, cache, binaries)
    runtime = lambda precision, *more: [f"{binaries}/nadir-peer", f"{HERE}/../../models/{name}-{precision}.nadir", *more]
    engines = [(f"nadir {precision}", runtime(precision)) for precision in ("int8", "f32", "f16")]
    if "avx2" in output(f"{binaries}/nadir-peer", "--list-kernels").split():
        engines.append(("nadir int8 avx2", runtime("int8", "--kernels", "avx2")))
    worker = [sys.executable, f"{HERE}/onnxruntime_worker.py"]
    engines += [("onnxruntime f32", worker + [onnx["conv"]]), ("onnxruntime int8 dynamic", worker + [onnx["int8"]])]
    if tract != "-":
        engines.append(("tract f32", [tract, onnx["matmul"]]))
    workers = [Worker(engine, command, x, y) for engine, command in engines]
    measure(workers)

    # As shared/peers/bench.py: the median of all calls, and the median over the rounds of the ratio of medians.
    base = next(worker for worker in workers if worker.name == "onnxruntime f32")
    middle = lambda calls: statistics.median(cpu for _, cpu in calls)
    for worker in workers:
        every = sorted(cpu for calls in worker.rounds for _, cpu in calls)
        worker.cpu = statistics.median(every)
        worker.low, worker.high = every[len(every) // 10], every[len(every) * 9 // 10]
        worker.wall = statistics.median(wall for calls in worker.rounds for wall, _ in calls)
        worker.ratio = statistics.median(middle(a) / middle(b) for a, b in zip(worker.rounds, base.rounds))
    workers.sort(key=lambda worker: worker.cpu)
    rows = [
        (f"**{w.name}**" if w.name.startswith("nadir") else w.name, w.info["version"], f"{w.cpu:.3f}", f"{w.low:.3f}-{w.high:.3f}", f"{w.wall:.3f}",
         f"{w.ratio:.2f}", f"{w.info['cos_mean']:.5f} / {w.info['cos_min']:.5f}", f"{w.info['load_ms']:.0f}",
         f"{(w.info['hwm_kb'] - w.info['rss0_kb']) / 1024:.1f}", f"{os.path.getsize(w.file) / 1e6:.2f}")
        for w in workers
    ]
    head = ("engine", "version", "median CPU ms", "p10-p90", "wall median", "x onnxruntime f32", "cosine mean / min", "load ms", "MB above empty", "file MB")
    lines = []
    for kind in ("int8", "f32"):
        ours = next(w for w in workers if w.name == f"nadir {kind}")
        best = next(w for w in workers if not w.name.startswith("nadir") and kind in w.name.split())
        lines.append(f"{kind}: ours {ours.cpu:.3f} ms, best peer here {best.name} {best.cpu:.3f} ms, ratio {best.cpu / ours.cpu:.2f}")
    text = f"""# Own peers, {name}, 1 thread, {time.strftime('%F')}

`benches/peers/own.sh {name}`

- Processor: {processor()}; {os.cpu_count()} cores; {platform.system()} {platform.release()}, load {os.getloadavg()[0]:.1f} at the end
- {output('rustc', '--version')}; Python {platform.python_version()}; commit {output('git', 'describe', '--always', '--dirty')}
- {TILES} held-out tiles of samples/eurosat-rgb as f32; {ROUNDS} rounds, the engines in shuffled order. Cosines are against ours in f32.

{table(head, rows)}

```text
{chr(10).join(lines)}
```
"""
    os.makedirs(os.path.dirname(out), exist_ok=True)
    with open(out, "w") as file:
        file.write(text)
    print(text)
    print(f"written to {out}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
