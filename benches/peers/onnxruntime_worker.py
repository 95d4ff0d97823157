"""onnxruntime in the protocol of the peer scripts, see benches/src/worker.rs.

  onnxruntime_worker.py model.onnx x.npy y.npy threads
"""
import json
import sys
import time

import numpy as np
import onnxruntime

path, tiles, reference, threads = sys.argv[1:5]
tiles, reference = np.load(tiles), np.load(reference)


def peak():
    """KiB; 0 where the system does not say. (`getrusage` would count the script that started this one.)"""
    try:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    except OSError:
        return 0


empty, start = peak(), time.perf_counter()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = int(threads), 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
load_ms = (time.perf_counter() - start) * 1e3
inputs = [np.ascontiguousarray(tile[None]) for tile in tiles]


def embed(tile):
    return session.run(None, {"x": tile})[0]


start = time.perf_counter()
embed(inputs[0])
first_ms = (time.perf_counter() - start) * 1e3
found = np.concatenate([embed(tile) for tile in inputs]).astype(np.float64)
cosines = (found * reference).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(reference, axis=1)
ready = dict(version=onnxruntime.__version__, import_ms=0, load_ms=load_ms, first_ms=first_ms, rss0_kb=empty, rss_import_kb=empty, rss_load_kb=peak(),
             cos_mean=cosines.mean(), cos_min=cosines.min(), max_abs=abs(found - reference).max())
print(json.dumps(ready), flush=True)
index = 0
for line in sys.stdin:
    if not line.startswith("run "):
        break
    times = []
    for _ in range(int(line.split()[1])):
        tile = inputs[index % len(inputs)]
        index += 1
        wall, cpu = time.perf_counter(), time.process_time()
        embed(tile)
        used = time.process_time() - cpu
        times.append([(time.perf_counter() - wall) * 1e3, used * 1e3])
    print(json.dumps(times), flush=True)
print(json.dumps({"hwm_kb": peak()}), flush=True)
