"""Writes what one run of shared/peers/bench.py measured, as a committed run: table, machine, and one line a precision.

  report.py PEERS_DIR RESULTS_DIR KEY THREADS BATCH OUT.md COMMAND

PEERS_DIR/bench.py gives the limits, so that they are computed as for the peers: all multiply-accumulates at the peak that ceil.c measured
in the same run, in the arithmetic of the engine. AMX is in no such peak: an engine that uses it may be under the limit.
"""
import json
import os
import platform
import subprocess
import sys

OURS = "nadir"
# Precision: the kind of peer it stands against, and the ceilings of ceil.c that bound it.
PRECISIONS = {
    "int8": ("int8", ("int8_vnni512_gops", "int8_vnni256_gops")),
    "int8 avx2": ("int8", ("int8_maddubs256_gops",)),
    "f32": ("f32", ("f32_fma512_gflops", "f32_fma256_gflops")),
    "f32 avx2": ("f32", ("f32_fma256_gflops",)),
    # Stored in f16, computed in f32; the peers of 16 bits are those of bf16.
    "f16": ("bf16", ("f32_fma512_gflops", "f32_fma256_gflops")),
    "f16 avx2": ("bf16", ("f32_fma256_gflops",)),
}


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor():
    try:
        lines = open("/proc/cpuinfo").read().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = f"{fields.get('model name', 'unknown')}, family {fields.get('cpu family')}, model {fields.get('model')}"
    flags = fields.get("flags", "").split()
    return f"{model}; {', '.join(f for f in ('avx2', 'avx_vnni', 'avx512f', 'avx512_vnni', 'amx_int8', 'amx_bf16') if f in flags)}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join([" --- "] + [" ---: "] * (len(head) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def limits(peers_dir, key, run):
    """Limit in ms a tile on one thread by precision, and the best and median of every ceiling."""
    sys.path.insert(0, peers_dir)
    sys.dont_write_bytecode = True
    from bench import best_ceil
    from cost import cost

    ceilings = best_ceil([run])
    operations = 2 * cost(*(int(part) for part in key[1:].split("_")))["macs"]["total"]
    found = {}
    for precision, (_, names) in PRECISIONS.items():
        peak = max(ceilings[name][0] for name in names if name in ceilings)
        found[precision] = operations / (peak * 1e9) * 1e3
    found["bf16"] = operations / (ceilings["bf16_512_gflops"][0] * 1e9) * 1e3 if "bf16_512_gflops" in ceilings else None
    return found, ceilings, operations // 2


def precision_of(peer):
    """Ours by name, the others by kind."""
    return peer["name"][len(OURS) + 1 :] if peer["name"].startswith(OURS + " ") else peer["kind"]


def final_lines(peers, limit, figure, threads):
    """One line a precision of ours: our time, the best peer's, their ratio, and how far above the limit we are."""
    lines = []
    mine = {precision_of(p): p for p in peers if p["name"].startswith(OURS + " ")}
    for precision, (kind, _) in PRECISIONS.items():
        if precision not in mine:
            continue
        ours = mine[precision]
        # Engines restricted to AVX2 are for one another.
        restricted = precision.endswith(" avx2")
        others = [
            p for p in peers
            if not p["name"].startswith(OURS) and p["kind"] == kind and p["name"].endswith(" AVX2") == restricted
        ]
        line = f"{precision}: ours {ours[figure]:.2f} ms, "
        if others:
            best = min(others, key=lambda p: p[figure])
            line += f"best peer {best['name']} {best[figure]:.2f} ms, ratio {best[figure] / ours[figure]:.2f}, "
        else:
            line += f"no {kind} peer measured, "
        bound = limit[precision] / threads
        # The limit is the best of its rounds; the fastest tenth of ours is as little disturbed.
        lines.append(line + f"limit x{ours[figure] / bound:.2f}, fastest tenth x{ours['p10'] / bound:.2f}")
    return lines


def main():
    peers_dir, results, key, threads, batch, out, command = sys.argv[1:8]
    threads, batch = int(threads), int(batch)
    run = json.load(open(f"{results}/results_{key}_t{threads}_b{batch}.json"))
    limit, ceilings, macs = limits(peers_dir, key, run)
    # As in bench.py: processor time on one thread, as no other process inflates it; the best wall time on several.
    figure, what = ("cpu_med", "median CPU ms") if threads == 1 else ("wall_min", "best wall ms")
    peers = sorted(run["peers"], key=lambda p: p[figure])
    best_ours = {PRECISIONS[precision_of(p)][0]: p for p in reversed(peers) if p["name"].startswith(OURS)}

    rows = []
    for p in peers:
        bound = limit.get(precision_of(p))
        ours = best_ours.get(p["kind"])
        rows.append((
            f"**{p['name']}**" if p["name"].startswith(OURS) else p["name"], p["version"], f"{p[figure]:.2f}", f"{p['p10']:.2f}-{p['p90']:.2f}",
            f"{p['wall_med']:.2f}", f"{p['ratio']:.2f}", f"{p[figure] / ours[figure]:.2f}" if ours else "",
            f"{p[figure] / (bound / threads):.1f}" if bound else "", f"{p['cos_mean']:.5f} / {p['cos_min']:.5f}", f"{p['load_ms']:.0f}",
            f"{(p['hwm_kb'] - p['rss0_kb']) / 1024:.0f}", f"{p['file_bytes'] / 1e6:.1f}",
        ))
    head = ("engine", "version", what, "p10-p90", "wall median", "x onnxruntime f32", "x ours of its kind", "x limit", "cosine mean / min", "load ms",
            "MB above empty", "file MB")
    plural = "s" if threads > 1 else ""
    lines = final_lines(peers, limit, figure, threads)
    text = f"""# Peers, {key}, {threads} thread{plural}, batch {batch}, {run['when'][:10]}

`{command}`

- Processor: {processor()}; {os.cpu_count()} cores; {platform.system()} {platform.release()}, load {run['load'][0]:.1f} at the end
- {output('rustc', '--version')}; Python {platform.python_version()}; commit {output('git', 'describe', '--always', '--dirty')}
- {macs / 1e6:.0f} million multiply-accumulates a tile; rounds interleaved, engines in an order shuffled each round
- Ceilings (best / median): {', '.join(f'{name} {best:.1f} / {median:.1f}' for name, (best, median) in ceilings.items() if name.endswith(('gops', 'gflops')))}
- "x limit": time over the limit, all multiply-accumulates at the peak of ceil.c in the engine's arithmetic. AMX is in no peak: an engine that uses
  it may come near the limit or under it.
- The tiles that calibrated ours: 32 by `benches/peers/tiles.py`; the 16 measured are others. Cosines are against PyTorch in f32.

{table(head, rows)}

Failed: {run['failed'] or 'none'}

```text
{chr(10).join(lines)}
```
"""
    os.makedirs(os.path.dirname(out), exist_ok=True)
    with open(out, "w") as file:
        file.write(text)
    with open(f"{results}/lines.txt", "w") as file:
        file.writelines(line + "\n" for line in lines)
    print(text)
    print(f"written to {out}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
