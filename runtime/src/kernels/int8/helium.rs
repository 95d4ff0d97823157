//! Cortex-M55 and M85: the vectors of Helium (MVE), eight registers of 16 bytes.
//!
//! VMLADAVA multiplies 16 pairs of bytes (or 8 of 16-bit values), adds all products, and adds the sum to a general register.
//!
//! **Layout.** The 16 inputs that it takes are four words of a panel, 64 bytes apart: one gathering load, with an address in each lane that
//! it advances itself. Three pixels' activations are copied into a scratch `[inputs / 16, 3, 16]`, from which all outputs read in order.
//!
//! **Registers.** Accumulators must have even numbers, and LR counts the loop: six of them, two outputs by three pixels. Vectors: two
//! of weights, two of their addresses, two of activations, two where the next outputs begin.
//!
//! **Why this tile.** For 16 inputs: two gathers, three loads, six VMLADAVA and the loop's end: 12 instructions for 96 multiply-adds, 0.125
//! each; one output by six pixels would take 0.15.
//!
//! **Results.** Sums of eight outputs of one pixel are gathered, evens and odds apart, so that VQMOVNB and VQMOVNT narrow them into
//! their order; VQRDMULH is the Q15 product with its rounding. The depthwise convolution has a kernel row of eight 16-bit weights (the last
//! is 0) in a register each: a load and a VMLADAVA for seven multiply-adds. What is not here is `cortex_m.rs`'s, or the compiler's.
//!
//! **Measured** under QEMU with `-icount` (instructions, not cycles; `cargo xtask qemu`): zepto takes 28.3 M
//! a tile, 0.48 a multiply-add.
//!
//! **Stack.** At most 5.5 KiB.
//!
//! Stable Rust has no intrinsics for these instructions. The assembler has them where the compiler is told `-C target-cpu=cortex-m55`;
//! `runtime/build.rs` looks for that.
#![allow(unsafe_code)]

use super::cortex_m::{self, dense};
use super::{DEPTHWISE_SIDE, Dense, GROUP, Gelu, Int8Kernels, PANEL, Table, scalar};
use core::arch::naked_asm;
use core::mem::MaybeUninit;

/// VMLADAVA and its kin.
pub static HELIUM: Int8Kernels = Int8Kernels {
    name: "helium",
    depthwise: |rows, area, layer, output| cortex_m::depthwise::depthwise::<Vectors>(rows, area, layer, output),
    initial,
    // The compiler knows these vectors too.
    affine: |values, gain, offset, shift| scalar::affine(values, gain, offset, shift),
    layer_norm: |values, norm, output| scalar::layer_norm::<0>(values, norm, output, crate::kernels::fixed::isqrt32),
    layer_norm_i16: |values, norm| scalar::layer_norm_i16(values, norm, crate::kernels::fixed::isqrt32),
    expand,
    activate,
    project,
    ..cortex_m::DSP
};

/// Pixels of a tile.
const PIXELS: usize = 3;
/// Inputs of a VMLADAVA.
const STEP: usize = 16;
/// Inputs that are copied at a time.
const INPUTS: usize = 768;
/// Outputs whose sums are kept at a time.
const OUTPUTS: usize = 64;

/// Bytes from the word of one group of inputs to the next: those of a gather, one step back because it advances first.
static GROUPS: [i32; 4] = [-256, -192, -128, -64];
/// Bytes between the sums of every second output of a tile.
static EVENS: [u32; 4] = evens(PIXELS);

/// Bytes between the sums of every second output of tiles of `pixels`.
const fn evens(pixels: usize) -> [u32; 4] {
    let second = 2 * (pixels * size_of::<i32>()) as u32;
    [0, second, 2 * second, 3 * second]
}

/// What a run over some outputs of one panel needs, in the order of the registers that it is loaded into.
#[repr(C)]
struct Sweep {
    weight: *const i8,
    groups: *const i32,
    /// Two outputs each.
    pairs: usize,
    /// Groups of four inputs in the last, incomplete step.
    rest: usize,
    activations: *const u8,
    /// Complete steps.
    steps: usize,
    sums: *mut i32,
}

/// Adds the products of three pixels to `[outputs, 3]` sums.
///
/// # Safety
/// `sweep` points to ranges that exist; there is at least one pair.
#[unsafe(naked)]
unsafe extern "C" fn sweep_dense(sweep: *const Sweep) {
    naked_asm!(
        env!("NADIR_ASSEMBLER_CPU"),
        "push {{r4-r11, lr}}",
        "sub sp, #4",
        "vpush {{d8-d15}}",
        // weight, groups, pairs, rest, activations, steps, sums
        "ldm r0, {{r1, r3, r5, r7, r9, r11, r12}}",
        "vldrw.u32 q4, [r3]",
        "vadd.i32 q4, q4, r1",
        "1:",
        "movs r3, #4",
        "vadd.i32 q3, q4, r3",
        "vmov q2, q4",
        "ldm.w r12, {{r0, r2, r4, r6, r8, r10}}",
        "mov r1, r9",
        "wls lr, r11, 3f",
        "2:",
        "vldrw.u32 q0, [q2, #256]!",
        "vldrb.u8 q6, [r1], #16",
        "vmladava.s8 r0, q0, q6",
        "vldrw.u32 q1, [q3, #256]!",
        "vmladava.s8 r6, q1, q6",
        "vldrb.u8 q7, [r1], #16",
        "vmladava.s8 r2, q0, q7",
        "vmladava.s8 r8, q1, q7",
        "vldrb.u8 q6, [r1], #16",
        "vmladava.s8 r4, q0, q6",
        "vmladava.s8 r10, q1, q6",
        "le lr, 2b",
        "3:",
        "cbz r7, 4f",
        "vctp.32 r7",
        "vpstt",
        "vldrwt.u32 q0, [q2, #256]",
        "vldrwt.u32 q1, [q3, #256]",
        "vldrb.u8 q6, [r1], #16",
        "vmladava.s8 r0, q0, q6",
        "vmladava.s8 r6, q1, q6",
        "vldrb.u8 q7, [r1], #16",
        "vmladava.s8 r2, q0, q7",
        "vmladava.s8 r8, q1, q7",
        "vldrb.u8 q6, [r1], #16",
        "vmladava.s8 r4, q0, q6",
        "vmladava.s8 r10, q1, q6",
        "4:",
        "stm.w r12!, {{r0, r2, r4, r6, r8, r10}}",
        "movs r3, #8",
        "vadd.i32 q4, q4, r3",
        "subs r5, #1",
        "bne 1b",
        "vpop {{d8-d15}}",
        "add sp, #4",
        "pop {{r4-r11, pc}}",
    )
}

/// What turns the sums of one pixel into GELU indices.
#[repr(C)]
struct Indices {
    /// Every third one is the pixel's.
    sums: *const i32,
    multiplier: *const i16,
    output: *mut i8,
    /// Added to; of each eight outputs the even ones first.
    squares: *mut u32,
    table: *const i16,
    /// Eight outputs each.
    rounds: usize,
    /// To the left, hence negative.
    shift: i32,
    zero_point: i32,
    evens: *const u32,
}

/// # Safety
/// `indices` points to ranges that exist; there is at least one round.
#[unsafe(naked)]
unsafe extern "C" fn finish_expand(indices: *const Indices) {
    naked_asm!(
        env!("NADIR_ASSEMBLER_CPU"),
        "push {{r4-r10, lr}}",
        "vpush {{d8-d15}}",
        // sums, multiplier, output, squares, table, rounds, shift, zero point, evens
        "ldm r0, {{r1-r9}}",
        "vldrw.u32 q7, [r9]",
        "vmov.i16 q6, #127",
        "vmvn.i16 q5, #127",
        "mov r9, #128",
        "dls lr, r6",
        "1:",
        "vldrw.u32 q0, [r1, q7]",
        "add.w r0, r1, #12",
        "vldrw.u32 q1, [r0, q7]",
        "adds r1, #96",
        "vshl.s32 q0, r7",
        "vshl.s32 q1, r7",
        "vqmovnb.s32 q0, q0",
        "vqmovnt.s32 q0, q1",
        "vldrh.u16 q1, [r2], #16",
        "vqrdmulh.s16 q0, q0, q1",
        "vqadd.s16 q0, q0, r8",
        "vmin.s16 q0, q0, q6",
        "vmax.s16 q0, q0, q5",
        "vstrb.16 q0, [r3], #8",
        "vadd.i16 q0, q0, r9",
        "vldrh.u16 q1, [r5, q0, uxtw #1]",
        "vmullb.s16 q0, q1, q1",
        "vmullt.s16 q2, q1, q1",
        "vldrw.u32 q1, [r4]",
        "vldrw.u32 q3, [r4, #16]",
        "vadd.i32 q0, q0, q1",
        "vadd.i32 q2, q2, q3",
        "vstrw.32 q0, [r4], #16",
        "vstrw.32 q2, [r4], #16",
        "le lr, 1b",
        "vpop {{d8-d15}}",
        "pop {{r4-r10, pc}}",
    )
}

/// What adds the results of one pixel to the residual map.
#[repr(C)]
struct Residual {
    /// Every so many-th one is the pixel's.
    sums: *const i32,
    multiplier: *const i16,
    output: *mut i16,
    /// Eight outputs each.
    rounds: usize,
    /// To the left, hence negative.
    shift: i32,
    evens: *const u32,
    /// Bytes from one output's sums to the next.
    stride: usize,
}

/// # Safety
/// `residual` points to ranges that exist; there is at least one round.
#[unsafe(naked)]
unsafe extern "C" fn finish_project(residual: *const Residual) {
    naked_asm!(
        env!("NADIR_ASSEMBLER_CPU"),
        "push {{r4-r8, lr}}",
        // sums, multiplier, output, rounds, shift, evens, stride
        "ldm r0, {{r1-r7}}",
        "vldrw.u32 q3, [r6]",
        "dls lr, r4",
        "1:",
        "vldrw.u32 q0, [r1, q3]",
        "add.w r0, r1, r7",
        "vldrw.u32 q1, [r0, q3]",
        "add.w r1, r1, r7, lsl #3",
        "vshl.s32 q0, r5",
        "vshl.s32 q1, r5",
        "vqmovnb.s32 q0, q0",
        "vqmovnt.s32 q0, q1",
        "vldrh.u16 q1, [r2], #16",
        "vqrdmulh.s16 q0, q0, q1",
        "vldrh.u16 q1, [r3]",
        "vqadd.s16 q0, q0, q1",
        "vstrh.16 q0, [r3], #16",
        "le lr, 1b",
        "pop {{r4-r8, pc}}",
    )
}

/// The table's values, times the multipliers, in place.
///
/// # Safety
/// There are `8 * rounds` values and multipliers, and at least one round; `table` has 256 entries.
#[unsafe(naked)]
unsafe extern "C" fn activate_pixel(values: *mut i8, table: *const i16, multipliers: *const i16, rounds: usize) {
    naked_asm!(
        env!("NADIR_ASSEMBLER_CPU"),
        "push {{r4, lr}}",
        "vmov.i16 q3, #127",
        "vmvn.i16 q2, #127",
        "mov r4, #128",
        "dls lr, r3",
        "1:",
        "vldrb.s16 q0, [r0]",
        "vadd.i16 q0, q0, r4",
        "vldrh.u16 q1, [r1, q0, uxtw #1]",
        "vldrh.u16 q0, [r2], #16",
        "vqrdmulh.s16 q0, q0, q1",
        "vmin.s16 q0, q0, q3",
        "vmax.s16 q0, q0, q2",
        "vstrb.16 q0, [r0], #8",
        "le lr, 1b",
        "pop {{r4, pc}}",
    )
}

/// The depthwise convolution's way with rows.
struct Vectors;

/// Seven weights and a zero.
type RowWeights = [i16; DEPTHWISE_SIDE + 1];

impl cortex_m::depthwise::Scheme for Vectors {
    type RowWeights = RowWeights;

    #[inline(always)]
    fn pack([a, b, c, d, e, f, g]: [i16; DEPTHWISE_SIDE]) -> RowWeights {
        [a, b, c, d, e, f, g, 0]
    }

    #[inline(always)]
    unsafe fn sweep(
        sums: *mut i32,
        outputs: usize,
        plane: *const i16,
        weight: *const RowWeights,
        _rows: core::ops::Range<usize>,
        bias: i32,
    ) {
        let sweep = RowSweep { sums, outputs, plane, weight, bias };
        // SAFETY: the caller's; rows beyond the map are zeros.
        unsafe { sweep_rows(&sweep) }
    }
}

/// A row of outputs of the depthwise convolution, in the order of the registers that it is loaded into.
#[repr(C)]
struct RowSweep {
    sums: *mut i32,
    outputs: usize,
    plane: *const i16,
    weight: *const RowWeights,
    bias: i32,
}

/// # Safety
/// `sweep` points to ranges that exist; there is at least one output.
#[unsafe(naked)]
unsafe extern "C" fn sweep_rows(sweep: *const RowSweep) {
    naked_asm!(
        env!("NADIR_ASSEMBLER_CPU"),
        "push {{r4-r6, lr}}",
        "vpush {{d8-d15}}",
        // sums, outputs, plane, weight, bias
        "ldm r0, {{r1-r5}}",
        "vldrh.u16 q0, [r4], #16",
        "vldrh.u16 q1, [r4], #16",
        "vldrh.u16 q2, [r4], #16",
        "vldrh.u16 q3, [r4], #16",
        "vldrh.u16 q4, [r4], #16",
        "vldrh.u16 q5, [r4], #16",
        "vldrh.u16 q6, [r4]",
        "dls lr, r2",
        "1:",
        "mov r0, r3",
        "mov r6, r5",
        "vldrh.u16 q7, [r0], #{pitch}",
        "vmladava.s16 r6, q0, q7",
        "vldrh.u16 q7, [r0], #{pitch}",
        "vmladava.s16 r6, q1, q7",
        "vldrh.u16 q7, [r0], #{pitch}",
        "vmladava.s16 r6, q2, q7",
        "vldrh.u16 q7, [r0], #{pitch}",
        "vmladava.s16 r6, q3, q7",
        "vldrh.u16 q7, [r0], #{pitch}",
        "vmladava.s16 r6, q4, q7",
        "vldrh.u16 q7, [r0], #{pitch}",
        "vmladava.s16 r6, q5, q7",
        "vldrh.u16 q7, [r0], #{pitch}",
        "vmladava.s16 r6, q6, q7",
        "str r6, [r1], #4",
        "adds r3, #2",
        "le lr, 1b",
        "vpop {{d8-d15}}",
        "pop {{r4-r6, pc}}",
        pitch = const cortex_m::depthwise::PITCH * size_of::<i16>(),
    )
}

/// Where a tile of finished sums belongs.
struct Tile {
    pixel: usize,
    pixels: usize,
    output: usize,
    outputs: usize,
    /// `[outputs, 3]`.
    sums: *const i32,
}

/// The sums of all pixels for some outputs, bias included, tile by tile.
///
/// # Safety
/// `input` has `pixels` pixels, the layer is sound, and has the outputs.
unsafe fn tiles(
    input: *const i8,
    pixels: usize,
    layer: &Dense<'_>,
    outputs: core::ops::Range<usize>,
    mut finish: impl FnMut(&Tile),
) {
    let mut activations = MaybeUninit::<[i8; INPUTS * PIXELS]>::uninit();
    let mut sums = MaybeUninit::<[i32; OUTPUTS * PIXELS]>::uninit();
    let (activations, sums) = (activations.as_mut_ptr().cast::<i8>(), sums.as_mut_ptr().cast::<i32>());
    for pixel in (0..pixels).step_by(PIXELS) {
        let count = (pixels - pixel).min(PIXELS);
        for (place, &bias) in layer.bias.get(outputs.clone()).unwrap_or_default().iter().enumerate() {
            // SAFETY: there are at most OUTPUTS outputs.
            unsafe { sums.cast::<[i32; PIXELS]>().add(place).write([bias; PIXELS]) };
        }
        for first in (0..layer.inputs).step_by(INPUTS) {
            let some = (layer.inputs - first).min(INPUTS);
            // SAFETY: a tile's missing pixels repeat its last one; whole steps of at most INPUTS inputs fit, and so does the rest.
            unsafe {
                for place in 0..PIXELS {
                    let from = input.add((pixel + place.min(count - 1)) * layer.inputs + first);
                    let to = activations.add(place * STEP);
                    for step in 0..some / STEP {
                        let sixteen = from.add(step * STEP).cast::<[u32; 4]>().read_unaligned();
                        to.add(step * STEP * PIXELS).cast::<[u32; 4]>().write_unaligned(sixteen);
                    }
                    let done = some / STEP * STEP;
                    for group in 0..(some - done) / GROUP {
                        let four = from.add(done + group * GROUP).cast::<u32>().read_unaligned();
                        to.add(done * PIXELS + group * GROUP).cast::<u32>().write_unaligned(four);
                    }
                }
                for output in outputs.clone().step_by(PANEL) {
                    let place = output - outputs.start;
                    sweep_dense(&Sweep {
                        weight: layer.weight.as_ptr().add(output * layer.inputs + first * PANEL),
                        groups: GROUPS.as_ptr(),
                        pairs: (outputs.end - output).min(PANEL) / 2,
                        rest: some % STEP / GROUP,
                        activations: activations.cast(),
                        steps: some / STEP,
                        sums: sums.add(place * PIXELS),
                    });
                }
            }
        }
        finish(&Tile { pixel, pixels: count, output: outputs.start, outputs: outputs.len(), sums });
    }
}

fn project(input: &[i8], layer: &Dense<'_>, residual: &mut [i16]) {
    let pixels = residual.len() / layer.outputs.max(1);
    if !dense::sound(layer) || !layer.outputs.is_multiple_of(8) || input.len() / layer.inputs < pixels {
        debug_assert!(false, "a projection of impossible shape");
        return;
    }
    let residual = residual.as_mut_ptr();
    for output in (0..layer.outputs).step_by(OUTPUTS) {
        let outputs = output..(output + OUTPUTS).min(layer.outputs);
        // SAFETY: inputs and outputs are there, as was checked; the tile names those that exist.
        unsafe {
            tiles(input.as_ptr(), pixels, layer, outputs, |tile| {
                for pixel in 0..tile.pixels {
                    finish_project(&Residual {
                        sums: tile.sums.add(pixel),
                        multiplier: layer.multiplier.as_ptr().add(tile.output),
                        output: residual.add((tile.pixel + pixel) * layer.outputs + tile.output),
                        rounds: tile.outputs / 8,
                        shift: -((layer.shift & 31) as i32),
                        evens: EVENS.as_ptr(),
                        stride: PIXELS * size_of::<i32>(),
                    });
                }
            });
        }
    }
}

/// SMLAD multiplies, because the inputs have 16 bits.
fn initial(rows: [&[i16]; 3], bands: usize, layer: &Dense<'_>, output: &mut [i16]) {
    static WIDE: [u32; 4] = evens(dense::WIDE);
    static NARROW: [u32; 4] = evens(dense::NARROW);
    let pixels = output.len() / layer.outputs.max(1);
    let Some(source) = dense::Window::new(rows, bands, layer, pixels).filter(|_| layer.outputs.is_multiple_of(8))
    else {
        debug_assert!(false, "an initial convolution of impossible shape");
        return;
    };
    output.fill(0);
    let output = output.as_mut_ptr();
    // SAFETY: `Window::new` checked the rows and the layer; `sums` names pixels and outputs that exist.
    unsafe {
        dense::dense(&source, pixels, layer, |sums| {
            for pixel in 0..sums.pixels {
                finish_project(&Residual {
                    sums: sums.start.add(pixel),
                    multiplier: layer.multiplier.as_ptr().add(sums.output),
                    output: output.add((sums.pixel + pixel) * layer.outputs + sums.output),
                    rounds: sums.outputs / 8,
                    shift: -((layer.shift & 31) as i32),
                    evens: if sums.stride == dense::WIDE { WIDE.as_ptr() } else { NARROW.as_ptr() },
                    stride: sums.stride * size_of::<i32>(),
                });
            }
        });
    }
}

fn expand(input: &[i8], layer: &Dense<'_>, gelu: &Gelu<'_>, output: &mut [i8], squares: &mut [u64]) {
    let pixels = output.len() / layer.outputs.max(1);
    let shape = dense::sound(layer) && layer.outputs.is_multiple_of(8) && squares.len() >= layer.outputs;
    if !shape || input.len() / layer.inputs < pixels {
        debug_assert!(false, "an expansion of impossible shape");
        return;
    }
    let to = output.as_mut_ptr();
    for output in (0..layer.outputs).step_by(OUTPUTS) {
        let outputs = output..(output + OUTPUTS).min(layer.outputs);
        // A strip's squares fit 32 bits.
        let mut strip = [0u32; OUTPUTS];
        // SAFETY: inputs and outputs are there, as was checked; the tile names those that exist.
        unsafe {
            tiles(input.as_ptr(), pixels, layer, outputs.clone(), |tile| {
                for pixel in 0..tile.pixels {
                    finish_expand(&Indices {
                        sums: tile.sums.add(pixel),
                        multiplier: layer.multiplier.as_ptr().add(tile.output),
                        output: to.add((tile.pixel + pixel) * layer.outputs + tile.output),
                        squares: strip.as_mut_ptr(),
                        table: gelu.table.as_ptr(),
                        rounds: tile.outputs / 8,
                        shift: -((layer.shift & 31) as i32),
                        zero_point: gelu.zero_point,
                        evens: EVENS.as_ptr(),
                    });
                }
            });
        }
        let squares = squares.get_mut(outputs).unwrap_or_default();
        for (squares, strip) in squares.as_chunks_mut::<8>().0.iter_mut().zip(strip.as_chunks::<8>().0) {
            for (place, square) in squares.iter_mut().enumerate() {
                *square += u64::from(strip[place / 2 + place % 2 * 4]);
            }
        }
    }
}

fn activate(values: &mut [i8], table: &Table, multipliers: &[i16]) {
    let rounds = multipliers.len() / 8;
    if rounds == 0 || !multipliers.len().is_multiple_of(8) {
        debug_assert!(false, "channels that are no multiple of 8");
        return;
    }
    for pixel in values.chunks_exact_mut(multipliers.len().max(1)) {
        // SAFETY: the pixel has as many values as there are multipliers.
        unsafe { activate_pixel(pixel.as_mut_ptr(), table.as_ptr(), multipliers.as_ptr(), rounds) };
    }
}
