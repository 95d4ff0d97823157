//! The operations on an NVIDIA GPU: own kernels for everything but products of matrices, which cuBLAS does.
//!
//! The kernels (`kernels/*.cuh`) are compiled by nvcc to PTX for compute capability 7.5 when the crate is built, and the
//! PTX lies in the program; the driver compiles it for its GPU when it is first used. Building already takes nvcc for
//! candle's own kernels, so this asks for nothing more; a mistake in a kernel ends the build instead of a run; and a
//! machine that runs the program needs the driver and cuBLAS, NVRTC and cuRAND of CUDA's major version, as PyTorch brings
//! them, and no header or compiler.
//!
//! What is launched on which memory is written once, against [`Machine`]. The GPU is one machine; the tests use another,
//! which runs the same sources, compiled as C++, on the host (`emulator.rs`).
//!
//! Activations lie in f32 or bf16, as the tensor that enters says. Parameters and their gradients, sums and statistics
//! are f32 in both cases; for products with bf16 activations the weights are rounded to bf16 once a step.

mod block;
mod chain;
#[cfg(feature = "cuda")]
mod device;
mod downsample;
#[cfg(test)]
mod emulator;
mod linear;
mod losses;
mod memory;
mod stem;
#[cfg(test)]
mod tests;

use candle_core::Result;

use super::grid::Grid;
use crate::mask::Mask;
pub use chain::DeviceLayer;
use chain::{backward, forward};
#[cfg(feature = "cuda")]
pub use device::{
    adamw_moment, adamw_update, chained, cross_entropy, layer_norm, linear, open, pick, weighted_squares,
};
pub use memory::{Arg, Kind, Matrix, Memory, View, rows, transposed};

/// Threads of a block, the same for all kernels: across channels, across rows.
pub const BLOCK: [usize; 2] = [32, 8];

/// Rows that a block of an element-by-element kernel does.
const ROWS: usize = 32;

/// Where kernels run. All work goes into one queue, in the order of the calls.
pub trait Machine {
    /// Fresh memory for `len` values; what it holds is undefined.
    fn alloc(&self, kind: Kind, len: usize) -> Result<Memory>;

    /// Memory with a copy of `values`.
    fn upload(&self, values: &[u32]) -> Result<Memory>;

    /// Starts `kernel` on `grid` blocks of [`BLOCK`] threads.
    fn launch(&self, kernel: &str, grid: [usize; 2], arguments: &[Arg]) -> Result<()>;

    /// Puts `left` times `right` into the row-major `out` of `m` rows and `n` columns, or adds it; `k` is the common side.
    /// The sums are in f32; `out` is f32, or of the kind of both factors.
    fn multiply(&self, out: View, sides: [usize; 3], left: Matrix, right: Matrix, add: bool) -> Result<()>;
}

/// A machine with the kernels' calling conventions.
#[derive(Clone, Copy)]
pub struct Launcher<'a> {
    machine: &'a dyn Machine,
    /// How activations lie in memory.
    pub kind: Kind,
}

impl<'a> Launcher<'a> {
    /// Launches on `machine` for activations of `kind`.
    pub fn new(machine: &'a dyn Machine, kind: Kind) -> Self {
        Self { machine, kind }
    }

    /// Memory for activations.
    pub fn rows(&self, len: usize) -> Result<Memory> {
        self.machine.alloc(self.kind, len)
    }

    /// Memory for f32.
    pub fn floats(&self, len: usize) -> Result<Memory> {
        self.machine.alloc(Kind::F32, len)
    }

    /// Memory with a copy of `values`.
    pub fn upload(&self, values: &[u32]) -> Result<Memory> {
        self.machine.upload(values)
    }

    /// See [`Machine::multiply`].
    pub fn multiply(&self, out: View, sides: [usize; 3], left: Matrix, right: Matrix, add: bool) -> Result<()> {
        self.machine.multiply(out, sides, left, right, add)
    }

    /// Starts the kernel for this kind of activations on a given grid.
    pub fn typed(&self, kernel: &str, grid: [usize; 2], arguments: &[Arg]) -> Result<()> {
        self.machine.launch(&format!("{kernel}_{}", self.kind.suffix()), grid, arguments)
    }

    /// Element by element over `n` rows of `d` channels.
    pub fn tiled(&self, kernel: &str, n: usize, d: usize, arguments: &[Arg]) -> Result<()> {
        self.typed(kernel, [n.div_ceil(ROWS), d.div_ceil(BLOCK[0])], arguments)
    }

    /// A warp a row.
    pub fn by_row(&self, kernel: &str, n: usize, arguments: &[Arg]) -> Result<()> {
        self.typed(kernel, [n.div_ceil(BLOCK[1]), 1], arguments)
    }

    /// A kernel on f32 alone, a thread for each of `n` values.
    pub fn plain(&self, kernel: &str, n: usize, arguments: &[Arg]) -> Result<()> {
        self.machine.launch(kernel, [n.div_ceil(BLOCK[0] * BLOCK[1]), 1], arguments)
    }

    /// A kernel on f32 alone, a block for each of `n` groups.
    pub fn by_group(&self, kernel: &str, n: usize, arguments: &[Arg]) -> Result<()> {
        self.machine.launch(kernel, [n, 1], arguments)
    }

    /// Runs a kernel that sums over `n` rows (or runs of rows) in parts of `width` values, and puts the sums of the
    /// parts into each of `outs`, one after the other. The kernel takes the parts first and the rows of a part last.
    pub fn sums(&self, kernel: &str, n: usize, d: usize, width: usize, arguments: &[Arg], outs: &[View]) -> Result<()> {
        // It depends on the shape alone, so sums come out the same on every GPU.
        let each = n.div_ceil(512).max(64);
        let count = n.div_ceil(each);
        let parts = self.floats(count * width)?;
        let mut all = vec![Arg::from(&parts)];
        all.extend_from_slice(arguments);
        all.push(each.into());
        self.typed(kernel, [count, d.div_ceil(BLOCK[0])], &all)?;
        let mut at = 0;
        for out in outs {
            let n = out.len();
            self.sum_parts(*out, parts.view().part(at, parts.view().len() - at)?, count, width)?;
            at += n;
        }
        Ok(())
    }

    /// Sums over rows of `d` channels: `out[c]` is the sum of the rows' `c`.
    pub fn column_sums(&self, out: View, x: View, d: usize) -> Result<()> {
        let n = x.len() / d;
        self.sums("column_sums", n, d, d, &[x.into(), Arg::Null, n.into(), d.into()], &[out])
    }

    /// `out[i]` is the sum of `parts[p * stride + i]` over the `count` parts.
    pub fn sum_parts(&self, out: View, parts: View, count: usize, stride: usize) -> Result<()> {
        let n = out.len();
        self.plain("sum_parts", n, &[out.into(), parts.into(), count.into(), n.into(), stride.into()])
    }

    /// `[a, b, c]` as `[a, c, b]`, f32.
    pub fn swap_last(&self, out: View, x: View, [b, c]: [usize; 2]) -> Result<()> {
        self.plain("swap_last", x.len(), &[out.into(), x.into(), b.into(), c.into(), x.len().into()])
    }

    /// f32 values as the kind of the activations.
    pub fn narrow(&self, x: Memory) -> Result<Memory> {
        if self.kind == Kind::F32 { Ok(x) } else { self.narrowed(x.view()) }
    }

    /// A copy of f32 values in the kind of the activations.
    fn narrowed(&self, x: View) -> Result<Memory> {
        let (n, out) = (x.len(), self.rows(x.len())?);
        self.typed("narrow", [n.div_ceil(BLOCK[0] * BLOCK[1]), 1], &[(&out).into(), x.into(), n.into()])?;
        Ok(out)
    }
}

/// A mask's patches in a machine's memory, for [`Places::of`].
pub struct Places {
    visible: Option<[Memory; 2]>,
}

impl Places {
    /// Brings the mask over; nothing if all positions have rows.
    pub fn new(launcher: &Launcher, mask: Option<&Mask>) -> Result<Self> {
        let Some(mask) = mask else { return Ok(Self { visible: None }) };
        let patches = mask.side() * mask.side();
        let mut visible = Vec::with_capacity(mask.batch() * mask.kept());
        let mut rank = vec![u32::MAX; mask.batch() * patches];
        for sample in 0..mask.batch() {
            for (at, patch) in mask.visible(sample).iter().enumerate() {
                visible.push(*patch);
                rank[sample * patches + *patch as usize] = at as u32;
            }
        }
        Ok(Self { visible: Some([launcher.upload(&visible)?, launcher.upload(&rank)?]) })
    }

    /// The kernels' six arguments for the rows of `grid`.
    fn of(&self, grid: &Grid) -> Result<[Arg; 6]> {
        let [visible, rank] = match (&self.visible, grid.mask()) {
            (Some(places), Some(_)) => [(&places[0]).into(), (&places[1]).into()],
            (_, None) => [Arg::Null; 2],
            (None, Some(_)) => candle_core::bail!("the mask is not in the machine's memory"),
        };
        let (shift, kept) = grid.mask().map_or((0, 0), |(mask, cells)| (cells.trailing_zeros() as usize, mask.kept()));
        Ok([visible, rank, grid.side.into(), shift.into(), kept.into(), grid.rows.into()])
    }
}
