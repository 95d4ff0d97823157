//! Matrix layers with SMLAD: six pixels of one output at a time.
//!
//! **Layout.** A word of a panel holds four inputs of one output. Two SXTB16 (one with ROR 8) make two pairs of it: inputs 0 and 2, and
//! inputs 1 and 3. The activations of six pixels are widened once, in that order, into a scratch on the stack,
//! `[inputs / 4, pixels, 2 pairs]`; all outputs then read the scratch from front to back with LDM, which needs no addition to a pointer.
//!
//! **Registers.** Six accumulators, four of activations (two pixels), two of the weights, the two pointers: all 14. The end of the
//! weights waits on the stack and is compared once in eight words.
//!
//! **Why this tile.** For four inputs: one load and two SXTB16 of weights, then for each two pixels one LDM and four SMLAD: 18 instructions
//! for 24 multiply-adds, 0.75 each. Two outputs by three pixels take 0.83, two by two 0.94, one output by four pixels 0.81 (which is what
//! the last pixels of a strip get). SMLAD alone would be 0.5; widening the weights into a scratch as well would reach 0.63, but pays
//! only over more pixels than the stack has room for.
//!
//! Eight words are written out, and a layer whose words are no multiple of eight enters them further down.
//!
//! **Measured.** See `cortex_m.rs`.
//!
//! **Stack.** 6 KiB: more than [`INPUTS`] inputs go in several passes, more than [`OUTPUTS`] outputs likewise.

use super::instructions::*;
use crate::kernels::int8::{Dense, GROUP, PANEL};
use core::arch::naked_asm;
use core::mem::MaybeUninit;
use core::num::NonZero;

/// Inputs that are widened at a time.
const INPUTS: usize = 384;
/// Outputs whose sums are kept at a time.
pub const OUTPUTS: usize = 64;
/// Pixels of the larger tile.
pub const WIDE: usize = 6;
/// Pixels of the smaller tile.
pub const NARROW: usize = 4;

/// What a run over some outputs of one panel needs; the order is that of the registers that the assembly loads it into.
#[repr(C)]
struct Sweep {
    /// Word of the first input of the first output.
    weight: *const i8,
    /// Weights end here.
    end: *const i8,
    /// `[inputs / 4, pixels, 2]`.
    activations: *const u32,
    /// `[outputs, pixels]`, added to.
    sums: *mut i32,
    /// End of these.
    sums_end: *mut i32,
    /// Bytes of code to skip before the first word.
    skip: usize,
    /// From the end of the weights of one output to the beginning of those of the next.
    step: isize,
}

/// Words of weights that the loops have written out.
const UNROLLED: usize = 8;

/// A function over a [`Sweep`]: accumulators, how many instructions a word takes, and the products of a word.
macro_rules! sweep {
    ($(#[$doc:meta])* $name:ident, $sums:literal, $($product:literal),*) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// `sweep` points to ranges that exist; there is at least one word and one output.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(sweep: *const Sweep) {
            naked_asm!(
                env!("NADIR_ASSEMBLER_CPU"),
                "push {{r4-r11, lr}}",
                "sub sp, #28",
                // weight, end, activations, sums, sums_end, skip, step
                "ldm r0, {{r6-r12}}",
                "adr.w r5, 2f",
                "add r5, r5, r11",
                "orr r5, r5, #1",
                // On the stack: end, sums, sums_end, activations, entry, step.
                "strd r7, r9, [sp]",
                "strd r10, r8, [sp, #8]",
                "strd r5, r12, [sp, #16]",
                "mov r12, r6",
                "mov lr, r8",
                "mov r10, r5",
                concat!("ldm r9, {{", $sums, "}}"),
                "bx r10",
                // Alignment of the section too, on which ADR relies.
                ".p2align 2",
                "2:",
                ".rept 8",
                "ldr r10, [r12], #64",
                "ldm.w lr!, {{r6-r9}}",
                "sxtb16 r11, r10, ror #8",
                "sxtb16 r10, r10",
                $($product,)*
                ".endr",
                "ldr r6, [sp]",
                "cmp r12, r6",
                "blo.w 2b",
                // The next output.
                "ldm sp, {{r6-r11}}",
                concat!("stm r7!, {{", $sums, "}}"),
                "cmp r7, r8",
                "beq 3f",
                concat!("ldm r7, {{", $sums, "}}"),
                "str r7, [sp, #4]",
                "add r12, r12, r11",
                "mov lr, r9",
                "bx r10",
                "3:",
                "add sp, #28",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

sweep! {
    /// Six pixels.
    sweep_wide, "r0-r5",
    "smlad r0, r6, r10, r0", "smlad r1, r8, r10, r1", "smlad r0, r7, r11, r0", "smlad r1, r9, r11, r1", "ldm.w lr!, {{r6-r9}}",
    "smlad r2, r6, r10, r2", "smlad r3, r8, r10, r3", "smlad r2, r7, r11, r2", "smlad r3, r9, r11, r3", "ldm.w lr!, {{r6-r9}}",
    "smlad r4, r6, r10, r4", "smlad r5, r8, r10, r5", "smlad r4, r7, r11, r4", "smlad r5, r9, r11, r5"
}

sweep! {
    /// Four pixels.
    sweep_narrow, "r0-r3",
    "smlad r0, r6, r10, r0", "smlad r1, r8, r10, r1", "smlad r0, r7, r11, r0", "smlad r1, r9, r11, r1", "ldm.w lr!, {{r6-r9}}",
    "smlad r2, r6, r10, r2", "smlad r3, r8, r10, r3", "smlad r2, r7, r11, r2", "smlad r3, r9, r11, r3"
}

/// Bytes of code for a word: every instruction has four.
const fn word_code(pixels: usize) -> usize {
    // Load, two widenings; a load and four products for two pixels.
    (3 + pixels / 2 * 5) * 4
}

/// Pairs of four inputs of one pixel: 0 and 2, 1 and 3.
pub type Pairs = [u32; 2];

/// Where the inputs of a layer come from.
pub trait Source {
    /// Widens `groups` groups of four inputs of `pixel`, from group `first` on, into every `stride`-th place of `wide`.
    ///
    /// # Safety
    /// `pixel` and the groups exist, and so do the places.
    unsafe fn widen(&self, pixel: usize, first: usize, groups: usize, wide: *mut Pairs, stride: usize);
}

/// Bytes `[pixels, inputs]`.
pub struct Bytes {
    /// The first one.
    pub start: *const i8,
    /// Of a pixel.
    pub inputs: usize,
}

impl Source for Bytes {
    #[inline(always)]
    unsafe fn widen(&self, pixel: usize, first: usize, groups: usize, wide: *mut Pairs, stride: usize) {
        // SAFETY: the caller's.
        unsafe {
            let from = self.start.add(pixel * self.inputs + first * GROUP).cast::<u32>();
            for group in 0..groups {
                let bytes = from.add(group).read_unaligned();
                wide.add(group * stride).write([sxtb16(bytes), sxtb16_ror8(bytes)]);
            }
        }
    }
}

/// Three rows of pixels of 16 bits, of which a 3x3 convolution takes three neighbours.
pub struct Window {
    /// Their first values.
    pub rows: [*const i16; 3],
    /// Values of a pixel.
    pub bands: usize,
    /// Groups of four inputs that a row gives.
    pub groups: NonZero<usize>,
}

impl Window {
    /// The window over rows that are long enough for `pixels` pixels of a [`sound`] layer.
    pub fn new(rows: [&[i16]; 3], bands: usize, layer: &Dense<'_>, pixels: usize) -> Option<Self> {
        let values = pixels.saturating_sub(1).checked_mul(bands)?.checked_add(layer.inputs / 3)?;
        let fits = sound(layer) && layer.inputs.is_multiple_of(3 * GROUP) && rows.iter().all(|row| row.len() >= values);
        let groups = NonZero::new(layer.inputs / (3 * GROUP)).filter(|_| fits)?;
        Some(Self { rows: rows.map(<[i16]>::as_ptr), bands, groups })
    }
}

impl Source for Window {
    #[inline(always)]
    unsafe fn widen(&self, pixel: usize, first: usize, groups: usize, wide: *mut Pairs, stride: usize) {
        for group in 0..groups {
            let at = first + group;
            // SAFETY: the caller's: there are groups in three rows.
            unsafe {
                let row = self
                    .rows
                    .get_unchecked(at / self.groups)
                    .add(pixel * self.bands + at % self.groups * GROUP)
                    .cast::<u32>();
                let (low, high) = (row.read_unaligned(), row.add(1).read_unaligned());
                wide.add(group * stride).write([pkhbt(low, high), pkhtb(high, low)]);
            }
        }
    }
}

/// A rectangle of finished sums.
pub struct Sums {
    /// First pixel.
    pub pixel: usize,
    /// Pixels that count.
    pub pixels: usize,
    /// First output.
    pub output: usize,
    /// Outputs.
    pub outputs: usize,
    /// `[outputs, stride]`.
    pub start: *const i32,
    /// Sums from one output to the next.
    pub stride: usize,
}

/// Whether the slices of a layer have the lengths that its shape says; a layer that fails is left undone.
pub fn sound(layer: &Dense<'_>) -> bool {
    layer.complete() && layer.bias.len() >= layer.outputs && layer.multiplier.len() >= layer.outputs
}

/// The sums of `pixels` pixels, bias included, tile by tile.
///
/// # Safety
/// `source` has `pixels` pixels of the layer's inputs, and the layer is [`sound`].
pub unsafe fn dense(source: &impl Source, pixels: usize, layer: &Dense<'_>, mut finish: impl FnMut(&Sums)) {
    let mut wide = MaybeUninit::<[Pairs; INPUTS / GROUP * WIDE]>::uninit();
    let mut sums = MaybeUninit::<[i32; OUTPUTS * WIDE]>::uninit();
    let (wide, sums) = (wide.as_mut_ptr().cast::<Pairs>(), sums.as_mut_ptr().cast::<i32>());
    let groups = layer.inputs / GROUP;
    let mut pixel = 0;
    while pixel < pixels {
        let left = pixels - pixel;
        // Four and four are better than six and two.
        let tile = if left <= NARROW || left == 2 * NARROW { NARROW } else { WIDE };
        let count = left.min(tile);
        for output in (0..layer.outputs).step_by(OUTPUTS) {
            let outputs = (layer.outputs - output).min(OUTPUTS);
            // SAFETY: there are `outputs` biases from `output` on, and room for OUTPUTS * WIDE sums.
            unsafe {
                let bias = layer.bias.as_ptr().add(output);
                if tile == WIDE {
                    broadcast::<WIDE>(bias, outputs, sums);
                } else {
                    broadcast::<NARROW>(bias, outputs, sums);
                }
            }
            for first in (0..groups).step_by(INPUTS / GROUP) {
                let some = (groups - first).min(INPUTS / GROUP);
                if output == 0 || groups > INPUTS / GROUP {
                    for place in 0..tile {
                        // SAFETY: pixels that do not count repeat the last one; there is room for INPUTS inputs of WIDE pixels.
                        unsafe { source.widen(pixel + place.min(count - 1), first, some, wide.add(place), tile) };
                    }
                }
                for panel in (0..outputs).step_by(PANEL) {
                    let those = (outputs - panel).min(PANEL);
                    // SAFETY: the panel of `output + panel` holds `groups` times 64 weights; `sums` begins with `outputs` rows.
                    unsafe {
                        let weight = layer.weight.as_ptr().add((output + panel) * layer.inputs + first * PANEL * GROUP);
                        let sweep = Sweep {
                            weight,
                            end: weight.add(some * PANEL * GROUP),
                            activations: wide.cast(),
                            sums: sums.add(panel * tile),
                            sums_end: sums.add((panel + those) * tile),
                            skip: (UNROLLED - 1 - (some - 1) % UNROLLED) * word_code(tile),
                            step: GROUP as isize - (some * PANEL * GROUP) as isize,
                        };
                        if tile == WIDE { sweep_wide(&sweep) } else { sweep_narrow(&sweep) }
                    }
                }
            }
            finish(&Sums { pixel, pixels: count, output, outputs, start: sums, stride: tile });
        }
        pixel += count;
    }
}

/// Each bias, once for every pixel.
///
/// # Safety
/// There are `outputs` biases, and room for `P` times as many sums.
#[inline(always)]
unsafe fn broadcast<const P: usize>(bias: *const i32, outputs: usize, sums: *mut i32) {
    for output in 0..outputs {
        // SAFETY: the caller's.
        unsafe { sums.cast::<[i32; P]>().add(output).write([*bias.add(output); P]) };
    }
}
