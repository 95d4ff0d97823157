"""Times a training step of MP-MAE (atto, 12 bands, 56/8, twelve tasks) here and in PyTorch, in turns, in one run.

    cargo build --release -p nadir-trainer --example step
    python benches/training/compare.py target/release/examples/step [BATCH [THREADS [ROUNDS [PEERS]]]]

PEERS are some of eager, eager_last, compiled and compiled_last, with commas; all if not given (_last is channels_last).
Wall time says little where other programs run; processor time, of all threads, is printed beside it, and nobody spins while waiting
(OMP_WAIT_POLICY=PASSIVE).

PyTorch computes the equivalent dense form of MMEarth's sparse encoder: features are multiplied by the mask before every
spatial operation, Global Response Normalization counts visible positions of the whole batch. It runs eagerly and through
torch.compile, each in the usual memory format and in channels_last. Everything is f32, forward, backward and AdamW (fused);
no target is missing, so PyTorch's losses need no masks of missing values. Needs torch and a C++ compiler.
"""

import os
import platform
import subprocess
import sys
import time

THREADS = int(sys.argv[3]) if len(sys.argv) > 3 else 2
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS), "RAYON_NUM_THREADS": str(THREADS)}

import torch  # noqa: E402  (after the number of threads)
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

BATCH = int(sys.argv[2]) if len(sys.argv) > 2 else 64
ROUNDS = int(sys.argv[4]) if len(sys.argv) > 4 else 5
PEERS = (sys.argv[5] if len(sys.argv) > 5 else "eager,eager_last,compiled,compiled_last").split(",")
SIDE, PATCH, GRID, KEPT, D = 56, 8, 7, 19, 512
DIMS, DEPTHS = (40, 80, 160, 320), (2, 2, 6, 2)
PIXELS = {"sentinel2": 12, "sentinel1": 8, "aster": 2, "canopy_height_eth": 2}
PIXEL_CLASSES = {"dynamic_world": 9, "esa_worldcover": 11}
IMAGES = {"era5": 12, "lat": 2, "lon": 2, "month": 2}
IMAGE_CLASSES = {"biome": 14, "eco_region": 846}


class Norm(nn.Module):
    """LayerNorm over the channels of [batch, channels, height, width]."""

    def __init__(self, d):
        super().__init__()
        self.norm = nn.LayerNorm(d, eps=1e-6)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, d, over, eps):
        super().__init__()
        self.over, self.eps = over, eps
        self.dw, self.norm = nn.Conv2d(d, d, 7, padding=3, groups=d), nn.LayerNorm(d, eps=1e-6)
        self.pw1, self.pw2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.gamma, self.beta = (nn.Parameter(torch.zeros(1, 1, 1, 4 * d)) for _ in range(2))

    def forward(self, x, mask=None):
        y = self.dw(x).permute(0, 2, 3, 1)
        y = F.gelu(self.pw1(self.norm(y)))
        if mask is not None:
            y = y * mask.permute(0, 2, 3, 1)
        g = torch.linalg.vector_norm(y, dim=self.over, keepdim=True)
        y = self.gamma * (y * (g / (g.mean(-1, keepdim=True) + self.eps))) + self.beta + y
        y = x + self.pw2(y).permute(0, 3, 1, 2)
        return y if mask is None else y * mask


class MpMae(nn.Module):
    def __init__(self):
        super().__init__()
        self.initial, self.norm1 = nn.Conv2d(12, DIMS[0], 3, padding=1), Norm(DIMS[0])
        self.stem, self.norm2 = nn.Conv2d(DIMS[0], DIMS[0], 1, groups=DIMS[0]), Norm(DIMS[0])
        self.downs = nn.ModuleList(
            nn.Sequential(Norm(a), nn.Conv2d(a, b, 2, stride=2)) for a, b in zip(DIMS, DIMS[1:])
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(d, (0, 1, 2), 1e-6) for _ in range(n)) for d, n in zip(DIMS, DEPTHS)
        )
        self.proj, self.token = nn.Conv2d(DIMS[3], D, 1), nn.Parameter(0.02 * torch.randn(1, D, 1, 1))
        self.decoder, self.pool_norm = Block(D, (1, 2), 1e-4), nn.LayerNorm(D, eps=1e-6)
        per_pixel = PIXELS | PIXEL_CLASSES
        self.heads = nn.ModuleDict({k: nn.Conv2d(D, PATCH**2 * n, 1) for k, n in per_pixel.items()})
        self.heads.update({k: nn.Linear(D, n) for k, n in (IMAGES | IMAGE_CLASSES).items()})
        self.log_vars = nn.Parameter(torch.zeros(12))

    def forward(self, x, mask, targets):
        """`mask` is 1 for visible patches, [batch, 1, 7, 7]."""
        at = {c: mask.repeat_interleave(c, 2).repeat_interleave(c, 3) for c in (1, 2, 4, 8)}
        x = F.gelu(self.norm1(self.initial(x * at[8]))) * at[8]
        x = self.norm2(self.stem(x)) * at[8]
        for stage, blocks in enumerate(self.stages):
            cells = 8 >> stage
            if stage:
                norm, conv = self.downs[stage - 1]
                x = conv(norm(x) * at[2 * cells]) * at[cells]
            for block in blocks:
                x = block(x, at[cells])
        x = self.proj(x) * mask + self.token * (1 - mask)
        x = self.decoder(x)
        hidden = 1 - mask[:, 0]
        pooled = self.pool_norm(x.permute(0, 2, 3, 1)).mean((1, 2))
        losses = []
        for name, n in PIXELS.items():
            t = targets[name].reshape(-1, n, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 3, 5, 1)
            t = t.reshape(-1, GRID, GRID, PATCH * PATCH * n)
            if name == "sentinel2":
                t = (t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True) + 1e-6).sqrt()
            error = ((self.heads[name](x).permute(0, 2, 3, 1) - t) ** 2).mean(-1)
            losses.append((error * hidden).sum() / hidden.sum())
        pixel_mask = at[8][:, 0]
        for name, n in PIXEL_CLASSES.items():
            y = self.heads[name](x).reshape(-1, PATCH, PATCH, n, GRID, GRID).permute(0, 3, 4, 1, 5, 2)
            t = torch.where(pixel_mask == 0, targets[name], -1)
            losses.append(F.cross_entropy(y.reshape(-1, n, SIDE, SIDE), t, ignore_index=-1))
        losses += [F.mse_loss(self.heads[k](pooled), targets[k]) for k in IMAGES]
        losses += [F.cross_entropy(self.heads[k](pooled), targets[k]) for k in IMAGE_CLASSES]
        losses = torch.stack(losses)
        return (torch.exp(-self.log_vars) * losses + self.log_vars).sum()


def make_targets():
    targets = {k: torch.randn(BATCH, n, SIDE, SIDE) for k, n in PIXELS.items()}
    targets |= {k: torch.randint(0, n, (BATCH, SIDE, SIDE)) for k, n in PIXEL_CLASSES.items()}
    targets |= {k: torch.randn(BATCH, n) for k, n in IMAGES.items()}
    return targets | {k: torch.randint(0, n, (BATCH,)) for k, n in IMAGE_CLASSES.items()}


def peer(compiled, channels_last):
    torch.manual_seed(1)
    model, x, targets = MpMae(), torch.randn(BATCH, 12, SIDE, SIDE), make_targets()
    # As many as MMEarth's own model has, all that is shared counted once.
    assert sum(p.numel() for p in model.parameters()) == 7_580_674
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    call = torch.compile(model) if compiled else model
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def steps(n):
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(n):
            order = torch.rand(BATCH, GRID * GRID).argsort(1)
            mask = torch.zeros(BATCH, GRID * GRID).scatter_(1, order[:, :KEPT], 1).reshape(BATCH, 1, GRID, GRID)
            optimiser.zero_grad(set_to_none=True)
            call(x, mask, targets).backward()
            optimiser.step()
        return (time.perf_counter() - wall) / n, (time.process_time() - processor) / n

    return steps


def processor_time(pid):
    """Seconds that all threads of a process have run."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    torch.set_num_threads(THREADS)
    worker = subprocess.Popen([sys.argv[1], str(BATCH), "batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def nadir(what):
        def steps(n):
            before = processor_time(worker.pid)
            worker.stdin.write(f"{what} {n}\n")
            worker.stdin.flush()
            wall = float(worker.stdout.readline())
            return wall, (processor_time(worker.pid) - before) / n

        return steps

    runners = {"Nadir, step": nadir("step")}
    for name in PEERS:
        runners[f"PyTorch {name.replace('_last', ', channels_last')}, step"] = peer("compiled" in name, "_last" in name)
    runners |= {"Nadir, encoder alone, visible patches": nadir("masked"), "Nadir, encoder alone, all patches": nadir("dense")}
    times = {name: [] for name in runners}
    for name, steps in runners.items():
        steps(2)
        print(f"ready: {name}", file=sys.stderr)
    for _ in range(ROUNDS):
        for name, steps in runners.items():
            time.sleep(0.3)
            times[name].append(steps(2))
        print(f"round: {[t[-1] for t in times.values()]}", file=sys.stderr)
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    load = os.getloadavg()[0]
    print(f"{cpu}; {THREADS} threads; torch {torch.__version__}; batch {BATCH}; {ROUNDS} rounds of 2 steps; load {load:.1f}\n")
    print("| what | wall, best | wall, median | over Nadir's | processor, median | over Nadir's |\n" + "| --- " * 6 + "|")
    median = {name: [sorted(part)[len(t) // 2] for part in zip(*t)] for name, t in times.items()}
    for name, t in times.items():
        wall, processor = median[name]
        ratios = [ours / theirs for ours, theirs in zip(median[name], median["Nadir, step"])]
        best = min(t)[0]
        print(f"| {name} | {best:.3f} s | {wall:.3f} s | {ratios[0]:.2f} | {processor:.3f} s | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
