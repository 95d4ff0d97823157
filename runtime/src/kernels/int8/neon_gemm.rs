//! The matrix products of the aarch64 sets: what they share, and the inner loop of ARMv8.0.
//!
//! ## Shape
//! The unit is half a panel, 8 outputs: 32 of every 64 bytes of the weights. So the last panel, which may have only 8 outputs that
//! count, is nothing special. Half panels are the outer loop: their 8 times K weights (at most 10 KiB in an atto) stay in the first
//! cache while all pixels of a strip, at most 64, pass. A [`Core`] multiplies P pixels by the 8 outputs and keeps all sums in registers;
//! pixels beyond the last are computed as the last, and not written. A tail of at most P / 2 pixels takes a tile of half the size.
//!
//! ## [`Pairs`]: ARMv8.0
//! There is no dot product, but `smull` multiplies 8 signed bytes by 8 into 16 bits, `smlal` adds 8 more products, and `sadalp` adds
//! neighbours into 32 bits. For 8 inputs of 2 outputs that is 3 instructions, 16 products: 5.3 an instruction, where `smlal` of values
//! widened to 16 bits has 4. The two products of a 16-bit lane overflow in one case alone: -128 times -128 twice. One look through a
//! panel a call tells whether it has a weight of -128 (the quantizer writes none); if so, `sadalp` follows every `smull`, which is
//! exact for all values. Tile: 4 pixels by 8 outputs; 16 accumulators, whose lanes are (output, pair of inputs), 8 half registers of
//! weights, each four inputs of two outputs, a word of inputs repeated (`ld1r`) twice for this pixel and twice for the next, 4 sums of
//! 16 bits: all 32.
//!
//! No board was at hand: correct under QEMU, speed unknown. Instructions of the loop of a release build (rustc 1.95), by
//! disassembly: 68 for 256 multiply-adds (0.27), 48 of them products and sums; 84 (0.33) if a weight is -128.
#![allow(unsafe_code)]

use super::neon::*;
use super::neon_simd::*;
use super::*;
use core::arch::asm;

/// Bytes of the weights of one group of inputs of a panel.
pub(super) const STEP: usize = PANEL * GROUP;

/// An inner loop.
pub(super) trait Core: Copy {
    /// The loop for the weights of one panel.
    fn new(panel: &[i8]) -> Self;

    /// The accumulators of 8 outputs of `P` pixels.
    ///
    /// # Safety
    /// The processor has the instructions. `inputs` is a multiple of 8; each of `input` points at as many values; from `weight` on
    /// there are `inputs / 4` groups, [`STEP`] bytes apart, of 32 bytes each.
    unsafe fn tile<const P: usize>(
        self,
        weight: *const i8,
        bias: [int32x4_t; 2],
        input: [*const i8; P],
        inputs: usize,
    ) -> [[int32x4_t; 2]; P];
}

/// Half a panel of a layer, and what comes in and goes out.
struct Half<'a, C> {
    core: C,
    weight: *const i8,
    bias: [int32x4_t; 2],
    multiplier: int16x8_t,
    shift: int32x4_t,
    input: &'a [i8],
    inputs: usize,
    pixels: usize,
}

impl<'a, C: Core> Half<'a, C> {
    /// The outputs from `c` on, a multiple of 8; `panel` are the weights of their panel.
    ///
    /// # Safety
    /// The layer is [`sound`], and the panel is there.
    #[inline(always)]
    unsafe fn of(core: C, input: &'a [i8], layer: &Dense<'a>, panel: &'a [i8], c: usize) -> Self {
        Self {
            core,
            // SAFETY: the panel has 64 weights or more, and this is the first or the 33rd.
            weight: unsafe { panel.as_ptr().add(c % PANEL * GROUP) },
            bias: load_i32(&eight(layer.bias, c)),
            multiplier: load_i16(&eight(layer.multiplier, c)),
            shift: right(layer.shift),
            input,
            inputs: layer.inputs,
            pixels: input.len() / layer.inputs.max(1),
        }
    }

    /// Writes the requantized outputs of `P` pixels, less those beyond the last.
    ///
    /// # Safety
    /// The processor has the core's instructions; `first` is the number of a pixel.
    #[inline(always)]
    unsafe fn tile<const P: usize>(&self, first: usize, write: &mut impl FnMut(usize, int16x8_t)) {
        let last = self.pixels - 1;
        let mut input = [self.input.as_ptr(); P];
        for (i, input) in input.iter_mut().enumerate() {
            // SAFETY: the input has the values of all pixels up to the last, which exists because `first` does.
            *input = unsafe { input.add((first + i).min(last) * self.inputs) };
        }
        // SAFETY: as the caller promised; inputs are a multiple of 8 because the layer is sound, from each pointer on there are as many,
        // and the panel has 16 weights an input, of which half a panel lacks at most the first 32.
        let acc = unsafe { self.core.tile(self.weight, self.bias, input, self.inputs) };
        for (i, acc) in acc.into_iter().enumerate() {
            if first + i <= last {
                write(first + i, requantize(acc, self.multiplier, self.shift));
            }
        }
    }

    /// Writes all pixels, in tiles of `P`, the last perhaps of `H`, which is half of that.
    ///
    /// # Safety
    /// The processor has the core's instructions.
    #[inline(always)]
    unsafe fn run<const P: usize, const H: usize>(&self, mut write: impl FnMut(usize, int16x8_t)) {
        let pixels = self.pixels;
        for first in (0..pixels).step_by(P) {
            // SAFETY: as the caller promised, and there is such a pixel.
            unsafe {
                if pixels - first > H {
                    self.tile::<P>(first, &mut write);
                } else {
                    self.tile::<H>(first, &mut write);
                }
            }
        }
    }
}

/// Whether a layer has the shape that tiles want, and its weights.
fn sound(layer: &Dense<'_>) -> bool {
    layer.complete() && layer.inputs.is_multiple_of(8) && layer.outputs.is_multiple_of(8)
}

/// The weights of the panel of output `c`.
#[inline(always)]
fn panel<'a>(layer: &Dense<'a>, c: usize) -> &'a [i8] {
    let len = layer.inputs * PANEL;
    layer.weight.get(c / PANEL * len..).and_then(|rest| rest.get(..len)).unwrap_or_default()
}

/// See [`Int8Kernels::expand`].
///
/// # Safety
/// The processor has the core's instructions.
#[inline(always)]
pub(super) unsafe fn expand<C: Core, const P: usize, const H: usize>(
    input: &[i8],
    layer: &Dense<'_>,
    gelu: &Gelu<'_>,
    output: &mut [i8],
    squares: &mut [u64],
) {
    if !sound(layer) {
        return;
    }
    let zero_point = vdupq_n_s16(gelu.zero_point as i16);
    let mut lookup = Lookup::new(gelu.table);
    for first in (0..layer.outputs).step_by(PANEL) {
        let panel = panel(layer, first);
        let core = C::new(panel);
        let end = layer.outputs.min(first + PANEL);
        for c in (first..end).step_by(8) {
            // SAFETY: as the caller promised; the layer is sound, and so has this panel.
            unsafe {
                Half::of(core, input, layer, panel, c).run::<P, H>(|pixel, value| {
                    if let Some(output) = eight_mut(output, pixel * layer.outputs + c) {
                        store_i8(output, vqmovn_s16(vqaddq_s16(value, zero_point)));
                    }
                });
            }
        }
        let squares = squares.get_mut(first..end).unwrap_or_default();
        if end - first == PANEL {
            add_squares(&mut lookup, output, layer.outputs, first, squares);
        } else {
            // Never so in a model: four times a multiple of 8.
            for pixel in output.chunks_exact(layer.outputs.max(1)) {
                for (&index, sum) in pixel.iter().skip(first).zip(squares.iter_mut()) {
                    let value = i32::from(scalar::gelu(gelu.table, index));
                    *sum += u64::from((value * value) as u32);
                }
            }
        }
    }
}

/// Adds the squares of what 16 channels' indices find, from channel `first` on, to their sums.
fn add_squares(lookup: &mut Lookup, output: &[i8], outputs: usize, first: usize, sums: &mut [u64]) {
    if first > outputs || outputs - first < PANEL {
        return;
    }
    for strip in output.chunks(outputs.saturating_mul(BATCH)) {
        let pixels = strip.len() / outputs;
        // 64 squares of 12 bits stay below 2^30.
        let mut acc = [vdupq_n_s32(0); 4];
        // SAFETY: each pixel has sixteen channels from `first` on.
        let found = unsafe { lookup.find(strip.as_ptr().add(first), outputs, pixels) };
        for [a, b] in found {
            acc[0] = vmlal_s16(acc[0], vget_low_s16(a), vget_low_s16(a));
            acc[1] = vmlal_high_s16(acc[1], a, a);
            acc[2] = vmlal_s16(acc[2], vget_low_s16(b), vget_low_s16(b));
            acc[3] = vmlal_high_s16(acc[3], b, b);
        }
        let mut lanes = [[0u32; 4]; 4];
        for (lanes, acc) in lanes.iter_mut().zip(acc) {
            // SAFETY: writes the array.
            unsafe { vst1q_u32(lanes.as_mut_ptr(), vreinterpretq_u32_s32(acc)) };
        }
        sums.iter_mut().zip(lanes.as_flattened()).for_each(|(sum, &square)| *sum += u64::from(square));
    }
}

/// See [`Int8Kernels::project`].
///
/// # Safety
/// The processor has the core's instructions.
#[inline(always)]
pub(super) unsafe fn project<C: Core, const P: usize, const H: usize>(
    input: &[i8],
    layer: &Dense<'_>,
    residual: &mut [i16],
) {
    if !sound(layer) {
        return;
    }
    for first in (0..layer.outputs).step_by(PANEL) {
        let panel = panel(layer, first);
        let core = C::new(panel);
        for c in (first..layer.outputs.min(first + PANEL)).step_by(8) {
            // SAFETY: as the caller promised; the layer is sound, and so has this panel.
            unsafe {
                Half::of(core, input, layer, panel, c).run::<P, H>(|pixel, value| {
                    if let Some(residual) = eight_mut(residual, pixel * layer.outputs + c) {
                        store_i16(residual, vqaddq_s16(load_i16(residual), value));
                    }
                });
            }
        }
    }
}

/// The inner loop of ARMv8.0.
#[derive(Clone, Copy)]
pub(super) struct Pairs {
    /// Two products of a lane may need 17 bits.
    wide: bool,
}

impl Core for Pairs {
    fn new(panel: &[i8]) -> Self {
        let least = panel.as_chunks::<16>().0.iter().fold(vdupq_n_s8(0), |least, weights| {
            // SAFETY: reads the array.
            vminq_s8(least, unsafe { vld1q_s8(weights.as_ptr()) })
        });
        Self { wide: vminvq_s8(least) == i8::MIN }
    }

    #[inline(always)]
    unsafe fn tile<const P: usize>(
        self,
        weight: *const i8,
        bias: [int32x4_t; 2],
        input: [*const i8; P],
        inputs: usize,
    ) -> [[int32x4_t; 2]; P] {
        // SAFETY: as the caller promised.
        unsafe {
            if self.wide {
                pairs::<P, true>(weight, bias, input, inputs)
            } else {
                pairs::<P, false>(weight, bias, input, inputs)
            }
        }
    }
}

/// # Safety
/// As [`Core::tile`]. Unless `WIDE`, no weight is -128.
#[inline(always)]
unsafe fn pairs<const P: usize, const WIDE: bool>(
    weight: *const i8,
    bias: [int32x4_t; 2],
    input: [*const i8; P],
    inputs: usize,
) -> [[int32x4_t; 2]; P] {
    let mut acc = [[vdupq_n_s32(0); 4]; P];
    for k in (0..inputs).step_by(2 * GROUP) {
        // Two groups of four inputs, of two outputs a register. Not as whole registers: the compiler would copy their upper halves.
        let mut weights = [[vdup_n_s8(0); 4]; 2];
        for (i, pair) in weights.as_flattened_mut().iter_mut().enumerate() {
            // SAFETY: 32 bytes of each group, as the caller promised.
            *pair = unsafe { vld1_s8(weight.add(k * PANEL + i / 4 * STEP + i % 4 * 8)) };
        }
        // SAFETY: eight inputs from `k` on, as the caller promised; the words may stand anywhere.
        let words = |pixel: usize| unsafe {
            let at = input[pixel].add(k).cast::<i32>();
            [at.read_unaligned(), at.add(1).read_unaligned()].map(|v| vreinterpret_s8_s32(vdup_n_s32(v)))
        };
        let mut next = words(0);
        for pixel in 0..P {
            let [x, z] = next;
            if pixel + 1 < P {
                next = words(pixel + 1);
            }
            if WIDE {
                for (i, acc) in acc[pixel].iter_mut().enumerate() {
                    *acc = vpadalq_s16(vpadalq_s16(*acc, vmull_s8(weights[0][i], x)), vmull_s8(weights[1][i], z));
                }
            } else {
                pair_up(&mut acc[pixel], &weights, x, z);
            }
        }
    }
    let mut sums = [bias; P];
    for (sums, acc) in sums.iter_mut().zip(acc) {
        *sums = [vaddq_s32(sums[0], vpaddq_s32(acc[0], acc[1])), vaddq_s32(sums[1], vpaddq_s32(acc[2], acc[3]))];
    }
    sums
}

/// Adds the products of eight inputs of a pixel; no weight is -128. In assembly, and said to touch memory, because the compiler would
/// mix the instructions and loads of four pixels until the accumulators no longer fit the registers.
#[inline(always)]
fn pair_up(acc: &mut [int32x4_t; 4], weights: &[[int8x8_t; 4]; 2], x: int8x8_t, z: int8x8_t) {
    // SAFETY: works on registers alone, with instructions of ARMv8.0.
    unsafe {
        asm!(
            "smull {s:v}.8h, {a0:v}.8b, {x:v}.8b",
            "smull {t:v}.8h, {a1:v}.8b, {x:v}.8b",
            "smull {u:v}.8h, {a2:v}.8b, {x:v}.8b",
            "smull {v:v}.8h, {a3:v}.8b, {x:v}.8b",
            "smlal {s:v}.8h, {b0:v}.8b, {z:v}.8b",
            "smlal {t:v}.8h, {b1:v}.8b, {z:v}.8b",
            "smlal {u:v}.8h, {b2:v}.8b, {z:v}.8b",
            "smlal {v:v}.8h, {b3:v}.8b, {z:v}.8b",
            "sadalp {acc0:v}.4s, {s:v}.8h",
            "sadalp {acc1:v}.4s, {t:v}.8h",
            "sadalp {acc2:v}.4s, {u:v}.8h",
            "sadalp {acc3:v}.4s, {v:v}.8h",
            acc0 = inout(vreg) acc[0],
            acc1 = inout(vreg) acc[1],
            acc2 = inout(vreg) acc[2],
            acc3 = inout(vreg) acc[3],
            a0 = in(vreg) weights[0][0],
            a1 = in(vreg) weights[0][1],
            a2 = in(vreg) weights[0][2],
            a3 = in(vreg) weights[0][3],
            b0 = in(vreg) weights[1][0],
            b1 = in(vreg) weights[1][1],
            b2 = in(vreg) weights[1][2],
            b3 = in(vreg) weights[1][3],
            x = in(vreg) x,
            z = in(vreg) z,
            s = out(vreg) _,
            t = out(vreg) _,
            u = out(vreg) _,
            v = out(vreg) _,
            options(nostack, preserves_flags),
        );
    }
}
