"""Times a training step of MP-MAE in PyTorch: dense ConvNeXt V2 with hidden patches zeroed, as without sparse kernels.

    python3 benches/gpu/dense.py --batch 256 [--compile] [--precision bf16|f32]

Atto at 56 pixels and patches of 8, twelve bands in, MMEarth's twelve tasks out (made-up data), AdamW. Prints tiles a
second. The encoder computes all positions and sets hidden ones to zero after each block, which gives what sparse
convolutions give.
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F

DIMS, DEPTHS, SIDE, PATCH, BANDS, DECODER = (40, 80, 160, 320), (2, 2, 6, 2), 56, 8, 12, 512
# name: (values a pixel or tile, whether a pixel, whether classes)
TASKS = {
    "sentinel2": (12, True, False), "sentinel1": (8, True, False), "aster": (2, True, False),
    "era5": (12, False, False), "dynamic_world": (9, True, True), "canopy_height_eth": (2, True, False),
    "lat": (2, False, False), "lon": (2, False, False), "biome": (14, False, True),
    "eco_region": (846, False, True), "month": (2, False, False), "esa_worldcover": (11, True, True),
}


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.dw, self.norm = nn.Conv2d(d, d, 7, padding=3, groups=d), nn.LayerNorm(d, eps=1e-6)
        self.pw1, self.pw2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.gamma, self.beta = nn.Parameter(torch.zeros(4 * d)), nn.Parameter(torch.zeros(4 * d))

    def forward(self, x, keep):
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = F.gelu(self.pw1(y))
        if keep is not None:
            y = y * keep.permute(0, 2, 3, 1)
        norm = y.float().norm(dim=(1, 2), keepdim=True)
        y = self.gamma * (y * (norm / (norm.mean(-1, keepdim=True) + 1e-6)).to(y.dtype)) + self.beta + y
        x = x + self.pw2(y).permute(0, 3, 1, 2)
        return x if keep is None else x * keep


class Norm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm = nn.LayerNorm(d, eps=1e-6)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        d = DIMS[0]
        self.stem = nn.Sequential(nn.Conv2d(BANDS, d, 3, padding=1), Norm(d), nn.GELU(), nn.Conv2d(d, d, 1, groups=d), Norm(d))
        self.down = nn.ModuleList(nn.Sequential(Norm(a), nn.Conv2d(a, b, 2, 2)) for a, b in zip(DIMS, DIMS[1:]))
        self.stages = nn.ModuleList(nn.ModuleList(Block(d) for _ in range(n)) for d, n in zip(DIMS, DEPTHS))
        self.proj, self.token = nn.Conv2d(DIMS[-1], DECODER, 1), nn.Parameter(torch.zeros(1, DECODER, 1, 1))
        self.decoder, self.norm = Block(DECODER), nn.LayerNorm(DECODER, eps=1e-6)
        width = lambda n, pixel: n * PATCH * PATCH if pixel else n
        self.heads = nn.ModuleDict({k: nn.Linear(DECODER, width(n, pixel)) for k, (n, pixel, _) in TASKS.items()})
        self.log_vars = nn.Parameter(torch.zeros(len(TASKS)))

    def forward(self, x, keep, hidden, targets):
        maps = [F.interpolate(keep, scale_factor=s) for s in (8, 4, 2, 1)]
        x = self.stem(x * maps[0]) * maps[0]
        for stage, blocks in enumerate(self.stages):
            x = self.down[stage - 1](x) * maps[stage] if stage else x
            for block in blocks:
                x = block(x, maps[stage])
        x = self.proj(x)
        x = self.decoder(x * keep + self.token * (1 - keep), None)
        rows = x.permute(0, 2, 3, 1).reshape(-1, DECODER)
        pooled = self.norm(x.permute(0, 2, 3, 1)).mean((1, 2))
        hidden_rows, total = rows[hidden], 0
        for at, (name, (n, pixel, classes)) in enumerate(TASKS.items()):
            y = self.heads[name](hidden_rows if pixel else pooled).float()
            if classes:
                loss = F.cross_entropy(y.reshape(-1, n), targets[name])
            else:
                loss = F.mse_loss(y, targets[name])
            total = total + torch.exp(-self.log_vars[at]) * loss + self.log_vars[at]
        return total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.manual_seed(1)
    device, batch, patches = "cuda", options.batch, (SIDE // PATCH) ** 2
    model = Model().to(device)
    # As many as MMEarth's own model has, all that is shared counted once.
    assert sum(p.numel() for p in model.parameters()) == 7_580_674
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    x = torch.randn(batch, BANDS, SIDE, SIDE, device=device)
    order = torch.rand(batch, patches, device=device).argsort(1)
    keep = torch.zeros(batch, patches, device=device).scatter_(1, order[:, :19], 1)
    hidden = (keep.reshape(-1) == 0).nonzero()[:, 0]
    keep = keep.reshape(batch, 1, SIDE // PATCH, SIDE // PATCH)
    rows, targets = len(hidden), {}
    for name, (n, pixel, classes) in TASKS.items():
        if classes:
            targets[name] = torch.randint(n, (rows * PATCH * PATCH if pixel else batch,), device=device)
        else:
            targets[name] = torch.randn(rows if pixel else batch, n * PATCH * PATCH if pixel else n, device=device)
    step_model = torch.compile(model) if options.compile else model

    def step():
        with torch.autocast(device, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            loss = step_model(x, keep, hidden, targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    for _ in range(10):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    torch.cuda.synchronize()
    print(f"{batch * options.steps / (time.perf_counter() - start):.0f}")


if __name__ == "__main__":
    main()
